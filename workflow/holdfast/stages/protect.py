"""Stage protect: the protected data set as 8-bit PNG files, with an index and the perturbation's record.

Whatever is measured or collected afterwards reads these files, not the tensors they came from.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from holdfast.data.pixels import to_bytes, to_float
from holdfast.errors import HoldfastError
from holdfast.files import read_json, sha256_of, write_json, write_text, writing_folder
from holdfast.progress import Progress
from holdfast.stages.common import Work, batches, open_faces
from holdfast.stages.perturb import opened_defence


def protect(
    config, name, seed, split, index_csv, training_index, perturbation, about, models, detectors, folder
):
    """Protect the faces of a split: all, or the first `protection.images` (test), `attacker.images` (train).

    Writes images/000000.png …, index.csv (position, file, sha256, and the face set's row) and
    perturbation.json into `folder`.
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
    with writing_folder(folder) as temporary:
        (temporary / "images").mkdir()
        hashes, files = [], []
        with Progress(len(positions), f"protecting {faces.folder.name} ({split}) by {defence.title}") as bar:
            for part in batches(len(positions), config["measuring"]["batch"]):
                protected = to_bytes(defence.protect(faces.pixels(positions[part]).to(work.device)))
                for pixels in protected:
                    file = f"images/{len(files):06d}.png"
                    Image.fromarray(pixels).save(temporary / file)
                    hashes.append(sha256_of(temporary / file))
                    files.append(file)
                    bar.advance()
        rows = faces.index.iloc[positions].rename(columns={"file": "source", "position": "source_position"})
        table = pd.DataFrame({"position": np.arange(len(files)), "file": files, "sha256": hashes})
        table = pd.concat([table, rows.reset_index(drop=True)], axis=1)
        write_text(temporary / "index.csv", table.to_csv(index=False, lineterminator="\n"))
        write_json(temporary / "perturbation.json", read_json(about))


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
            HoldfastError: a file is missing or damaged, or has another size than the first one.
        """
        images = []
        for file in self.index["file"].iloc[part]:
            try:
                with Image.open(self.folder / file) as image:
                    images.append(np.asarray(image.convert("RGB")))
            except OSError as error:
                raise HoldfastError(
                    f"cannot read the protected image {self.folder / file}",
                    found=str(error),
                    repair="remove the folder and run again",
                ) from error
            if images[-1].shape != images[0].shape:
                sizes = [f"{image.shape[1]}x{image.shape[0]} pixels" for image in (images[-1], images[0])]
                raise HoldfastError(
                    f"the protected image {self.folder / file} is not as large as the others",
                    found=sizes[0],
                    expected=sizes[1],
                    repair="remove the folder and run again",
                )
        return np.stack(images)

    def pixels(self, part):
        """float32 (n, 3, S, S) in [-1, 1]."""
        return to_float(self.bytes(part))
