"""Stage 1 of TSDF as its released code behaves: steps on all models' features, and end-to-end steps."""

import torch

from holdfast.defences.interruption import compact, interruption_loss
from holdfast.defences.momentum import momentum_step
from holdfast.defences.pairs import Pairs
from holdfast.defences.stages import Stage, gradient, minibatch, passes, required, uniform
from holdfast.errors import HoldfastError


def moving_average(average, value, decay):
    """EMA: `value` itself where there is no average yet (None)."""
    return value if average is None else decay * average + (1 - decay) * value


def model_weights(averages, temperature):
    """Weights (M,) of the models, 1 in sum: the model that is disrupted most weighs most."""
    return torch.softmax(averages / temperature, dim=0)


class ReleasedInterruption(Stage):
    """The stage (holdfast.defences.stages). `perturbation` is W, (1, 3, S, S).

    `averages` (M,) holds the moving averages of the models' end-to-end losses.

    Args:
        surroundings: holdfast.defences.base.Surroundings.
        settings: those of holdfast.defences.tsdf_released.

    Raises:
        HoldfastError: there is no deepfake model; at the first step: `feature_size` is null, and the models'
            features differ in size.
    """

    kept = ("perturbation", "velocity", "averages")

    def __init__(self, surroundings, settings):
        self.surroundings, self.settings = surroundings, settings
        required(surroundings.models, "deepfake model", "deepfakes")
        self.batch, updates = passes(len(surroundings.images), settings["batch"])
        self.per_batch = settings["feature_steps"] + settings["output_steps"]
        self.steps = settings["iterations"] * updates * self.per_batch
        self.pairs = Pairs(surroundings, self._compact, settings["diversity_size"])
        self.names = (*surroundings.seed_names, "interruption")
        self.perturbation = uniform(surroundings.shape, surroundings.epsilon, *self.names, "start").to(
            surroundings.device
        )
        self.velocity = torch.zeros_like(self.perturbation)
        self.averages = torch.zeros(len(surroundings.models), device=surroundings.device)

    def step(self, index):
        """One update of W; returns the losses before it."""
        s, settings = self.surroundings, self.settings
        visit, turn = divmod(index, self.per_batch)
        positions = minibatch(len(s.images), self.batch, visit, *self.names)
        place = self.pairs.place(settings["diversity"], *self.names, "diversity", index)
        if turn < settings["feature_steps"]:
            losses = self._features(place)
            slope, log = gradient(self.perturbation, positions, s.batch, losses)
        else:
            turn -= settings["feature_steps"]
            number = visit * settings["output_steps"] + turn
            slope, log = self._end_to_end(positions, place, number)
        self.perturbation, self.velocity = momentum_step(
            self.perturbation, slope, self.velocity, settings["step_size"], settings["momentum"], s.epsilon
        )
        return log

    def _compact(self, features):
        return compact(features, self.settings["feature_size"], "sum")

    def _features(self, place):
        def losses(perturbation, positions):
            pairs = [
                self.pairs.features(name, perturbation, positions, place) for name in self.surroundings.models
            ]
            sizes = {tuple(clean.shape[2:]) for clean, _ in pairs}
            if len(sizes) > 1:
                raise HoldfastError(
                    "the models' features have different sizes and cannot be concatenated",
                    found=", ".join(f"{rows} x {columns}" for rows, columns in sorted(sizes)),
                    expected="one size",
                    repair="set `feature_size`, e.g. to 32",
                )
            # Summing a concatenation over its channels is adding up the models' own sums.
            clean, features = (sum(maps) for maps in zip(*pairs, strict=True))
            yield interruption_loss(features, clean, self.settings)

        return losses

    def _end_to_end(self, positions, place, number):
        """(slope of the weighted losses, log) of end-to-end step `number`; one model after the other."""
        slopes, losses = [], []
        for name in self.surroundings.models:
            slope, row = gradient(
                self.perturbation, positions, self.surroundings.batch, self._outputs(name, place, number)
            )
            slopes.append(slope)
            losses.append(row["l_end"])
        self.averages = moving_average(
            self.averages if number else None,
            torch.tensor(losses, device=self.averages.device),
            self.settings["loss_average"],
        )
        # The weights take no gradient, so a weighted sum of gradients is the gradient of the weighted sum.
        weights = model_weights(self.averages, self.settings["temperature"])
        slope = sum(weight * slope for weight, slope in zip(weights, slopes, strict=True))
        return slope, {"l_end": sum(losses) / len(losses)}

    def _outputs(self, name, place, number):
        def losses(perturbation, positions):
            yield self._part("output_share", self.pairs.outputs(name, perturbation, positions, place, number))
            yield self._part("feature_share", self.pairs.features(name, perturbation, positions, place))

        return losses

    def _part(self, share, pair):
        clean, perturbed = pair
        loss = self.settings[share] * (perturbed - clean).square().mean()
        return loss, {"l_end": loss.item()}
