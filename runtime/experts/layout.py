"""How one expert lies in memory: its matrices, one behind the other, in one buffer."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from sim.catalog.model_spec import ModelSpec
from traces.errors import UserError

ALIGN = 256  # bytes: what kernels and copy engines like of an address
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def aligned(nbytes: int) -> int:
    """The next multiple of ALIGN."""
    return -(-nbytes // ALIGN) * ALIGN


class StoreError(UserError):
    """Weights that do not fit, are not there, or are not what the model says."""


W = TypeVar("W")  # the matrices of one expert, by whatever name


class Strided(ABC):
    """Buffers of one size, one behind the other."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """What one transfer moves."""

    @property
    def stride(self) -> int:
        """Bytes from one expert to the next."""
        return aligned(self.nbytes)


class Packed(Strided, Generic[W]):
    """An expert as `elements` numbers of one type: what runtime.experts.store.ExpertStore asks of a layout."""

    dtype: torch.dtype

    @property
    @abstractmethod
    def elements(self) -> int:
        """Numbers of one expert, padding included."""

    @abstractmethod
    def weights(self, packed: torch.Tensor) -> W:
        """Views of experts packed in the last dimension, [..., elements]."""

    @property
    def nbytes(self) -> int:
        return self.elements * self.dtype.itemsize


def shaped(last: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The last dimension as several."""
    tensor: Any = last  # whose unflatten has no types
    out: torch.Tensor = tensor.unflatten(-1, shape)
    return out


class Weights(NamedTuple):
    """One expert: up [2 * I, H] (gate, then up; [I, H] where there are two matrices), down [H, I], biases or None."""

    up: torch.Tensor
    down: torch.Tensor
    up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None


@dataclass(frozen=True)
class Layout(Packed[Weights]):
    """How one expert lies in its buffer: sizes of its matrices and the type of their elements."""

    hidden: int
    intermediate: int
    matrices: int = 3
    biases: bool = False
    dtype: torch.dtype = torch.bfloat16

    @staticmethod
    def of(model: ModelSpec, precision: str) -> "Layout":
        """Of a catalog model. Raises StoreError for a precision that no kernel here computes in."""
        if precision not in DTYPES:
            known = ", ".join(DTYPES)
            raise StoreError(f"precision: {precision}: has no kernel here; one of {known} (with sim.run: any)")
        sizes = (model.hidden, model.expert_intermediate, model.expert_matrices, model.expert_biases > 0)
        return Layout(*sizes, DTYPES[precision])

    @property
    def up_rows(self) -> int:
        """Rows of the up matrix, gate included."""
        return (self.matrices - 1) * self.intermediate

    @property
    def elements(self) -> int:
        biases = self.up_rows + self.hidden if self.biases else 0
        return self.matrices * self.hidden * self.intermediate + biases

    def weights(self, packed: torch.Tensor) -> Weights:
        rows, h, i = self.up_rows, self.hidden, self.intermediate
        up, down, *rest = torch.split(packed, [rows * h, h * i, *([rows, h] if self.biases else [])], dim=-1)
        return Weights(shaped(up, (rows, h)), shaped(down, (h, i)), *rest)
