"""What every defence is, and the one place where its budget is enforced.

A defence is a class with a `title` that overrides one method: `learn`, if it makes one perturbation
for all faces, or `perturb`, if it makes one per image; or both, if what it makes per image starts from a
universal perturbation (`from_universal`). Whatever these return, :meth:`Defence.fit` and
:meth:`Defence.protect` clip it to the budget and refuse what is not finite or has another shape.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from holdfast.data.pixels import stored
from holdfast.defences.chunks import in_chunks
from holdfast.errors import HoldfastError
from holdfast.tensors import write_tensors


@dataclass(frozen=True)
class Surroundings:
    """What a defence may look at and use.

    Attributes:
        models: {name: deepfake model}, frozen.
        detectors: {name: face detector}, frozen.
        images: float32 (n, 3, S, S) in [-1, 1], the faces that a universal perturbation is learnt on.
        labels: {model name: float32 (n, A)}, those faces' attributes in the model's order.
        epsilon: the budget: largest |perturbation| in units of [-1, 1].
        seed_names: names that seed everything random (holdfast.seeds).
        device: where to compute.
        state_path: where a long optimisation may keep its state; None to keep none.
        batch: images that go through the networks at once, which bounds the memory.
        first: (1, 3, S, S), what the defence's :attr:`Defence.first_stage` has found, or None where it is
            still to be run.
    """

    models: dict
    detectors: dict
    images: torch.Tensor
    labels: dict
    epsilon: float
    seed_names: tuple = ("defence", 0)
    device: str = "cpu"
    state_path: Path | None = None
    batch: int = field(default=8)
    first: torch.Tensor | None = None

    @property
    def shape(self):
        """Shape (1, 3, S, S) of a universal perturbation."""
        return (1, *self.images.shape[1:])


def read_perturbation(path):
    """The perturbation in a file, as it was written; None where a defence has none.

    Raises:
        HoldfastError: the file is missing or damaged.
    """
    try:
        return load_file(path).get("perturbation")
    except (OSError, SafetensorError) as error:
        raise HoldfastError(
            f"cannot load the perturbation {path}",
            found=str(error),
            expected="a safetensors file of the rule perturb or first_stage",
            repair="remove it and run again",
        ) from error


class Defence:
    """Base of all defences.

    Attributes:
        title: name in the tables.
        universal: True if :meth:`learn` makes one perturbation for all faces.
        from_universal: True if a defence per image starts from a perturbation that :meth:`learn` makes:
            it is learnt, saved and loaded like a universal one, and :meth:`perturb` goes on from it.
        first_stage: None, or what :meth:`learn` begins with: a function (surroundings, settings) that gives
            a stage (holdfast.defences.stages) with a `perturbation`, and uses no detector. Its module's
            FIRST_STAGE names the settings that it looks at: variants that agree in them share the result,
            which is computed once and then stands in `surroundings.first`.
        perturbation: the learnt perturbation (1, 3, S, S), |.| <= epsilon, once fitted or loaded.
        found: settings that :meth:`learn` has searched for, as JSON has them, for the record; None: none.
    """

    title = ""
    universal = True
    from_universal = False
    first_stage = None
    found = None

    def __init__(self, settings, surroundings):
        self.settings, self.surroundings = settings, surroundings
        self.perturbation = None

    # ---- what a defence overrides -------------------------------------------------------------

    def learn(self):
        """A perturbation (1, 3, S, S) in units of [-1, 1] for all faces."""
        raise self._lacks("learn(self)")

    def perturb(self, images):
        """Perturbations of the shape of `images` (N, 3, S, S), each of its own image alone. Default: the
        universal one.
        """
        if self.perturbation is None:
            raise self._lacks("perturb(self, images), or `universal = True` and learn(self)")
        return self.perturbation.to(images.device).expand_as(images)

    # ---- what holds for all of them -----------------------------------------------------------

    @property
    def learns(self):
        """Whether there is a perturbation to learn, to save and to load."""
        return self.universal or self.from_universal

    def fit(self):
        """Learn the universal perturbation (nothing to do for a defence per image without one).

        Raises:
            HoldfastError: `learn` gave something that is not finite or of another shape.
        """
        if self.learns:
            self.perturbation = self.within_budget(self.learn(), self.surroundings.shape)
        return self

    def protect(self, images):
        """The protected images as a reader of their 8-bit file sees them, (N, 3, S, S) in [-1, 1].

        |protected - images| is at most epsilon plus half a step of the 8-bit scale (1/255). A defence per
        image gets `surroundings.batch` images at a time, always as many (holdfast.defences.chunks): what it
        makes of an image does not hang on how many are protected with it.
        """

        def perturbation_of(part):
            # A copy: a defence that works in place must not move the images past its budget.
            return self.within_budget(self.perturb(part.clone()), part.shape).to(images.device)

        with torch.enable_grad():
            if self.universal:
                perturbation = perturbation_of(images)
            else:
                perturbation = in_chunks(perturbation_of, self.surroundings.batch, images)
        return stored(images + perturbation)

    def _lacks(self, method):
        return HoldfastError(
            f"the defence {self.title or type(self).__name__} has no {method.partition('(')[0]} of its own",
            found=f"universal = {self.universal}",
            expected="learn(self) where universal is True, and fit() or load() before it protects; else "
            "perturb(self, images)",
            repair=f"write {method} in {type(self).__module__}",
        )

    def within_budget(self, perturbation, shape):
        """`perturbation` as float32, detached, clipped to epsilon.

        Raises:
            HoldfastError: another shape than `shape`, no real numbers one by one (complex, sparse, meta),
                or a value that is not finite.
        """
        name = self.title or type(self).__name__
        found = f"{type(perturbation).__name__} {tuple(getattr(perturbation, 'shape', ()))}"
        wrong = not isinstance(perturbation, torch.Tensor) or tuple(perturbation.shape) != tuple(shape)
        if not wrong and (perturbation.layout != torch.strided or perturbation.is_meta):
            found, wrong = f"{found} without stored values", True
        if not wrong and perturbation.is_complex():
            found, wrong = f"{found} of complex numbers", True
        if wrong:
            raise HoldfastError(
                f"the defence {name} returned something else than a perturbation of its images",
                found=found,
                expected=f"a tensor {tuple(shape)} of real numbers",
                repair=f"mend {type(self).__module__}",
            )
        perturbation = perturbation.detach().to(torch.float32)
        if not torch.isfinite(perturbation).all():
            raise HoldfastError(
                f"the defence {name} returned values that are not finite",
                found=f"{(~torch.isfinite(perturbation)).sum().item()} of {perturbation.numel()} entries",
                expected="finite values",
                repair="lower its step size, or mend its loss",
            )
        epsilon = self.surroundings.epsilon
        return perturbation.clamp(-epsilon, epsilon)

    def save(self, path):
        """The universal perturbation as safetensors; a file with no tensor where there is none."""
        tensors = {} if self.perturbation is None else {"perturbation": self.perturbation}
        write_tensors(path, tensors, {"defence": self.title, "universal": str(self.universal)})

    def load(self, path):
        """Take the perturbation that :meth:`save` wrote; it is checked as if just learnt.

        Raises:
            HoldfastError: the file is missing, damaged, or holds another shape.
        """
        found = read_perturbation(path)
        if self.learns:
            self.perturbation = self.within_budget(found, self.surroundings.shape)
        return self
