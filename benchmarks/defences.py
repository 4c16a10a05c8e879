"""A step of TSDF's optimisations, as the paper has it and as released, beside the plain way to write it.

    python benchmarks/defences.py                    # the papers' scale: 256 px, published widths
    python benchmarks/defences.py --size 32 --channels 8 --steps 4
    python benchmarks/defences.py --device cuda --defence tsdf --models stargan attgan

The plain way computes the clean images' features (in stage 2: the targets) anew in every step, gets a
deepfake model's features by running its whole generator, and computes all of a detector's maps, where
Holdfast leaves out those without an anchor that the loss looks at (here it looks at anchors of half the
image's side, those that see the faces of the papers' crops). `backward` is the plain way on networks whose
weights nobody froze, with `loss.backward()`, as attacks are often written: it computes the weights' gradients
as well. Models are attacked one after the other in all three. One minibatch, networks with weights drawn
anew; all ways start at the same perturbation and take turns, step by step. Seconds are means over the steps,
without what Holdfast computes once for a minibatch, which stands in the column `once`; ratios are to
Holdfast's. `difference` is the largest one between Holdfast's perturbation and another after the last step,
in units of [-1, 1].

Exit code 1: a step of `tsdf` is less than twice as fast as the plain way on networks that nobody froze
(`backward`), or the perturbations of either defence differ by more than 1e-4. On frozen networks stage 2
saves one pass of three (clean images, forward, back) and the maps of no use: a detector has no decoder to
leave out.
"""

import argparse
import copy
import os
import sys
import time
from pathlib import Path
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow"))

import torch  # noqa: E402

from holdfast import config  # noqa: E402
from holdfast.deepfakes import DEEPFAKES  # noqa: E402
from holdfast.deepfakes.model import build, freeze  # noqa: E402
from holdfast.defences import DEFENCES  # noqa: E402
from holdfast.defences.base import Surroundings  # noqa: E402
from holdfast.defences.interruption import Interruption  # noqa: E402
from holdfast.defences.interruption_released import ReleasedInterruption  # noqa: E402
from holdfast.defences.poisoning import Poisoning  # noqa: E402
from holdfast.defences.poisoning_released import ReleasedPoisoning  # noqa: E402
from holdfast.detectors import DETECTORS  # noqa: E402
from holdfast.detectors.training import initialise  # noqa: E402
from holdfast.seeds import generator  # noqa: E402
from holdfast.stages.common import own_settings  # noqa: E402

BAR = 2.0  # times as fast as `backward`
CLOSE = 1e-4
STAGES = {"tsdf": (Interruption, Poisoning), "tsdf_released": (ReleasedInterruption, ReleasedPoisoning)}


def seeing_a_face(detector, size):
    """The detector with heads that see faces of half the image's side, as faces on the papers' crops are, and
    no others: at every position of the maps with anchors of that size.
    """
    network = detector.network
    heads = getattr(network, "conf", None) or getattr(network, "conf_pal2", None)
    heads = heads or [head.conv1x1 for head in network.ClassHead]
    sides = [side if isinstance(side, list) else [side] for side in detector.settings["anchors"]]
    with torch.no_grad():
        for head, of_map in zip(heads, sides, strict=True):
            logits = len(head.bias) // len(of_map)
            for number, side in enumerate(of_map):
                head.bias[(number + 1) * logits - 1] += 50 if side == size // 2 else -50
    return detector


class WholeGenerator:
    """A deepfake model whose features are read off a run of its whole generator."""

    def __init__(self, model):
        self.model = model

    def __getattr__(self, name):
        return getattr(self.model, name)

    def features(self, x, attributes):
        found = []
        handle = last_of_encoder(self.model).register_forward_hook(lambda _, given, out: found.append(out))
        try:
            self.model.edit(x, attributes)
        finally:
            handle.remove()
        return found[0]


def last_of_encoder(model):
    """The layer whose output is `model.features`."""
    if hasattr(model, "average"):
        return model.average.encoder
    made = model.generator
    return made.enc_layers[-1] if hasattr(made, "enc_layers") else made.main[made.trunk_length - 1]


def forget(stage):
    """Make a stage compute anew what it keeps of the clean images."""
    if isinstance(stage, ReleasedInterruption):
        stage.pairs._clean = None
    elif isinstance(stage, ReleasedPoisoning):
        stage._visit = None
    elif isinstance(stage, Interruption):
        stage._clean = None
    else:
        stage._prepared = False


def unfrozen(surroundings):
    """The same with copies of its networks, whose weights take gradients as a loaded checkpoint's do."""
    models = {name: copy.deepcopy(model) for name, model in surroundings.models.items()}
    detectors = {name: copy.deepcopy(detector) for name, detector in surroundings.detectors.items()}
    for model in models.values():
        for network in model.networks.values():
            network.requires_grad_(True)
    for detector in detectors.values():
        detector.network.requires_grad_(True)
    return Surroundings(**vars(surroundings) | {"models": models, "detectors": detectors})


def whole(surroundings):
    """The same with features read off whole generators, and detectors that always compute all maps."""
    models = {name: WholeGenerator(model) for name, model in surroundings.models.items()}
    detectors = {name: copy.copy(detector) for name, detector in surroundings.detectors.items()}
    for detector in detectors.values():
        detector.selective = False
    return Surroundings(**vars(surroundings) | {"models": models, "detectors": detectors})


def slope_by_backward(loss, point):
    """`torch.autograd.grad(loss, point)` by `loss.backward()`."""
    point.grad = None
    loss.backward()
    return (point.grad,)


def surroundings_of(options, known):
    """One minibatch, and the networks at the size that is asked for."""
    depth = options.size.bit_length() - 1
    models = {}
    for name in options.models:
        settings = own_settings(known["deepfakes"][name])
        settings |= {key: options.channels for key in settings if key in ("channels", "generator_channels")}
        # Never run here, and some have to fit the image.
        settings |= {"discriminator_channels": 8, "discriminator_layers": min(depth - 2, 5)}
        if "layers" in settings:
            settings["layers"] = min(settings["layers"], depth - 1)
        models[name] = freeze(
            build(DEEPFAKES, name, settings, options.size, ("benchmark", name)), options.device
        )
    detectors = {}
    for name in options.detectors:
        kind = DETECTORS[name]
        width = max(1, round(kind.narrowest * kind.published_width * options.channels / 64)) / kind.narrowest
        detectors[name] = kind({"width": width})
        initialise(detectors[name].network, "benchmark", name)
        seeing_a_face(detectors[name], options.size)
        detectors[name].to(options.device)
    random = generator("benchmark", "images")
    images = torch.rand(options.batch, 3, options.size, options.size, generator=random) * 2 - 1
    labels = {
        name: (torch.rand(options.batch, len(model.attributes), generator=random) < 0.5)
        .float()
        .to(options.device)
        for name, model in models.items()
    }
    return Surroundings(
        models,
        detectors,
        images.to(options.device),
        labels,
        known["epsilon"],
        seed_names=("benchmark", 0),
        device=options.device,
        batch=options.batch,
    )


def seconds_of(device, work):
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def compared(ways, steps, device):
    """(seconds that the first way needs once, {way: seconds per step}, largest difference to the first).

    Args:
        ways: {name: stage}, of the same settings; Holdfast's first.
    """
    ours = next(iter(ways.values()))

    def step(name, index):
        if ways[name] is not ours:
            forget(ways[name])
        by = slope_by_backward if name == "backward" else torch.autograd.grad
        with mock.patch.object(torch.autograd, "grad", by):
            return seconds_of(device, lambda: ways[name].step(index))

    # A first step of each, for what is computed once and for what torch sets up; then start anew.
    state = ours.state_dict()
    first = {name: step(name, 0) for name in ways}
    for stage in ways.values():
        stage.load_state_dict(state)
    seconds = dict.fromkeys(ways, 0.0)
    for index in range(steps):
        for name in ways:
            seconds[name] += step(name, index) / steps
    name = next(iter(ways))
    difference = max((stage.perturbation - ours.perturbation).abs().max().item() for stage in ways.values())
    return max(0.0, first[name] - seconds[name]), seconds, difference


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--defence", nargs="*", choices=STAGES, default=list(STAGES))
    parser.add_argument("--models", nargs="*", choices=DEEPFAKES, default=list(DEEPFAKES))
    parser.add_argument("--detectors", nargs="*", choices=DETECTORS, default=list(DETECTORS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--channels", type=int, default=64, help="of the first layers; 64 as published")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8, help="4 are one visit of stage 1 as released")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    known = config.read(ROOT / "config.yaml")
    s = surroundings_of(options, known)
    around = {
        "ours": s,
        "plain": whole(s),
        "backward": whole(unfrozen(s)),
    }
    print(f"{options.size} px, {options.channels} channels, batch {options.batch}, {options.device}")
    print(f"models: {', '.join(s.models)}; detectors: {', '.join(s.detectors)}; {options.steps} steps")
    heads = ("once s", "step s", "plain s", "ratio", "backward s", "ratio", "difference")
    print(f"{'':<24}{''.join(f'{head:>11}' for head in heads)}")
    kept = True
    for name in options.defence:
        settings = own_settings(known["defences"][name])
        if "s3fd" not in s.detectors and "flood_weight" in settings:
            settings["flood_weight"] = 0
        settings = DEFENCES[name](settings, s).settings
        first, second = STAGES[name]
        stages = {"stage 1": {way: first(of, settings) for way, of in around.items()}}
        if s.detectors:
            interruption = stages["stage 1"]["ours"]
            stages["stage 2"] = {way: second(of, settings, interruption) for way, of in around.items()}
        for label, ways in stages.items():
            once, seconds, difference = compared(ways, options.steps, options.device)
            own, other, third = seconds.values()
            cells = (once, own, other, other / own, third, third / own)
            row = "".join(
                f"{cell:>11.{digits}f}" for cell, digits in zip(cells, (3, 3, 3, 2, 3, 2), strict=True)
            )
            print(f"{f'{name}, {label}':<24}{row}{difference:>11.1e}", flush=True)
            kept = kept and difference <= CLOSE and (name != "tsdf" or third / own >= BAR)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
