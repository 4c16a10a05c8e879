"""TSDF hidden: Holdfast's own defence. TSDF's stage 1, then a poisoning that hides the face (hiding.py)
instead of shifting the detectors' features, within the same budget. Two defences:

- `tsdf_hidden`: a universal interruption W0, and poisoning per image from there;
- `tsdf_hidden_universal`: one perturbation for all faces, poisoned on the same 128 images.

Attacked: the encoders of the deepfake models (stage 1, interruption.py), then the outputs of all face
detectors and the edits of the models, with gradients through each. Norm: L-infinity, epsilon = 0.05 in
[-1, 1], of the sum; besides, the PSNR of the stored image is kept at `psnr_floor` or above, for epsilon alone
lets it fall to 32.04 dB. One step of stage 2, where x' is the image as its 8-bit file would have it, L of
hiding.py and F the mean square between G(x') and G(x) of one edit of each model (per image the one that it
disrupts least; universal: they take turns), or, by `interruption_target`, between features, stage 1's L_MSE:

    g  <- grad L(x') - lambda grad F(x')   (both by their mean magnitude)
    v  <- mu v + g / mean|g|
    W  <- clip(W - eta sign(v) M, +-epsilon), and then as many entries a level down as the floor asks for

Per image, lambda falls by `weight_factor` after a step that left the face seen, but not below `weight_floor`
of what it was, and rises once the face is gone; and among the detectors the weight of those that it is hidden
from falls likewise: the last one that sees it gets what the others do not need (`balance`). So each entry
serves the goal that gains more there, image by image, and what hiding does not need goes back to
interruption: the budget is split by measured sensitivity and in time, not by a fixed mask. Kept is, of the
iterates that most detectors are blind to, the one that disrupts the weakest edits most (F of features: the
largest one); with `edit_turns: equal`, where every step has F of another edit, the last. Images that some
detector still sees after `poison_iterations` go on for `more_poison_iterations`. M, the split:

- "whole": 1;
- "intensity": TSDF's M_d (separation.py), where |W0| < tau;
- "sensitivity": the `share` of the entries where |grad L| / |grad F| at W0 is largest, image by image.

| setting | default | why |
|---|---|---|
| iterations, batch, step_size, momentum, lambda_enh | 50, 8, 0.001, 0.8, 0.001 | stage 1: as TSDF's |
| poison_iterations | 80 | ours; steps per image, or passes over the images (there: 30, as TSDF's) |
| more_poison_iterations | 80 | ours; further ones for the images that some detector still sees |
| poison_step_size (eta) | 0.01 | a tenth of the range; universal: 0.002, as TSDF's |
| poison_momentum (mu) | 0.5 | ours |
| anchors, count, overlap | matching, 100, 0.35 | hiding.py; the detectors' own matching threshold |
| detected_above, kappa, slack | 0.5, 1 (universal: 2), 0.2 | of -1, -0.2: scores of 0.27 and 0.45 |
| balance | adaptive | no detector decides alone, and none that is blind already |
| split, tau, beta, share | whole, 0.04, 0.4, 0.25 | a mask by intensity leaves faces seen |
| when_hidden | continue | per image; or "ascend": F alone; "restore": a step back to W0; "stay" |
| interruption_weight (lambda), weight_factor | 1, 0.9 | ours; lambda of the universal one: 0.5 |
| weight_floor | 0.2 | ours; without one, faces that are hard to hide end without a disruption |
| interruption_balance | sum | as Eq. 2; normalised: every model's F weighs the same |
| interruption_target | outputs | what a success is measured by; features, as stage 1, disrupt less |
| edit_turns | weakest | a success is one of each edit, and some give way more than others |
| views, least_side, diversity | 0, 0.5, 0 | extra views of x' in each step, against resizing and cropping |
| psnr_floor | 33 | Table VI's 33.07 |

The study `hidden` measures what splits, anchors, balances, targets, turns, the floor and views are worth.

What grad F is: per image, its own, with the mean labels of the 128 images (the attributes of a photograph to
protect are not known; edits are those of a face that has what most have); universal, that of the minibatch.
A universal perturbation has no weights of its own for each image: there `adaptive` is `normalised`.
Stage 1's other settings are TSDF's defaults.
Several faces in a photograph are all hidden. An image does not depend on those protected beside it.
"""

from dataclasses import dataclass

import torch

from holdfast.data.pixels import stored
from holdfast.defences import hiding
from holdfast.defences.base import Defence
from holdfast.defences.chunks import filled
from holdfast.defences.diversity import diversified, placed
from holdfast.defences.interruption import Interruption, compact
from holdfast.defences.momentum import normalised
from holdfast.defences.options import options
from holdfast.defences.separation import intensity_mask
from holdfast.defences.stages import Stage, first_stage_of, gradient, minibatch, passes, required, run_stages
from holdfast.defences.tsdf import DEFAULTS as TSDF_DEFAULTS
from holdfast.errors import HoldfastError
from holdfast.seeds import generator

SETTINGS = {
    "iterations": {
        "type": "integer",
        "minimum": 1,
        "default": 50,
        "description": "Passes of stage 1 over the images.",
    },
    "batch": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": 8,
        "description": "Images per update of a universal perturbation; null: all of them.",
    },
    "step_size": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 0.001,
        "description": "gamma of stage 1, in units of [-1, 1].",
    },
    "momentum": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0.8,
        "description": "mu of stage 1's MI-FGSM.",
    },
    "lambda_enh": {
        "type": "number",
        "minimum": 0,
        "default": 0.001,
        "description": "Weight of stage 1's enhancement loss.",
    },
    "poison_iterations": {
        "type": "integer",
        "minimum": 1,
        "default": 80,
        "description": "Steps of stage 2 per image; of the universal one: passes over the images.",
    },
    "more_poison_iterations": {
        "type": "integer",
        "minimum": 0,
        "default": 80,
        "description": "Further steps for an image whose face a detector still sees after these (per image).",
    },
    "poison_step_size": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 0.01,
        "description": "eta of stage 2, in units of [-1, 1].",
    },
    "poison_momentum": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0.5,
        "description": "mu of stage 2.",
    },
    "anchors": {
        "enum": ["matching", "strongest"],
        "default": "matching",
        "description": "Whose margins are lowered: those of anchors on the face, or the largest ones.",
    },
    "count": {
        "type": "integer",
        "minimum": 1,
        "default": 100,
        "description": "How many anchors are the strongest.",
    },
    "overlap": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "default": 0.35,
        "description": "IoU from which an anchor's box is on the face.",
    },
    "detected_above": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0.5,
        "description": "Clean score from which an anchor sees a face.",
    },
    "kappa": {
        "type": "number",
        "minimum": 0,
        "default": 1.0,
        "description": "How far below 0 margins are lowered.",
    },
    "slack": {
        "type": "number",
        "minimum": 0,
        "default": 0.2,
        "description": "How far below 0 all margins of a hidden image lie; not more than kappa.",
    },
    "balance": {
        "enum": ["adaptive", "normalised", "sum"],
        "default": "adaptive",
        "description": "Whether each detector's gradient is divided by its mean magnitude, and (adaptive, "
        "per image) then weighed by how long the detector has been blind to the face.",
    },
    "split": {
        "enum": ["whole", "intensity", "sensitivity"],
        "default": "whole",
        "description": "Which entries stage 2 may change.",
    },
    "tau": {"type": "number", "minimum": 0, "default": 0.04, "description": "Threshold of split: intensity."},
    "beta": {"type": "number", "minimum": 0, "default": 0.4, "description": "Decay of split: intensity."},
    "share": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "default": 0.25,
        "description": "Fraction of the entries of split: sensitivity.",
    },
    "when_hidden": {
        "enum": ["continue", "ascend", "restore", "stay"],
        "default": "continue",
        "description": "What a hidden image's step does: serve both goals as before, ascend F alone, go back "
        "to W0, or nothing (per image).",
    },
    "interruption_weight": {
        "type": "number",
        "minimum": 0,
        "default": 1.0,
        "description": "lambda: weight of the interruption's gradient in a step of stage 2.",
    },
    "interruption_balance": {
        "enum": ["sum", "normalised"],
        "default": "sum",
        "description": "Whether the models' gradients of F are added as they are, or each divided by its "
        "mean magnitude (per image).",
    },
    "interruption_target": {
        "enum": ["outputs", "features"],
        "default": "outputs",
        "description": "What of the deepfake models F is measured on: their edits, one in each step, or the "
        "features that stage 1 attacks.",
    },
    "edit_turns": {
        "enum": ["weakest", "equal"],
        "default": "weakest",
        "description": "Whose turn it is among a model's edits: of the one that the image disrupts least, or "
        "one after the other (per image).",
    },
    "weight_factor": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "default": 0.9,
        "description": "Factor on an image's lambda after a step that left its face seen (after one that hid "
        "it, lambda is divided by it), and on the weights of detectors that do not see it (per image).",
    },
    "weight_floor": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0.2,
        "description": "Fraction of `interruption_weight` below which no image's lambda falls (per image).",
    },
    "views": {
        "type": "integer",
        "minimum": 0,
        "default": 0,
        "description": "Views of the image, resized at random, that are hidden besides the image itself.",
    },
    "least_side": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "default": 0.5,
        "description": "Smallest side of a view, as a fraction of the image's.",
    },
    "diversity": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0.0,
        "description": "Probability that a view is also enlarged and moved.",
    },
    "psnr_floor": {
        "type": ["number", "null"],
        "minimum": 0,
        "default": 33.0,
        "description": "Least PSNR of the stored image in dB; null: epsilon is the only bound.",
    },
}
DEFAULTS = {name: setting["default"] for name, setting in SETTINGS.items()}
CHOICES = {name: tuple(setting["enum"]) for name, setting in SETTINGS.items() if "enum" in setting}
FIRST_STAGE = ("iterations", "batch", "step_size", "momentum", "lambda_enh")
FORGETTING = 0.9  # ours: factor per step on how far an edit that has no turn is held to have moved
FRAME = 290 / 256  # side of the frame of `diversity`, from TSDF's released code


def poison_step(perturbation, gradient_, velocity, step_size, momentum, mask):
    """One descent per image: v <- mu v + grad / mean|grad|; W <- W - eta sign(v) M. Returns W and v."""
    velocity = momentum * velocity + normalised(gradient_, per_image=True)
    return perturbation - step_size * velocity.sign() * mask, velocity


def restored(perturbation, interruption, step_size):
    """W + clip(W0 - W, +-eta): a step back towards W0."""
    return perturbation + (interruption - perturbation).clamp(-step_size, step_size)


class Unmoved:
    """What deepfake models make of clean images, each thing once, to tell how far it has moved.

    Args:
        models: {name: deepfake model}.
        images: (N, 3, S, S) in [-1, 1].
        labels: {name: (N, A)}, in [0, 1]: features are given them as they are, edits start from the nearer of
            0 and 1.
        target: "outputs" or "features".
        turns: of the edits, "equal": one after the other; "weakest": of each image the one that has moved
            least, where what was looked at longer ago counts for less.
    """

    def __init__(self, models, images, labels, target, turns):
        self.models, self.images, self.labels = models, images, labels
        self.target, self.turns = target, turns
        self._clean, self._moved = {}, {}

    def of(self, rows):
        """That of some of the images."""
        labels = {name: given[rows] for name, given in self.labels.items()}
        part = Unmoved(self.models, self.images[rows], labels, self.target, self.turns)
        part._clean = {key: made[rows] for key, made in self._clean.items()}
        part._moved = {name: moved[:, rows] for name, moved in self._moved.items()}
        return part

    def distance(self, name, seen, turn):
        """F of one model: MSE(G(x'), G(x)), or MSE(E(x'), E(x)) as stage 1's L_MSE, of each image, (N,).

        Args:
            name: of the model.
            seen: x', (N, 3, S, S); gradients flow to it.
            turn: counts up; whose turn it is among the model's edits, where these are equal.
        """
        if self.target == "features":
            return self._feature_distance(name, seen)
        return self._edit_distance(name, seen, turn)

    def weakest(self, name):
        """How far the edit is held to have moved that has moved least, (N,); features and equal edits: the
        last distance.
        """
        return self._moved[name].amin(dim=0)

    def _feature_distance(self, name, seen):
        def features(x):
            made = self.models[name].features(x, self.labels[name])
            return compact(made, TSDF_DEFAULTS["feature_size"], TSDF_DEFAULTS["feature_reduction"])

        distance = _mean_square(features(seen) - self._once(name, features))
        self._moved[name] = distance.detach()[None]
        return distance

    def _edit_distance(self, name, seen, turn):
        model, rows = self.models[name], torch.arange(len(seen), device=seen.device)
        targets = model.targets(self.labels[name].round())
        moved = self._moved.get(name, torch.zeros(targets.shape[:2], device=seen.device))
        equal = self.turns == "equal"
        chosen = torch.full_like(rows, turn % len(targets)) if equal else moved.argmin(dim=0)
        clean = [
            self._once((name, number), lambda x, number=number: model.edit(x, targets[number]))[row]
            for row, number in enumerate(chosen.tolist())
        ]
        distance = _mean_square(model.edit(seen, targets[chosen, rows]) - torch.stack(clean))
        if equal:
            self._moved[name] = distance.detach()[None]
        else:
            self._moved[name] = (FORGETTING * moved).index_put((chosen, rows), distance.detach())
        return distance

    def _once(self, key, made):
        if key not in self._clean:
            with torch.no_grad():
                self._clean[key] = made(self.images)
        return self._clean[key]


def _mean_square(difference):
    """(N,) of (N, ...)."""
    return difference.square().flatten(1).mean(dim=1)


class HidingPoisoning:
    """What both defences do in a step: gradients on all views, the split, the bounds.

    Args:
        surroundings: holdfast.defences.base.Surroundings.
        settings: those of this module, complete.

    Raises a HoldfastError where `slack` is above `kappa`.
    """

    def __init__(self, surroundings, settings):
        self.surroundings, self.settings = surroundings, settings
        if settings["slack"] > settings["kappa"]:
            raise HoldfastError(
                "TSDF hidden: no image could ever be hidden",
                found=f"slack: {settings['slack']}, kappa: {settings['kappa']}",
                expected="a slack of kappa at most, below which margins are not lowered",
                repair="set defences.<name>.slack or kappa in the config",
            )
        keys = ("anchors", "count", "overlap", "detected_above", "kappa")
        self.hiding = hiding.Hiding(surroundings.detectors, **{key: settings[key] for key in keys})
        # Drawn by seed: entries that give way to the floor lie scattered, not in one part of the image.
        count = surroundings.images[0].numel()
        self.order = torch.randperm(count, generator=generator(*surroundings.seed_names, "floor"))
        self.order = self.order.to(surroundings.device)
        # Of features every turn is the same.
        edits = [len(model.target_names) for model in surroundings.models.values()]
        self.turns = max(edits) if settings["interruption_target"] == "outputs" else 1
        #: {model: (1, A)}, for images whose attributes are not known.
        self.labels = {
            name: labels.to(surroundings.device).float().mean(dim=0, keepdim=True)
            for name, labels in surroundings.labels.items()
        }

    def targets(self, images):
        """What :meth:`slope` has to know of clean images: their faces, and the anchors on these."""
        faces = self.hiding.faces(images)
        return faces, self.hiding.clean(images, faces)

    def slope(self, seen, targets, step, weights=None):
        """Gradient of L at `seen`, (N, 3, S, S), over all views and detectors, and the largest margin that
        each detector has in any view of each image, (D, N).

        Args:
            weights: (D, N) of :func:`holdfast.defences.hiding.shifted`; None: all weigh the same.
        """
        faces, clean = targets
        slopes, margins = [], []
        for name in self.surroundings.detectors:
            total, largest = torch.zeros_like(seen), seen.new_full((len(seen),), -torch.inf)
            for view in [None, *range(self.settings["views"])]:
                point = seen.detach().requires_grad_(True)
                image = self._view(point, step, view)
                loss, worst = self.hiding.loss(name, image, faces, clean[name])
                # A sum over images: each image's gradient is that of its own loss.
                total += torch.autograd.grad(loss.sum(), point)[0]
                largest = torch.maximum(largest, worst)
            slopes.append(total)
            margins.append(largest)
        return hiding.balanced(slopes, self.settings["balance"], weights), torch.stack(margins)

    def mask(self, interruption, gain, cost):
        """M, (1 or N, 3, S, S).

        Args:
            interruption: W0, (1, 3, S, S).
            gain: gradient of L at W0, (N, 3, S, S), and
            cost: gradient of F there in a turn, the same or (1, 3, S, S); all turns count. Functions, asked
                only where they are needed.
        """
        settings = self.settings
        if settings["split"] == "intensity":
            return intensity_mask(interruption, settings["tau"], settings["beta"])
        if settings["split"] == "sensitivity":
            spent = sum(cost(turn).abs() for turn in range(self.turns))
            return hiding.least_costly(gain().abs(), spent, settings["share"]).float()
        return torch.ones_like(interruption)

    def bounded(self, perturbation):
        """Within epsilon, and at the PSNR floor or above."""
        epsilon = self.surroundings.epsilon
        inside = perturbation.clamp(-epsilon, epsilon)
        return hiding.keeping_psnr(inside, self.settings["psnr_floor"], self.order)

    def unmoved(self, images, labels=None, turns="equal"):
        """What F compares with, of clean images (N, 3, S, S): :class:`Unmoved`.

        Args:
            labels: {model: (N, A)}; None: the mean labels.
            turns: of :class:`Unmoved`.
        """
        labels = self.labels if labels is None else labels
        labels = {name: given.expand(len(images), -1) for name, given in labels.items()}
        return Unmoved(self.surroundings.models, images, labels, self.settings["interruption_target"], turns)

    def ascent(self, seen, unmoved, turn):
        """Gradient of F of each image at `seen`, (N, 3, S, S), and over all models the mean of
        :meth:`Unmoved.weakest`, (N,).

        Args:
            unmoved: of :meth:`unmoved`.
            turn: counts up; whose turn it is among a model's edits.
        """
        slopes, values = [], []
        for name in self.surroundings.models:
            point = seen.detach().requires_grad_(True)
            moved = unmoved.distance(name, point, turn)
            slopes.append(torch.autograd.grad(moved.sum(), point)[0])
            values.append(unmoved.weakest(name))
        return hiding.balanced(slopes, self.settings["interruption_balance"]), torch.stack(values).mean(dim=0)

    def interruption_slope(self, perturbation, positions, turn):
        """Gradient of the mean of F over the models and the images at `positions`, (1, 3, S, S).

        Args:
            perturbation: W, (1, 3, S, S).
            turn: as for :meth:`ascent`.
        """
        s = self.surroundings

        def losses(point, part):
            images = s.images[part].to(s.device)
            labels = {name: s.labels[name][part].to(s.device) for name in s.models}
            unmoved = self.unmoved(images, labels)
            for name in s.models:
                yield unmoved.distance(name, images + point, turn).mean() / len(s.models), {}

        return gradient(perturbation, positions, s.batch, losses)[0]

    def _view(self, images, step, view):
        """A view, drawn by seed, step and number: the same for all images, whatever stands beside them."""
        if view is None:
            return images
        size, s = images.shape[2], self.surroundings
        names = (*s.seed_names, "view", step, view)
        least = max(1, round(size * self.settings["least_side"]))
        side = int(torch.randint(least, size + 1, (), generator=generator(*names)))
        frame = round(size * FRAME)
        place = placed(size, frame, self.settings["diversity"], *names, "place")
        return diversified(hiding.shrunk(images, side), place, frame)


def interruption_stage(surroundings, settings):
    """Stage 1: TSDF's, with this module's settings on top of TSDF's defaults."""
    return Interruption(surroundings, {**TSDF_DEFAULTS, **{key: settings[key] for key in FIRST_STAGE}})


def blindness(margins, slack):
    """How blind the detectors are to each image, (N,): each counts that has no margin above 0, and then, one
    more of which outweighs this of all the others, each that has none above -slack.

    Args:
        margins: the largest one of each detector, (D, N).
        slack: how far below 0.
    """
    return ((len(margins) + 1) * (margins <= 0).long() + (margins <= -slack)).sum(dim=0)


@dataclass
class Search:
    """Where the steps on some images stand. Each row is of one image.

    Attributes:
        start: W0 within its bounds; found: the iterate; velocity; kept: the best of the iterates that have
            been looked at: all (N, 3, S, S).
        weight: lambda, (N, 1, 1, 1).
        weights: of the detectors, (D, N).
        most, best: :func:`blindness` to what is kept, and its F, (N,).
        unmoved: of the clean images, with what is known of how far each edit has moved.
    """

    start: torch.Tensor
    found: torch.Tensor
    velocity: torch.Tensor
    kept: torch.Tensor
    weight: torch.Tensor
    weights: torch.Tensor
    most: torch.Tensor
    best: torch.Tensor
    unmoved: Unmoved

    def of(self, rows):
        """That of some of the images."""
        apart = {"weights": self.weights[:, rows], "unmoved": self.unmoved.of(rows)}
        of_rows = {name: value[rows] for name, value in vars(self).items() if name not in apart}
        return Search(**of_rows, **apart)

    def still_seen(self):
        """Whether some detector sees the face in what is kept: bool (N,)."""
        detectors = len(self.weights)
        return self.most < detectors * (detectors + 1)

    def keep(self, blind, value):
        """Takes the iterates that more detectors are blind to than to what is kept, or as many and that
        disrupt as much or more (which, where F is of another edit in every step, is the last).
        """
        take = (blind > self.most) | ((blind == self.most) & (value >= self.best))
        self.kept = torch.where(_per_image(take), self.found, self.kept)
        self.best = torch.where(take, value, self.best)
        self.most = torch.maximum(self.most, blind)


class TSDFHidden(Defence):
    """Per image, on a universal interruption. `perturbation` is W0.

    Raises a HoldfastError at once where there is no deepfake model, or no face detector.
    """

    title = "TSDF hidden"
    universal = False
    from_universal = True
    first_stage = staticmethod(interruption_stage)

    def __init__(self, settings, surroundings):
        super().__init__(options(self.title, DEFAULTS, settings, CHOICES), surroundings)
        required(surroundings.models, "deepfake model", "deepfakes")
        required(surroundings.detectors, "face detector", "detectors")
        self._poisoning = HidingPoisoning(self.surroundings, self.settings)

    def learn(self):
        """W0, (1, 3, S, S)."""
        interruption = first_stage_of(self)
        run_stages({"interruption": interruption}, self.surroundings.state_path, self.title)
        return interruption.perturbation

    def perturb(self, images):
        """(N, 3, S, S) for images (N, 3, S, S) in [-1, 1]."""
        first, more = self.settings["poison_iterations"], self.settings["more_poison_iterations"]
        search = self._begun(images)
        self._go_on(images, search, range(first))
        seen = search.still_seen().nonzero().flatten()
        if more and len(seen):
            rows = filled(seen, len(images))
            rest = search.of(rows)
            self._go_on(images[rows], rest, range(first, first + more))
            search.kept[seen] = rest.kept[: len(seen)]
        return (images + search.kept).clamp(-1, 1) - images

    def _begun(self, images):
        start = self._poisoning.bounded(self.perturbation.to(images.device)).expand_as(images).contiguous()
        nothing = torch.zeros(len(images), device=images.device)
        return Search(
            start=start,
            found=start,
            velocity=torch.zeros_like(images),
            weight=torch.full_like(images[:, :1, :1, :1], self.settings["interruption_weight"]),
            weights=torch.ones(len(self.surroundings.detectors), len(images), device=images.device),
            kept=start,
            best=nothing,
            most=nothing.long(),
            unmoved=self._poisoning.unmoved(images, turns=self.settings["edit_turns"]),
        )

    def _go_on(self, images, search, steps):
        """Moves `search` by `steps`, a range, and looks at each iterate, the last one included."""
        settings, poisoning = self.settings, self._poisoning
        eta, then, factor = (settings[key] for key in ("poison_step_size", "when_hidden", "weight_factor"))
        full_weight = settings["interruption_weight"]
        interruption = self.perturbation.to(images.device)
        targets = poisoning.targets(images)
        at_start = stored(images + search.start)
        mask = poisoning.mask(
            interruption,
            lambda: poisoning.slope(at_start, targets, 0)[0],
            lambda turn: poisoning.ascent(at_start, poisoning.unmoved(images), turn)[0],
        )
        both_goals = full_weight > 0 or then == "ascend"
        comparable = settings["interruption_target"] == "features" or settings["edit_turns"] == "weakest"
        for step in range(steps.start, steps.stop + 1):
            seen = stored(images + search.found)
            slope, margins = poisoning.slope(seen, targets, step, search.weights)
            hidden_from = margins <= -settings["slack"]
            hidden = hidden_from.all(dim=0)
            ascent, value = None, search.best
            if both_goals:
                ascent, value = poisoning.ascent(seen, search.unmoved, step)
            search.keep(blindness(margins, settings["slack"]), value if comparable else search.best)
            if step == steps.stop:
                break
            search.weights = hiding.shifted(search.weights, hidden_from, factor)
            if both_goals:
                ascent = normalised(ascent, per_image=True)
                both = normalised(slope, per_image=True) - search.weight * ascent
                # A face that will not go gets more of the budget; one that is gone gives some back.
                weight = search.weight * torch.where(_per_image(hidden), 1 / factor, factor)
                search.weight = weight.clamp(settings["weight_floor"] * full_weight, full_weight)
                slope = torch.where(_per_image(hidden), -ascent, both) if then == "ascend" else both
            moved, search.velocity = poison_step(
                search.found, slope, search.velocity, eta, settings["poison_momentum"], mask
            )
            if then in ("restore", "stay"):
                rest = restored(search.found, search.start, eta) if then == "restore" else search.found
                moved = torch.where(_per_image(hidden), rest, moved)
            search.found = poisoning.bounded(moved)


def _per_image(flags):
    """bool (N,) as (N, 1, 1, 1)."""
    return flags[:, None, None, None]


class UniversalHiding(Stage):
    """Stage 2 of the universal form (holdfast.defences.stages). `perturbation` is W, (1, 3, S, S).

    Args:
        surroundings: holdfast.defences.base.Surroundings.
        settings: those of this module, complete.
        interruption: a stage that is over when this one's first step comes; its perturbation is W0.
    """

    kept = ("perturbation", "velocity")

    def __init__(self, surroundings, settings, interruption):
        self.surroundings, self.settings, self.interruption = surroundings, settings, interruption
        self.poisoning = HidingPoisoning(surroundings, settings)
        self.batch, updates = passes(len(surroundings.images), settings["batch"])
        self.steps = settings["poison_iterations"] * updates
        self.perturbation = torch.zeros(surroundings.shape, device=surroundings.device)
        self.velocity = torch.zeros_like(self.perturbation)
        self._targets = self._mask = None

    def step(self, index):
        """One update; returns the fraction of the minibatch that was hidden before it."""
        s, settings = self.surroundings, self.settings
        if index == 0:
            self.perturbation = self.poisoning.bounded(self.interruption.perturbation)
        if self._mask is None:
            self._prepare()
        positions = minibatch(len(s.images), self.batch, index, *s.seed_names, "hiding")
        slope, hidden = self._slope(self.perturbation, positions, index)
        if settings["interruption_weight"] > 0:
            ascent = self.poisoning.interruption_slope(self.perturbation, positions, index)
            slope = normalised(slope) - settings["interruption_weight"] * normalised(ascent)
        moved, self.velocity = poison_step(
            self.perturbation,
            slope,
            self.velocity,
            settings["poison_step_size"],
            settings["poison_momentum"],
            self._mask,
        )
        self.perturbation = self.poisoning.bounded(moved)
        return {"hidden": hidden}

    def _prepare(self):
        s, interruption = self.surroundings, self.interruption.perturbation
        every = torch.arange(len(s.images))
        self._targets = [self.poisoning.targets(images[None].to(s.device)) for images in s.images]
        self._mask = self.poisoning.mask(
            interruption,
            lambda: self._slope(interruption, every, 0)[0],
            lambda turn: self.poisoning.interruption_slope(interruption, every, turn),
        )

    def _slope(self, perturbation, positions, step):
        """The mean over the images at `positions` of L's gradient, (1, 3, S, S); the hidden fraction."""
        s, total, hidden = self.surroundings, 0, 0
        for part in positions.split(s.batch):
            seen = (s.images[part].to(s.device) + perturbation).clamp(-1, 1)
            slope, margins = self.poisoning.slope(seen, self._targets_at(part), step)
            total = total + slope.sum(dim=0, keepdim=True) / len(positions)
            gone = (margins <= -self.settings["slack"]).all(dim=0)
            hidden += gone.sum().item() / len(positions)
        return total, hidden

    def _targets_at(self, positions):
        of_images = [self._targets[position] for position in positions.tolist()]
        faces = [face for faces, _ in of_images for face in faces]
        rows = {name: [clean[name] for _, clean in of_images] for name in self.surroundings.detectors}
        # "strongest" asks for no anchors of the clean images.
        return faces, {name: None if row[0] is None else torch.cat(row) for name, row in rows.items()}


class UniversalTSDFHidden(Defence):
    """One perturbation. Raises a HoldfastError as :class:`TSDFHidden` does."""

    title = "TSDF hidden (universal)"
    first_stage = staticmethod(interruption_stage)

    def __init__(self, settings, surroundings):
        super().__init__(options(self.title, DEFAULTS, settings, CHOICES), surroundings)
        required(surroundings.models, "deepfake model", "deepfakes")
        required(surroundings.detectors, "face detector", "detectors")

    def learn(self):
        """(1, 3, S, S)."""
        interruption = first_stage_of(self)
        stages = {
            "interruption": interruption,
            "hiding": UniversalHiding(self.surroundings, self.settings, interruption),
        }
        run_stages(stages, self.surroundings.state_path, self.title)
        return stages["hiding"].perturbation


REGISTER = {"tsdf_hidden": TSDFHidden, "tsdf_hidden_universal": UniversalTSDFHidden}
