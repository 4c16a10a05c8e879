"""The two maps between stored 8-bit pixels and the models' [-1, 1], in one place."""

import numpy as np
import torch


def to_float(pixels):
    """uint8 (N, H, W, 3), NumPy or torch, to float32 torch (N, 3, H, W) in [-1, 1]."""
    if not isinstance(pixels, torch.Tensor):
        # Read-only arrays (memory-mapped files) are copied: torch has no tensors that cannot be written.
        pixels = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
    return pixels.permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1).contiguous()


def to_bytes(images):
    """float (N, 3, H, W) to uint8 NumPy (N, H, W, 3): clipped to [-1, 1], rounded to the nearest level."""
    images = images.detach().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return images.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def stored(images):
    """What a reader of the 8-bit file sees of `images` (N, 3, H, W): clipped and rounded, in [-1, 1]."""
    return images.detach().clamp(-1, 1).add(1).mul(127.5).round().float().div(127.5).sub(1)
