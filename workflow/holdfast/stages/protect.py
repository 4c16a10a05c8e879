"""Stage protect: the protected data set as 8-bit PNG files, with an index and the perturbation's record.

Whatever is measured or collected afterwards reads these files, not the tensors they came from.
"""

import functools
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from holdfast import sources
from holdfast.config import defence_of
from holdfast.data.pixels import to_bytes, to_float
from holdfast.errors import HoldfastError
from holdfast.files import read_json, sha256_of, write_json, write_text, writing, writing_folder
from holdfast.progress import Progress
from holdfast.stages.common import Work, batches, fingerprint, open_faces, state_file
from holdfast.stages.perturb import opened_defence


def protect(
    config, name, seed, split, index_csv, training_index, perturbation, about, models, detectors, folder
):
    """Protect the faces of a split: all, or the first `protection.images` (test), `attacker.images` (train).

    Writes images/000000.png …, index.csv (position, file, sha256, and the face set's row) and
    perturbation.json into `folder`. A defence per image may take hours over a large set: what a killed run
    has done of it is kept, and the next one goes on from there.
    """
    work = Work(config)
    faces = open_faces(index_csv)
    limit = config["protection" if split == "test" else "attacker"]["images"]
    positions = faces.positions(split, limit)
    if not len(positions):
        raise HoldfastError(
            f"there is nothing to protect in the split {split} of {faces.folder}",
            found=f"splits {faces.index['split'].value_counts().to_dict()}",
            repair="set `limits` of the data set so that the split has images, or give the data set `skip`",
        )
    defence = opened_defence(work, name, seed, perturbation, training_index, models, detectors)
    # A defence per image computes so many images at a time (Defence.protect): a smaller batch it would
    # fill up, and throw the rest away.
    at_once = config["measuring"]["batch"] if defence.universal else defence.surroundings.batch
    kept = (
        None
        if defence.universal
        else _kept(config, name, defence, work.sha256(perturbation), faces, split, limit)
    )
    with writing_folder(folder) as temporary:
        (temporary / "images").mkdir()
        hashes, files = [], []
        with Progress(len(positions), f"protecting {faces.folder.name} ({split}) by {defence.title}") as bar:
            for part in batches(len(positions), at_once):
                new = [f"images/{number:06d}.png" for number in range(part.start, part.stop)]
                if kept is not None and all((kept / file).exists() for file in new):
                    for file in new:
                        shutil.copyfile(kept / file, temporary / file)
                else:
                    protected = to_bytes(defence.protect(faces.pixels(positions[part]).to(work.device)))
                    for file, pixels in zip(new, protected, strict=True):
                        Image.fromarray(pixels).save(temporary / file)
                        if kept is not None:
                            with writing(kept / file) as copy:
                                shutil.copyfile(temporary / file, copy)
                hashes += [sha256_of(temporary / file) for file in new]
                files += new
                bar.advance(by=len(new))
        rows = faces.index.iloc[positions].rename(columns={"file": "source", "position": "source_position"})
        table = pd.DataFrame({"position": np.arange(len(files)), "file": files, "sha256": hashes})
        table = pd.concat([table, rows.reset_index(drop=True)], axis=1)
        write_text(temporary / "index.csv", table.to_csv(index=False, lineterminator="\n"))
        write_json(temporary / "perturbation.json", read_json(about))
    if kept is not None:
        shutil.rmtree(kept, ignore_errors=True)


def _kept(config, name, defence, perturbation, faces, split, limit):
    """Where the images that are done are kept: a folder of its own for all that determines them."""
    # The name of the defence's state file has its settings, its seed, and the models and detectors.
    begun = defence.surroundings.state_path.parent.name
    taken = (perturbation, fingerprint(faces.folder), split, limit)
    code = sources.of_protection(defence_of(config, name)[0])
    return state_file(config, f"protect_{name}", begun, *taken, code=code).parent


class ProtectedSet:
    """An opened folder of :func:`protect`."""

    def __init__(self, index_csv):
        self.folder = Path(index_csv).parent
        self.index = pd.read_csv(index_csv, dtype={"file": str, "source": str})

    def __len__(self):
        return len(self.index)

    @property
    def source_positions(self):
        """Positions of the images in the face set they come from."""
        return self.index["source_position"].to_numpy()

    def bytes(self, part):
        """uint8 (n, S, S, 3): the images of a slice, read from their files.

        Raises:
            HoldfastError: a file is missing or damaged, or has another size than the first one of the set.
        """
        images = [self._read(file) for file in self.index["file"].iloc[part]]
        for file, image in zip(self.index["file"].iloc[part], images, strict=True):
            if image.shape != self._shape:
                sizes = [f"{shape[1]}x{shape[0]} pixels" for shape in (image.shape, self._shape)]
                first = self.index["file"].iloc[0]
                raise HoldfastError(
                    f"the protected images {self.folder / file} and {first} differ in size",
                    found=sizes[0],
                    expected=f"the other's {sizes[1]}, or the other is wrong",
                    repair="remove the folder and run again",
                )
        return np.stack(images)

    @functools.cached_property
    def _shape(self):
        return self._read(self.index["file"].iloc[0]).shape

    def _read(self, file):
        try:
            with Image.open(self.folder / file) as image:
                return np.asarray(image.convert("RGB"))
        except OSError as error:
            raise HoldfastError(
                f"cannot read the protected image {self.folder / file}",
                found=str(error),
                repair="remove the folder and run again",
            ) from error

    def pixels(self, part):
        """float32 (n, 3, S, S) in [-1, 1]."""
        return to_float(self.bytes(part))
