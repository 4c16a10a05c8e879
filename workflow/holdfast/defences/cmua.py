"""CMUA-Watermark: H. Huang et al., "CMUA-Watermark: A Cross-Model Universal Adversarial Watermark for
Combating Deepfakes", AAAI 2022. Baseline of TSDF Tables I, III and IV.

Attacked: the final outputs of the deepfake models. Norm: L-infinity. Budget: epsilon = 0.05 in [-1, 1].
Universal: one perturbation W, learnt on 128 images, 1 pass in batches of 64. For each batch, each model
in turn and each of the model's edits, k = 10 steps from x plus uniform noise of +-epsilon:

    X_adv = X + a sign(grad MSE(G(X), G(x)))
    eta   = mean over the batch of clip(factor (X_adv - x), +-epsilon)
    W     = m W + (1 - m) eta          (the very first eta becomes W)
    X     = clip(x + W, +-1)

| setting | default | source |
|---|---|---|
| steps (k), step_size (a) | 10, 0.01 | paper |
| batch, passes | 64, 1 | paper, released |
| mixing (m) | 0.5 | released |
| factor, per model | search | paper: a TPE search in 0-10 (factor_search.py); released default: 1 |
| search_trials | 100 | ours, for time: each is a whole watermark; released: at most 1,000 |
| order | stargan, attentiongan, hisd, attgan | released; models beyond it come last, by name |

With factor 1 and mixing 0.5, W halves whenever an edit's steps begin anew from noise, for the first of them
does not see W: after the many edits of the last model, nothing is left of the first. A larger factor keeps
what is strong (the study `cmua_factor`): hence the paper's search.

Inferred: W is updated in every step, not once per model, and every edit has its own k steps (both as the
released code does); the models get the edits of :meth:`targets` (the released code visits AttGAN's
reconstruction besides). The released code lets HiSD start from x + W instead of noise; here it starts like
the others.
"""

import torch

from holdfast.defences.base import Defence
from holdfast.defences.factor_search import FactorSearch
from holdfast.defences.options import options
from holdfast.defences.stages import Stage, minibatch, passes, required, run_stages, uniform

SETTINGS = {
    "steps": {"type": "integer", "minimum": 1, "default": 10, "description": "k, steps per model and batch."},
    "step_size": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 0.01,
        "description": "a, in units of [-1, 1].",
    },
    "batch": {"type": "integer", "minimum": 1, "default": 64, "description": "Images per batch."},
    "passes": {"type": "integer", "minimum": 1, "default": 1, "description": "Passes over the images."},
    "mixing": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0.5,
        "description": "Share of the earlier watermark that a step leaves.",
    },
    "factor": {
        "type": ["string", "number", "object"],
        "pattern": "^search$",
        "minimum": 0,
        "propertyNames": {"anyOf": [{"registered": "deepfakes"}, {"const": "default"}]},
        "additionalProperties": {"type": "number", "minimum": 0},
        "default": "search",
        "description": "Factor of X_adv - x before the clip: `search` for each model's, or one, or by model "
        "(`default`: the rest).",
    },
    "search_trials": {
        "type": "integer",
        "minimum": 1,
        "default": 100,
        "description": "Watermarks that the search for the factors learns.",
    },
    "order": {
        "type": "array",
        "items": {"type": "string", "registered": "deepfakes"},
        "default": ["stargan", "attentiongan", "hisd", "attgan"],
        "description": "Order of the models; those not named come last.",
    },
}
DEFAULTS = {name: setting["default"] for name, setting in SETTINGS.items()}


def cmua_step(x, seen, slope, perturbation, step_size, factor, mixing, epsilon):
    """One step for one batch.

    Args:
        x: the clean images (N, 3, S, S) in [-1, 1]; seen: X, what the model saw; slope: the gradient at X.
        perturbation: W (1, 3, S, S), or None before the first step.
        step_size, epsilon: a and the budget, in units of [-1, 1].
        factor: of X_adv - x before the clip; mixing: what W keeps of itself.

    Returns:
        The new W and the new X.
    """
    stepped = seen + step_size * slope.sign()
    eta = (factor * (stepped - x)).clamp(-epsilon, epsilon).mean(dim=0, keepdim=True)
    perturbation = eta if perturbation is None else mixing * perturbation + (1 - mixing) * eta
    return perturbation, (x + perturbation).clamp(-1, 1)


def in_order(names, order):
    """`names` as `order` has them; those that it does not name come last, alphabetically."""
    return [name for name in order if name in names] + sorted(set(names) - set(order))


def factor_of(factor, name):
    """A model's factor: the one of all, or its own, or `default` (1 where that is missing)."""
    return factor.get(name, factor.get("default", 1.0)) if isinstance(factor, dict) else factor


class Visits(Stage):
    """The stage (holdfast.defences.stages): a step is a visit of one batch to one edit of one model."""

    def __init__(self, surroundings, settings):
        self.surroundings, self.settings = surroundings, settings
        names = in_order(list(surroundings.models), settings["order"])
        edits = [
            (name, number) for name in names for number in range(len(surroundings.models[name].target_names))
        ]
        self.batch, batches = passes(len(surroundings.images), settings["batch"])
        self.visits = [
            (batch, name, number) for batch in range(settings["passes"] * batches) for name, number in edits
        ]
        self.steps = len(self.visits)
        self.perturbation = None

    def step(self, index):
        """The `steps` updates of W at a visit; returns the model's loss before the last."""
        s, settings = self.surroundings, self.settings
        batch, name, number = self.visits[index]
        positions = minibatch(len(s.images), self.batch, batch, *s.seed_names, "cmua")
        x = s.images[positions].to(s.device)
        labels = s.labels[name][positions].to(s.device)
        target = s.models[name].targets(labels)[number]
        factor = factor_of(settings["factor"], name)
        model, chunks = s.models[name], zip(x.split(s.batch), target.split(s.batch), strict=True)
        with torch.no_grad():
            clean = torch.cat([model.edit(images, edit) for images, edit in chunks])
        seen = x + uniform(x.shape, s.epsilon, *s.seed_names, "cmua", "start", index).to(s.device)
        for _ in range(settings["steps"]):
            slope, loss = self._slope(model, seen, target, clean)
            self.perturbation, seen = cmua_step(
                x,
                seen,
                slope,
                self.perturbation,
                settings["step_size"],
                factor,
                settings["mixing"],
                s.epsilon,
            )
        return {"mse": loss}

    def _slope(self, model, seen, target, clean):
        """The gradient image by image, in chunks: the sign of a mean's gradient is that of each term's."""
        slopes, loss, chunk = [], 0.0, self.surroundings.batch
        for a, b, c in zip(seen.split(chunk), target.split(chunk), clean.split(chunk), strict=True):
            point = a.detach().requires_grad_(True)
            error = (model.edit(point, b) - c).square().mean()
            slopes += torch.autograd.grad(error, point)
            loss += error.item() * len(a) / len(seen)
        return torch.cat(slopes), loss


class CMUA(Defence):
    """The watermark; `found` has the factors, where they were searched for."""

    title = "CMUA"

    def __init__(self, settings, surroundings):
        super().__init__(options(self.title, DEFAULTS, settings), surroundings)

    def learn(self):
        """(1, 3, S, S).

        Raises:
            HoldfastError: there is no deepfake model.
        """
        s = self.surroundings
        required(s.models, "deepfake model", "deepfakes")
        searching = self.settings["factor"] == "search"
        if searching:
            stage = FactorSearch(s, self.settings["search_trials"], self._watermark)
        else:
            stage = Visits(s, self.settings)
        run_stages({"cmua": stage}, s.state_path, self.title)
        if searching:
            self.found = stage.best()
        return stage.perturbation

    def _watermark(self, factors):
        visits = Visits(self.surroundings, self.settings | {"factor": factors})
        for index in range(visits.steps):
            visits.step(index)
        return visits.perturbation


REGISTER = {"cmua": CMUA}
