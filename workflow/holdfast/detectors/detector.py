"""What all face detectors share: settings, input, priors, detection, and safe loading and saving.

A detector's file brings the network and what the paper fixes: strides, mean, anchors, matching, losses.
"""

import json
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file
from torch.nn import functional

from holdfast.detectors import boxes as box_math
from holdfast.errors import HoldfastError
from holdfast.tensors import check_values, read_checkpoint, write_tensors

SMALLEST_SIDE = 32
REPAIR = "compare its sha256 with the published one"
MADE_ANEW = "remove it and let the rule that makes it run again"
#: Of every detector (holdfast.modules reads them from here, too).
SETTINGS = {
    "input_size": {
        "type": ["integer", "null"],
        "minimum": 32,
        "default": None,
        "description": "Side in pixels that images are resized to; null: as they are given.",
    },
    "candidates": {
        "type": "integer",
        "minimum": 1,
        "default": 5000,
        "description": "Best boxes that enter the suppression.",
    },
    "keep": {
        "type": "integer",
        "minimum": 1,
        "default": 750,
        "description": "Best boxes that may leave the suppression.",
    },
    "batch": {"type": "integer", "minimum": 1, "default": 32, "description": "Images per pass in `detect`."},
}


def defaults_of(settings):
    """{name: default} of a detector's SETTINGS and of those that all share."""
    return {name: setting["default"] for name, setting in {**SETTINGS, **settings}.items()}


class Detector:
    """A face detector that is attacked, not changed: frozen and in eval mode unless it is trained.

    Images are float (N, 3, H, W), RGB in [-1, 1], H and W at least 32.

    A detector's class says what is written here, and brings :meth:`build`; its network has
    ``levels(x)`` (three feature maps), ``levels_and_raw(x)`` (these, and logits with encoded boxes),
    and for training from scratch ``outputs()`` (the layers whose values are logits and boxes) and
    ``inputs()`` (those that read the pixels, where no normalisation follows).

    Args:
        settings: any of the class's ``defaults``, which its module's SETTINGS explain.

    Raises:
        HoldfastError: an unknown setting, or a value that makes no network.
    """

    name = title = paper = licence = None
    public_file = None  # the common public checkpoint that loads strictly
    backbone = None  # as it stands in messages
    defaults = {}
    training = {}  # what of the training's defaults the paper or its public code has otherwise
    remark = ""  # what a reader of the training's log has to know
    strides = ()
    mean = (0.0, 0.0, 0.0)  # of 0..255, subtracted from the channels in their order
    channels = "RGB"
    narrowest = 1  # channels of the first layer at width 1: `width` has to make whole channels of it
    published_width = 1.0
    selective = False  # whether its network's levels_and_raw takes `read`, as S3FD's

    def __init__(self, settings=None):
        self.settings = self._checked(settings or {})
        self.network = self.build()
        self._priors = {}
        self.freeze()

    def build(self):
        """The network of `self.settings`, with any weights."""
        raise NotImplementedError

    @property
    def device(self):
        return next(self.network.parameters()).device

    def to(self, device):
        self.network.to(device)
        return self

    def freeze(self):
        """Eval mode, no gradients for the parameters (gradients still reach the images).

        Contiguous: channels-last is faster, but rounds a batch of one otherwise than larger ones, and the
        signs of a defence's steps amplify that.
        """
        self.network.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
        return self

    # ---- what defences, attackers and training look at ----

    def levels(self, images):
        """The three feature maps that defences attack, fine to coarse; differentiable w.r.t. `images`."""
        return self.network.levels(self._input(images))

    def raw(self, images):
        """Logits (N, P, 2) (background, face) and encoded boxes (N, P, 4), differentiable."""
        return self.levels_and_raw(images)[1]

    def levels_and_raw(self, images, needed=None):
        """:meth:`levels` and :meth:`raw` of one pass, for losses that need both.

        Args:
            needed: bool (P,), the priors that the loss looks at, one at least; None: all. A `selective`
                detector does not compute the maps that have none of them, and gives zeros there.
        """
        x = self._input(images)
        if needed is None or not self.selective:
            return self.network.levels_and_raw(x)
        return self.network.levels_and_raw(x, self._maps_with(needed, x))

    def shots(self, images):
        """What training compares with the truth: [(logits, encoded boxes, their priors), …].

        One entry, but for a detector that is trained with several sets of anchors.
        """
        return [(*self.raw(images), self.priors(*images.shape[2:]))]

    def match(self, truth, priors, threshold):
        """Which true box each prior has to find in training: see :func:`holdfast.detectors.boxes.match`."""
        return box_math.match(truth, priors, threshold)

    def start_from_imagenet(self, path):
        """Take the backbone's weights from a classifier trained on ImageNet.

        Raises:
            HoldfastError: the detector has no such backbone, or the file is not its.
        """
        raise HoldfastError(
            f"{self.title} cannot start from an ImageNet classifier",
            found=path,
            expected="no `initialisation`: its backbone is trained from scratch",
            repair="remove `initialisation` from its `training`",
        )

    def map_sizes(self, height, width):
        """(rows, columns) of the map at each stride, for an input of height × width pixels."""
        return [(-(-height // stride), -(-width // stride)) for stride in self.strides]

    def priors(self, height, width):
        """Anchors (P, 4) for images of height × width pixels: centre form, fractions of the image."""
        return self._anchored(height, width, self.settings["anchors"])

    def decode(self, encoded, priors):
        """Encoded boxes (..., P, 4) to corner form, as fractions of the image."""
        return box_math.decode(encoded, priors)

    @torch.no_grad()
    def detect(self, images, threshold=0.5):
        """Boxes above a score, after non-maximum suppression.

        Args:
            images: (N, 3, H, W) in [-1, 1].
            threshold: a box is kept if its score is above this.

        Returns:
            N pairs of boxes (k, 4), corner form in pixels of `images`, not clipped to them, and
            scores (k,) in (0, 1], best first. On the detector's device.

        Raises:
            HoldfastError: images of another shape or kind, too small, or with values that are not
                finite; before any of them is looked at.
        """
        self._check_images(images)
        finite = torch.isfinite(images).flatten(1).all(dim=1)
        if not finite.all():
            raise HoldfastError(
                f"{self.title} cannot take these images",
                found=f"values that are not finite in image {int((~finite).nonzero()[0])} of {len(images)}",
                expected="numbers in [-1, 1]",
                repair="find out what made them: a damaged file, or a defence or training that diverged",
            )
        height, width = images.shape[2:]
        scale = torch.tensor([width, height, width, height], dtype=torch.float32, device=self.device)
        found = []
        for chunk in images.split(self.settings["batch"]):
            logits, encoded = self.raw(chunk.to(self.device))
            scores = torch.softmax(logits, dim=-1)[..., 1]
            boxes = self.decode(encoded, self.priors(height, width)) * scale
            found += [self._suppressed(*pair, threshold) for pair in zip(boxes, scores, strict=True)]
        return found

    # ---- weights ----

    def load(self, path):
        """Weights from our .safetensors or from the public .pth (prefix ``module.`` removed), strictly.

        Raises:
            HoldfastError: the file is missing, damaged, holds other things than finite tensors, or
                belongs to another architecture or other anchors.
        """
        path = Path(path)
        if not path.is_file():
            raise HoldfastError(f"{path} is missing", expected=f"weights of {self.title}")
        ours = path.suffix == ".safetensors"
        state = self._read_safetensors(path) if ours else read_public(path)
        self._check_architecture(state, path)
        check_values(state, self.network.state_dict(), path, MADE_ANEW if ours else REPAIR)
        self.network.load_state_dict(state, strict=True)
        return self.freeze()

    def save(self, path):
        """Weights as .safetensors, with the settings that they belong to."""
        about = {"model": self.name, "settings": json.dumps(self.settings, sort_keys=True)}
        write_tensors(path, self.network.state_dict(), about)

    # ---- inside ----

    def _check_images(self, images):
        wrong = images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < SMALLEST_SIDE
        if wrong or not images.is_floating_point():
            raise HoldfastError(
                f"{self.title} cannot take these images",
                found=f"shape {tuple(images.shape)}, {images.dtype}",
                expected=f"floating-point (N, 3, H, W) with H and W of {SMALLEST_SIDE} or more",
            )

    def _input(self, images):
        self._check_images(images)
        images = images.float()
        size = self.settings["input_size"]
        if size is not None and tuple(images.shape[2:]) != (size, size):
            images = functional.interpolate(
                images, size=(size, size), mode="bilinear", align_corners=False, antialias=True
            )
        mean = torch.tensor(self.mean, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
        return ((images.flip(1) if self.channels == "BGR" else images) + 1) * 127.5 - mean

    def _maps_with(self, needed, x):
        """[bool, …]: which maps of the network's input have a prior that is `needed`."""
        cells = [rows * columns for rows, columns in self.map_sizes(*x.shape[2:])]
        sides = [side if isinstance(side, list) else [side] for side in self.settings["anchors"]]
        counts = [number * len(level) for number, level in zip(cells, sides, strict=True)]
        return torch.stack([part.any() for part in needed.split(counts)]).tolist()

    def _anchored(self, height, width, sides):
        size = self.settings["input_size"]
        if size is not None:
            height = width = size
        key = (height, width, str(sides), str(self.device))
        if key not in self._priors:
            levels = [level if isinstance(level, list) else [level] for level in sides]
            maps = self.map_sizes(height, width)
            found = box_math.anchors(height, width, levels, self.strides, maps)
            self._priors[key] = found.to(self.device)
        return self._priors[key]

    def _suppressed(self, boxes, scores, threshold):
        above = torch.nonzero(scores > threshold)[:, 0]
        order = above[torch.argsort(scores[above], descending=True, stable=True)]
        order = order[: self.settings["candidates"]]
        boxes, scores = boxes[order], scores[order]
        kept = box_math.nms(boxes, scores, self.settings["nms_threshold"])[: self.settings["keep"]]
        return boxes[kept], scores[kept]

    def _checked(self, settings):
        unknown = sorted(set(settings) - set(self.defaults))
        if unknown:
            raise HoldfastError(
                f"{self.title} knows no setting `{unknown[0]}`", expected=f"any of {', '.join(self.defaults)}"
            )
        merged = {**self.defaults, **settings}
        base = self.narrowest * merged["width"]
        if base != round(base) or base < 1:
            raise HoldfastError(
                f"{self.title}'s `width` makes no whole channels",
                found=merged["width"],
                expected=f"a multiple of 1/{self.narrowest} above 0; {self.published_width} is the published "
                "network",
            )
        merged["anchors"] = self._checked_anchors(merged["anchors"])
        size = merged["input_size"]
        if size is not None and size < SMALLEST_SIDE:
            raise HoldfastError(
                f"{self.title}'s `input_size` is too small",
                found=size,
                expected=f"null, or {SMALLEST_SIDE} or more",
            )
        return merged

    def _checked_anchors(self, anchors):
        nested = isinstance(self.defaults["anchors"][0], list)
        sides = [list(level) for level in anchors] if nested else [[side] for side in anchors]
        if len(sides) != len(self.strides) or not all(level and min(level) > 0 for level in sides):
            raise HoldfastError(
                f"{self.title}'s `anchors` do not fit its levels",
                found=anchors,
                expected=f"{len(self.strides)} {'non-empty lists of ' if nested else ''}sides in pixels, "
                f"for the strides {', '.join(map(str, self.strides))}",
            )
        return sides if nested else list(anchors)

    def _read_safetensors(self, path):
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
            state = load_file(path)
            saved = json.loads(about.get("settings", "{}"))
        except (safetensors.SafetensorError, ValueError) as error:
            raise HoldfastError(
                f"cannot read {path}",
                found=str(error),
                expected="a whole .safetensors file",
                repair=MADE_ANEW,
            ) from error
        for key in ("width", "anchors"):
            if key in saved and saved[key] != self.settings[key]:
                raise HoldfastError(
                    f"{path} was trained with another `{key}`",
                    found=saved[key],
                    expected=self.settings[key],
                    repair=f"set the detector's `{key}` to the file's, or train again",
                )
        return state

    def _check_architecture(self, state, path):
        own = {name: tuple(tensor.shape) for name, tensor in self.network.state_dict().items()}
        given = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in state.items()}
        wrong = [f"missing {name}" for name in own if name not in given]
        wrong += [f"unknown {name}" for name in given if name not in own]
        wrong += [
            f"{name} is {given[name]}, not {shape}"
            for name, shape in own.items()
            if given.get(name, shape) != shape
        ]
        if wrong:
            raise HoldfastError(
                f"{path} holds the weights of another architecture",
                found=f"{'; '.join(wrong[:4])}{f'; and {len(wrong) - 4} more' if len(wrong) > 4 else ''}",
                expected=f"{self.title} on {self.backbone} x {self.settings['width']}",
                repair=f"name this network's file (public: {self.public_file}), or set `width` to its",
            )


def read_public(path):
    """The state dictionary of a public .pth, names without ``module.``; see :func:`read_checkpoint`."""
    state = read_checkpoint(Path(path), REPAIR)
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}
