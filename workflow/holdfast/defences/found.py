"""FOUND: L. Tang et al., "Feature Extraction Matters More: An Effective and Efficient Universal Deepfake
Disruptor", ACM TOMM 2024 (preprint: arXiv 2303.00200). Baseline of TSDF Tables I, III and IV.

Attacked: the encoders of the deepfake models as an ensemble, then their final outputs. Norm: L-infinity.
Budget: epsilon = 0.05 in [-1, 1]. Universal: one perturbation W, learnt on 128 images in minibatches. For
each minibatch, `feature_steps` times on features and then `output_steps` times on outputs:

    L_k = MSE(E_k(T(x + W)), E_k(T(x)))         features, resized and summed over their channels
    L_k = MSE(G_k(T(x + W), c), G_k(T(x), c))   outputs
    grad = sum_k grad L_k / mean|grad L_k|      every model k weighs the same, whatever its scale
    g <- mu g + grad / mean|grad|;  W <- clip(W + gamma sign(g), +-epsilon)

T is input diversity (diversity.py), drawn anew for each update. A pass is one visit of all images.

| setting | default | source |
|---|---|---|
| momentum (mu), step_size (gamma) | 0.8, 0.001 | paper |
| iterations, batch | 30, 8 | TSDF's released code, in want of FOUND's own: passes, images per update |
| feature_steps, output_steps | 3, 1 | the same |
| diversity | 0.5 | the same: probability of T |
| diversity_size | 1.133 | the same: the frame's side, 290 for 256 pixels |
| feature_size | 32 | the same: the side that features are resized to |

Inferred, for FOUND's own code was not to be had: the schedule of the two kinds of step; that gradients are
normalised in both kinds of step; that both share one momentum; that clean images go through the same T, so
that the loss holds the perturbation's effect and not that of T; that T's frame is brought back to the
images' size; that an update on outputs asks each model for one edit c, the edits taking turns; that W
starts from uniform noise of +-epsilon (at W = 0 the losses have no slope) and x + W is not clipped. E_k get
the image's own attributes, as in TSDF.
"""

from holdfast.defences.base import Defence
from holdfast.defences.options import options
from holdfast.defences.pairs import PairsStage
from holdfast.defences.stages import ensemble_gradient, run_stages
from holdfast.errors import HoldfastError

SETTINGS = {
    "iterations": {
        "type": "integer",
        "minimum": 1,
        "default": 30,
        "description": "Passes over the images.",
    },
    "batch": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": 8,
        "description": "Images per update; null: all of them.",
    },
    "feature_steps": {
        "type": "integer",
        "minimum": 0,
        "default": 3,
        "description": "Updates per minibatch on features.",
    },
    "output_steps": {
        "type": "integer",
        "minimum": 0,
        "default": 1,
        "description": "Updates per minibatch on outputs, after those on features.",
    },
    "step_size": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 0.001,
        "description": "gamma, in units of [-1, 1].",
    },
    "momentum": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0.8,
        "description": "mu of MI-FGSM.",
    },
    "diversity": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0.5,
        "description": "Probability of input diversity in an update; 0 leaves it out.",
    },
    "diversity_size": {
        "type": "number",
        "minimum": 1,
        "default": 1.133,
        "description": "Side of input diversity's frame, as a multiple of the images' side.",
    },
    "feature_size": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": 32,
        "description": "Side that features are resized to; null: as they are.",
    },
}
DEFAULTS = {name: setting["default"] for name, setting in SETTINGS.items()}


class Disruption(PairsStage):
    """The stage (holdfast.defences.pairs). `settings` are those of this module."""

    name = "found"

    def feature_slope(self, positions, place):
        return self._slope("l_feature", self.pairs.features, positions, place)

    def output_slope(self, positions, place, edit):
        return self._slope("l_output", self.pairs.outputs, positions, place, edit)

    def _slope(self, called, pair, positions, *how):
        """The ensemble's slope of the MSE between the two of a pair, and the loss as a mean over the models.

        `called` names the loss: a log's mean over both kinds of step would say nothing.
        """
        s = self.surroundings

        def losses_of(name):
            def losses(perturbation, positions):
                clean, seen = pair(name, perturbation, positions, *how)
                mse = (seen - clean).square().mean()
                yield mse, {called: mse.item()}

            return losses

        losses = {name: losses_of(name) for name in s.models}
        return ensemble_gradient(self.perturbation, positions, s.batch, losses)


class FOUND(Defence):
    """Raises a HoldfastError at once where its settings leave it no step."""

    title = "FOUND"

    def __init__(self, settings, surroundings):
        super().__init__(options(self.title, DEFAULTS, settings), surroundings)
        if not self.settings["feature_steps"] + self.settings["output_steps"]:
            raise HoldfastError(
                "FOUND has nothing to do",
                found="feature_steps: 0, output_steps: 0",
                expected="one or more of either",
                repair="leave them out: the defaults are 3 and 1",
            )

    def learn(self):
        """(1, 3, S, S).

        Raises:
            HoldfastError: there is no deepfake model.
        """
        disruption = Disruption(self.surroundings, self.settings)
        run_stages({"found": disruption}, self.surroundings.state_path, self.title)
        return disruption.perturbation


REGISTER = {"found": FOUND}
