"""Stage data: faces prepared once, and scenes for the detectors."""

import json
from pathlib import Path

import numpy as np

from holdfast.data import DATASETS
from holdfast.data.synthetic import render_scenes as render
from holdfast.errors import HoldfastError
from holdfast.files import read_json, write_text, writing
from holdfast.progress import Progress
from holdfast.seeds import seed_of
from holdfast.stages.common import own_settings


def prepare_faces(config, name, folder):
    """Prepare the data set `name` of the config into `folder`."""
    entry = config["datasets"][name]
    return DATASETS[entry["kind"]](folder, own_settings(entry), config["image_size"], config["seed"])


def render_scenes(config, folder, piece=64):
    """Render the scenes for training and, after them, those for testing: images.npy and boxes.json."""
    settings, seed = config["scenes"], seed_of("scenes", config["seed"])
    total, size = settings["train"] + settings["test"], settings["size"]
    boxes = []
    with writing(Path(folder) / "images.npy") as path:
        images = np.lib.format.open_memmap(path, "w+", np.uint8, (total, size, size, 3))
        with Progress(total, "rendering scenes") as progress:
            for start in range(0, total, piece):
                count = min(piece, total - start)
                images[start : start + count], found = render(start, count, size, seed)
                boxes += [box.round(3).tolist() for box in found]
                progress.advance(by=count)
        images.flush()
        del images
    write_text(Path(folder) / "boxes.json", json.dumps({"train": settings["train"], "boxes": boxes}) + "\n")


class Scenes:
    """The folder of :func:`render_scenes`, opened: images uint8 (N, S, S, 3), memory-mapped, and boxes."""

    def __init__(self, folder):
        self.folder = Path(folder)
        try:
            self.images = np.load(self.folder / "images.npy", mmap_mode="r")
        except (OSError, ValueError) as error:
            raise HoldfastError(
                f"cannot open the scenes {folder}", found=str(error), repair="run again"
            ) from error
        about = read_json(self.folder / "boxes.json")
        self.boxes = [np.asarray(boxes, np.float32).reshape(-1, 4) for boxes in about["boxes"]]
        self.split = about["train"]

    def train(self):
        return self.images[: self.split], self.boxes[: self.split]

    def test(self):
        return self.images[self.split :], self.boxes[self.split :]
