"""Adam: D. Kingma, J. Ba, ICLR 2015, Algorithm 1; with cosine annealing (I. Loshchilov, F. Hutter, SGDR, ICLR
2017, Eq. 5, one period) and a bound on the gradient's norm.

Functions of tensors, not torch.optim: what a step changes still has to be masked and clamped, and the moments
are part of a stage's state.
"""

import math

import torch

BETAS = (0.9, 0.999)  # the paper's defaults, as is the next
STABLE = 1e-8


def adam_change(slope, first, second, number, rate):
    """What one descent adds, and the new moments.

    Args:
        slope: the gradient, any shape.
        first, second: the moments, of that shape; zeros before the first step.
        number: steps done before.
        rate: the learning rate, in units of what is optimised.

    Returns:
        (change, first, second).
    """
    first = BETAS[0] * first + (1 - BETAS[0]) * slope
    second = BETAS[1] * second + (1 - BETAS[1]) * slope.square()
    mean = first / (1 - BETAS[0] ** (number + 1))
    size = (second / (1 - BETAS[1] ** (number + 1))).sqrt()
    return -rate * mean / (size + STABLE), first, second


def cosine(number, steps):
    """What the rate of step `number` of `steps` is multiplied by: from 1 towards 0."""
    return (1 + math.cos(math.pi * number / steps)) / 2


def limited(slope, norm):
    """The gradient, scaled down to the Euclidean norm `norm` where its own is larger."""
    return slope * (norm / torch.linalg.vector_norm(slope).clamp(min=norm))
