"""Chunks of one size: what a defence per image makes of an image does not hang on those beside it.

A network rounds otherwise over another number of images, and the signs of a defence's steps, or the choice
of the best iterate, make much of last bits. So the last chunk is filled up, and costs as much as the others.
"""

import torch


def filled(rows, size):
    """Positions (k,), 1 <= k <= `size`, filled up to (size,) with the first of them."""
    return torch.cat([rows, rows[:1].expand(size - len(rows))])


def in_chunks(function, size, *tensors):
    """`function` of `size` images at a time.

    Args:
        function: takes as many tensors (size, ...) as there are in `tensors`; gives one such, or a tuple. A
            row of these depends on the same row of what was given, and on no other.
        size: rows of a chunk.
        tensors: (N, ...) each, N >= 1.

    Returns:
        What the function gives for all of them, (N, ...), or a tuple.
    """
    parts = []
    for rows in torch.arange(len(tensors[0]), device=tensors[0].device).split(size):
        made = function(*(tensor[filled(rows, size)] for tensor in tensors))
        together = isinstance(made, tuple)
        parts.append([part[: len(rows)] for part in (made if together else (made,))])
    joined = tuple(torch.cat(part) for part in zip(*parts, strict=True))
    return joined if together else joined[0]
