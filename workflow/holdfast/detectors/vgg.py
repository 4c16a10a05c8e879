"""The VGG16 backbone of S3FD and DSFD: K. Simonyan, A. Zisserman, ICLR 2015, without its classifier.

As in S3FD, section 3.1: fc6 and fc7 become convolutions, and four layers more lead on to the strides 64
and 128. The layers stand in `vgg` and `extras` under the numbers that the public checkpoints have.
"""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from holdfast.detectors.detector import REPAIR, read_public
from holdfast.errors import HoldfastError
from holdfast.files import sha256_of
from holdfast.tensors import check_values

STRIDES = (4, 8, 16, 32, 64, 128)
MEAN_RGB = (123.0, 117.0, 104.0)
L2_SCALES = (10.0, 8.0, 5.0)  # S3FD, section 3.1, for conv3_3, conv4_3 and conv5_3
# Convolutions 3x3 of VGG16 by their width in units of 64 channels; a pooling between the lists.
_BLOCKS = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))
#: Where conv3_3, conv4_3 and conv5_3 end (behind their ReLU) in the list of layers.
ENDS = (16, 23, 30)
_FC6, _FC7 = 31, 33

# torchvision's VGG16: its file carries this prefix of its sha256; images are (x / 255 - mean) / deviation.
_IMAGENET_FILE, _IMAGENET_SHA256 = "vgg16-397923af.pth", "397923af"
_IMAGENET_MEAN, _IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class L2Norm(nn.Module):
    """Scale each position's channels to Euclidean length 1, then by a learnt weight per channel.

    W. Liu et al., "ParseNet", 2015, section 3.3. (N, C, H, W) to the same shape.
    """

    def __init__(self, channels, scale):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.constant_(self.weight, self.scale)

    def forward(self, x):
        # Inside the root, unlike the public code's 1e-10 beside it: at a position without any activation
        # the root's slope is infinite, and the gradient that a defence follows would be NaN.
        length = (x.square().sum(dim=1, keepdim=True) + 1e-20).sqrt()
        return self.weight.view(1, -1, 1, 1) * (x / length)


def widths(base):
    """Channels of the six maps, for `base` channels in the first layer (64 as published)."""
    return [4 * base, 8 * base, 8 * base, 16 * base, 8 * base, 4 * base]


def layers(base, dilation):
    """The layers of VGG16 with fc6 and fc7 as convolutions; 35 entries, numbered as in the checkpoints."""
    found, inputs = [], 3
    for number, block in enumerate(_BLOCKS):
        for width in block:
            found += [nn.Conv2d(inputs, width * base, 3, padding=1), nn.ReLU()]
            inputs = width * base
        # The third pooling keeps odd rows and columns, as in SSD.
        found.append(nn.MaxPool2d(2, 2, ceil_mode=number == 2))
    found += [nn.Conv2d(inputs, 16 * base, 3, padding=dilation, dilation=dilation), nn.ReLU()]
    found += [nn.Conv2d(16 * base, 16 * base, 1), nn.ReLU()]
    return nn.ModuleList(found)


def extras(base):
    """conv6_1 to conv7_2: two pairs of a 1x1 and a 3x3 convolution of stride 2."""
    return nn.ModuleList(
        [
            nn.Conv2d(16 * base, 4 * base, 1),
            nn.Conv2d(4 * base, 8 * base, 3, stride=2, padding=1),
            nn.Conv2d(8 * base, 2 * base, 1),
            nn.Conv2d(2 * base, 4 * base, 3, stride=2, padding=1),
        ]
    )


def fine_maps(vgg, x):
    """conv3_3, conv4_3 and conv5_3 of (N, 3, H, W), at strides 4, 8 and 16."""
    found, start = [], 0
    for end in ENDS:
        for layer in vgg[start:end]:
            x = layer(x)
        found.append(x)
        start = end
    return found


def coarse_maps(vgg, extra, x):
    """fc7, conv6_2 and conv7_2, at strides 32, 64 and 128, of conv5_3."""
    for layer in vgg[ENDS[-1] :]:
        x = layer(x)
    found = [x]
    for first, second in zip(extra[::2], extra[1::2], strict=True):
        x = functional.relu(second(functional.relu(first(x))))
        found.append(x)
    return found


def heads(base, values, finest=None):
    """3x3 convolutions that read `values` numbers per position off each map, `finest` off the first."""
    counts = [finest or values, *[values] * 5]
    return nn.ModuleList(
        nn.Conv2d(inputs, outputs, 3, padding=1) for inputs, outputs in zip(widths(base), counts, strict=True)
    )


def read_off(heads, maps, read=None):
    """What heads read off maps, [(N, values, h, w), …]; zeros of those that `read`, [bool, …], leaves out."""
    return [
        head(x) if wanted else x.new_zeros(len(x), head.out_channels, *x.shape[2:])
        for head, x, wanted in zip(heads, maps, read or [True] * len(maps), strict=True)
    ]


def flat(maps):
    """Maps [(N, values, h, w), …] to (N, P, values): by map, row, column."""
    return torch.cat([x.permute(0, 2, 3, 1).flatten(1, 2) for x in maps], dim=1)


def map_sizes(height, width):
    """(rows, columns) of the six maps of an image; at least 1 x 1 from 32 x 32 pixels on."""
    return list(zip(_lengths(height), _lengths(width), strict=True))


def _lengths(side):
    quarter = side // 2 // 2
    eighth = -(-quarter // 2)
    found = [quarter, eighth, eighth // 2, eighth // 2 // 2]
    for _ in range(2):
        found.append(-(-found[-1] // 2))
    return found


def start_from_imagenet(vgg, path, title):
    """Take over torchvision's VGG16, as S3FD and DSFD were started.

    fc6 and fc7 keep every third tap and every fourth channel, as in SSD ("a trous"); the first layer
    is rewritten for our input, 0..255 minus mean.

    Args:
        vgg: :func:`layers` with 64 channels in the first.
        path: vgg16-397923af.pth, or a file of that layout.

    Raises:
        HoldfastError: the file is missing or another one, or the backbone is not as wide as published.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise HoldfastError(
            f"{path} is missing",
            expected=f"torchvision's weights of VGG16, {_IMAGENET_FILE}",
            repair="correct `initialisation`, or remove it: the backbone then starts from scratch",
        )
    if path.name == _IMAGENET_FILE and not (found := sha256_of(path)).startswith(_IMAGENET_SHA256):
        raise HoldfastError(
            f"{path} is not the file that its name says",
            found=f"sha256 {found}",
            expected=f"a sha256 that begins with {_IMAGENET_SHA256}",
            repair="get the file again",
        )
    if vgg[0].out_channels != 64:
        raise HoldfastError(
            f"{title} is not as wide as VGG16",
            found=f"width {vgg[0].out_channels / 64:g}",
            expected="width 1",
            repair="set `width: 1`, or remove `initialisation`",
        )
    given = read_public(path)
    wanted = {f"features.{i}": i for i, layer in enumerate(vgg[: ENDS[-1]]) if isinstance(layer, nn.Conv2d)}
    own = {
        f"{name}.{part}": getattr(vgg[i], part) for name, i in wanted.items() for part in ("weight", "bias")
    }
    shapes = {name: tuple(value.shape) for name, value in own.items()}
    shapes |= {"classifier.0.weight": (4096, 25088), "classifier.0.bias": (4096,)}
    shapes |= {"classifier.3.weight": (4096, 4096), "classifier.3.bias": (4096,)}
    wrong = [name for name, shape in shapes.items() if tuple(getattr(given.get(name), "shape", ())) != shape]
    if wrong:
        raise HoldfastError(
            f"{path} does not hold the weights of VGG16",
            found=f"{wrong[0]}: {tuple(getattr(given.get(wrong[0]), 'shape', ())) or 'nothing'}",
            expected=f"{shapes[wrong[0]]}, as in torchvision's {_IMAGENET_FILE}",
        )
    check_values(given, own, path, REPAIR)
    with torch.no_grad():
        for name, i in wanted.items():
            vgg[i].weight.copy_(given[f"{name}.weight"])
            vgg[i].bias.copy_(given[f"{name}.bias"])
        deviation = 255 * torch.tensor(_IMAGENET_DEVIATION).view(1, 3, 1, 1)
        shift = torch.tensor(MEAN_RGB) - 255 * torch.tensor(_IMAGENET_MEAN)
        first = given["features.0.weight"] / deviation
        vgg[0].weight.copy_(first)
        vgg[0].bias.add_((first * shift.view(1, 3, 1, 1)).sum(dim=(1, 2, 3)).to(vgg[0].bias))
        fc6 = given["classifier.0.weight"].view(4096, 512, 7, 7)
        vgg[_FC6].weight.copy_(fc6[::4, :, ::3, ::3])
        vgg[_FC6].bias.copy_(given["classifier.0.bias"][::4])
        vgg[_FC7].weight.copy_(given["classifier.3.weight"][::4, ::4, None, None])
        vgg[_FC7].bias.copy_(given["classifier.3.bias"][::4])
