"""Stage 1 of TSDF (Eq. 1-10): a universal perturbation against the encoders of deepfake models."""

import torch

from holdfast.defences import distances
from holdfast.defences.enhancement import enhancement_loss
from holdfast.defences.fusion import resized
from holdfast.defences.momentum import momentum_step
from holdfast.defences.stages import Stage, gradient, minibatch, passes, required, uniform

# Table VIII compares distances; a new one is a function (adversarial, clean, settings) -> scalar here,
# added to L_MSE with the weight lambda. None leaves L_MSE alone.
DISTANCES = {
    "none": None,
    "kl_divergence": lambda adversarial, clean, settings: distances.kl_divergence(adversarial, clean),
    "wasserstein": lambda adversarial, clean, settings: distances.wasserstein(adversarial, clean),
    "enhancement": lambda adversarial, clean, settings: enhancement_loss(
        adversarial,
        clean,
        settings["alpha"],
        settings["sigma"],
        settings["restandardise"],
        settings["enhancement_target"] == "fixed",
    ),
}


def compact(features, size, reduction):
    """Features (N, C, h, w) as the losses see them: (N, C or 1, size, size).

    Args:
        size: side they are resized to bilinearly, or None.
        reduction: "sum" over the channels, or "none".
    """
    features = resized(features, size)
    return features.sum(dim=1, keepdim=True) if reduction == "sum" else features


@torch.no_grad()
def clean_features(models, images, labels, form, chunk, device):
    """{model: (n, ...)}: `form` of every model's features of the clean images, computed once.

    Args:
        form: what is kept of the features, e.g. :func:`compact`; function of a tensor.
        chunk: images per pass.
    """
    return {
        name: torch.cat(
            [
                form(model.features(x.to(device), y.to(device)))
                for x, y in zip(images.split(chunk), labels[name].split(chunk), strict=True)
            ]
        )
        for name, model in models.items()
    }


def interruption_loss(features, clean, settings, models=1):
    """L_feature of Eq. 9, as one of `models` equal shares of a mean, and its row of the log.

    Args:
        features, clean: (N, C, h, w), of the perturbed and of the clean images.
        settings: `feature_distance`, `enhancement_sign`, `lambda_enh`, and those of the distance.
    """
    distance = DISTANCES[settings["feature_distance"]]
    sign = 1 if settings["enhancement_sign"] == "ascend" else -1
    loss = mse = (features - clean).square().mean() / models
    row = {"l_mse": mse.item()}
    if distance is not None:
        extra = distance(features, clean, settings) / models
        loss = mse + sign * settings["lambda_enh"] * extra
        row["l_enh"] = extra.item()
    return loss, row


class Interruption(Stage):
    """The stage (holdfast.defences.stages). `perturbation` is W, (1, 3, S, S).

    Args:
        surroundings: holdfast.defences.base.Surroundings.
        settings: those of holdfast.defences.tsdf.

    Raises:
        HoldfastError: there is no deepfake model.
    """

    kept = ("perturbation", "velocity")

    def __init__(self, surroundings, settings):
        self.surroundings, self.settings = surroundings, settings
        required(surroundings.models, "deepfake model", "deepfakes")
        self.batch, updates = passes(len(surroundings.images), settings["batch"])
        self.steps = settings["iterations"] * updates * settings["steps_per_batch"]
        start = uniform(
            surroundings.shape, surroundings.epsilon, *surroundings.seed_names, "interruption", "start"
        )
        self.perturbation = start.to(surroundings.device)
        self.velocity = torch.zeros_like(self.perturbation)
        self._clean = None

    def step(self, index):
        """One update of W; returns the losses before it."""
        s, settings = self.surroundings, self.settings
        if self._clean is None:
            self._clean = clean_features(s.models, s.images, s.labels, self._compact, s.batch, s.device)
        update = index // settings["steps_per_batch"]
        positions = minibatch(len(s.images), self.batch, update, *s.seed_names, "interruption")
        slope, log = gradient(self.perturbation, positions, s.batch, self._losses)
        self.perturbation, self.velocity = momentum_step(
            self.perturbation, slope, self.velocity, settings["step_size"], settings["momentum"], s.epsilon
        )
        return log

    def _compact(self, features):
        return compact(features, self.settings["feature_size"], self.settings["feature_reduction"])

    def _losses(self, perturbation, positions):
        s = self.surroundings
        images = s.images[positions].to(s.device)
        for name, model in s.models.items():
            labels = s.labels[name][positions].to(s.device)
            features = self._compact(model.features(images + perturbation, labels))
            clean = self._clean[name][positions.to(self._clean[name].device)]
            yield interruption_loss(features, clean, self.settings, len(s.models))
