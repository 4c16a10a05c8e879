"""Distances between adversarial and clean features that TSDF's Table VIII compares with feature enhancement.

The paper names them ("the Kullback-Leibler (KL) Divergence and the Wasserstein Distance [43]") and gives no
formula; [43] compares KL divergence with a mean square error in knowledge distillation and has no
Wasserstein distance. Inferred:
- Each takes the place of L_enh in Eq. 9, with its lambda and its sign: Table VIII exchanges the "strategy"
  and states no other setting.
- A distribution is a feature map (one image, one channel). KL is between softmaxes over its positions:
  where in the image the encoder sees the feature. The mean of a map cancels in it; L_MSE sees that.
- KL is taken from the clean map to the adversarial one, as [43] takes it from teacher to student: the clean
  map is the fixed reference, and it costs most to lose what stands out there. Temperature 1.
- Wasserstein is the exact Wasserstein-1 distance in one dimension, between the values of a map: for equally
  many values the optimal transport pairs them in sorted order. It does not see where in the map they lie.
- Both are means over images and channels, as L_MSE is.

All features are (N, C, h, w), in the models' own units.
"""

import torch


def kl_divergence(adversarial, clean):
    """Mean over the maps of KL(softmax(clean) || softmax(adversarial)), in nats: scalar, at least 0."""
    p, q = (torch.log_softmax(x.flatten(2), dim=-1) for x in (clean, adversarial))
    return (p.exp() * (p - q)).sum(dim=-1).mean()


def wasserstein(adversarial, clean):
    """Mean over the maps of the Wasserstein-1 distance of their values: scalar, at least 0.

    The units are those of the features; scaling both features scales it alike.
    """
    # Stable: where values are equal, which of them takes the gradient must not depend on the device.
    a, c = (x.flatten(2).sort(dim=-1, stable=True).values for x in (adversarial, clean))
    return (a - c).abs().mean()
