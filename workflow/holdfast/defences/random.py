"""Random: uniform noise of +-epsilon, the control of TSDF Table II.

What is attacked: nothing. Norm and budget: L-infinity, epsilon. Source: TSDF Table II, row "Random";
the paper does not give its distribution, uniform on [-epsilon, epsilon] is our reading.
"""

import torch

from holdfast.defences.base import Defence
from holdfast.seeds import generator


class Random(Defence):
    title = "Random"

    def learn(self):
        surroundings = self.surroundings
        unit = torch.rand(surroundings.shape, generator=generator(*surroundings.seed_names, "noise"))
        return (2 * unit - 1) * surroundings.epsilon


REGISTER = {"random": Random}
