"""Memory and time of preparing CelebA: the peak must not grow with the pixels.

    python benchmarks/prepare_celeba.py [images ...]

Makes folders in CelebA's official layout (178x218 JPEG files, linked from 200 rendered ones), prepares
each in a process of its own, and prints seconds and peak memory beside the size of the pixels, which is
what loading the set into memory would take.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

LIBRARY = Path(__file__).resolve().parents[1] / "workflow"
sys.path.insert(0, str(LIBRARY))

from holdfast.data.synthetic import render_faces  # noqa: E402

SIZE = 128
CHILD = """
import json, resource, sys, time
began = time.monotonic()
from holdfast.data.celeba import prepare
imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare(sys.argv[2], {"source": sys.argv[1]}, int(sys.argv[3]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": time.monotonic() - began, "imported": imported, "peak": peak}))
"""


def make_layout(folder, count, distinct=200):
    """A folder of `count` images: the first are files, the others links to them."""
    images = folder / "img_align_celeba"
    images.mkdir(parents=True)
    pixels, _, _ = render_faces(0, distinct, SIZE, seed=0)
    bits = np.random.default_rng(0).integers(0, 2, (distinct, 40))
    rows, splits = [], []
    for number in range(1, count + 1):
        name, base = f"{number:06d}.jpg", (number - 1) % distinct
        if number <= distinct:
            Image.fromarray(pixels[base]).resize((178, 218)).save(images / name, quality=90)
        else:
            os.link(images / f"{base + 1:06d}.jpg", images / name)
        rows.append(" ".join([name, *("1" if bit else "-1" for bit in bits[base])]))
        splits.append(f"{name} {0 if number < 0.8 * count else 1 if number < 0.9 * count else 2}")
    header = [str(count), " ".join(f"Attribute_{i}" for i in range(40))]
    (folder / "list_attr_celeba.txt").write_text("\n".join([*header, *rows]) + "\n")
    (folder / "list_eval_partition.txt").write_text("\n".join(splits) + "\n")


def measure(count):
    with tempfile.TemporaryDirectory() as folder:
        make_layout(Path(folder) / "celeba", count)
        done = subprocess.run(
            [sys.executable, "-c", CHILD, f"{folder}/celeba", f"{folder}/out", str(SIZE)],
            env={**os.environ, "PYTHONPATH": str(LIBRARY)},
            capture_output=True,
            text=True,
            check=True,
        )
    return json.loads(done.stdout.splitlines()[-1])


def main(counts):
    print("  images  seconds  peak MiB  of it imports  pixels MiB  peak/pixels")
    for count in counts:
        told = measure(count)
        pixels = count * SIZE * SIZE * 3 / 2**20
        print(
            f"{count:>8} {told['seconds']:>8.1f} {told['peak'] / 1024:>9.0f} "
            f"{told['imported'] / 1024:>14.0f} {pixels:>11.0f} {told['peak'] / 1024 / pixels:>12.2f}"
        )
        if count >= 9000 and told["peak"] > 2**20:
            sys.exit("the peak is above 1 GiB")


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]] or [1000, 9000])
