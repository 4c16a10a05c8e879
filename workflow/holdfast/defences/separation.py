"""Intensity separation, TSDF Eq. 15-17: poisoning takes the entries where interruption is faint."""

import torch


def intensity_mask(interruption, threshold, attenuation):
    """M_d = exp(-beta |W0|) 1[|W0| < tau] (Eq. 15).

    Args:
        interruption: W0, any shape, in units of [-1, 1].
        threshold: tau; 0 gives an empty mask.
        attenuation: beta.

    Returns:
        The mask in [0, 1], of the shape of W0.
    """
    size = interruption.abs()
    return torch.exp(-attenuation * size) * (size < threshold)


def masked_step(perturbation, update, mask, epsilon, mask_acts_on="perturbation"):
    """One step of the poisoning perturbation (Eq. 16).

    Args:
        perturbation: delta.
        update: what is added to it, e.g. -eta grad.
        mask: M_d.
        epsilon: the budget.
        mask_acts_on: "perturbation" multiplies delta by M_d after every step, to the letter, which
            also shrinks it geometrically; "update" multiplies what is added (ambiguity A2).

    Returns:
        The new delta, 0 wherever the mask is 0 if delta was.
    """
    if mask_acts_on == "update":
        return (perturbation + update * mask).clamp(-epsilon, epsilon)
    return (perturbation + update).clamp(-epsilon, epsilon) * mask


def combined(interruption, poisoning, epsilon):
    """clip(W0 + delta, +-epsilon) (Eq. 17)."""
    return (interruption + poisoning).clamp(-epsilon, epsilon)
