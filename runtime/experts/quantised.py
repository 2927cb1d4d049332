"""Low-precision copies of experts, for miss policies that answer `low`: blocks of 32 weights with one float16 scale.

The layouts are gguf's in size (q8_0: 34 bytes per 32 weights, q4_0: 18), so that a transfer moves the bytes that the
simulator charges: all codes first, then all scales. There is no fused kernel: a copy is expanded, then multiplied.
"""

from dataclasses import dataclass

import torch

from runtime.experts.layout import Strided
from traces.errors import UserError

BLOCK = 32
BITS = {"q8": 8, "q4": 4}
SCALE = torch.float16


@dataclass(frozen=True)
class LowLayout(Strided):
    """One low-precision copy: weights per expert (a multiple of 32) and bits of a code."""

    elements: int
    bits: int

    @staticmethod
    def of(elements: int, precision: str) -> "LowLayout":
        """Raises UserError for a precision that has no layout here, or for odd sizes."""
        if precision not in BITS:
            raise UserError(f"precision: {precision}: has no low-precision kernel here; one of {', '.join(BITS)}")
        if elements % BLOCK:
            raise UserError(f"precision: {precision}: {elements} weights of an expert are no multiple of {BLOCK}")
        return LowLayout(elements, BITS[precision])

    @property
    def code_bytes(self) -> int:
        return self.elements * self.bits // 8

    @property
    def nbytes(self) -> int:
        return self.code_bytes + self.elements // BLOCK * SCALE.itemsize

    def pack(self, weights: torch.Tensor, out: torch.Tensor) -> None:
        """Round weights [elements] to codes; out uint8 [nbytes]."""
        most = (1 << (self.bits - 1)) - 1
        blocks = weights.float().view(-1, BLOCK)
        scales = (blocks.abs().amax(dim=1) / most).to(SCALE)
        steps = scales.float().clamp(min=torch.finfo(SCALE).tiny)[:, None]
        codes = (blocks / steps).round().clamp(-most, most).to(torch.int8).view(-1)
        if self.bits == 4:
            nibbles = (codes + 8).view(torch.uint8)
            codes = (nibbles[0::2] | nibbles[1::2] << 4).view(torch.int8)
        out[: self.code_bytes].copy_(codes.view(torch.uint8))
        out[self.code_bytes :].view(SCALE).copy_(scales)

    def expand(self, packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The weights again, [elements], on the device where the bytes are."""
        codes = packed[: self.code_bytes]
        if self.bits == 4:
            codes = torch.stack((codes & 15, codes >> 4), dim=1)
            signed = codes.to(dtype) - 8
        else:
            signed = codes.view(torch.int8).to(dtype)
        scales = packed[self.code_bytes :].view(SCALE).to(dtype)
        return (signed.view(-1, BLOCK) * scales[:, None]).view(-1)
