"""Low-precision copies of experts, for policies that answer `low` in a closed loop.

What is computed with is the rounded weight in the model's own dtype: blocks of 32 along the last axis share a scale,
the block's largest magnitude over the largest integer of the bits (symmetric, as GGUF's q4_0 and q8_0 do but for their
choice of the scale). What the bytes and the time of a copy are, the catalog says.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sim.catalog.weights import precision_bits

BLOCK = 32
LEAST_BITS, MOST_BITS = 2, 8


def bits_of(precision: str) -> int:
    """Whole bits of an integer per weight at a named precision of the catalog: scales left out, 2 .. 8."""
    return min(MOST_BITS, max(LEAST_BITS, int(precision_bits(precision))))


def rounded(weight: Tensor, bits: int) -> Tensor:
    """The weights [..., n] as `bits` bits an integer leave them."""
    most = 2 ** (bits - 1) - 1
    n = weight.shape[-1]
    blocks = F.pad(weight.float(), (0, -n % BLOCK)).unflatten(-1, (-1, BLOCK))
    scale = blocks.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / most
    return ((blocks / scale).round() * scale).flatten(-2)[..., :n].to(weight.dtype)
