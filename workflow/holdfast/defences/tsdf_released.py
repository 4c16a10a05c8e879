"""TSDF as its authors' released code behaves, where that differs from the paper's equations (tsdf.py): the
facts that are known of that code, on the same parts. "Boosting Active Defense Persistence: A Two-Stage
Defense Framework Combining Interruption and Poisoning Against Deepfake", 2025.

Attacked: features and outputs of the deepfake models (stage 1, interruption_released.py, pairs.py,
enhancement.py), then features of the face detectors, and S3FD's scores (stage 2, poisoning_released.py,
fusion.py, adam.py), in the entries that stage 1 leaves faint (separation.py). Norm: L-infinity. Budget:
epsilon = 0.05 in [-1, 1] for stage 1 and for the sum. Universal: one perturbation, learnt on 128 images.

Stage 1, for each batch: `feature_steps` times L_MSE - lambda L_enh is ascended, of one feature, all models'
E_i resized, concatenated and summed over their channels; then `output_steps` times sum_k w_k L_k,

    L_k = 0.7 MSE(G_k(T(x + W), c), G_k(T(x), c)) + 0.3 MSE(E_k(T(x + W)), E_k(T(x)))
    w   = softmax(EMA_0.9(L) / 0.1)        T: input diversity (diversity.py), in both kinds of step

Stage 2, for each batch: one delta per image by Adam on 4 |F_fused - (-F_clean + nu M_d)|^2 of the last level,
F_fused and F_clean through adaptors of their own, and on the S3FD term, which *raises* face scores; then the
batch's mean. Steps: 30 x 16 x 4 and 16 x 50.

| setting | default | source |
|---|---|---|
| iterations, batch | 30, 8 | released: passes, images per update (paper: 50 iterations) |
| feature_steps, output_steps | 3, 1 | released |
| step_size (gamma), momentum (mu) | 0.001, 0.8 | released; paper |
| feature_size | 32 | released |
| feature_distance | enhancement | Eq. 3-8 |
| enhancement_sign, lambda_enh | descend, 0.001 | A1: released; paper |
| alpha, sigma, restandardise | 0.4, 0.1, true | released |
| enhancement_target | live | ours: whether the released code holds F_enh still is not known |
| output_share, feature_share | 0.7, 0.3 | released, of the end-to-end step |
| loss_average, temperature | 0.9, 0.1 | released |
| diversity, diversity_size | 0.5, 1.133 | released: probability; 256 to 290 pixels for 256, as a ratio |
| tau, beta | 0.04, 5 | paper; released (paper: 0.4). tau 0 leaves stage 2 out |
| mask_acts_on | perturbation | A2: Eq. 16 to the letter; not known of the released code; or "update" |
| poison_iterations | 1 | ours: passes |
| poison_steps, poison_rate | 50, 0.02 | released: Adam with cosine annealing, steps per batch of 8 |
| gradient_norm, poison_limit | 1, 0.4 | released: largest norm of a gradient; delta's own bound |
| nu | 1.0 | ours, as in `tsdf` |
| level_weights, levels | 5, 3, 4; last | released: an indentation slip leaves the last level only |
| adaptors, adaptor_channels | redrawn, 128 | released: at random on every call; "fixed": once, by seed |
| fused_size | 64 | released |
| without_gradient | retinaface | released: these detectors are looked at without gradient tracking |
| flood_weight | 1.0 | ours; the S3FD term is released; 0 leaves it out |

Inferred: that "concatenated" joins all models' channels, so that their sums add up; that clean images go
through the same T, drawn once per update, its frame brought back to the images' size; that an end-to-end step
asks for one edit, the edits taking turns, and takes the feature's distance (resized, summed over channels)
model by model; that the average starts at the first loss and counts the present one; that both kinds of step
share one momentum; that W starts from uniform noise of +-epsilon; that Adam, its rate and the deltas start
anew in every batch, the deltas at the mean that the batch before left; that the gradient's norm is that of
all the batch's deltas; that the gradient at the clipped sum is given to delta as it is; that L_feat and the
S3FD term are both minimised (A3); equal weights of the detectors. E_i get the image's own attributes
(released). Adaptors have deviation 1 / sqrt(channels) and no bias, as in `tsdf`. Where no detector gives a
gradient (RetinaFace alone), delta stays 0, as it would in the released code, and no step is made.

Left out: L_output of Eq. 13, of which nothing is known in the released code, and which lowers the very scores
that the S3FD term raises. That the released code measures x + W without clipping or rounding belongs to
measuring, not to this file (benchmarks/stored_against_float.py).
"""

from holdfast.defences.base import Defence
from holdfast.defences.interruption_released import ReleasedInterruption
from holdfast.defences.options import options
from holdfast.defences.poisoning_released import ReleasedPoisoning
from holdfast.defences.separation import combined
from holdfast.defences.stages import first_stage_of, run_stages
from holdfast.errors import HoldfastError

SETTINGS = {
    "iterations": {
        "type": "integer",
        "minimum": 1,
        "default": 30,
        "description": "Passes of stage 1 over the images.",
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
        "description": "End-to-end updates per minibatch, after those on features.",
    },
    "step_size": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 0.001,
        "description": "gamma of Eq. 10, in units of [-1, 1].",
    },
    "momentum": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0.8,
        "description": "mu of MI-FGSM.",
    },
    "feature_size": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": 32,
        "description": "Side that features are resized to; null: as they are, of one size for all models.",
    },
    "feature_distance": {
        "enum": ["none", "enhancement"],
        "default": "enhancement",
        "description": "What feature steps have beside L_MSE.",
    },
    "enhancement_sign": {
        "enum": ["ascend", "descend"],
        "default": "descend",
        "description": "A1: whether L_enh is ascended (Eq. 9-10) or descended (released).",
    },
    "enhancement_target": {
        "enum": ["live", "fixed"],
        "default": "live",
        "description": "Whether a gradient flows through F_enh.",
    },
    "lambda_enh": {"type": "number", "minimum": 0, "default": 0.001, "description": "lambda of Eq. 9."},
    "alpha": {"type": "number", "minimum": 0, "default": 0.4, "description": "alpha of Eq. 3."},
    "sigma": {"type": "number", "exclusiveMinimum": 0, "default": 0.1, "description": "sigma of Eq. 3."},
    "restandardise": {
        "type": "boolean",
        "default": True,
        "description": "Whether F_enh is brought back to the adversarial feature's mean and deviation.",
    },
    "output_share": {
        "type": "number",
        "minimum": 0,
        "default": 0.7,
        "description": "Weight of the outputs' distance in an end-to-end step.",
    },
    "feature_share": {
        "type": "number",
        "minimum": 0,
        "default": 0.3,
        "description": "Weight of the features' distance in an end-to-end step.",
    },
    "loss_average": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0.9,
        "description": "Decay of the moving average that weighs the models.",
    },
    "temperature": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 0.1,
        "description": "Of the softmax that weighs the models.",
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
    "tau": {
        "type": "number",
        "minimum": 0,
        "default": 0.04,
        "description": "Threshold of Eq. 15; 0 leaves stage 2 out.",
    },
    "beta": {"type": "number", "minimum": 0, "default": 5, "description": "Decay of Eq. 15."},
    "mask_acts_on": {
        "enum": ["perturbation", "update"],
        "default": "perturbation",
        "description": "A2: whether M_d multiplies the perturbation at every step (Eq. 16) or its update.",
    },
    "poison_iterations": {
        "type": "integer",
        "minimum": 1,
        "default": 1,
        "description": "Passes of stage 2 over the images.",
    },
    "poison_steps": {
        "type": "integer",
        "minimum": 1,
        "default": 50,
        "description": "Adam's steps per minibatch in stage 2.",
    },
    "poison_rate": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 0.02,
        "description": "Adam's first rate, in units of [-1, 1].",
    },
    "gradient_norm": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 1.0,
        "description": "Largest Euclidean norm of stage 2's gradient.",
    },
    "poison_limit": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 0.4,
        "description": "Largest |delta|, before the sum is clipped to the budget.",
    },
    "nu": {"type": "number", "minimum": 0, "default": 1.0, "description": "nu of Eq. 12."},
    "level_weights": {
        "type": "array",
        "items": {"type": "number", "minimum": 0},
        "minItems": 3,
        "maxItems": 3,
        "default": [5, 3, 4],
        "description": "w_i of Eq. 12.",
    },
    "levels": {
        "enum": ["last", "all"],
        "default": "last",
        "description": "Which of the detectors' levels contribute.",
    },
    "adaptors": {
        "enum": ["redrawn", "fixed"],
        "default": "redrawn",
        "description": "Whether the 1x1 adaptors are drawn anew at every call or once.",
    },
    "adaptor_channels": {
        "type": "integer",
        "minimum": 1,
        "default": 128,
        "description": "Channels that detector features are mapped to.",
    },
    "fused_size": {
        "type": "integer",
        "minimum": 1,
        "default": 64,
        "description": "Side that detector features are resized to.",
    },
    "without_gradient": {
        "type": "array",
        "items": {"type": "string", "registered": "detectors"},
        "default": ["retinaface"],
        "description": "Detectors that stage 2 sees without getting a gradient from them.",
    },
    "flood_weight": {
        "type": "number",
        "minimum": 0,
        "default": 1.0,
        "description": "Weight of the S3FD term, which raises S3FD's face scores; 0 leaves it out.",
    },
}
FIRST_STAGE = (
    "iterations",
    "batch",
    "feature_steps",
    "output_steps",
    "step_size",
    "momentum",
    "feature_size",
    "feature_distance",
    "enhancement_sign",
    "enhancement_target",
    "lambda_enh",
    "alpha",
    "sigma",
    "restandardise",
    "output_share",
    "feature_share",
    "loss_average",
    "temperature",
    "diversity",
    "diversity_size",
)
DEFAULTS = {name: setting["default"] for name, setting in SETTINGS.items()}
CHOICES = {name: tuple(setting["enum"]) for name, setting in SETTINGS.items() if "enum" in setting}


class TSDFReleased(Defence):
    """After `learn`, `stages` holds the finished stages: {"interruption": W0, "poisoning": delta}."""

    title = "TSDF (released)"
    first_stage = ReleasedInterruption

    def __init__(self, settings, surroundings):
        super().__init__(options(self.title, DEFAULTS, settings, CHOICES), surroundings)
        self.stages = {}
        if not self.settings["feature_steps"] + self.settings["output_steps"]:
            raise HoldfastError(
                "stage 1 of TSDF (released) has nothing to do",
                found="feature_steps: 0, output_steps: 0",
                expected="one or more of either",
                repair="leave them out: the defaults are 3 and 1",
            )

    def learn(self):
        """(1, 3, S, S): clip(W0 + delta, +-epsilon), or W0 alone where `tau` is 0.

        Raises:
            HoldfastError: there is no deepfake model; or `tau` is above 0 and there is no detector, or no
                S3FD for the S3FD term.
        """
        interruption = first_stage_of(self)
        self.stages = {"interruption": interruption}
        if self.settings["tau"] > 0:
            self.stages["poisoning"] = ReleasedPoisoning(self.surroundings, self.settings, interruption)
        run_stages(self.stages, self.surroundings.state_path, self.title)
        if "poisoning" not in self.stages:
            return interruption.perturbation
        return combined(
            interruption.perturbation, self.stages["poisoning"].perturbation, self.surroundings.epsilon
        )


REGISTER = {"tsdf_released": TSDFReleased}
