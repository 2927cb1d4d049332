"""The routing in what `.pt` and `.npz` files of router outputs hold, found by names and shapes.

A file holds one recording or a list of them; a recording is one forward pass, or those of a generation; a pass has an
array for each MoE layer, by place, by name or stacked.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import TraceError
from traces.foreign import torch_file
from traces.foreign.ask import Ask, Axis, pick_layers, place_layers
from traces.format.layout import Array
from traces.format.limits import MOST_LAYERS
from traces.format.members import refusing

# Names that people give, the surest first; --columns OURS=THEIRS says another.
NAMES = {
    "logits": ("router_logits", "router_probs", "gate_logits", "router_scores", "gate_scores"),
    "experts": (
        "expert_ids", "experts", "topk_ids", "topk_indices", "selected_experts", "router_indices", "routed_experts",
        "expert_indices", "topk_experts", "top_k_ids", "top_k_indices", "indices",
    ),
    "weights": ("expert_weights", "topk_weights", "routing_weights", "router_weights", "weights"),
    "token_ids": ("input_ids", "token_ids", "sequences"),
    "attention_mask": ("attention_mask",),
}  # fmt: skip
LAYERS = "layers"  # of --columns: which axis is over layers
LATE = ("logits", "scores", "probs", "probabilities")  # names of scores, where nothing surer is there
ENCODER, DECODER = "encoder_router_logits", "decoder_router_logits"
LAYER = re.compile(r"(?:^|.*[^A-Za-z])(?:layers?|blk|blocks?|h)[._]?([0-9]{1,5})(?:[^0-9].*)?|([0-9]{1,5})")
NTH = re.compile(r"arr_([0-9]{1,5})")  # of np.savez without names
Part = Any  # [n, X] of one layer: a tensor or an array, mapped from the file


def looks(value: Any) -> bool:
    """Whether what a file holds has the form of router outputs."""
    if _is_array(value):
        return value.ndim in (3, 4)
    if isinstance(value, Mapping):
        known = {name for names in NAMES.values() for name in names} - {"weights", "indices"} | {ENCODER, DECODER}
        arrays = [key for key, each in value.items() if _is_array(each)]
        numbered = [key for key in arrays if LAYER.fullmatch(str(key)) or NTH.fullmatch(str(key))]
        alone = len(arrays) == len(value) == 1 and value[arrays[0]].ndim == 3
        return bool(known & set(value)) or alone or (len(numbered) == len(value) > 0 and _alike(list(value.values())))
    if not isinstance(value, list | tuple) or not value:
        return False
    first = next((each for each in value if each is not None), None)
    if isinstance(first, Mapping | list | tuple):
        return not _is_array(first) and looks(first)
    return _alike([each for each in value if each is not None])


def _alike(values: Sequence[Any]) -> bool:
    """Whether they are arrays of as many experts, one per layer."""
    same = all(_is_array(each) and each.ndim in (2, 3) for each in values)
    return same and len({(each.dtype, each.shape[-1]) for each in values}) == 1 and values[0].ndim in (2, 3)


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray) or torch_file.is_tensor(value)


Pass = list[Part]  # of the MoE layers, in order


@dataclass
class Recording:
    """What was computed together: one forward pass, or a prompt's and those that generated.

    arrays: logits, experts, weights, as far as there, each a list of its passes. batch: requests of each pass, one
    after another; None: not said. generated: passes after the first are of generated tokens. ids, mask: [batch,
    positions], of the prompt at least.
    """

    where: str
    arrays: dict[str, list[Pass]]
    batch: int | None
    generated: bool
    ids: Array | None
    mask: Array | None

    def rows(self) -> list[int]:
        """Rows of each pass."""
        return [len(parts[0]) for parts in next(iter(self.arrays.values()))]


def one_by_one(value: Any, path: Path) -> Iterator[tuple[Any, str]]:
    """(recording, where it stands): the elements of a list of objects, else the value."""
    if isinstance(value, list | tuple) and value and all(isinstance(each, Mapping) for each in value):
        yield from ((each, f"{path}: [{i}]") for i, each in enumerate(value))
    else:
        yield value, str(path)


class Finder:
    """Finds the routing in what a file holds. layers: of all of it; width: how many numbers or ids a token has."""

    def __init__(self, path: Path, ask: Ask) -> None:
        self.path, self.ask = path, ask
        self.layers: list[int] = []
        self.width: dict[str, int] = {}
        self.columns = ask.asked("columns") or {}
        wrong = sorted(set(self.columns) - {*NAMES, LAYERS})
        if wrong:
            raise TraceError(f"--columns {wrong[0]}: one of {', '.join((*NAMES, LAYERS))} is required")

    def recording(self, value: Any, where: str) -> Recording:
        """One recording. Raises TraceError where there is no routing in it."""
        named = self._named(value, where)
        arrays: dict[str, list[Pass]] = {}
        batches = set()
        for key in ("logits", "experts", "weights"):
            if key in named:
                arrays[key], batch = self._passes(named[key], key, f"{where}: {key}")
                batches.add(batch)
        first = [[len(part) for part in parts] for parts in next(iter(arrays.values()))]
        if any([[len(part) for part in parts] for parts in passes] != first for passes in arrays.values()):
            raise TraceError(f"{where}: {' and '.join(arrays)} are not of the same tokens")
        ids, mask = self._table(named, "token_ids", where), self._table(named, "attention_mask", where)
        found = Recording(where, arrays, max(batches, key=lambda n: n or 0), len(first) > 1, ids, mask)
        found.batch = _batch_of(found)
        return found

    def _named(self, value: Any, where: str) -> dict[str, Any]:
        """What a recording holds, by our names."""
        if not isinstance(value, Mapping):
            return {("experts" if _of_ids(value) else "logits"): value}
        for ours, theirs in self.columns.items():
            if ours != LAYERS and theirs not in value:
                raise TraceError(f"{where}: no {theirs!r} (--columns {ours}={theirs}); it has {_names(value)}")
        out = {ours: value[theirs] for ours, theirs in self.columns.items() if ours != LAYERS}
        for ours, names in NAMES.items():
            theirs = next((name for name in names if value.get(name) is not None), None)
            out |= {ours: value[theirs]} if theirs is not None and ours not in out else {}
        if out.keys() & {"logits", "experts"}:
            return out
        if value.keys() & {ENCODER, DECODER}:
            wrong = "router logits of an encoder and of a decoder, whose experts are others"
            raise TraceError(f"{where}: {wrong}; required: --columns logits={DECODER} (or {ENCODER})")
        return out | self._unnamed(value, where)

    def _unnamed(self, value: Mapping[Any, Any], where: str) -> dict[str, Any]:
        """Routing under a name that says less: one array alone, one for each layer, or np.savez of a list."""
        late = [value[name] for name in LATE if name in value]
        layers = [key for key in value if LAYER.fullmatch(str(key))]
        nth = sorted((int(m[1]), key) for key in value if (m := NTH.fullmatch(str(key))))
        found: Any = None
        if late:
            found = late[0]
        elif layers and _alike([value[key] for key in layers]):
            found = {key: value[key] for key in layers}
        elif len(nth) == len(value) > 1:
            found = [value[key] for _, key in nth]
        elif len(value) == 1:
            found = next(iter(value.values()))
        if found is None:
            right = "required: --columns logits=NAME or experts=NAME"
            raise TraceError(f"{where}: router_logits or expert_ids are not in it, but {_names(value)}; {right}")
        return {("experts" if _of_ids(found) else "logits"): found}

    def _passes(self, value: Any, key: str, what: str) -> tuple[list[Pass], int | None]:
        """(passes, batch) of what stands under one of our names."""
        inner = next((e for e in value if e is not None), None) if isinstance(value, list | tuple) else None
        several = value if isinstance(inner, list | tuple) else [value]
        passes, batch = [], None
        for i, each in enumerate(several):
            here = f"{what}[{i}]" if len(several) > 1 else what
            parts = [self._part(part, key, f"{here}, layer {n}") for n, part in enumerate(self._by_layer(each, here))]
            batch = batch if parts[0].ndim == 2 else int(parts[0].shape[0])
            passes.append([part.reshape(-1, part.shape[-1]) for part in parts])
            if len({len(part) for part in passes[-1]}) > 1:
                raise TraceError(
                    f"{here}: layers have {sorted({len(p) for p in passes[-1]})} tokens; as many are required"
                )
        return passes, batch

    def _by_layer(self, value: Any, what: str) -> list[Any]:
        """The parts of the MoE layers of one pass, in order."""
        if _is_array(value):
            value, layers = self._split(value, what)
        elif isinstance(value, Mapping):
            numbers = {int(m[1] or m[2]): key for key in value if (m := LAYER.fullmatch(str(key)))}
            if len(numbers) < len(value) or not numbers or max(numbers) >= MOST_LAYERS:
                raise TraceError(f"{what}: {_names(value)}; a layer's number in each name is required")
            value, layers = (
                [value[numbers[n]] for n in sorted(numbers)],
                place_layers(self.path, sorted(numbers), self.ask),
            )
        elif isinstance(value, list | tuple) and value:
            axis = self._axis(len(value), what)
            used = [i for i in axis.dense if value[i] is not None]
            if used:
                wrong = (
                    f"{len(value)} layers, with routing in layer {used[0]}; {self.ask.model.name} has no experts there"
                )
                raise TraceError(f"{what}: {wrong}; required: --model NAME, or --moe-layers LIST")
            value, layers = [value[i] for i in axis.take], axis.layers
        else:
            raise TraceError(f"{what}: {_kind(value)}; a tensor, or one for each layer, is required")
        self.layers = self.layers or layers
        if layers != self.layers:
            raise TraceError(f"{what}: {len(layers)} layers; the ones before have {len(self.layers)}")
        return list(value)

    def _axis(self, length: int, what: str) -> Axis:
        try:
            return pick_layers(self.path, length, self.ask, what.rsplit(": ", 1)[-1])
        except TraceError as error:
            flags = "" if "required: " in str(error) else "; required: --model NAME, or --moe-layers LIST"
            raise TraceError(f"{error}{flags}") from None

    def _split(self, value: Any, what: str) -> tuple[list[Any], list[int]]:
        """A stacked array's parts: over axis 0 or 1, whichever the model has so many layers of; or the only layer's."""
        if value.ndim == 2 and len(self.ask.moe_layers(self.path)) == 1:
            return [value], list(self.ask.moe_layers(self.path))
        if value.ndim not in (3, 4):
            raise TraceError(f"{what}: shape {list(value.shape)}; [layers, tokens, numbers] is required")
        known = {len(self.ask.moe_layers(self.path)), self.ask.model.n_layers}
        axes = (0, 1) if value.ndim == 3 else (0,)
        fits = [axis for axis in axes if value.shape[axis] in known]
        said = self.columns.get(LAYERS)
        if said is not None:
            fits = [axis for axis in axes if str(axis) == said]
        if not fits:
            wrong = (
                f"shape {list(value.shape)}; {self.ask.model.name} has {len(self.ask.moe_layers(self.path))} MoE layers"
            )
            raise TraceError(f"{what}: {wrong}; required: --model NAME, or --moe-layers LIST")
        if len(fits) > 1:
            wrong = f"shape {list(value.shape)}: either of two axes may be over layers"
            raise TraceError(f"{what}: {wrong}; required: --columns layers=0 or layers=1")
        axis = self._axis(value.shape[fits[0]], what)
        return [value[i] if fits[0] == 0 else value[:, i] for i in axis.take], axis.layers

    def _part(self, part: Any, key: str, what: str) -> Part:
        """A part, its rank, kind of number and width checked."""
        kinds = "iu" if key == "experts" else "f"
        if torch_file.is_tensor(part):
            torch_file.tensor(part, what.removeprefix(f"{self.path}: "), self.path, (2, 3), kinds)
        elif not isinstance(part, np.ndarray) or part.ndim not in (2, 3) or part.dtype.kind not in kinds:
            found = f"{part.dtype.name} {list(part.shape)}" if isinstance(part, np.ndarray) else _kind(part)
            raise TraceError(f"{what}: {found}; {'integers' if kinds == 'iu' else 'floats'} [tokens, n] are required")
        width = self.width.setdefault("weights" if key == "weights" else key, part.shape[-1])
        if part.shape[-1] != width or not part.shape[-1]:
            raise TraceError(f"{what}: {part.shape[-1]} numbers a token; the ones before have {width}")
        return part

    def _table(self, named: Mapping[str, Any], key: str, where: str) -> Array | None:
        """int64 [batch, positions] of token ids or of a mask."""
        if key not in named:
            return None
        value = named[key]
        if torch_file.is_tensor(value):
            value = torch_file.numbers(torch_file.tensor(value, key, self.path, (1, 2), "iub"))
        with refusing(f"{where}: {key}"):
            table = np.atleast_2d(np.array(value))
        if table.ndim != 2 or table.dtype.kind not in "iub":
            raise TraceError(
                f"{where}: {key} is {table.dtype.name} {list(table.shape)}; integers [batch, n] are required"
            )
        return table.astype(np.int64)


def _of_ids(value: Any) -> bool:
    """Whether what routing stands in holds integers."""
    while isinstance(value, list | tuple | Mapping) and value:
        inner = value.values() if isinstance(value, Mapping) else value
        value = next((each for each in inner if each is not None), None)
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "iu"
    return torch_file.is_tensor(value) and not (value.is_floating_point() or value.is_complex())


def _names(value: Mapping[Any, Any]) -> str:
    return ", ".join(ascii(key)[:24] for key in list(value)[:6]) or "nothing"


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _batch_of(found: Recording) -> int | None:
    """How many requests lie in each pass, as shapes say; None: they do not. Raises TraceError where they disagree."""
    rows = found.rows()
    said = {"the tensors": found.batch} | {
        key: None if table is None else len(table)
        for key, table in (("token_ids", found.ids), ("the mask", found.mask))
    }
    known = {key: n for key, n in said.items() if n is not None}
    batch = next(iter(known.values()), rows[1] if found.generated else None)
    if batch is None:
        return None
    if len(set(known.values())) > 1 or any(n % batch for n in rows) or not batch:
        shapes = ", ".join(f"{key} {n}" for key, n in known.items())
        raise TraceError(f"{found.where}: passes of {rows[:4]} rows for a batch of {shapes or batch}; they disagree")
    width = [table.shape[1] for table in (found.ids, found.mask) if table is not None]
    if width and (rows[0] > batch * min(width) or (not found.generated and rows[0] != batch * min(width))):
        raise TraceError(f"{found.where}: {rows[0]} rows for input_ids or attention_mask of {[batch, min(width)]}")
    return batch
