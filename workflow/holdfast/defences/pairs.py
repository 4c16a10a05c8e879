"""What deepfake models make of images without and with a perturbation, both through one input diversity.

The clean images go through the same change, so that a distance between the two holds the perturbation's
effect and not that of the change.
"""

import torch

from holdfast.defences.diversity import diversified, placed
from holdfast.defences.interruption import clean_features


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
