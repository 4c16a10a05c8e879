"""Losses that several deepfake models share."""

import torch
import torch.nn.functional as F


def gradient_penalty(score, real, fake, mix):
    """WGAN-GP (Gulrajani et al., 2017): mean over the batch of (||gradient of the score|| - 1)^2.

    Args:
        score: function of images (N, 3, S, S) to one or more scores per image, summed.
        real, fake: (N, 3, S, S); the gradient is taken between them.
        mix: (N, 1, 1, 1) in [0, 1], the share of `real`.
    """
    between = (mix * real + (1 - mix) * fake).requires_grad_(True)
    (gradient,) = torch.autograd.grad(score(between).sum(), between, create_graph=True)
    return ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean()


def critic_losses(discriminator, x, fake, mix):
    """WGAN-GP's two losses of a discriminator that gives (realness, attribute logits).

    Returns:
        (adversarial, penalty, logits of `x`); arguments as in :func:`gradient_penalty`.
    """
    real, logits = discriminator(x)
    adversarial = discriminator(fake)[0].mean() - real.mean()
    return adversarial, gradient_penalty(lambda images: discriminator(images)[0], x, fake, mix), logits


def attribute_loss(logits, attributes):
    """Binary cross-entropy summed over the attributes, mean over the batch (StarGAN, Eq. 2-3)."""
    return F.binary_cross_entropy_with_logits(logits, attributes, reduction="sum") / len(logits)
