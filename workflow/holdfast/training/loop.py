"""A training loop that can be killed at any moment and still ends with the same weights.

Two rules make that exact: whatever is random in step k is drawn from a generator seeded by names and
by k (never carried over from step k - 1), and everything else that changes lives in `state`, which is
written to one file atomically.
"""

import time
from pathlib import Path

import torch

from holdfast.errors import HoldfastError
from holdfast.files import remove_leftovers, writing
from holdfast.progress import Progress
from holdfast.seeds import numpy_generator


def run_steps(total_steps, step_fn, state, state_path, *, description="", save_seconds=30.0, after_step=None):
    """Run ``step_fn(step)`` for step = 0 … total_steps - 1, going on from `state_path` where it exists.

    Args:
        total_steps: number of steps.
        step_fn: does one step and returns {name: float}, the row of the log.
        state: {name: object with state_dict() and load_state_dict()}.
        state_path: the state file. It is kept after the last step, so that a finished training is
            not repeated when something after it fails; None for a short training without one.
        description: what the progress bar says.
        save_seconds: how often the state is written; less often, up to ten times this, where writing is
            slow. It does not change the result.
        after_step: optional, called with (step, log) after a step; draws sample sheets and the like.

    Returns:
        The log: a list of {"step": …, **losses} of all steps, those before an interruption included.

    Raises:
        HoldfastError: the state file is damaged or belongs to another architecture; a loss is not finite.
    """
    log = _restore(state, state_path)
    written, pause = time.monotonic(), save_seconds
    with Progress(total_steps, description, start=len(log)) as progress:
        for step in range(len(log), total_steps):
            losses = step_fn(step)
            _check_finite(losses, step, description)
            log.append({"step": step, **losses})
            if after_step is not None:
                after_step(step, log)
            progress.advance(losses)
            if state_path is not None and (time.monotonic() - written > pause or step == total_steps - 1):
                began = time.monotonic()
                _save(state, log, state_path)
                written = time.monotonic()
                # Writing the gigabytes of a large model takes at most a twentieth of the time.
                pause = max(save_seconds, min(20 * (written - began), 10 * save_seconds))
    return log


def _save(state, log, path):
    # Into an open file: torch.save tells less of what the disk says where it opens the file itself.
    with writing(path) as temporary, open(temporary, "wb") as file:
        torch.save({"log": log, **{name: thing.state_dict() for name, thing in state.items()}}, file)


def _restore(state, path):
    if path is None:
        return []
    path = Path(path)
    # A kill while the state was being written leaves its temporary file behind.
    remove_leftovers(path)
    if not path.exists():
        return []
    try:
        saved = torch.load(path, weights_only=True, map_location="cpu")
        for name, thing in state.items():
            thing.load_state_dict(saved[name])
        return saved["log"]
    except Exception as error:
        raise HoldfastError(
            f"cannot go on from the training state {path}",
            found=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",
            expected="a state that this training wrote",
            repair="remove that file; the training then starts anew",
        ) from error


def _check_finite(losses, step, description):
    for name, value in losses.items():
        if not abs(value) < float("inf"):
            raise HoldfastError(
                f"{description or 'training'} diverged at step {step}",
                found=f"{name} = {value}",
                expected="a finite loss",
                repair="lower the learning rate in the config",
            )


def batch_positions(positions, batch_size, step, *names):
    """The positions of step `step`'s batch: epochs are permutations seeded by names and epoch.

    Args:
        positions: int array of n candidates.
        batch_size: how many a batch has; above n, a batch holds repeated passes.
        names: what seeds the order.
    """
    count = len(positions)
    chosen = []
    first = step * batch_size
    while len(chosen) < batch_size:
        epoch, offset = divmod(first + len(chosen), count)
        order = numpy_generator(*names, "epoch", epoch).permutation(count)
        chosen.extend(order[offset : offset + batch_size - len(chosen)])
    return positions[chosen]


def mirror(x, random):
    """Each of the images (N, C, H, W) as it is or, with probability 1/2, mirrored left to right."""
    turned = torch.rand(len(x), generator=random) < 0.5
    return torch.where(turned[:, None, None, None], x.flip(3), x)


def linear_decay(step, total_steps, after=0.5):
    """StarGAN's schedule: 1 over the first half (the share `after`), then falling linearly to 0."""
    span = (1 - after) * total_steps
    return min(1.0, (total_steps - step) / span) if span else 1.0
