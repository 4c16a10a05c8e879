"""A training step of each deepfake model, beside a plain implementation of it; and features(x) beside edits.

    PYTHONPATH=workflow python benchmarks/train_deepfakes.py [train | features] [options]

First table: a cycle of training (critic steps and a generator step; with --critic-steps 1, the default, one
update of each network) as train_deepfake runs it, and written down plainly: float32, contiguous, no autocast;
fakes made with a graph that nobody uses, and anew for the discriminator; gradients of the discriminator in
the generator's step; AttGAN's encoder run once per output; HiSD's skip convolutions before the pooling.
Before anything is timed, both give the same losses and gradients in float32, or the benchmark ends. They
take turns in one process; ms are medians, per training step. The plain way has torch's default flags,
Holdfast's those of its jobs (deterministic kernels). Memory is measured in a process of its own for each:
on a CPU the growth of the peak resident memory over the built model, on CUDA the peak of what is allocated.
`*` marks the precision that the preset uses: lab on a CPU, paper (config.yaml) on CUDA; it is judged by the
bar: as fast as the plain step on a CPU, 1.5 times as fast on CUDA.

Second table: features(x) and edit(x, target) of attacked models, without gradients, and the share of the
edit's multiplications that belong to the features. The bar for StarGAN is 60 % of the time.

Sizes are those of the publications but for --size; below 64 px networks have fewer stride-2 layers.
"""

import argparse
import contextlib
import copy
import io
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import yaml  # noqa: E402
from torch.optim.optimizer import register_optimizer_step_pre_hook  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from holdfast.data.pixels import to_float  # noqa: E402
from holdfast.deepfakes import DEEPFAKES, hisd  # noqa: E402
from holdfast.deepfakes.model import build, freeze  # noqa: E402
from holdfast.deepfakes.training import precision_of, train_deepfake  # noqa: E402
from holdfast.jobs import job  # noqa: E402
from holdfast.modules import registered  # noqa: E402
from holdfast.seeds import generator, numpy_generator  # noqa: E402
from holdfast.training.loop import batch_positions  # noqa: E402
from holdfast.yaml_files import merge  # noqa: E402

BARS, FEATURES_BAR = {"cpu": 1.0, "cuda": 1.5}, 0.6
NAMES = ("benchmark",)  # what seeds weights, batches and draws
FEATURES_SIZE = 128
# Files of the preset that is meant for the device.
PRESETS = {"cpu": ["config.yaml", "workflow/presets/lab.yaml"], "cuda": ["config.yaml"]}
TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3


class Faces:
    """Noise with random attributes, in memory: what train_deepfake reads of a FaceSet."""

    folder = "noise"

    def __init__(self, size, count=64):
        self.images = numpy_generator(*NAMES, "images").integers(0, 256, (count, size, size, 3), np.uint8)

    def positions(self, split):
        return np.arange(len(self.images)) if split == "train" else np.arange(0)

    def labels(self, positions, names):
        columns = [numpy_generator(*NAMES, name).integers(0, 2, len(self.images)) for name in names]
        return torch.from_numpy(np.stack(columns, axis=1)[np.asarray(positions)]).float()

    def pixels(self, positions):
        return to_float(self.images[np.asarray(positions)])


class PlainDown(hisd.Down):
    """The residual block with its skip convolution where the paper draws it: before the pooling."""

    def forward(self, x):
        h = F.avg_pool2d(self.conv1(hisd.activate(self.in1(x))), 2)
        return (self.conv2(hisd.activate(self.in2(h))) + F.avg_pool2d(self.sc(x), 2)) / math.sqrt(2)


class Plain:
    """The plain training of a model; takes its weights and optimisers, none of its losses."""

    def __init__(self, name, model, faces, settings, device):
        self.model, self.faces, self.settings, self.device = model, faces, settings, device
        self.losses = PLAIN_STEPS[name]
        for network in model.networks.values():
            network.to(device).train().requires_grad_(True)
            for module in network.modules():
                if isinstance(module, hisd.Down):
                    module.__class__ = PlainDown
        self.optimisers = model.optimisers(settings)
        self.rates = {
            key: [group["lr"] for group in optimiser.param_groups]
            for key, optimiser in self.optimisers.items()
        }
        self.all = faces.positions("train")
        self.labels = faces.labels(self.all, model.attributes)

    def batch(self, step, rows=None, *names):
        rows = self.all if rows is None else rows
        chosen = batch_positions(rows, self.settings["batch"], step, *NAMES, *names)
        return self.faces.pixels(self.all[chosen]).to(self.device), self.labels[chosen].to(self.device)

    def update(self, name, loss, step):
        optimiser = self.optimisers[name]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if self.model.clip_norm is not None:
            parameters = self.model.networks[name].parameters()
            torch.nn.utils.clip_grad_norm_(parameters, self.model.clip_norm)
        for group, rate in zip(optimiser.param_groups, self.rates[name], strict=True):
            group["lr"] = rate * self.model.rate_factor(step, self.settings["iterations"])
        optimiser.step()

    def step(self, step):
        """One training step; returns the row of its log."""
        return self.losses(self, step, generator(*NAMES, "step", step))


def critic_and_generator(trainer, step, random, edit, back, classification, weight_real):
    """WGAN-GP, as StarGAN and AttGAN have it.

    `edit(x, labels)`; `back(fake, x, attributes)` gives x again; `weight_real`: of the discriminator's
    classification.
    """
    critic, settings = trainer.model.discriminator, trainer.settings
    x, attributes = trainer.batch(step)
    target = attributes[torch.randperm(len(x), generator=random)]
    mix = torch.rand(len(x), 1, 1, 1, generator=random).to(x.device)

    fake = edit(x, target).detach()
    real, logits = critic(x)
    adversarial = critic(fake)[0].mean() - real.mean()
    between = (mix * x + (1 - mix) * fake).requires_grad_(True)
    (slope,) = torch.autograd.grad(critic(between)[0].sum(), between, create_graph=True)
    penalty = ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()
    classified = classification(logits, attributes)
    trainer.update(
        "discriminator", adversarial + settings["lambda_gp"] * penalty + weight_real * classified, step
    )
    row = {"d_adv": adversarial.item(), "d_gp": penalty.item(), "d_cls": classified.item()}

    if (step + 1) % settings["critic_steps"] == 0:
        fake = edit(x, target)
        realness, logits = critic(fake)
        adversarial, classified = -realness.mean(), classification(logits, target)
        reconstruction = (x - back(fake, x, attributes)).abs().mean()
        loss = adversarial + settings["lambda_cls"] * classified + settings["lambda_rec"] * reconstruction
        trainer.update("generator", loss, step)
        row |= {"g_adv": adversarial.item(), "g_cls": classified.item(), "g_rec": reconstruction.item()}
    return row


def stargan_step(trainer, step, random):
    edit = trainer.model.generator

    def back(fake, x, attributes):
        return edit(fake, attributes)

    def classification(logits, labels):
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(logits)

    weight = trainer.settings["lambda_cls"]
    return critic_and_generator(trainer, step, random, edit, back, classification, weight)


def attgan_step(trainer, step, random):
    def edit(x, labels):
        return trainer.model.generator(x, (2 * labels - 1) * trainer.settings["intensity"])

    def back(fake, x, attributes):
        return edit(x, attributes)

    classification, weight = F.binary_cross_entropy_with_logits, trainer.settings["lambda_cls_real"]
    return critic_and_generator(trainer, step, random, edit, back, classification, weight)


def hisd_step(trainer, step, random):
    model, settings = trainer.model, trainer.settings
    g, judge = model.generator, model.discriminator
    values = model._values(trainer.labels)
    known = [(t, v) for t, c in enumerate(model.counts) for v in range(c) if (values[:, t] == v).any()]
    moves = [(t, a, b) for t, a in known for u, b in known if t == u and a != b]
    tags = sorted({move[0] for move in moves})
    tag = tags[torch.randint(len(tags), (), generator=random)]
    moves = [move for move in moves if move[0] == tag]
    _, value, aim = moves[torch.randint(len(moves), (), generator=random)]
    x, attributes = trainer.batch(step, (values[:, tag] == value).nonzero().flatten().numpy(), tag, value)
    conditions = 2 * attributes[:, model.conditions] - 1
    noise = torch.randn(len(x), settings["noise"], generator=random).to(x.device)

    def translations():
        style, style_aimed = g.extractors(x)[:, tag], g.mappers[tag](noise, aim)
        translated = g.decoder(g.translators[tag](g.encoder(x), style_aimed))
        back = g.decoder(g.translators[tag](g.encoder(translated), style))
        return style, style_aimed, translated, back

    # The discriminator's fakes, from the generator as it is before its own update.
    with torch.no_grad():
        style_made, aimed_made, translated_made, back_made = translations()

    style, style_aimed, translated, back = translations()
    reconstruction = (
        F.l1_loss(g.decoder(g.encoder(x)), x)
        + F.l1_loss(g.decoder(g.translators[tag](g.encoder(x), style)), x)
        + F.l1_loss(back, x)
    )
    of_style = F.l1_loss(g.extractors(translated)[:, tag], style_aimed)
    adversarial = (
        judge(x, style, conditions, tag, value).sum(1).mean()
        - judge(translated, style_aimed.detach(), conditions, tag, aim)[:, 0].mean()
        - judge(back, style.detach(), conditions, tag, value)[:, 1].mean()
    )
    loss = (
        settings["lambda_adv"] * adversarial
        + settings["lambda_style"] * of_style
        + settings["lambda_rec"] * reconstruction
    )
    trainer.update("generator", loss, step)
    row = {"g_adv": adversarial.item(), "g_style": of_style.item(), "g_rec": reconstruction.item()}

    x = x.detach().requires_grad_(True)
    real = judge(x, style_made, conditions, tag, value)
    penalty = 0.0
    for column in (0, 1):
        (slope,) = torch.autograd.grad(real[:, column].sum(), x, create_graph=True)
        penalty = penalty + slope.square().flatten(1).sum(1).mean()
    fake = judge(translated_made, aimed_made, conditions, tag, aim)[:, 0]
    fake_back = judge(back_made, style_made, conditions, tag, value)[:, 1]
    hinge = F.relu(1 - real).mean(0).sum() + F.relu(1 + fake).mean() + F.relu(1 + fake_back).mean()
    trainer.update("discriminator", hinge + penalty, step)

    with torch.no_grad():
        for own, other in zip(model.average.parameters(), g.parameters(), strict=True):
            own.mul_(settings["average"]).add_(other, alpha=1 - settings["average"])
    return row | {"d_adv": hinge.item(), "d_r1": penalty.item()}


PLAIN_STEPS = {
    "stargan": stargan_step,
    "attentiongan": stargan_step,
    "attgan": attgan_step,
    "hisd": hisd_step,
}


def holdfast_training(model, faces, settings, device, on_sample=None):
    """train_deepfake under the flags of a job, which do not outlast it."""
    try:
        # stderr: the progress lines of a training.
        with job(threads=torch.get_num_threads()), contextlib.redirect_stderr(io.StringIO()):
            return train_deepfake(model, faces, settings, NAMES, device=device, on_sample=on_sample)
    finally:
        torch.use_deterministic_algorithms(False)


def settings_of(name, options, size):
    """The published settings, with the widths and the number of layers that the options ask for."""
    settings = {key: schema["default"] for key, schema in registered("deepfakes")[name].items()}
    fewer = max(0, math.ceil(math.log2(64 / size)))
    for key, value in settings.items():
        if key.endswith("channels") or key in ("hidden", "style"):
            settings[key] = max(1, value * options.width // 64)
        elif key.endswith("layers"):
            settings[key] = value - fewer
    # The same for both ways, and not what they differ in.
    settings["mirror"] = False
    # HiSD's discriminator steps are no more than its generator's.
    if name != "hisd":
        settings["critic_steps"] = options.critic_steps
    return settings


def batch_of(options, device):
    return options.batch or (16 if device == "cuda" else 4)


def precision_of_preset(name, device):
    config = {}
    for file in PRESETS[device]:
        config = merge(config, yaml.safe_load((ROOT / file).read_text(encoding="utf-8")))
    default = registered("deepfakes")[name]["precision"]["default"]
    return precision_of({"precision": config["deepfakes"].get(name, {}).get("precision", default)}, device)


def synchronise(device):
    if device == "cuda":
        torch.cuda.synchronize()


@contextlib.contextmanager
def gradients_of_updates():
    """Collects, per update of a network, the norms of its parameters' gradients."""
    found = []

    def note(optimiser, args, kwargs):
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        found.append([0.0 if p.grad is None else p.grad.norm().item() for p in parameters])

    handle = register_optimizer_step_pre_hook(note)
    try:
        yield found
    finally:
        handle.remove()


def check_same(name, ours, plain_model, faces, settings, device):
    """Both ways give the same losses and gradients over one cycle in float32, or the benchmark ends."""
    # Adam divides a gradient by its size, so that at real rates a gradient that is nothing but rounding
    # would move weights as far as any other; the cycle is compared at weights that hardly move.
    cycle = settings["critic_steps"]
    settings = settings | {
        "precision": "float32",
        "iterations": cycle,
        "generator_rate": 1e-9,
        "discriminator_rate": 1e-9,
    }
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    with gradients_of_updates() as of_ours:
        log = holdfast_training(ours, faces, settings, device)
    with gradients_of_updates() as of_plain:
        trainer = Plain(name, plain_model, faces, settings, device)
        plain_log = [{"step": step, **trainer.step(step)} for step in range(cycle)]
    torch.backends.cudnn.allow_tf32 = allowed
    for row, plain_row in zip(log, plain_log, strict=True):
        if row.keys() != plain_row.keys():
            sys.exit(f"{name}: the two steps log different losses: {sorted(row)} and {sorted(plain_row)}")
        for key, value in plain_row.items():
            if not abs(row[key] - value) <= TOLERANCE * max(1.0, abs(value)):
                sys.exit(f"{name}: {key} is {row[key]:.6g}, plainly {value:.6g}, in step {row['step']}")
    for update, (norms, plain_norms) in enumerate(zip(of_ours, of_plain, strict=True)):
        norms, plain_norms = torch.tensor(norms), torch.tensor(plain_norms)
        apart = (norms - plain_norms).abs().max() / plain_norms.norm()
        if not apart <= GRADIENT_TOLERANCE:
            sys.exit(f"{name}: gradients of update {update} differ by {apart:.1e} of their norm")


class Enough(Exception):
    """Ends a training after the repeats that were asked for."""


def seconds_of_cycles(name, ours, plain_model, faces, settings, device, repeats):
    """Seconds of our cycles, and of the plain ones, taken in turns; the first of each is not counted."""
    cycle = settings["critic_steps"]
    # on_sample is called ten times in a training: after each of ten cycles.
    settings = settings | {"iterations": 10 * cycle}
    trainer = Plain(name, plain_model, faces, settings, device)
    times, plain_times = [], []
    began = time.perf_counter()

    def after_cycle(done):
        nonlocal began
        synchronise(device)
        times.append(time.perf_counter() - began)
        torch.use_deterministic_algorithms(False)
        began = time.perf_counter()
        for step in range(len(plain_times) * cycle, (len(plain_times) + 1) * cycle):
            trainer.step(step)
        synchronise(device)
        plain_times.append(time.perf_counter() - began)
        torch.use_deterministic_algorithms(True, warn_only=True)
        if len(times) > repeats:
            raise Enough
        began = time.perf_counter()

    with contextlib.suppress(Enough):
        holdfast_training(ours, faces, settings, device, after_cycle)
    return times[1:], plain_times[1:]


def peak_resident():
    """Bytes. Not ru_maxrss, in which a process begins with the memory of the one that started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")


def load_libraries():
    """What torch loads at the first convolution, backward pass and update is not a step's memory."""
    layer = torch.nn.Conv2d(3, 3, 3)
    optimiser = torch.optim.Adam(layer.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.zeros(1, 3, 8, 8)).sum().backward()
    optimiser.step()


def memory_of_a_cycle(name, way, precision, device, options):
    """Peak memory in MiB, in this process; see the head of the file."""
    settings = settings_of(name, options, options.size)
    cycle = settings["critic_steps"]
    settings |= {"batch": batch_of(options, device), "precision": precision, "iterations": cycle}
    faces, model = Faces(options.size), build(DEEPFAKES, name, settings, options.size, NAMES)
    load_libraries()
    before = peak_resident()
    if way == "plain":
        trainer = Plain(name, model, faces, settings, device)
        for step in range(cycle):
            trainer.step(step)
    else:
        holdfast_training(model, faces, settings, device)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else peak_resident() - before
    return peak / 2**20


def memory_in_a_child(*what):
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--child", json.dumps(what)],
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        sys.exit(f"measuring the memory of {what} failed")
    return float(done.stdout)


def training_table(options, device):
    """Prints it; returns sentences about bars that were missed."""
    size, missed = options.size, []
    print(
        f"\n{'training step':<14} {'device':<6} {'px':>4} {'batch':>5}  {'precision':<10} {'plain ms':>9} "
        f"{'ours ms':>9} {'ratio':>6} {'plain MiB':>10} {'ours MiB':>9}"
    )
    for name in options.models:
        settings = settings_of(name, options, size) | {"batch": batch_of(options, device)}
        faces = Faces(size)
        ours = build(DEEPFAKES, name, settings, size, NAMES)
        plain_model = copy.deepcopy(ours)
        check_same(name, ours, plain_model, faces, settings, device)
        judged = precision_of_preset(name, device)
        plain_memory = None if options.no_memory else memory_in_a_child(name, "plain", "float32", device)
        able = precision_of({"precision": "auto"}, device)
        for precision in options.precision or sorted({able, "float32"}):
            memory = None if options.no_memory else memory_in_a_child(name, "ours", precision, device)
            pair = ours, plain_model, faces, settings | {"precision": precision}
            times = seconds_of_cycles(name, *pair, device, options.repeats)
            ms, plain_ms = (1000 * statistics.median(t) / settings["critic_steps"] for t in times)
            shown = [f"{value:.0f}" if value is not None else "-" for value in (plain_memory, memory)]
            print(
                f"{ours.title:<14} {device:<6} {size:>4} {settings['batch']:>5}  "
                f"{precision + ('*' if precision == judged else ''):<10} {plain_ms:>9.1f} {ms:>9.1f} "
                f"{plain_ms / ms:>6.2f} {shown[0]:>10} {shown[1]:>9}",
                flush=True,
            )
            if precision == judged and plain_ms / ms < BARS[device]:
                missed.append(f"{ours.title} trains {plain_ms / ms:.2f} times as fast on {device}")
    return missed


@torch.no_grad()
def features_table(options, device):
    """Prints it; returns sentences about bars that were missed."""
    size, batch, missed = options.features_size, batch_of(options, device), []
    print(
        f"\n{'features':<14} {'device':<6} {'px':>4} {'batch':>5} {'features ms':>12} {'edit ms':>9} "
        f"{'time':>6} {'arithmetic':>11}"
    )
    for name in options.models:
        model, faces = build(DEEPFAKES, name, settings_of(name, options, size), size, NAMES), Faces(size)
        model.prepare(faces)
        model = freeze(model, device)
        x = faces.pixels(range(batch)).to(device)
        attributes = faces.labels(range(batch), model.attributes).to(device)
        target = model.targets(attributes)[0]
        works = {
            "features": lambda m=model, x=x, a=attributes: m.features(x, a),
            "edit": lambda m=model, x=x, t=target: m.edit(x, t),
        }
        times, counts = {key: [] for key in works}, {}
        for key, work in works.items():
            with FlopCounterMode(display=False) as counter:
                work()
            counts[key] = counter.get_total_flops()
        for _ in range(options.repeats):
            for key, work in works.items():
                synchronise(device)
                began = time.perf_counter()
                work()
                synchronise(device)
                times[key].append(time.perf_counter() - began)
        ms = {key: 1000 * statistics.median(found) for key, found in times.items()}
        share = ms["features"] / ms["edit"]
        print(
            f"{model.title:<14} {device:<6} {size:>4} {batch:>5} {ms['features']:>12.1f} {ms['edit']:>9.1f} "
            f"{share:>6.0%} {counts['features'] / counts['edit']:>11.0%}",
            flush=True,
        )
        if name == "stargan" and share > FEATURES_BAR:
            missed.append(f"{model.title}'s features take {share:.0%} of an edit on {device}")
    return missed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", nargs="?", choices=("train", "features"), help="default: both")
    parser.add_argument("--models", nargs="+", choices=list(PLAIN_STEPS), default=list(PLAIN_STEPS))
    parser.add_argument("--size", type=int, default=64, help="px of the training step; a power of two")
    parser.add_argument("--features-size", type=int, default=FEATURES_SIZE)
    parser.add_argument("--batch", type=int, help="default: 4 on a CPU, 16 on CUDA")
    parser.add_argument(
        "--width", type=int, default=64, help="64: the published widths; others in proportion"
    )
    parser.add_argument("--critic-steps", type=int, default=1, help="per generator step; published: 5")
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=("bfloat16", "float32"),
        help="default: float32, and bfloat16 where the device has instructions for it",
    )
    parser.add_argument("--repeats", type=int, choices=range(1, 10), default=5, metavar="1-9")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--devices", nargs="+", choices=("cpu", "cuda"), help="default: all there are")
    parser.add_argument("--no-memory", action="store_true", help="measure time only")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        print(memory_of_a_cycle(*json.loads(options.child), options))
        return
    devices = options.devices or ["cpu"] + ["cuda"] * torch.cuda.is_available()
    gpu = f", {torch.cuda.get_device_name()}" if "cuda" in devices else ""
    print(f"torch {torch.__version__}, {options.threads} threads{gpu}, width {options.width}", flush=True)
    missed = []
    for device in devices:
        if options.table != "features":
            missed += training_table(options, device)
        if options.table != "train":
            missed += features_table(options, device)
    bars = f"{BARS['cpu']:.1f} on cpu, {BARS['cuda']:.1f} on cuda; features of StarGAN {FEATURES_BAR:.0%}"
    print(f"\nbars: {bars}: {'MISSED: ' + '; '.join(missed) if missed else 'met'}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
