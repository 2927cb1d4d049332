"""llama.cpp's importance matrix (llama-imatrix, GGUF): how many tokens each expert of a layer saw.

A GGUF file whose general.type is "imatrix" has, for each tensor of the model, `<name>.in_sum2` and `<name>.counts`
(float32). For the experts of layer N, blk.N.ffn_{gate,up,down}_exps.weight, or gate and up fused in ffn_gate_up_exps,
counts has one number per expert, 0 for one that no token reached; all of a layer see the same tokens, so one is taken,
the gate's if there is one. A tensor that no token reached is not in the file: such a layer is left out of the profile
and named. The old .dat files add all experts up and are of no use here.

The file is read by hand, header first: gguf's own reader believes declared lengths, and a header that declares an
array of 10^18 elements keeps it busy for ever. Layout: magic "GGUF", u32 version, u64 tensors, u64 keys; each key a
string, a u32 type and a value; each tensor a string, u32 rank, u64 sizes, u32 type, u64 offset; then, aligned, data.
"""

import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import TraceError
from traces.foreign.ask import Ask
from traces.foreign.counting import of_layers
from traces.foreign.format import Reader
from traces.format.layout import Array
from traces.format.limits import MOST_GGUF_BYTES
from traces.format.members import refuse_irregular, refusing
from traces.format.profile import Profile

MAGIC, KIND_KEY, KIND, ALIGNMENT_KEY = b"GGUF", "general.type", "imatrix", "general.alignment"
COUNTS = re.compile(r"blk\.([0-9]{1,4})\.ffn_(gate|gate_up|up|down)(_exps)?\.weight\.counts")  # of experts, or dense
ORDER = ("gate", "gate_up", "up", "down")
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value, by type
UINT32, STRING, ARRAY, F32 = 4, 8, 9, 0
Tensor = tuple[str, tuple[int, ...], int, int]  # name, sizes, type, offset


def detect(path: Path) -> bool:
    """Whether it begins with GGUF's magic."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == MAGIC


def read(path: Path, ask: Ask) -> Profile:
    """The profile of an importance matrix. Raises TraceError for other GGUF files and damaged ones."""
    refuse_irregular(path, "a GGUF")
    with refusing(f"{path}: not a complete GGUF file"):
        data = np.memmap(path, np.uint8, "r")
        keys, tensors, start = _header(data[:MOST_GGUF_BYTES].data)
        if keys.get(KIND_KEY) != KIND:
            raise TraceError(f"{path}: {KIND_KEY} is {ascii(keys.get(KIND_KEY))[:40]}; {KIND} is required")
        chosen, dense = _chosen(tensors)
        counts = {layer: _counts(data, *tensor[:3], start + tensor[3]) for layer, tensor in chosen.items()}
    counts = {layer: values for layer, values in counts.items() if values.any()}
    if not counts:
        wrong = "no counts of blk.N.ffn_{gate,gate_up,up,down}_exps"
        raise TraceError(f"{path}: {wrong}: an importance matrix of a model without experts")
    if len({len(values) for values in counts.values()}) != 1:
        raise TraceError(f"{path}: its layers have different numbers of experts")
    used = sorted({tensor[0].split(".")[2] for tensor in chosen.values()})
    ask, doubts = _without(ask, counts, dense)
    return of_layers(path, counts, ask, tool="llama.cpp", layout=f"imatrix ({', '.join(used)})", **doubts)


def _chosen(tensors: list[Tensor]) -> tuple[dict[int, Tensor], set[int]]:
    """(the tensor of counts of each layer with experts, layers with a dense FFN)."""
    chosen: dict[int, tuple[int, Tensor]] = {}
    dense = set()
    for tensor in tensors:
        if found := COUNTS.fullmatch(tensor[0]):
            layer, rank = int(found[1]), ORDER.index(found[2])
            if not found[3]:
                dense.add(layer)
            elif layer not in chosen or rank < chosen[layer][0]:
                chosen[layer] = rank, tensor
    return {layer: tensor for layer, (_, tensor) in chosen.items()}, dense - chosen.keys()


def _without(ask: Ask, counts: dict[int, Array], dense: set[int]) -> tuple[Ask, dict[str, Any]]:
    """(what is asked of the layers that are there, meta that names the others): MoE layers by the model, else whatever
    lies between the first and the last and has no dense FFN either."""
    between = set(range(min(counts), max(counts) + 1)) - dense
    expected = between if ask.model.moe_layers is None else set(ask.model.moe_layers)
    empty = sorted(expected - counts.keys())
    if not empty or not counts.keys() <= expected:
        return ask, {}
    listed = ", ".join(map(str, empty[:10])) + (f" and {len(empty) - 10} more" if len(empty) > 10 else "")
    line = f"no counts of MoE layer{'s' * (len(empty) > 1)} {listed}: no token reached them, or they were left out"
    return replace(ask, model=replace(ask.model, moe_layers=tuple(sorted(counts)))), {"doubts": [line]}


def _counts(data: Array, name: str, shape: tuple[int, ...], kind: int, at: int) -> Array:
    """float64 [E] of a tensor [1, E] (sizes are written fastest first)."""
    size = int(np.prod(shape, dtype=object)) if shape else 0
    if kind != F32 or size < 1 or shape[0] != 1 or at + 4 * size > len(data):
        found = f"{name} has type {kind}, shape {list(shape)}"
        raise ValueError(f"{found}; float32 counts of experts in the file are needed")
    values = np.frombuffer(data[at : at + 4 * size].tobytes(), "<f4").astype(np.float64)
    if size < 2:
        raise ValueError(f"{name} has one count for all experts")
    return values


class _Cursor:
    """Reads forward; what goes beyond the bytes that are there raises ValueError."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0

    def take(self, n: int) -> memoryview:
        if n > len(self.data) - self.at:
            raise ValueError(f"byte {self.at}: {n} bytes declared; {len(self.data) - self.at} are there")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, form: str) -> int:
        return int(struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0])

    def text(self) -> str:
        return bytes(self.take(self.number("Q"))).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        """A string or uint32, which is all that is asked of a header; other values are skipped."""
        if kind == STRING:
            return self.text()
        if kind == UINT32:
            return self.number("I")
        if kind == ARRAY and depth < 2:
            inner, length = self.number("I"), self.number("Q")
            if inner in SIZES:
                self.take(SIZES[inner] * length)
            else:
                self._room(length, 8)
                for _ in range(length):
                    self.value(inner, depth + 1)
            return None
        if kind not in SIZES:
            raise ValueError(f"byte {self.at}: value of type {kind}")
        self.take(SIZES[kind])
        return None

    def _room(self, count: int, least: int) -> None:
        """So many things of at least so many bytes each can follow."""
        if count * least > len(self.data) - self.at:
            raise ValueError(f"byte {self.at}: {count} entries declared; {len(self.data) - self.at} bytes are there")

    def count(self, least: int) -> int:
        number = self.number("Q")
        self._room(number, least)
        return number


def _header(data: memoryview) -> tuple[dict[str, Any], list[Tensor], int]:
    """(keys, tensors, where the data begin)."""
    cursor = _Cursor(data)
    if bytes(cursor.take(4)) != MAGIC:
        raise ValueError("it does not begin with GGUF")
    version = cursor.number("I")
    if version not in (2, 3):
        raise ValueError(f"version {version}; 2 or 3 is read")
    n_tensors, n_keys = cursor.count(24), cursor.count(13)
    keys: dict[str, Any] = {}
    for _ in range(n_keys):
        name = cursor.text()
        keys[name] = cursor.value(cursor.number("I"))
    tensors = []
    for _ in range(n_tensors):
        name, rank = cursor.text(), cursor.number("I")
        if rank > 8:
            raise ValueError(f"{name[:60]} has {rank} dimensions")
        sizes = tuple(cursor.number("Q") for _ in range(rank))
        tensors.append((name, sizes, cursor.number("I"), cursor.number("Q")))
    alignment = keys.get(ALIGNMENT_KEY) or 32
    return keys, tensors, -(-cursor.at // int(alignment)) * int(alignment)


READER = Reader("imatrix", read, detect, "llama.cpp importance matrix (GGUF)")
