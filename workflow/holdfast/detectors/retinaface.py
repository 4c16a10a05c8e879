"""RetinaFace with a MobileNetV1 backbone: J. Deng et al., "RetinaFace: Single-shot Multi-level Face
Localisation in the Wild", CVPR 2020, in the layout of the public PyTorch weights (MobileNet x 0.25,
426,608 parameters), which load strictly.

    image -> BGR 0..255 minus mean -> MobileNetV1 stages at strides 8, 16, 32 -> feature pyramid
          -> one SSH context module per level -> 1x1 heads: class, box, five landmarks
"""

import torch
from torch import nn
from torch.nn import functional

from holdfast.detectors.detector import Detector, defaults_of

SETTINGS = {
    "width": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 0.25,
        "description": "Channel multiplier of MobileNetV1; 0.25 is the published network.",
    },
    "anchors": {
        "type": "array",
        "minItems": 3,
        "maxItems": 3,
        "items": {"type": "array", "minItems": 1, "items": {"type": "number", "exclusiveMinimum": 0}},
        "default": [[16, 32], [64, 128], [256, 512]],
        "description": "Sides of the anchors in pixels of the input, per level.",
    },
    "nms_threshold": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "default": 0.4,
        "description": "IoU above which the weaker of two boxes is dropped; as in the public code.",
    },
}
DEFAULTS = defaults_of(SETTINGS)


def _activation(channels):
    # The public code gives narrow maps a leak, "otherwise the network does not learn".
    return nn.LeakyReLU(0.1 if channels <= 64 else 0.0)


def _conv_bn(inputs, outputs, kernel=3, stride=1, activation=None):
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([activation] if activation else []))


def _separable(inputs, outputs, stride=1):
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.LeakyReLU(0.1),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.1),
    )


class _Backbone(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.stage1 = nn.Sequential(
            _conv_bn(3, c, stride=2, activation=nn.LeakyReLU(0.1)),
            _separable(c, 2 * c),
            _separable(2 * c, 4 * c, stride=2),
            _separable(4 * c, 4 * c),
            _separable(4 * c, 8 * c, stride=2),
            _separable(8 * c, 8 * c),
        )
        self.stage2 = nn.Sequential(
            _separable(8 * c, 16 * c, stride=2), *(_separable(16 * c, 16 * c) for _ in range(5))
        )
        self.stage3 = nn.Sequential(_separable(16 * c, 32 * c, stride=2), _separable(32 * c, 32 * c))

    def forward(self, x):
        fine = self.stage1(x)
        middle = self.stage2(fine)
        return fine, middle, self.stage3(middle)


class _FeaturePyramid(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.output1, self.output2, self.output3 = (
            _conv_bn(channels, outputs, kernel=1, activation=_activation(outputs)) for channels in inputs
        )
        self.merge1 = _conv_bn(outputs, outputs, activation=_activation(outputs))
        self.merge2 = _conv_bn(outputs, outputs, activation=_activation(outputs))

    def forward(self, fine, middle, coarse):
        fine, middle, coarse = self.output1(fine), self.output2(middle), self.output3(coarse)
        middle = self.merge2(middle + functional.interpolate(coarse, size=middle.shape[2:], mode="nearest"))
        fine = self.merge1(fine + functional.interpolate(middle, size=fine.shape[2:], mode="nearest"))
        return fine, middle, coarse


class _SSH(nn.Module):
    """Context module of the Single Stage Headless detector: 3x3, 5x5 and 7x7 fields side by side."""

    def __init__(self, channels):
        super().__init__()
        half, quarter = channels // 2, channels // 4
        # The spelling of the names, "7X7_2" and "7x7_3", is that of the public weights.
        self.conv3X3 = _conv_bn(channels, half)
        self.conv5X5_1 = _conv_bn(channels, quarter, activation=_activation(channels))
        self.conv5X5_2 = _conv_bn(quarter, quarter)
        self.conv7X7_2 = _conv_bn(quarter, quarter, activation=_activation(channels))
        self.conv7x7_3 = _conv_bn(quarter, quarter)

    def forward(self, x):
        shared = self.conv5X5_1(x)
        fields = [self.conv3X3(x), self.conv5X5_2(shared), self.conv7x7_3(self.conv7X7_2(shared))]
        return functional.relu(torch.cat(fields, dim=1))


class _Head(nn.Module):
    def __init__(self, channels, anchors, values):
        super().__init__()
        self.anchors, self.values = anchors, values
        self.conv1x1 = nn.Conv2d(channels, anchors * values, 1)

    def forward(self, x):
        count = self.anchors * x.shape[2] * x.shape[3]
        return self.conv1x1(x).permute(0, 2, 3, 1).reshape(len(x), count, self.values)


class RetinaFaceNetwork(nn.Module):
    """The network proper: (N, 3, H, W), BGR minus mean, to logits, encoded boxes and landmarks."""

    def __init__(self, width=0.25, anchors_per_cell=(2, 2, 2)):
        super().__init__()
        base = round(32 * width)
        channels = 8 * base
        self.body = _Backbone(base)
        self.fpn = _FeaturePyramid((8 * base, 16 * base, 32 * base), channels)
        self.ssh1, self.ssh2, self.ssh3 = (_SSH(channels) for _ in range(3))
        self.ClassHead = nn.ModuleList(_Head(channels, count, 2) for count in anchors_per_cell)
        self.BboxHead = nn.ModuleList(_Head(channels, count, 4) for count in anchors_per_cell)
        self.LandmarkHead = nn.ModuleList(_Head(channels, count, 10) for count in anchors_per_cell)

    def levels(self, x):
        """The three SSH outputs, (N, 256·width, ceil(H/s), ceil(W/s)) for strides s = 8, 16, 32."""
        fine, middle, coarse = self.fpn(*self.body(x))
        return [self.ssh1(fine), self.ssh2(middle), self.ssh3(coarse)]

    def inputs(self):
        """None: batch normalisation makes up for the range of the pixels."""
        return []

    def outputs(self):
        """The layers whose values are logits, boxes and landmarks."""
        return [
            head.conv1x1 for heads in (self.ClassHead, self.BboxHead, self.LandmarkHead) for head in heads
        ]

    def levels_and_raw(self, x):
        """:meth:`levels`, and :meth:`heads` of them."""
        levels = self.levels(x)
        return levels, self.heads(levels)

    def heads(self, levels):
        """Class logits (N, P, 2), background first, and encoded boxes (N, P, 4)."""
        logits = torch.cat([head(x) for head, x in zip(self.ClassHead, levels, strict=True)], dim=1)
        encoded = torch.cat([head(x) for head, x in zip(self.BboxHead, levels, strict=True)], dim=1)
        return logits, encoded

    def landmarks(self, levels):
        """Encoded landmarks (N, P, 10): five points, x and y. Public weights know them; ours do not."""
        return torch.cat([head(x) for head, x in zip(self.LandmarkHead, levels, strict=True)], dim=1)

    def forward(self, x):
        levels = self.levels(x)
        return *self.heads(levels), self.landmarks(levels)


class RetinaFace(Detector):
    """The detector: :class:`holdfast.detectors.detector.Detector`. Its levels are the three SSH outputs."""

    name = "retinaface"
    title = "RetinaFace"
    paper = "Deng et al., CVPR 2020"
    licence = "MIT (code and weights)"
    public_file = "mobilenet0.25_Final.pth"
    backbone = "MobileNetV1"
    defaults = DEFAULTS
    remark = "the scenes have no landmarks, so the landmark loss is left out"
    strides = (8, 16, 32)
    mean = (104.0, 117.0, 123.0)
    channels = "BGR"
    narrowest = 32
    published_width = 0.25

    def build(self):
        return RetinaFaceNetwork(self.settings["width"], [len(level) for level in self.settings["anchors"]])


REGISTER = {"retinaface": RetinaFace}
