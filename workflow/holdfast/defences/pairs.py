"""What deepfake models make of images without and with a perturbation, both through one input diversity.

The clean images go through the same change, so that a distance between the two holds the perturbation's
effect and not that of the change.
"""

import torch

from holdfast.defences.diversity import diversified, placed
from holdfast.defences.interruption import clean_features, compact
from holdfast.defences.momentum import momentum_step
from holdfast.defences.stages import Stage, minibatch, passes, required, uniform


class Pairs:
    """Pairs (clean, perturbed) for the models and images of the surroundings.

    Args:
        surroundings: holdfast.defences.base.Surroundings.
        form: what is kept of features, e.g. holdfast.defences.interruption.compact; function of a tensor.
        frame: side of input diversity's frame, as a multiple of the images' side.
    """

    def __init__(self, surroundings, form, frame):
        self.surroundings, self.form = surroundings, form
        size = surroundings.shape[-1]
        self.frame = max(size, round(frame * size))
        self._clean = None

    def place(self, probability, *seed_names):
        """Where the images lie in an update, drawn by seed: holdfast.defences.diversity.placed."""
        return placed(self.surroundings.shape[-1], self.frame, probability, *seed_names)

    def features(self, name, perturbation, positions, place):
        """`form` of a model's features, a pair; the clean ones are computed once where nothing moves.

        Args:
            name: of the model.
            perturbation: (1, 3, S, S); gradients flow to it.
            positions: (b,) of the images.
            place: of :meth:`place`.
        """
        s = self.surroundings
        model, (images, labels) = s.models[name], self._chosen(name, positions)
        if self._clean is None:
            self._clean = clean_features(s.models, s.images, s.labels, self.form, s.batch, s.device)
        if place is None:
            clean = self._clean[name][positions.to(s.device)]
        else:
            with torch.no_grad():
                clean = self.form(model.features(diversified(images, place, self.frame), labels))
        seen = diversified(images + perturbation, place, self.frame)
        return clean, self.form(model.features(seen, labels))

    def outputs(self, name, perturbation, positions, place, edit):
        """A model's edits (b, 3, S, S), a pair. `edit` counts up: the model's edits take turns.

        Args:
            name, perturbation, positions, place: as in :meth:`features`.
        """
        model, (images, labels) = self.surroundings.models[name], self._chosen(name, positions)
        targets = model.targets(labels)
        target = targets[edit % len(targets)]
        with torch.no_grad():
            clean = model.edit(diversified(images, place, self.frame), target)
        return clean, model.edit(diversified(images + perturbation, place, self.frame), target)

    def _chosen(self, name, positions):
        s = self.surroundings
        return s.images[positions].to(s.device), s.labels[name][positions].to(s.device)


class PairsStage(Stage):
    """A stage of MI-FGSM on pairs: each minibatch gets steps on features, then end-to-end steps.

    `perturbation` is W, (1, 3, S, S). A stage has a `name`, which seeds the start, the order of the images
    and the diversity; ``feature_slope(positions, place)`` and ``output_slope(positions, place, edit)``, each
    of which gives (slope to ascend, log).

    Args:
        surroundings: holdfast.defences.base.Surroundings.
        settings: iterations (passes), batch, feature_steps, output_steps, step_size, momentum, diversity,
            diversity_size and feature_size, as in holdfast.defences.found.

    Raises:
        HoldfastError: there is no deepfake model.
    """

    name = ""
    kept = ("perturbation", "velocity")

    def __init__(self, surroundings, settings):
        self.surroundings, self.settings = surroundings, settings
        required(surroundings.models, "deepfake model", "deepfakes")
        self.batch, updates = passes(len(surroundings.images), settings["batch"])
        self.per_batch = settings["feature_steps"] + settings["output_steps"]
        self.steps = settings["iterations"] * updates * self.per_batch
        self.pairs = Pairs(surroundings, self._compact, settings["diversity_size"])
        self.names = (*surroundings.seed_names, self.name)
        start = uniform(surroundings.shape, surroundings.epsilon, *self.names, "start")
        self.perturbation = start.to(surroundings.device)
        self.velocity = torch.zeros_like(self.perturbation)

    def step(self, index):
        """One update of W; returns the losses before it."""
        s, settings = self.surroundings, self.settings
        visit, turn = divmod(index, self.per_batch)
        positions = minibatch(len(s.images), self.batch, visit, *self.names)
        place = self.pairs.place(settings["diversity"], *self.names, "diversity", index)
        if turn < settings["feature_steps"]:
            slope, log = self.feature_slope(positions, place)
        else:
            edit = visit * settings["output_steps"] + turn - settings["feature_steps"]
            slope, log = self.output_slope(positions, place, edit)
        self.perturbation, self.velocity = momentum_step(
            self.perturbation, slope, self.velocity, settings["step_size"], settings["momentum"], s.epsilon
        )
        return log

    def _compact(self, features):
        return compact(features, self.settings["feature_size"], "sum")
