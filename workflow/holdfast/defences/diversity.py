"""Input diversity: C. Xie et al., "Improving Transferability of Adversarial Examples with Input Diversity",
CVPR 2019. Images are enlarged by a random factor and set at a random place of a frame of zeros.

The frame is brought back to the images' size (the paper feeds the frame): some deepfake models take no other.
"""

import torch
import torch.nn.functional as F

from holdfast.defences.fusion import resized
from holdfast.seeds import generator


def placed(size, frame, probability, *seed_names):
    """Where the images come to lie in the frame, drawn by seed.

    Args:
        size, frame: sides of the images and of the frame, in pixels.
        probability: of a change at all.

    Returns:
        (side, top, left) with size <= side <= frame, or None: the images stay as they are.
    """
    random = generator(*seed_names)

    def below(count):
        return int(torch.randint(count, (), generator=random))

    if torch.rand((), generator=random) >= probability:
        return None
    side = size + below(frame - size + 1)
    return side, below(frame - side + 1), below(frame - side + 1)


def diversified(x, place, frame):
    """(N, C, S, S) enlarged, padded with zeros to the frame, and resized to S; differentiable.

    Args:
        place: of :func:`placed`.
        frame: side of the frame, in pixels.
    """
    if place is None:
        return x
    side, top, left = place
    framed = F.pad(resized(x, side), (left, frame - side - left, top, frame - side - top))
    return resized(framed, x.shape[2])
