"""Stage data: faces prepared once, and scenes for the detectors."""

import json
import sys
from pathlib import Path

import numpy as np

from holdfast.config import WIDER_FACE, scenes_source
from holdfast.data import DATASETS, wider_face
from holdfast.data.pasting import paste_scene
from holdfast.data.synthetic import render_scenes
from holdfast.errors import HoldfastError
from holdfast.files import read_json, sha256_of, write_text, writing
from holdfast.progress import Progress
from holdfast.seeds import numpy_generator, seed_of
from holdfast.stages.common import fingerprint, open_faces, own_settings


def prepare_faces(config, name, folder):
    """Prepare the data set `name` of the config into `folder`."""
    entry = config["datasets"][name]
    return DATASETS[entry["kind"]](folder, own_settings(entry), config["image_size"], config["seed"])


def prepare_scenes(config, folder, faces_csv=None):
    """Prepare the scenes for training and, after them, those for testing: images.npy and boxes.json.

    Args:
        config: its `scenes` say how many, how large and from where.
        folder: where the files will stand.
        faces_csv: index.csv of the training set, where the scenes are made of its faces.

    Raises:
        HoldfastError: WIDER FACE is not as it should be, or the training set has no face boxes, or no faces
            but those that the attacker collects.
    """
    settings, folder = config["scenes"], Path(folder)
    source = scenes_source(config)
    if source == WIDER_FACE:
        numbers, scenes, about = _wider_face(settings, config["seed"])
    else:
        numbers = {split: settings[split] for split in ("train", "test")}
        if source == "synthetic":
            scenes, about = _rendered(numbers, settings["size"], config["seed"]), {}
        else:
            collected, faces = config["attacker"]["images"], open_faces(faces_csv)
            scenes, about = _pasted(numbers, settings["size"], config["seed"], faces, collected)
    total, size, boxes = sum(numbers.values()), settings["size"], []
    with writing(folder / "images.npy") as path:
        images = np.lib.format.open_memmap(path, "w+", np.uint8, (total, size, size, 3))
        with Progress(total, "preparing scenes") as progress:
            for position, (image, found) in enumerate(scenes):
                images[position] = image
                boxes.append(found.round(3).tolist())
                progress.advance()
        images.flush()
        del images
    # The sources count on the way, so `about` is complete only now.
    if "report" in about:
        print(f"{about['title']}: {about['report']}", file=sys.stderr)
    # With the hash of the images: whoever names boxes.json has named all of the scenes.
    told = {"train": numbers["train"], "images": sha256_of(folder / "images.npy"), "boxes": boxes, **about}
    write_text(folder / "boxes.json", json.dumps(told) + "\n")


def _rendered(numbers, size, seed):
    """Scenes (image, boxes) with rendered faces."""
    for position in range(sum(numbers.values())):
        images, boxes = render_scenes(position, 1, size, seed_of("scenes", seed))
        yield images[0], boxes[0]


def _pasted(numbers, size, seed, faces, collected):
    """Scenes with faces of the training split, and what is to be told of them.

    Not with its first faces, which the attacker collects: detectors that know their originals would find what
    no others find. The last are for the tests, so that no face of theirs was seen (a person may have been).

    Args:
        collected: how many the attacker collects; None: all.
    """
    positions = faces.positions("train")
    left = 0 if collected is None else len(positions[collected:])
    if left < 2:
        raise HoldfastError(
            f"no faces of {faces.folder} are left to make scenes of",
            found=f"{len(positions)} training faces, attacker.images: {collected or 'all'}",
            expected="at least 2 more than the attacker collects, for detectors that do not know those",
            repair="set attacker.images to fewer, or scenes.source to synthetic or to WIDER FACE's folder",
        )
    positions = positions[collected:]
    train = round(len(positions) * numbers["train"] / sum(numbers.values()))

    def scenes():
        parts = {"train": positions[:train], "test": positions[train:]}
        for split, part in parts.items():
            boxes = faces.boxes(part)
            for number in range(numbers[split]):
                yield paste_scene(
                    _Rows(faces.images, part), boxes, ("pasted scene", seed, split, number), size
                )

    return scenes(), {"title": "scenes with faces of the training set", "faces": fingerprint(faces.folder)}


class _Rows:
    """Some images of a memory-mapped array, without reading them."""

    def __init__(self, images, positions):
        self.images, self.positions = images, positions

    def __getitem__(self, row):
        return self.images[self.positions[row]]


def _wider_face(settings, seed):
    """Numbers of scenes, the scenes, and what is to be told of them once they were read."""
    source, pictures = Path(settings["source"]).expanduser(), {}
    for split in ("train", "test"):
        found = wider_face.read_annotations(source, split)
        # Drawn from the whole set: the annotation is sorted by event.
        order = numpy_generator("WIDER FACE", seed, split).permutation(len(found))
        pictures[split] = [found[row] for row in sorted(order[: settings[split]])]
    about = {"title": "WIDER FACE", "report": ""}

    def scenes():
        kept = small = 0
        for split, part in pictures.items():
            annotation = wider_face.annotation_of(source, split)
            for picture in part:
                image, boxes, left_out = wider_face.scene_of(picture, annotation, settings["size"])
                kept, small = kept + len(boxes), small + left_out
                yield image, boxes
        invalid = sum(picture.invalid for part in pictures.values() for picture in part)
        about["report"] = (
            f"{sum(map(len, pictures.values()))} pictures, {kept} faces; left out: {small} below "
            f"{wider_face.SMALLEST_FACE} px at {settings['size']} px, {invalid} invalid"
        )

    return {split: len(part) for split, part in pictures.items()}, scenes(), about


class Scenes:
    """The folder of :func:`prepare_scenes`, opened: images uint8 (N, S, S, 3), memory-mapped, and boxes."""

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
        self.split, self.title = about["train"], about.get("title", "synthetic scenes")

    def train(self):
        return self.images[: self.split], self.boxes[: self.split]

    def test(self):
        return self.images[self.split :], self.boxes[self.split :]
