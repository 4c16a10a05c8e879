"""A step of TSDF's optimisations, as the paper has it and as released, beside the plain way to write it.

    python benchmarks/defences.py                    # the papers' scale: 256 px, published widths
    python benchmarks/defences.py --size 32 --channels 8 --steps 4
    python benchmarks/defences.py --device cuda --defence tsdf --models stargan attgan

The plain way computes the clean images' features (in stage 2: the targets) anew in every step, and gets a
deepfake model's features by running its whole generator. Models are attacked one after the other in both.
One minibatch, networks with weights drawn anew; both ways start at the same perturbation and take turns,
step by step. Seconds are means over the steps, without what Holdfast computes once for a minibatch, which
stands in the column `once`. `difference` is the largest one between the two perturbations after the last
step, in units of [-1, 1].
"""

import argparse
import os
import sys
import time
from pathlib import Path

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

STAGES = {"tsdf": (Interruption, Poisoning), "tsdf_released": (ReleasedInterruption, ReleasedPoisoning)}


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


def compared(ours, plain, steps, device):
    """(seconds that ours needs once, seconds per step of ours, of the plain way, largest difference)."""
    # A first step of both, for what is computed once and for what torch sets up; then start anew.
    state = ours.state_dict()
    first = seconds_of(device, lambda: ours.step(0))
    plain.step(0)
    ours.load_state_dict(state)
    plain.load_state_dict(state)
    seconds = {"ours": 0.0, "plain": 0.0}
    for index in range(steps):
        seconds["ours"] += seconds_of(device, lambda i=index: ours.step(i))
        forget(plain)
        seconds["plain"] += seconds_of(device, lambda i=index: plain.step(i))
    difference = (ours.perturbation - plain.perturbation).abs().max().item()
    once = max(0.0, first - seconds["ours"] / steps)
    return once, seconds["ours"] / steps, seconds["plain"] / steps, difference


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
    whole = Surroundings(
        **vars(s) | {"models": {name: WholeGenerator(model) for name, model in s.models.items()}}
    )
    print(f"{options.size} px, {options.channels} channels, batch {options.batch}, {options.device}")
    print(f"models: {', '.join(s.models)}; detectors: {', '.join(s.detectors)}; {options.steps} steps")
    print(f"{'':<24}{'once s':>9}{'step s':>9}{'plain s':>9}{'ratio':>8}{'difference':>12}")
    for name in options.defence:
        settings = own_settings(known["defences"][name])
        if "s3fd" not in s.detectors and "flood_weight" in settings:
            settings["flood_weight"] = 0
        settings = DEFENCES[name](settings, s).settings
        first, second = STAGES[name]
        interruption = first(s, settings)
        pairs = {"stage 1": (interruption, first(whole, settings))}
        if s.detectors:
            pairs["stage 2"] = second(s, settings, interruption), second(s, settings, interruption)
        for label, (ours, plain) in pairs.items():
            once, own, other, difference = compared(ours, plain, options.steps, options.device)
            row = f"{once:>9.3f}{own:>9.3f}{other:>9.3f}{other / own:>8.2f}{difference:>12.1e}"
            print(f"{f'{name}, {label}':<24}{row}", flush=True)


if __name__ == "__main__":
    main()
