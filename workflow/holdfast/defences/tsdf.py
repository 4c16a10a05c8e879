"""TSDF: "Boosting Active Defense Persistence: A Two-Stage Defense Framework Combining Interruption and
Poisoning Against Deepfake". This file is the paper's equations; its parts are the modules named below.
How the authors' released code behaves is tsdf_released.py.

Attacked: the encoders of the deepfake models (stage 1, interruption.py, enhancement.py, momentum.py),
then feature levels and outputs of the face detectors (stage 2, poisoning.py, fusion.py), in the entries
that stage 1 leaves faint (separation.py). Norm: L-infinity. Budget: epsilon = 0.05 in [-1, 1] for each
stage and for their sum. Universal: one perturbation, learnt on 128 images.

An iteration is one pass over the images in minibatches of `batch`, with one update per minibatch: the
paper counts 50 and 30 "iterations" without saying of what; its released code makes passes over batches
of 8. A pass costs as much as one gradient over all images and moves 16 times as far; `batch: null` is
that other reading (it wants a larger step). E_i get the image's own attributes (released).

| setting | default | source |
|---|---|---|
| iterations, poison_iterations | 50, 30 | paper, implementation details |
| batch | 8 | released |
| steps_per_batch, poison_steps_per_batch | 1, 1 | ours (released: 3 on features and 1 end to end) |
| step_size (gamma) | 0.001 | released; the paper gives none |
| momentum (mu) | 0.8 | paper |
| lambda_enh (lambda) | 0.001 | paper |
| alpha, sigma | 0.4, 0.1 | released; the paper gives none |
| restandardise | true | released, absent from Eq. 3 (enhancement.py says why it is needed) |
| feature_distance | enhancement | Eq. 3-8; others: Table VIII |
| feature_size | 32 | released; the paper does not resize |
| feature_reduction | none | Eq. 2 as written; "sum" over channels is released |
| enhancement_sign | ascend | A1: Eq. 9-10 and Algorithm 1, line 6; the text after Eq. 8, Fig. 3: descend |
| enhancement_target | live | ours: Eq. 8 says nothing of holding F_enh still ("fixed") |
| tau | 0.04 | paper; 0 leaves stage 2 out (Table VII) |
| beta | 0.4 | paper (released: 5) |
| mask_acts_on | perturbation | A2: Eq. 16 to the letter; or "update" |
| poison_objective | minimise_sum | A3: what disrupts; Eq. 16: descend_literal; text: ascend_literal |
| poison_optimiser | sign | ours: with an eta that is not given, only the sign has a scale; Eq. 16: gradient |
| poison_step_size (eta) | 0.002 | ours, for the sign |
| nu | 1.0 | ours: features have a deviation of about 1 |
| fusion_weights (alpha_i) | null: 1 / number of detectors | ours |
| level_weights (w_i) | 5, 3, 4 | released |
| fused_size, adaptor_channels | 64, 128 | released |
| box_weight, output_weight | 1, 1 | Eq. 13, Eq. 14 |
| detected_above | 0.5 | ours: priors with this clean score are the "detected boxes" of Eq. 13 |

Inferred besides: norms are mean squares (Eq. 2 calls its 2-norm MSE); the 1x1 adaptors are drawn once by
seed, so that clean and adversarial features go through the same (the released code re-draws them);
M_d enters Eq. 12 as the mean over colours at the size of the features; b_target is the centre of the
*clean* box, in fractions of the image; scores and boxes are averaged per image, then over images and
detectors. Neither stage clips x + W to [-1, 1] inside the loop: the equations do not.
"""

from holdfast.defences.base import Defence
from holdfast.defences.interruption import DISTANCES, Interruption
from holdfast.defences.options import options
from holdfast.defences.poisoning import OBJECTIVES, Poisoning
from holdfast.defences.separation import combined
from holdfast.defences.stages import first_stage_of, run_stages

SETTINGS = {
    "iterations": {
        "type": "integer",
        "minimum": 1,
        "default": 50,
        "description": "Passes of stage 1 over the images.",
    },
    "poison_iterations": {
        "type": "integer",
        "minimum": 1,
        "default": 30,
        "description": "Passes of stage 2 over the images.",
    },
    "batch": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": 8,
        "description": "Images per update; null: all of them.",
    },
    "steps_per_batch": {
        "type": "integer",
        "minimum": 1,
        "default": 1,
        "description": "Updates per minibatch in stage 1.",
    },
    "poison_steps_per_batch": {
        "type": "integer",
        "minimum": 1,
        "default": 1,
        "description": "Updates per minibatch in stage 2.",
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
    "lambda_enh": {"type": "number", "minimum": 0, "default": 0.001, "description": "lambda of Eq. 9."},
    "alpha": {"type": "number", "minimum": 0, "default": 0.4, "description": "alpha of Eq. 3."},
    "sigma": {"type": "number", "exclusiveMinimum": 0, "default": 0.1, "description": "sigma of Eq. 3."},
    "restandardise": {
        "type": "boolean",
        "default": True,
        "description": "Whether F_enh is brought back to the adversarial feature's mean and deviation.",
    },
    "feature_distance": {
        "enum": ["none", "kl_divergence", "wasserstein", "enhancement"],
        "default": "enhancement",
        "description": "What stage 1 ascends (Table VIII).",
    },
    "feature_size": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": 32,
        "description": "Side that features are resized to; null: as they are.",
    },
    "feature_reduction": {
        "enum": ["none", "sum"],
        "default": "none",
        "description": "Whether features are summed over channels before the losses.",
    },
    "enhancement_sign": {
        "enum": ["ascend", "descend"],
        "default": "ascend",
        "description": "A1: whether L_enh is ascended (Eq. 9-10) or descended (text after Eq. 8).",
    },
    "enhancement_target": {
        "enum": ["live", "fixed"],
        "default": "live",
        "description": "Whether a gradient flows through F_enh.",
    },
    "tau": {
        "type": "number",
        "minimum": 0,
        "default": 0.04,
        "description": "Threshold of Eq. 15; 0 leaves stage 2 out.",
    },
    "beta": {"type": "number", "minimum": 0, "default": 0.4, "description": "Decay of Eq. 15."},
    "mask_acts_on": {
        "enum": ["perturbation", "update"],
        "default": "perturbation",
        "description": "A2: whether M_d multiplies the perturbation at every step (Eq. 16) or its update.",
    },
    "poison_objective": {
        "enum": ["minimise_sum", "descend_literal", "ascend_literal"],
        "default": "minimise_sum",
        "description": "A3: the sign of L_total.",
    },
    "poison_optimiser": {
        "enum": ["sign", "gradient"],
        "default": "sign",
        "description": "Whether stage 2 steps along the gradient's sign or the gradient.",
    },
    "poison_step_size": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 0.002,
        "description": "eta of Eq. 16.",
    },
    "nu": {"type": "number", "minimum": 0, "default": 1.0, "description": "nu of Eq. 12."},
    "fusion_weights": {
        "type": ["object", "null"],
        "propertyNames": {"registered": "detectors"},
        "additionalProperties": {"type": "number"},
        "default": None,
        "description": "alpha_i of Eq. 11 by detector; null: equal.",
    },
    "level_weights": {
        "type": "array",
        "items": {"type": "number", "minimum": 0},
        "minItems": 3,
        "maxItems": 3,
        "default": [5, 3, 4],
        "description": "w_i of Eq. 12.",
    },
    "fused_size": {
        "type": "integer",
        "minimum": 1,
        "default": 64,
        "description": "Side that detector features are resized to.",
    },
    "adaptor_channels": {
        "type": "integer",
        "minimum": 1,
        "default": 128,
        "description": "Channels that detector features are mapped to.",
    },
    "box_weight": {
        "type": "number",
        "minimum": 0,
        "default": 1.0,
        "description": "Weight of the box term of Eq. 13.",
    },
    "output_weight": {
        "type": "number",
        "minimum": 0,
        "default": 1.0,
        "description": "Weight of L_output in Eq. 14.",
    },
    "detected_above": {
        "type": "number",
        "minimum": 0,
        "default": 0.5,
        "description": "Clean score above which a prior counts as a detected box in Eq. 13.",
    },
}
FIRST_STAGE = (
    "iterations",
    "batch",
    "steps_per_batch",
    "step_size",
    "momentum",
    "lambda_enh",
    "alpha",
    "sigma",
    "restandardise",
    "feature_distance",
    "feature_size",
    "feature_reduction",
    "enhancement_sign",
    "enhancement_target",
)
DEFAULTS = {name: setting["default"] for name, setting in SETTINGS.items()}
CHOICES = {
    "feature_distance": tuple(DISTANCES),
    "feature_reduction": ("none", "sum"),
    "enhancement_sign": ("ascend", "descend"),
    "enhancement_target": ("live", "fixed"),
    "mask_acts_on": ("perturbation", "update"),
    "poison_objective": tuple(OBJECTIVES),
    "poison_optimiser": ("sign", "gradient"),
}


class TSDF(Defence):
    """After `learn`, `stages` holds the finished stages: {"interruption": W0, "poisoning": delta}."""

    title = "TSDF"
    first_stage = Interruption

    def __init__(self, settings, surroundings):
        super().__init__(options(self.title, DEFAULTS, settings, CHOICES), surroundings)
        self.stages = {}

    def learn(self):
        """(1, 3, S, S): clip(W0 + delta, +-epsilon), or W0 alone where `tau` is 0.

        Raises:
            HoldfastError: there is no deepfake model, or `tau` is above 0 and there is no detector.
        """
        interruption = first_stage_of(self)
        self.stages = {"interruption": interruption}
        if self.settings["tau"] > 0:
            self.stages["poisoning"] = Poisoning(self.surroundings, self.settings, interruption)
        run_stages(self.stages, self.surroundings.state_path, self.title)
        if "poisoning" not in self.stages:
            return interruption.perturbation
        return combined(
            interruption.perturbation, self.stages["poisoning"].perturbation, self.surroundings.epsilon
        )


REGISTER = {"tsdf": TSDF}
