"""Training of a deepfake model: for pretraining on clean faces and for the attacker's retraining alike.

A model brings its own optimisers, schedule of rates and losses (deepfakes/model.py). Its `training_step`
is a generator: it yields (network, loss, figures for the log) in the order of its updates, and goes on
when that network has been updated, so that a later loss may use what an earlier one computed.
"""

import copy
from contextlib import contextmanager

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from holdfast.errors import HoldfastError
from holdfast.seeds import generator
from holdfast.training.loop import batch_positions, mirror, run_steps

# What torch.cpu.get_capabilities calls instructions for bfloat16: of x86-64, and of 64-bit Arm.
BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")

# What the schedule below needs of every model's settings; a model's module adds its own to these.
SETTINGS = {
    "iterations": {
        "type": "integer",
        "minimum": 1,
        "default": 200000,
        "description": "Training steps: of the critic, where there is one.",
    },
    "batch": {"type": "integer", "minimum": 2, "default": 16, "description": "Images per step."},
    "generator_rate": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 0.0001,
        "description": "Adam's learning rate of the generator.",
    },
    "discriminator_rate": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 0.0001,
        "description": "Adam's learning rate of the discriminator.",
    },
    "critic_steps": {
        "type": "integer",
        "minimum": 1,
        "default": 5,
        "description": "Discriminator steps per generator step.",
    },
    "average": {
        "type": "number",
        "minimum": 0,
        "exclusiveMaximum": 1,
        "default": 0,
        "description": "Share that the running average of the generator's weights keeps of itself in a step; "
        "training gives that average (Karras et al., ICLR 2018). 0: the last weights.",
    },
    "mirror": {
        "type": "boolean",
        "default": True,
        "description": "Faces are mirrored left to right at random.",
    },
    "precision": {
        "enum": ["float32", "bfloat16", "auto"],
        "default": "float32",
        "description": "Arithmetic of convolutions in training; weights are float32 in any case. auto: "
        "bfloat16 where the device has instructions for it, else float32.",
    },
}


class Batches:
    """The training split as a model draws from it.

    `labels` is float32 (n, A), the attributes of all its faces; :meth:`at` gives batches.
    """

    def __init__(self, faces, positions, model, settings, seed_names, device):
        self.faces, self.positions, self.settings = faces, positions, settings
        self.seed_names, self.device = seed_names, device
        self._format = memory_format(settings, device)
        self.labels = faces.labels(positions, model.attributes)
        self._kept = {}

    def once(self, name, compute):
        """What `compute` gives, computed once for the whole training."""
        if name not in self._kept:
            self._kept[name] = compute()
        return self._kept[name]

    def at(self, step, rows=None, *names):
        """Images (N, 3, S, S) and attributes (N, A) of step `step`'s batch.

        Args:
            rows: int array, those of `labels` to draw from; None: all.
            names: of this choice of rows, for its order of faces.
        """
        rows = np.arange(len(self.labels)) if rows is None else rows
        chosen = batch_positions(rows, self.settings["batch"], step, *self.seed_names, *names)
        x = self.faces.pixels(self.positions[chosen])
        if self.settings["mirror"]:
            x = mirror(x, generator(*self.seed_names, "mirror", step))
        return x.to(self.device, memory_format=self._format), self.labels[chosen].to(self.device)


def precision_of(settings, device):
    """What `settings` have training computed in, float32 or bfloat16; auto goes by `device`.

    A CPU without instructions for bfloat16 emulates it, many times slower than float32.
    """
    if settings["precision"] != "auto":
        return settings["precision"]
    if torch.device(device).type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        known = torch.cpu.get_capabilities()
        able = any(known.get(name) for name in BFLOAT16)
    return "bfloat16" if able else "float32"


def memory_format(settings, device):
    """How images and networks lie in memory while they train: channels-last, but for float32 on a CPU.

    There a step takes up to 1.9 times as long (StarGAN; HiSD no longer: benchmarks/train_deepfakes.py).
    """
    slow = torch.device(device).type == "cpu" and precision_of(settings, device) == "float32"
    return torch.contiguous_format if slow else torch.channels_last


def obstacle(model, faces):
    """What keeps `model` from being trained on the split `train` of `faces`, in words, or None."""
    positions = faces.positions("train")
    if len(positions) < 2:
        return f"{len(positions)} training faces"
    return model.obstacle(faces.labels(positions, model.attributes))


@contextmanager
def weights_of(average, network):
    """Within it, `network` has the weights of its running average, where there is one; then its own again."""
    own = None if average is None else copy.deepcopy(network.state_dict())
    take(average, network)
    yield
    if own is not None:
        network.load_state_dict(own)


def take(average, network):
    """Give `network` the weights of its running average; None: it keeps its own."""
    if average is not None:
        network.load_state_dict(average.module.state_dict())


def train_deepfake(model, faces, settings, seed_names, *, state_path=None, device="cpu", on_sample=None):
    """Train all networks of `model` on the split `train` of `faces`.

    Args:
        model: a deepfake model; trained in place, on `device`, and returned there.
        faces: a FaceSet that has the model's attributes.
        settings: those of SETTINGS, and what the model's own training needs.
        seed_names: names that seed batches and all that a step draws.
        state_path: see training/loop.py.
        on_sample: optional, called with the fraction done when another tenth of it is: the last time at
            the end.

    Returns:
        The log, one row per iteration.

    Raises:
        HoldfastError: there are too few faces to train on (:func:`obstacle`), or the losses diverge.
    """
    found = obstacle(model, faces)
    if found is not None:
        raise HoldfastError(
            f"{model.title} cannot be trained on {faces.folder}",
            found=found,
            expected="at least 2 training faces, with the attributes that the model edits",
            repair="add faces, or annotate more of them",
        )
    positions = faces.positions("train")
    networks, iterations = model.networks, settings["iterations"]
    for network in networks.values():
        network.to(device, memory_format=memory_format(settings, device)).train().requires_grad_(True)
    batches = Batches(faces, positions, model, settings, seed_names, device)
    optimisers = model.optimisers(settings)
    rates = {name: [group["lr"] for group in thing.param_groups] for name, thing in optimisers.items()}
    device_type, precision = torch.device(device).type, precision_of(settings, device)
    average = None
    # HiSD has its average as a network of its own, and keeps it itself.
    if settings["average"] and "average" not in networks:
        average = AveragedModel(
            networks["generator"], multi_avg_fn=get_ema_multi_avg_fn(settings["average"]), use_buffers=True
        )

    def update(name, loss, step):
        optimiser = optimisers[name]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if model.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(networks[name].parameters(), model.clip_norm)
        for group, rate in zip(optimiser.param_groups, rates[name], strict=True):
            group["lr"] = rate * model.rate_factor(step, iterations)
        optimiser.step()

    def step_fn(step):
        losses = {}
        random = generator(*seed_names, "step", step)
        updates = model.training_step(batches, step, random, settings)
        while True:
            with torch.autocast(device_type, torch.bfloat16, enabled=precision == "bfloat16"):
                found = next(updates, None)
            if found is None:
                if average is not None:
                    average.update_parameters(networks["generator"])
                return losses
            name, loss, shown = found
            update(name, loss, step)
            losses |= shown

    def after_step(step, log):
        if on_sample is not None and 10 * (step + 1) // iterations > 10 * step // iterations:
            with weights_of(average, networks["generator"]):
                on_sample((step + 1) / iterations)

    state = {**networks, **{f"{name} optimiser": thing for name, thing in optimisers.items()}}
    if average is not None:
        state["running average"] = average
    log = run_steps(
        iterations,
        step_fn,
        state,
        state_path,
        description=f"training {model.title} in {precision}",
        after_step=after_step,
    )
    take(average, networks["generator"])
    return log
