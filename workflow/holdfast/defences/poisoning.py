"""Stage 2 of TSDF (Eq. 11-17): a perturbation against face detectors where stage 1 is faint."""

import torch

from holdfast.defences import fusion
from holdfast.defences.separation import intensity_mask, masked_step
from holdfast.defences.stages import Stage, gradient, minibatch, passes

# Signs of L_feat and L_output in what is *descended* (ambiguity A3).
OBJECTIVES = {
    "minimise_sum": (1, 1),  # towards the flipped features, scores to 0, boxes to points: what disrupts
    "descend_literal": (1, -1),  # Eq. 14 and 16
    "ascend_literal": (-1, 1),  # Eq. 14 and the text after it
}


def direction(gradient_, optimiser):
    """What the step size multiplies: the gradient to the letter of Eq. 16, or its sign."""
    return gradient_.sign() if optimiser == "sign" else gradient_


class Poisoning(Stage):
    """The stage (holdfast.defences.stages). `perturbation` is delta, (1, 3, S, S).

    Args:
        surroundings: holdfast.defences.base.Surroundings.
        settings: those of holdfast.defences.tsdf.
        interruption: a stage that is over when this one's first step comes; its perturbation is W0.

    Raises:
        HoldfastError: there is no face detector, or one without a fusion weight.
    """

    def __init__(self, surroundings, settings, interruption):
        self.surroundings, self.settings, self.interruption = surroundings, settings, interruption
        self.weights = fusion.detector_weights(surroundings.detectors, settings["fusion_weights"])
        self.batch, updates = passes(len(surroundings.images), settings["batch"])
        self.steps = settings["poison_iterations"] * updates * settings["poison_steps_per_batch"]
        self.perturbation = torch.zeros(surroundings.shape, device=surroundings.device)
        self._prepared = False

    def step(self, index):
        """One update of delta; returns the losses before it."""
        s, settings = self.surroundings, self.settings
        if not self._prepared:
            self._prepare()
        update = index // settings["poison_steps_per_batch"]
        positions = minibatch(len(s.images), self.batch, update, *s.seed_names, "poisoning")
        # The gradient is taken at the clipped sum and given to delta as it is: where W0 + delta
        # reaches beyond the budget, a clip inside the graph would pin delta there for good.
        seen = (self.interruption.perturbation + self.perturbation).clamp(-s.epsilon, s.epsilon)
        slope, log = gradient(seen, positions, s.batch, self._losses)
        change = -settings["poison_step_size"] * direction(slope, settings["poison_optimiser"])
        self.perturbation = masked_step(
            self.perturbation, change, self.mask, s.epsilon, settings["mask_acts_on"]
        )
        return log

    @torch.no_grad()
    def _prepare(self):
        s, settings = self.surroundings, self.settings
        self.mask = intensity_mask(self.interruption.perturbation, settings["tau"], settings["beta"])
        margin = fusion.margin(self.mask, settings["nu"], settings["fused_size"])
        self._kernels = None
        fused, self._chosen, self._centres = [], {}, {}
        for images in s.images.split(s.batch):
            maps, outputs = self._observed(images.to(s.device))
            if self._kernels is None:
                self._kernels = fusion.adaptors(
                    maps, settings["adaptor_channels"], *s.seed_names, "poisoning", "adaptor"
                )
            fused.append(self._fused(maps))
            for name, (scores, boxes) in outputs.items():
                self._chosen.setdefault(name, []).append(fusion.detected(scores, settings["detected_above"]))
                centres = (boxes[..., :2] + boxes[..., 2:]) / 2
                self._centres.setdefault(name, []).append(centres)
        self._targets = [-torch.cat(level) + margin for level in zip(*fused, strict=True)]
        self._chosen = {name: torch.cat(parts) for name, parts in self._chosen.items()}
        self._centres = {name: torch.cat(parts) for name, parts in self._centres.items()}
        self._prepared = True

    def _observed(self, images, needed=None):
        """{detector: three levels} and {detector: (face scores (N, P), boxes (N, P, 4))}.

        Args:
            needed: {detector: bool (P,)}, the priors whose scores and boxes count; None: all.
        """
        maps, outputs = {}, {}
        for name, detector in self.surroundings.detectors.items():
            of_detector = None if needed is None else needed[name]
            maps[name], logits, encoded = fusion.observed(detector, images, of_detector)
            boxes = detector.decode(encoded, detector.priors(*images.shape[2:]))
            outputs[name] = fusion.face_scores(logits), boxes
        return maps, outputs

    def _fused(self, maps):
        return fusion.fused(maps, self._kernels, self.weights, self.settings["fused_size"])

    def _losses(self, perturbation, positions):
        s, settings = self.surroundings, self.settings
        images, positions = s.images[positions].to(s.device), positions.to(s.device)
        # L_output looks at the chosen priors alone; maps of a detector that have none need not be computed.
        chosen = {name: of_all[positions] for name, of_all in self._chosen.items()}
        needed = {name: of_images.any(dim=0) for name, of_images in chosen.items()}
        maps, outputs = self._observed(images + perturbation, needed)
        targets = [target[positions] for target in self._targets]
        l_feat = fusion.feature_loss(self._fused(maps), targets, settings["level_weights"])
        l_output = sum(
            fusion.output_loss(
                scores,
                boxes,
                self._centres[name][positions],
                chosen[name],
                settings["box_weight"],
            )
            for name, (scores, boxes) in outputs.items()
        ) / len(outputs)
        feature_sign, output_sign = OBJECTIVES[settings["poison_objective"]]
        loss = feature_sign * l_feat + output_sign * settings["output_weight"] * l_output
        yield loss, {"l_feat": l_feat.item(), "l_output": l_output.item()}
