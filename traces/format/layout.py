"""What a routing trace of format 1 is made of, and how its arrays are walked in bounded memory."""

import mmap
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Header = tuple[np.dtype[Any], tuple[int, ...]]

FORMAT_VERSION = 1
MAX_EXPERTS = 32767  # ids are written as int16
SCORE_FUNCTIONS = ("softmax", "softmax-topk", "sigmoid", "other")
CHUNK_ELEMENTS = 1 << 20

# name -> (dtypes as words, rank, required), in the order in which members are written.
ARRAYS: dict[str, tuple[str, int, bool]] = {
    "experts": ("integer", 3, True),
    "sequence": ("int32", 1, True),
    "position": ("int32", 1, True),
    "prefill": ("bool", 1, True),
    "weights": ("float16 or float32", 3, False),
    "logits": ("float16", 3, False),
    "lookahead": ("integer", 4, False),
    "token_ids": ("int32", 1, False),
    "resident": ("bool", 3, False),
}


def chunks(array: Array) -> Iterator[tuple[int, Array]]:
    """(first row, rows) along the first axis, about CHUNK_ELEMENTS elements at a time, plain ndarrays."""
    plain = array.view(np.ndarray)
    step = max(1, CHUNK_ELEMENTS // max(1, plain[:1].size))
    for lo in range(0, plain.shape[0], step):
        yield lo, plain[lo : lo + step]
        give_back(array)


def give_back(array: Any) -> None:
    """Let the system have the pages of the file that an array maps, which it counts as ours while they are there: they
    come from the file again where they are asked for. Other arrays are left alone."""
    while isinstance(array, np.ndarray) and not isinstance(array.base, mmap.mmap):
        array = array.base
    shared = isinstance(array, np.memmap) and array.mode in ("r", "r+")  # what is private would be lost
    if shared and hasattr(mmap, "MADV_DONTNEED"):
        array.base.madvise(mmap.MADV_DONTNEED)


def is_int(value: object) -> TypeGuard[int]:
    """Whether a value of a JSON file is an integer; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def ascending(value: object) -> bool:
    """Whether a value of a JSON file is a list of integers, each above the one before."""
    return isinstance(value, list | tuple) and all(map(is_int, value)) and all(a < b for a, b in pairwise(value))
