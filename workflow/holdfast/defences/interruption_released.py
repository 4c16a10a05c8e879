"""Stage 1 of TSDF as its released code behaves: steps on all models' features, and end-to-end steps."""

import torch

from holdfast.defences.interruption import interruption_loss
from holdfast.defences.pairs import PairsStage
from holdfast.defences.stages import gradient
from holdfast.errors import HoldfastError


def moving_average(average, value, decay):
    """EMA: `value` itself where there is no average yet (None)."""
    return value if average is None else decay * average + (1 - decay) * value


def model_weights(averages, temperature):
    """Weights (M,) of the models, 1 in sum: the model that is disrupted most weighs most."""
    return torch.softmax(averages / temperature, dim=0)


class ReleasedInterruption(PairsStage):
    """The stage (holdfast.defences.pairs). `settings` are those of holdfast.defences.tsdf_released.

    `averages` (M,) holds the moving averages of the models' end-to-end losses.

    Raises:
        HoldfastError: there is no deepfake model; at the first step: `feature_size` is null, and the models'
            features differ in size.
    """

    name = "interruption"
    kept = ("perturbation", "velocity", "averages")

    def __init__(self, surroundings, settings):
        super().__init__(surroundings, settings)
        self.averages = torch.zeros(len(surroundings.models), device=surroundings.device)

    def feature_slope(self, positions, place):
        """(slope, log) of stage 1's loss of all models' features."""
        return gradient(self.perturbation, positions, self.surroundings.batch, self._features(place))

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

    def output_slope(self, positions, place, edit):
        """(slope of the weighted losses, log) of end-to-end step `edit`; one model after the other."""
        slopes, losses = [], []
        for name in self.surroundings.models:
            slope, row = gradient(
                self.perturbation, positions, self.surroundings.batch, self._outputs(name, place, edit)
            )
            slopes.append(slope)
            losses.append(row["l_end"])
        self.averages = moving_average(
            self.averages if edit else None,
            torch.tensor(losses, device=self.averages.device),
            self.settings["loss_average"],
        )
        # The weights take no gradient, so a weighted sum of gradients is the gradient of the weighted sum.
        weights = model_weights(self.averages, self.settings["temperature"])
        slope = sum(weight * slope for weight, slope in zip(weights, slopes, strict=True))
        return slope, {"l_end": sum(losses) / len(losses)}

    def _outputs(self, name, place, edit):
        def losses(perturbation, positions):
            yield self._part("output_share", self.pairs.outputs(name, perturbation, positions, place, edit))
            yield self._part("feature_share", self.pairs.features(name, perturbation, positions, place))

        return losses

    def _part(self, share, pair):
        clean, perturbed = pair
        loss = self.settings[share] * (perturbed - clean).square().mean()
        return loss, {"l_end": loss.item()}
