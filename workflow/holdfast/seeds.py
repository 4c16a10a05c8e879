"""Random numbers whose seeds derive from names, so that they do not depend on the order of work.

``generator("tsdf", 0, "start")`` gives the same stream whether it is asked for first or last, in
one process or in another, and another stream than ``generator("cmua", 0, "start")``.
"""

import hashlib

import numpy as np
import torch


def seed_of(*names):
    """A 63-bit seed from any names and numbers (hashed as text, separated unambiguously)."""
    text = "\x1f".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*names):
    """A CPU ``torch.Generator`` seeded by names. Draw on the CPU and move: a GPU draws otherwise."""
    return torch.Generator().manual_seed(seed_of(*names))


def numpy_generator(*names):
    """A ``numpy.random.Generator`` seeded by names."""
    return np.random.default_rng(seed_of(*names))
