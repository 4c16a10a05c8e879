"""Stage 2 of TSDF as its released code behaves: per image by Adam, and S3FD flooded with false positives."""

import contextlib

import torch

from holdfast.defences import fusion
from holdfast.defences.adam import adam_change, cosine, limited
from holdfast.defences.separation import combined, intensity_mask, masked_step
from holdfast.defences.stages import Stage, gradient, minibatch, passes
from holdfast.errors import HoldfastError

FLOODED = "s3fd"  # the detector of the S3FD term: max-out is its own


def flooding_loss(logits, count):
    """The S3FD term: mean over the images and the stride-4 head of (largest background logit - face logit).

    Descending it raises the scores of faces where there are none.

    Args:
        logits: (N, P, 2), background after max-out, and face; the finest map's come first.
        count: how many priors the finest map has.
    """
    return (logits[:, :count, 0] - logits[:, :count, 1]).mean()


class ReleasedPoisoning(Stage):
    """The stage (holdfast.defences.stages). `perturbation` is delta: (1, 3, S, S) between the minibatches,
    (b, 3, S, S), one per image, while one of them is optimised.

    Args:
        surroundings: holdfast.defences.base.Surroundings.
        settings: those of holdfast.defences.tsdf_released.
        interruption: a stage that is over when this one's first step comes; its perturbation is W0.

    Raises:
        HoldfastError: there is no face detector, or the S3FD term has a weight and there is no S3FD.
    """

    kept = ("perturbation", "first", "second")

    def __init__(self, surroundings, settings, interruption):
        self.surroundings, self.settings, self.interruption = surroundings, settings, interruption
        self.weights = fusion.detector_weights(surroundings.detectors, None)
        if settings["flood_weight"] and FLOODED not in surroundings.detectors:
            raise HoldfastError(
                "there is no S3FD for the S3FD term of TSDF (released)",
                found=", ".join(surroundings.detectors),
                expected=f"a detector `{FLOODED}`, or no such term",
                repair=f"add `{FLOODED}` to `detectors`, or set `flood_weight: 0` to leave the term out",
            )
        self.batch, visits = passes(len(surroundings.images), settings["batch"])
        self.steps = settings["poison_iterations"] * visits * settings["poison_steps"]
        if set(surroundings.detectors) <= set(settings["without_gradient"]):
            self.steps = 0  # delta would stay 0, step after step
        self.names = (*surroundings.seed_names, "poisoning")
        self.levels = slice(-1, None) if settings["levels"] == "last" else slice(None)
        self.perturbation = torch.zeros(surroundings.shape, device=surroundings.device)
        self.first = self.second = torch.zeros_like(self.perturbation)
        self._visit = None

    def step(self, index):
        """One update of the minibatch's deltas; returns the losses before it."""
        s, settings = self.surroundings, self.settings
        visit, number = divmod(index, settings["poison_steps"])
        if visit != self._visit:
            self._prepare(visit)
        if number == 0:
            self.perturbation = self.perturbation.expand(len(self._positions), -1, -1, -1)
            self.first = self.second = torch.zeros_like(self.perturbation)
        seen = combined(self.interruption.perturbation, self.perturbation, s.epsilon)
        slope, log = gradient(seen, self._positions, s.batch, self._losses_of(index))
        change, self.first, self.second = adam_change(
            limited(slope, settings["gradient_norm"]),
            self.first,
            self.second,
            number,
            settings["poison_rate"] * cosine(number, settings["poison_steps"]),
        )
        self.perturbation = masked_step(
            self.perturbation, change, self.mask, settings["poison_limit"], settings["mask_acts_on"]
        )
        if number + 1 == settings["poison_steps"]:
            self.perturbation = self.perturbation.mean(dim=0, keepdim=True)
        return log

    def _prepare(self, visit):
        s, settings = self.surroundings, self.settings
        self.mask = intensity_mask(self.interruption.perturbation, settings["tau"], settings["beta"])
        self._margin = fusion.margin(self.mask, settings["nu"], settings["fused_size"])
        self._positions = minibatch(len(s.images), self.batch, visit, *self.names)
        self._row = {position: row for row, position in enumerate(self._positions.tolist())}
        # Clean features do not change over the steps; those of one minibatch are kept, not of all images.
        with torch.no_grad():
            chunks = [
                self._observed(s.images[part].to(s.device))[0] for part in self._positions.split(s.batch)
            ]
        self._clean = {
            name: [torch.cat(level) for level in zip(*(chunk[name] for chunk in chunks), strict=True)]
            for name in s.detectors
        }
        self._visit = visit

    def _observed(self, images):
        """{detector: levels that count}, and S3FD's flooding loss where it has a weight (else None)."""
        levels, flooding = {}, None
        for name, detector in self.surroundings.detectors.items():
            cut = name in self.settings["without_gradient"]
            with torch.no_grad() if cut else contextlib.nullcontext():
                if name == FLOODED and self.settings["flood_weight"]:
                    maps, logits, _ = fusion.observed(detector, images)
                    # S3FD has one anchor at each position of its finest level.
                    flooding = flooding_loss(logits, maps[0].shape[2:].numel())
                else:
                    maps = detector.levels(images)
            levels[name] = maps[self.levels]
        return levels, flooding

    def _fused(self, levels, *call):
        settings = self.settings
        drawn = call if settings["adaptors"] == "redrawn" else ()
        kernels = fusion.adaptors(levels, settings["adaptor_channels"], *self.names, "adaptor", *drawn)
        return fusion.fused(levels, kernels, self.weights, settings["fused_size"])

    def _losses_of(self, index):
        def losses(perturbation, positions):
            s, settings = self.surroundings, self.settings
            rows = [self._row[position] for position in positions.tolist()]
            clean = {name: [level[rows] for level in levels] for name, levels in self._clean.items()}
            targets = [self._margin - level for level in self._fused(clean, index, "clean")]
            levels, flooding = self._observed(s.images[positions].to(s.device) + perturbation)
            fused = self._fused(levels, index, "perturbed")
            loss = fusion.feature_loss(fused, targets, settings["level_weights"][self.levels])
            log = {"l_feat": loss.item()}
            if flooding is not None:
                loss = loss + settings["flood_weight"] * flooding
                log["l_flood"] = flooding.item()
            yield loss, log

        return losses
