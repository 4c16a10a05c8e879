"""Faces rendered per second on one core: in batches, and one face per call (the obvious way).

    PYTHONPATH=workflow OMP_NUM_THREADS=1 python benchmarks/render_faces.py

The bar is 300 faces per second at 64 px. Both ways give the same pixels, which is checked.
"""

import argparse
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from holdfast.data.synthetic import render_faces, render_scenes

BAR = 300


def batched(count, size):
    return render_faces(0, count, size, 0)[0]


def one_by_one(count, size):
    return np.concatenate([render_faces(i, 1, size, 0)[0] for i in range(count)])


def rate(function, count, size, rounds):
    """The best of some rounds: other work on the machine only ever slows a round down."""
    best = 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        function(count, size)
        best = max(best, count / (time.perf_counter() - start))
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(f"{'size':>6} {'batched':>14} {'one per call':>14} {'ratio':>7}")
    measured = {}
    for size, count in ((64, 192), (256, 16)):
        if not np.array_equal(batched(count, size), one_by_one(count, size)):
            raise SystemExit(f"at {size} px the two ways give different pixels")
        measured[size] = rate(batched, count, size, rounds)
        alone = rate(one_by_one, count, size, rounds)
        print(
            f"{size:>3} px {measured[size]:>8.0f} face/s {alone:>8.0f} face/s {measured[size] / alone:>7.2f}"
        )
    scenes = rate(lambda n, s: render_scenes(0, n, s, 0), 24, 128, rounds)
    print(f"scenes at 128 px: {scenes:.0f} per second")
    print(f"bar: {BAR} faces/s at 64 px: {'met' if measured[64] >= BAR else 'MISSED'}")
    raise SystemExit(0 if measured[64] >= BAR else 1)


if __name__ == "__main__":
    main()
