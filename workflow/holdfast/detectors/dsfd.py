"""DSFD with VGG16: J. Li et al., "DSFD: Dual Shot Face Detector", CVPR 2019, in the layout of the public
PyTorch weights `dsfd_vgg_0.880.pth` (49,793,432 parameters), which load strictly.

    image -> RGB 0..255 minus mean -> S3FD's six maps of VGG16           -> 3x3 heads: first shot
          -> top-down pyramid of products -> feature enhance modules      -> 3x3 heads: second shot

A feature enhance module (section 3.2, Eq. 1, Fig. 3) reads a product map by three branches of one, two and
three 3x3 convolutions that are dilated by 3. Training compares both shots with the truth, the first one
with anchors of half the size (section 3.4, Table 1), and adds their losses (progressive anchor loss,
section 3.3, Eq. 4); detection reads the second shot only. These numbers agree with two readers'
transcriptions of the paper; they were not compared with the paper's text.

What had to be inferred; the public code differs from the paper, and the file goes with the code. fc6 is
dilated by 3, as in the public code (yxlijun/DSFD.pytorch), FacePoison's and TSDF's; one collection of
networks (cs-giung/face-detection-pytorch) has 6. Coarse maps are enlarged bilinearly with aligned corners
(what the code's version of PyTorch did), the finest three enhanced maps are L2-normalised, anchors are
square (the paper: 1.5 times as high as wide), no map has a max-out background, an anchor is a face's from
an IoU of 0.35 on (the paper: 0.4), and both shots' losses weigh alike (Eq. 4 has a lambda without its
value). Channels are RGB, as S3FD's.
"""

import itertools

import torch
from torch import nn
from torch.nn import functional

from holdfast.detectors import boxes as box_math
from holdfast.detectors import vgg
from holdfast.detectors.detector import Detector, defaults_of

DILATION = 3  # of fc6, and of the feature enhance modules
FIRST_SHOT = 0.5  # size of the first shot's anchors, relative to the second's: section 3.4
SETTINGS = {
    "width": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 1.0,
        "description": "Multiplier of all channels; 1 is the published network.",
    },
    "anchors": {
        "type": "array",
        "minItems": 6,
        "maxItems": 6,
        "items": {"type": "number", "exclusiveMinimum": 0},
        "default": [16, 32, 64, 128, 256, 512],
        "description": "Side of the second shot's anchors in pixels of the input, per map: DSFD, Table 1. "
        "The first shot's are half as large.",
    },
    "nms_threshold": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "default": 0.3,
        "description": "IoU above which the weaker of two boxes is dropped; as in the public code.",
    },
}
DEFAULTS = defaults_of(SETTINGS)


def _dilated(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=DILATION, dilation=DILATION)


class FeatureEnhance(nn.Module):
    """Three fields of view side by side: (N, C, h, w) to the same shape."""

    def __init__(self, channels):
        super().__init__()
        third = channels // 3
        rest = channels - 2 * third
        self.branch1 = _dilated(channels, third)
        self.branch2 = nn.Sequential(_dilated(channels, third), nn.ReLU(), _dilated(third, third))
        self.branch3 = nn.Sequential(
            _dilated(channels, rest), nn.ReLU(), _dilated(rest, rest), nn.ReLU(), _dilated(rest, rest)
        )

    def forward(self, x):
        return functional.relu(torch.cat([self.branch1(x), self.branch2(x), self.branch3(x)], dim=1))


class DSFDNetwork(nn.Module):
    """The network proper: (N, 3, H, W), RGB minus mean, to levels and both shots."""

    def __init__(self, width=1.0):
        super().__init__()
        base = round(64 * width)
        channels = vgg.widths(base)
        coarse_first = channels[::-1]
        self.vgg = vgg.layers(base, DILATION)
        self.L2Normof1, self.L2Normof2, self.L2Normof3 = self._norms(channels)
        self.extras = vgg.extras(base)
        self.fpn_topdown = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 1)
            for inputs, outputs in zip([coarse_first[0], *coarse_first], coarse_first, strict=False)
        )
        self.fpn_latlayer = nn.ModuleList(nn.Conv2d(width, width, 1) for width in coarse_first[1:])
        self.fpn_fem = nn.ModuleList(FeatureEnhance(width) for width in channels)
        self.L2Normef1, self.L2Normef2, self.L2Normef3 = self._norms(channels)
        self.loc_pal1, self.conf_pal1 = vgg.heads(base, 4), vgg.heads(base, 2)
        self.loc_pal2, self.conf_pal2 = vgg.heads(base, 4), vgg.heads(base, 2)

    @staticmethod
    def _norms(channels):
        return (vgg.L2Norm(width, scale) for width, scale in zip(channels[:3], vgg.L2_SCALES, strict=True))

    def inputs(self):
        """The layer that reads the pixels."""
        return [self.vgg[0]]

    def outputs(self):
        """The layers whose values are boxes and logits, of both shots."""
        return [*self.loc_pal1, *self.conf_pal1, *self.loc_pal2, *self.conf_pal2]

    def _normalised(self, maps):
        norms = (self.L2Normof1, self.L2Normof2, self.L2Normof3)
        return [norm(x) for norm, x in zip(norms, maps, strict=True)]

    def _enhanced(self, maps, read=None):
        """The second shot's six maps, fine to coarse, of the backbone's (section 3.2).

        Those that are not to be `read`, [bool, …], are left as the backbone has them.
        """
        read = read or [True] * len(maps)
        merged = [functional.relu(self.fpn_topdown[0](maps[-1]))]
        finest = read.index(True)
        steps = zip(self.fpn_topdown[1:], self.fpn_latlayer, maps[-2::-1], strict=True)
        for down, lateral, finer in itertools.islice(steps, len(maps) - 1 - finest):
            above = functional.interpolate(
                functional.relu(down(merged[-1])), size=finer.shape[2:], mode="bilinear", align_corners=True
            )
            merged.append(functional.relu(above * lateral(finer)))
        norms = (self.L2Normef1, self.L2Normef2, self.L2Normef3)
        found = list(maps)
        for number, x in enumerate(merged[::-1], finest):
            if read[number]:
                enhanced = self.fpn_fem[number](x)
                found[number] = norms[number](enhanced) if number < len(norms) else enhanced
        return found

    @staticmethod
    def _read(maps, conf, loc, read=None):
        return tuple(vgg.flat(vgg.read_off(heads, maps, read)) for heads in (conf, loc))

    def levels(self, x):
        """conv3_3, conv4_3 and conv5_3 after their L2Norm: (N, C, h, w) at strides 4, 8 and 16."""
        return self._normalised(vgg.fine_maps(self.vgg, x))

    def levels_and_raw(self, x, read=None):
        """:meth:`levels`; logits (N, P, 2), background first, and boxes (N, P, 4) of the second shot.

        Args:
            read: [bool, …], which of the six maps are read, one at least; zeros stand for the others. None:
                all.
        """
        fine = vgg.fine_maps(self.vgg, x)
        maps = self._enhanced([*fine, *vgg.coarse_maps(self.vgg, self.extras, fine[-1])], read)
        return self._normalised(fine), self._read(maps, self.conf_pal2, self.loc_pal2, read)

    def both_shots(self, x):
        """(logits, encoded boxes) of the first and of the second shot."""
        fine = vgg.fine_maps(self.vgg, x)
        coarse = vgg.coarse_maps(self.vgg, self.extras, fine[-1])
        first = self._read([*self._normalised(fine), *coarse], self.conf_pal1, self.loc_pal1)
        return first, self._read(self._enhanced([*fine, *coarse]), self.conf_pal2, self.loc_pal2)


class DSFD(Detector):
    """The detector: :class:`holdfast.detectors.detector.Detector`.

    Its levels are conv3_3, conv4_3 and conv5_3 after their L2Norm.
    """

    name = "dsfd"
    title = "DSFD"
    paper = "Li et al., CVPR 2019"
    licence = "not stated (public code and weights)"
    public_file = "dsfd_vgg_0.880.pth"
    backbone = "VGG16"
    defaults = DEFAULTS
    training = {"negatives": 3, "box_weight": 1.0}  # the public code
    strides = vgg.STRIDES
    mean = vgg.MEAN_RGB
    narrowest = 64
    selective = True

    def build(self):
        return DSFDNetwork(self.settings["width"])

    def map_sizes(self, height, width):
        return vgg.map_sizes(height, width)

    def shots(self, images):
        """Both, each with its anchors: (logits, encoded boxes, priors)."""
        size = images.shape[2:]
        halves = [FIRST_SHOT * side for side in self.settings["anchors"]]
        first, second = self.network.both_shots(self._input(images))
        return [(*first, self._anchored(*size, halves)), (*second, self.priors(*size))]

    def match(self, truth, priors, threshold):
        # As in SSD and in the public code, every face has its best anchor, however little they overlap.
        return box_math.match(truth, priors, threshold, forced=1e-6)

    def start_from_imagenet(self, path):
        vgg.start_from_imagenet(self.network.vgg, path, self.title)


REGISTER = {"dsfd": DSFD}
