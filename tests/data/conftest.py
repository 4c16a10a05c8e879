"""Tiny image collections, generated."""

import numpy as np
import pytest
from PIL import Image

from holdfast.seeds import numpy_generator


@pytest.fixture
def draw():
    """draw(path, width, height, seed): a smooth coloured picture, written in the format of its ending."""

    def make(path, width, height, seed=0, **options):
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = numpy_generator("test", seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        image.save(path, **options)
        return path

    return make


@pytest.fixture
def celeba_copy(tmp_path, draw):
    """celeba_copy(count, ...): a folder in CelebA's layout; every tenth image is val, the next one test."""

    def make(count=20, size=(45, 55), names=("Bald", "Male", "Young"), images=None):
        source = tmp_path / "source"
        files = [f"{number:06d}.jpg" for number in range(1, count + 1)]
        attributes, partition = [str(count), " ".join(names) + " "], []
        for number, file in enumerate(files):
            values = [1 if (number + column) % 3 == 0 else -1 for column in range(len(names))]
            attributes.append(f"{file} " + " ".join(f"{value:2d}" for value in values))
            partition.append(f"{file} {({8: 1, 9: 2}).get(number % 10, 0)}")
            if images is None or number < images:
                draw(source / "img_align_celeba" / file, *size, seed=number)
        (source / "list_attr_celeba.txt").write_text("\n".join(attributes) + "\n")
        (source / "list_eval_partition.txt").write_text("\n".join(partition) + "\n")
        return source

    return make
