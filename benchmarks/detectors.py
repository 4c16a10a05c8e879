"""How fast the detectors are: batched detection against one image at a time, and suppression.

    python benchmarks/detectors.py                    # S3FD, DSFD and RetinaFace at the published widths
    python benchmarks/detectors.py --width 0.125      # all three narrower, for a slow machine
    python benchmarks/detectors.py --device cuda --images 64 --batch 32

Images per second of `detect` at 256 px, in batches and one by one, on the same images, and the peak memory of
the batched pass: allocated on a GPU, resident of a process of its own on a CPU. Then suppression: ours in
plain torch against torchvision's operator, where that runs. The best of some repetitions counts.
"""

import argparse
import functools
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))

import torch  # noqa: E402

from holdfast import compat  # noqa: E402
from holdfast.detectors import DETECTORS, boxes  # noqa: E402
from holdfast.detectors.training import initialise  # noqa: E402

# No box is above it: how many would be is a matter of weights, and suppression is measured apart.
THRESHOLD = 1.0


def best_of(repetitions, device, work):
    """Seconds of the fastest of some calls of work()."""
    seconds = []
    for _ in range(repetitions):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def opened(name, options):
    """The detector with weights drawn anew."""
    settings = {"batch": options.batch} | ({} if options.width is None else {"width": options.width})
    detector = DETECTORS[name](settings)
    initialise(detector.network, "benchmark", name)
    return detector.to(options.device)


def measure(name, options):
    """One detector: {parameters, images per second batched and one by one, peak MiB}."""
    device = torch.device(options.device)
    random = torch.Generator().manual_seed(0)
    images = torch.rand(options.images, 3, options.size, options.size, generator=random) * 2 - 1
    images = images.to(device)
    detector = opened(name, options)

    def batched():
        return detector.detect(images, THRESHOLD)

    def one_by_one():
        return [detector.detect(image[None], THRESHOLD)[0] for image in images]

    detector.detect(images[:1], THRESHOLD)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = best_of(options.repeat, device, batched)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "detector": detector.title,
        "parameters": sum(parameter.numel() for parameter in detector.network.parameters()),
        "batched": len(images) / seconds,
        "single": len(images) / best_of(options.repeat, device, one_by_one),
        "peak": peak,
    }


def suppression(repeat):
    """Lines: milliseconds of both suppressions, by the number of boxes."""
    random = torch.Generator().manual_seed(0)
    for count in (100, 1000, 5000):
        corner = torch.rand(count, 2, generator=random) * 200
        drawn = torch.cat([corner, corner + 10 + torch.rand(count, 2, generator=random) * 40], dim=1)
        scores = torch.rand(count, generator=random)
        operators = {"ours": boxes.torch_nms}
        if compat.has_torchvision_nms():
            from torchvision.ops import nms

            operators["torchvision's"] = nms
        times = []
        for name, operator in operators.items():
            work = functools.partial(operator, drawn, scores, 0.3)
            times.append(f"{name} {1e3 * best_of(repeat, torch.device('cpu'), work):.2f} ms")
        missing = [] if len(operators) == 2 else ["torchvision's does not run here"]
        yield f"suppression of {count} boxes: {', '.join([*times, *missing])}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="registered detectors; default: all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--width", type=float, help="instead of the published widths")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one detector, as JSON, in this process")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = options.names or list(DETECTORS)
    if options.json:
        print(json.dumps(measure(names[0], options)))
        return
    print(f"{options.size} px, {options.images} images, batches of {options.batch}, {options.device}")
    print(f"{'detector':<12}{'parameters':>12}{'batched/s':>11}{'single/s':>11}{'peak MiB':>10}")
    for name in names:
        # A process each: the resident memory of one says nothing of the others.
        given = [argument for argument in sys.argv[1:] if argument not in options.names]
        finished = subprocess.run(
            [sys.executable, __file__, name, *given, "--json"], check=True, capture_output=True, text=True
        )
        row = json.loads(finished.stdout)
        print(
            f"{row['detector']:<12}{row['parameters']:>12,}{row['batched']:>11.2f}{row['single']:>11.2f}"
            f"{row['peak']:>10.0f}",
            flush=True,
        )
    for line in suppression(options.repeat):
        print(line, flush=True)


if __name__ == "__main__":
    main()
