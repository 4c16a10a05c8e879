"""What the optimisations of universal perturbations share: batches, gradients, resumable stages.

A stage is an object with ``steps`` (how many), ``step(index) -> {name: float}``, ``state_dict()`` and
``load_state_dict()``. Whatever else it needs it computes when its first step comes, so that a resumed
run does not pay for a stage that is over.
"""

import numpy as np
import torch

from holdfast.defences.momentum import normalised
from holdfast.errors import HoldfastError
from holdfast.seeds import generator
from holdfast.training.loop import batch_positions, run_steps


def required(networks, what, section):
    """`networks`, of which there has to be one.

    Args:
        networks: {name: network} of the surroundings.
        what: what they are, for the message.
        section: where the config names them.

    Raises:
        HoldfastError: there is none.
    """
    if not networks:
        raise HoldfastError(
            f"there is no {what} to attack",
            expected="one or more",
            repair=f"name them under `{section}` in the config",
        )
    return networks


class Stage:
    """What stages have in common: their state is some of their tensors, `kept` by name.

    A stage has ``steps`` and ``step(index)`` (:func:`run_stages`), and ``surroundings``.
    """

    kept = ("perturbation",)

    def state_dict(self):
        return {name: getattr(self, name).cpu() for name in self.kept}

    def load_state_dict(self, state):
        for name in self.kept:
            own, given = getattr(self, name), state[name].to(self.surroundings.device)
            # But for the first: a search's trials grow row by row.
            if own is not None and own.shape[1:] != given.shape[1:]:
                raise ValueError(f"{name} of shape {tuple(given.shape)}, not {tuple(own.shape)}")
            setattr(self, name, given)


class Learnt(Stage):
    """A stage that is over, somewhere else."""

    steps, kept = 0, ()

    def __init__(self, perturbation):
        self.perturbation = perturbation


def first_stage_of(defence):
    """A defence's first stage: what another job has learnt of it, or else the stage, to be run."""
    s = defence.surroundings
    if s.first is None:
        return defence.first_stage(s, defence.settings)
    return Learnt(defence.within_budget(s.first, s.shape).to(s.device))


def uniform(shape, epsilon, *seed_names):
    """Uniform noise on [-epsilon, epsilon], drawn on the CPU."""
    return (2 * torch.rand(shape, generator=generator(*seed_names)) - 1) * epsilon


def passes(count, batch):
    """(batch, updates per pass) for `count` images; a batch of None takes all of them."""
    batch = min(batch or count, count)
    return batch, -(-count // batch)


def minibatch(count, batch, index, *seed_names):
    """Positions (batch,) of the images of update `index`; each pass is its own permutation."""
    return torch.as_tensor(batch_positions(np.arange(count), batch, index, *seed_names))


def gradient(perturbation, positions, chunk, losses):
    """Gradient of a loss that is a mean over images, in chunks that bound the memory.

    Args:
        perturbation: (1, 3, S, S) for all images, or (b, 3, S, S), one per image.
        positions: (b,) the images' positions.
        chunk: how many images go through the networks at once.
        losses: function (perturbation that takes gradients, positions of a chunk) that yields pairs of
            a scalar loss (mean over the chunk) and a row {name: float}. The graph of a loss is freed
            before the next one is asked for, so that one network's activations are held at a time.
            A loss that the perturbation does not reach has no slope.

    Returns:
        The gradient of the summed losses w.r.t. the perturbation only, and the rows, summed, as means
        over the batch.
    """
    total, log = torch.zeros_like(perturbation), {}
    for start in range(0, len(positions), chunk):
        part = positions[start : start + chunk]
        rows = slice(None) if len(perturbation) == 1 else slice(start, start + chunk)
        share = len(part) / len(positions)
        point = perturbation[rows].detach().requires_grad_(True)
        for loss, row in losses(point, part):
            if loss.requires_grad:
                (slope,) = torch.autograd.grad(loss, point)
                total[rows] += share * slope
            for name, value in row.items():
                log[name] = log.get(name, 0.0) + share * value
    return total, log


def ensemble_gradient(perturbation, positions, chunk, losses):
    """Sum of several networks' gradients, each divided by its mean magnitude.

    Features of one network may be hundreds of times those of another, and so are their gradients: in a plain
    sum the first would decide alone.

    Args:
        perturbation, positions, chunk: as in :func:`gradient`.
        losses: {network: `losses` of :func:`gradient`}.

    Returns:
        The sum, and the rows, {name: mean over the networks}.
    """
    total, log = torch.zeros_like(perturbation), {}
    for of_network in losses.values():
        slope, row = gradient(perturbation, positions, chunk, of_network)
        total += normalised(slope)
        for name, value in row.items():
            log[name] = log.get(name, 0.0) + value / len(losses)
    return total, log


def run_stages(stages, state_path, description=""):
    """Run stages one after the other as one resumable run with one state file.

    Args:
        stages: {name: stage}.
        state_path: the state file of :func:`holdfast.training.loop.run_steps`, or None.

    Returns:
        The log of all steps.
    """
    order = [(stage, index) for stage in stages.values() for index in range(stage.steps)]

    def step(number):
        stage, index = order[number]
        return stage.step(index)

    return run_steps(len(order), step, stages, state_path, description=description)
