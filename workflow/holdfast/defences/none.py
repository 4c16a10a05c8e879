"""No protection: the row "Original" of TSDF Table II, and the control of every other table.

What is attacked: nothing. Norm and budget: none. Its harvest and the models retrained on it show what
the attacker's pipeline and retraining alone do.
"""

import torch

from holdfast.defences.base import Defence


class Unprotected(Defence):
    title = "Original"

    def learn(self):
        return torch.zeros(self.surroundings.shape)


REGISTER = {"none": Unprotected}
