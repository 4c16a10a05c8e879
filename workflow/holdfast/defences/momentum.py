"""MI-FGSM: Y. Dong et al., "Boosting Adversarial Attacks with Momentum", CVPR 2018, Eq. 6-7."""

SMALLEST = 1e-12  # of the mean |gradient|; below it there is no direction to normalise


def momentum_step(perturbation, gradient, velocity, step_size, momentum, epsilon):
    """One ascent (TSDF Eq. 10): g <- mu g + grad / mean|grad|; W <- clip(W + gamma sign(g), +-epsilon).

    Args:
        perturbation, gradient, velocity: W, grad and g, all of one shape.
        step_size: gamma, in units of the perturbation. Negative to descend.
        momentum: mu.
        epsilon: the budget.

    Returns:
        The new W and g.
    """
    velocity = momentum * velocity + gradient / gradient.abs().mean().clamp(min=SMALLEST)
    return (perturbation + step_size * velocity.sign()).clamp(-epsilon, epsilon), velocity
