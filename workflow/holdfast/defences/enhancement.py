"""Feature enhancement, TSDF Eq. 3-8.

A target in feature space: the adversarial feature, shifted along what already differs from the clean
one in three ways, with a gain that grows exponentially with that difference.

What the paper leaves open, and where the reading comes from:
- Norm (Eq. 4) standardises each feature map over its positions; U and S (Eq. 5) are a map's mean and
  deviation. The paper says so of U and S; for Norm it is our reading.
- Att (Eq. 6): softmax(X X^T / sqrt(d)) X over the batch, X = the images' flattened features. Released.
  It couples the images of one chunk.
- ||W o Delta|| (Eq. 3): mean over the image of |sum_i w_i Delta_i|. Released.
- alpha = 0.4, sigma = 0.1: released; the paper names no values.
- The enhanced feature is given the mean and the deviation of the adversarial one, map by map. Released,
  absent from Eq. 3. Without it the gain (10^8 and more for differences of one deviation) drowns L_MSE:
  on an untrained StarGAN the features then moved less than with L_MSE alone.
- z of Eq. 5 (1e-5) and the largest exponent (30, which keeps float32 finite): ours.

All features are (N, C, h, w).
"""

import torch

STABLE = 1e-5
LARGEST_EXPONENT = 30.0


def spatial_mean(x):
    """U of Eq. 5 and 7: (N, C, 1, 1)."""
    return x.mean(dim=(2, 3), keepdim=True)


def deviation(x):
    """S of Eq. 5: (N, C, 1, 1), of the population. Never exactly 0, where a root has no gradient."""
    return ((x - spatial_mean(x)).square().mean(dim=(2, 3), keepdim=True) + STABLE**2).sqrt()


def standardised(x):
    """Norm of Eq. 4 and 6: each map with mean 0 and deviation 1."""
    return (x - spatial_mean(x)) / (deviation(x) + STABLE)


def attention(x):
    """Att of Eq. 6: each image's feature as a mean of the batch's, weighted by likeness."""
    tokens = x.flatten(1)
    weights = torch.softmax(tokens @ tokens.T / tokens.shape[1] ** 0.5, dim=1)
    return (weights @ tokens).reshape(x.shape)


def differences(adversarial, clean):
    """Local L_D (N, C, h, w), global G_D (N, C, 1, 1) and structural S_D (N, C, h, w); Eq. 4-6."""
    normal, normal_clean = standardised(adversarial), standardised(clean)
    return (
        normal - normal_clean,
        (spatial_mean(adversarial) - spatial_mean(clean)) / (deviation(clean) + STABLE),
        attention(normal) - attention(normal_clean),
    )


def weight(difference):
    """w_i of Eq. 7, in [0.5, 1): (N, C, 1, 1)."""
    return torch.sigmoid(spatial_mean(difference.abs()))


def gain(direction, alpha, sigma):
    """alpha exp(mean|direction| / sigma) per image (Eq. 3): (N, 1, 1, 1)."""
    exponent = direction.abs().mean(dim=(1, 2, 3), keepdim=True) / sigma
    return alpha * exponent.clamp(max=LARGEST_EXPONENT).exp()


def enhanced(adversarial, clean, alpha, sigma, restandardise=True):
    """F_enh of Eq. 3: (N, C, h, w)."""
    direction = sum(weight(part) * part for part in differences(adversarial, clean))
    shifted = adversarial + gain(direction, alpha, sigma) * direction
    if restandardise:
        shifted = standardised(shifted) * deviation(adversarial) + spatial_mean(adversarial)
    return shifted


def enhancement_loss(adversarial, clean, alpha=0.4, sigma=0.1, restandardise=True, fixed_target=False):
    """L_enh of Eq. 8 for one model, as a mean square: scalar.

    `fixed_target` holds F_enh still, as a target that the feature is pulled to: only then does
    *descending* the loss enlarge the difference, as the text after Eq. 8 says. With a live target,
    the loss is the length of the enhancement itself, and it is *ascending* it that enlarges it.
    """
    target = enhanced(adversarial, clean, alpha, sigma, restandardise)
    return (((target.detach() if fixed_target else target) - adversarial) ** 2).mean()
