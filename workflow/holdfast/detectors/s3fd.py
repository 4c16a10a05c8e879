"""S3FD: S. Zhang et al., "S3FD: Single Shot Scale-invariant Face Detector", ICCV 2017, in the layout of
the public PyTorch weights `sfd_face.pth` (22,459,110 parameters), which load strictly.

    image -> RGB 0..255 minus mean -> VGG16: conv3_3, conv4_3, conv5_3 (each L2-normalised, then scaled),
          fc7 (fc6 is dilated), conv6_2, conv7_2 -> 3x3 heads: box, class

Six maps at strides 4 to 128 with one anchor per position, four strides wide (section 3.1). The finest
map has three background logits, of which the largest counts ("max-out", section 3.3). Matching compensates
for scales between the anchors (section 3.2, :func:`holdfast.detectors.boxes.match_compensated`).

What had to be inferred. fc6 is dilated by 6: TSDF's code has that, and so has a network that others wrote to
use the file (joonson/syncnet_python). The public code (yxlijun/S3FD.pytorch) had 6 in one version and 3 in
another. Channels come in the order RGB with the means of RGB, although the means are written down as those of
BGR. The loss weighs box and class alike, as in the public code (section 3.4 has lambda = 4 with another
normalisation).
"""

import torch
from torch import nn

from holdfast.detectors import boxes as box_math
from holdfast.detectors import vgg
from holdfast.detectors.detector import Detector, defaults_of

DILATION = 6  # of fc6
BACKGROUNDS = 3  # logits of the finest map's background
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
        "description": "Side of the anchors in pixels of the input, per map: S3FD, Table 1.",
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


def max_out(scores):
    """(N, 4, h, w), three background logits and the face's, to (N, 2, h, w): the largest of the three."""
    return torch.cat([scores[:, :BACKGROUNDS].amax(dim=1, keepdim=True), scores[:, BACKGROUNDS:]], dim=1)


class S3FDNetwork(nn.Module):
    """The network proper: (N, 3, H, W), RGB minus mean, to levels, logits and encoded boxes."""

    def __init__(self, width=1.0):
        super().__init__()
        base = round(64 * width)
        self.vgg = vgg.layers(base, DILATION)
        self.L2Norm3_3, self.L2Norm4_3, self.L2Norm5_3 = (
            vgg.L2Norm(channels, scale)
            for channels, scale in zip(vgg.widths(base)[:3], vgg.L2_SCALES, strict=True)
        )
        self.extras = vgg.extras(base)
        self.loc = vgg.heads(base, 4)
        self.conf = vgg.heads(base, 2, finest=BACKGROUNDS + 1)

    def inputs(self):
        """The layer that reads the pixels."""
        return [self.vgg[0]]

    def outputs(self):
        """The layers whose values are boxes and logits."""
        return [*self.loc, *self.conf]

    def _normalised(self, maps):
        norms = (self.L2Norm3_3, self.L2Norm4_3, self.L2Norm5_3)
        return [norm(x) for norm, x in zip(norms, maps, strict=True)]

    def levels(self, x):
        """conv3_3, conv4_3 and conv5_3 after their L2Norm: (N, C, h, w) at strides 4, 8 and 16."""
        return self._normalised(vgg.fine_maps(self.vgg, x))

    def levels_and_raw(self, x, read=None):
        """:meth:`levels`; logits (N, P, 2), background first and after max-out, and boxes (N, P, 4).

        Args:
            read: [bool, …], which of the six maps are read; zeros stand for the others. None: all.
        """
        fine = vgg.fine_maps(self.vgg, x)
        levels = self._normalised(fine)
        maps = [*levels, *vgg.coarse_maps(self.vgg, self.extras, fine[-1])]
        logits, encoded = vgg.read_off(self.conf, maps, read), vgg.read_off(self.loc, maps, read)
        logits[0] = max_out(logits[0])
        return levels, (vgg.flat(logits), vgg.flat(encoded))


class S3FD(Detector):
    """The detector: :class:`holdfast.detectors.detector.Detector`.

    Its levels are conv3_3, conv4_3 and conv5_3 after their L2Norm.
    """

    name = "s3fd"
    title = "S3FD"
    paper = "Zhang et al., ICCV 2017"
    licence = "not stated (public code and weights)"
    public_file = "sfd_face.pth"
    backbone = "VGG16"
    defaults = DEFAULTS
    training = {"negatives": 3, "box_weight": 1.0}  # section 3.4; the public code
    strides = vgg.STRIDES
    mean = vgg.MEAN_RGB
    narrowest = 64
    selective = True

    def build(self):
        return S3FDNetwork(self.settings["width"])

    def map_sizes(self, height, width):
        return vgg.map_sizes(height, width)

    def match(self, truth, priors, threshold):
        return box_math.match_compensated(truth, priors, threshold)

    def start_from_imagenet(self, path):
        vgg.start_from_imagenet(self.network.vgg, path, self.title)


REGISTER = {"s3fd": S3FD}
