"""MI-FGSM: Y. Dong et al., "Boosting Adversarial Attacks with Momentum", CVPR 2018, Eq. 6-7."""

SMALLEST = 1e-12  # of the mean |gradient|; below it there is no direction to normalise


def normalised(gradient, per_image=False):
    """grad / mean|grad|; a gradient of zeros stays as it is.

    Args:
        gradient: any shape; (N, ...) with `per_image`.
        per_image: each image's gradient has a mean of its own, so that no image sees the others.
    """
    size = gradient.abs()
    mean = size.mean(dim=tuple(range(1, size.ndim)), keepdim=True) if per_image else size.mean()
    return gradient / mean.clamp(min=SMALLEST)


def momentum_step(perturbation, gradient, velocity, step_size, momentum, epsilon, per_image=False):
    """One ascent (TSDF Eq. 10): g <- mu g + grad / mean|grad|; W <- clip(W + gamma sign(g), +-epsilon).

    Args:
        perturbation, gradient, velocity: W, grad and g, all of one shape.
        step_size: gamma, in units of the perturbation. Negative to descend.
        momentum: mu.
        epsilon: the budget.
        per_image: as in :func:`normalised`.

    Returns:
        The new W and g.
    """
    velocity = momentum * velocity + normalised(gradient, per_image)
    return (perturbation + step_size * velocity.sign()).clamp(-epsilon, epsilon), velocity
