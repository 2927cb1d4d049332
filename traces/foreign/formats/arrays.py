"""A `.npz` of one's own (np.savez): expert ids of every token, layer and slot, and whatever else was kept beside them.

    experts [tokens, layers, k] or [layers, tokens, k]; weights alike; token_ids, sequence, position, prefill [tokens]

Arrays go by these names or by those that public logs use (traces.foreign.columns), or `--columns` says which is which;
others are ignored. Which axis is the layers', the model's layers tell, or an array by token does; where both would do,
`--columns layer=0` or `layer=1` says it. Nothing is unpickled, and a declared size is compared with the file's.
"""

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import TraceError
from traces.foreign.ask import Ask, pick_layers
from traces.foreign.columns import KNOWN, OF_A_ROW, find, listed, normal
from traces.foreign.format import PASSES, Reader
from traces.foreign.npy import mapped
from traces.foreign.spill import check_ids
from traces.foreign.whole_rows import Rows
from traces.format.layout import Array, give_back
from traces.format.members import Member, find_members, open_zip
from traces.format.trace import RoutingTrace

FIELDS = ("experts", "weights", "sequence", "token", "prefill", "token_id")  # token: positions
PER_TOKEN = FIELDS[2:]
OWN = {"meta", "experts", "sequence", "position", "prefill"}  # a trace of this project
IDS = 1 << 18  # at a time
MOST_MEMBERS = 1000


def detect(path: Path) -> bool:
    """Whether it is a `.npz` with an array [., ., .] under one of the names for experts, and facts of rows."""
    try:
        names = _names(path)
        known = [name for name in names if normal(name) in KNOWN["experts"]]
        if len(known) != 1 or set(names) >= OWN or not any(normal(name) in OF_A_ROW for name in names):
            return False
        with open_zip(path) as archive:
            member = find_members(archive, path, (known[0],))[known[0]]
    except (TraceError, OSError):
        return False
    return len(member.shape) == 3 and member.dtype.kind in "iu"


def _names(path: Path) -> list[str]:
    """Names of the arrays, [] where the file is no zip."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return []
    with open_zip(path) as archive:
        found = [info.filename for info in archive.infolist()[:MOST_MEMBERS]]
    return [name.removesuffix(".npy") for name in found if name.endswith(".npy")]


def read(path: Path, ask: Ask) -> RoutingTrace:
    """The trace of such a file. Raises TraceError, one line that names the array at fault."""
    with open_zip(path):
        names = _names(path)
    if set(names) >= OWN:
        raise TraceError(f"{path}: is a trace of this project already; python -m traces info reads it")
    said = dict(ask.asked("columns") or {})
    axis = said.pop("layer", None)
    if axis not in (None, "0", "1"):
        raise TraceError(f"{path}: --columns layer={axis[:20]}: of arrays the axis of the layers is required, 0 or 1")
    at = find(names, said, str(path), FIELDS)
    if "experts" not in at:
        right = f"its arrays are {listed(names)}; required: --columns experts=NAME"
        raise TraceError(f"{path}: no array experts; {right}")
    return _Arrays(path, ask, at, None if axis is None else int(axis)).trace()


class _Arrays:
    """The arrays of a file, mapped or read whole, with tokens along the first axis."""

    def __init__(self, path: Path, ask: Ask, at: dict[str, str], axis: int | None) -> None:
        self.path, self.ask, self.at = path, ask, at
        with open_zip(path) as archive:
            members = find_members(archive, path, tuple(at.values()))
            self.lengths = {members[at[f]].shape[:1] for f in PER_TOKEN if f in at}
            self._check(members)
            arrays = {field: mapped(archive, path, n, members[n], ask.scratch) for field, n in at.items()}
        self.axis = axis if axis is not None else self._axis(arrays["experts"].shape)
        whole = {f: np.moveaxis(a, self.axis, 1) for f, a in arrays.items() if f in ("experts", "weights")}
        self.arrays = arrays | whole

    def _check(self, members: dict[str, Member]) -> None:
        """Refuse dtypes and shapes that do not fit one another."""
        kinds = {"experts": "iu", "weights": "f", "prefill": "biu"}
        experts = members[self.at["experts"]]
        for field, name in self.at.items():
            member, right = members[name], kinds.get(field, "iu")
            want = 3 if field in ("experts", "weights") else 1
            if member.dtype.kind not in right or len(member.shape) != want or 0 in member.shape:
                what = "integers" if right == "iu" else "numbers"
                found = f"{member.dtype.name} {list(member.shape)}"
                raise TraceError(f"{self.path}: {name} is {found}; {what} of {want} dimensions are required")
            if field == "weights" and member.shape != experts.shape:
                raise TraceError(f"{self.path}: {name} has shape {member.shape}; experts have {experts.shape}")
        if len(self.lengths) > 1 or any(n[0] not in experts.shape[:2] for n in self.lengths):
            lengths = sorted(n[0] for n in self.lengths)
            raise TraceError(f"{self.path}: arrays by token have {lengths} entries; experts have {experts.shape}")

    def _axis(self, shape: tuple[int, ...]) -> int:
        """Which of the first two axes is the layers'."""
        by_token = {n[0] for n in self.lengths}
        may = [axis for axis in (0, 1) if by_token <= {shape[1 - axis]}]
        fit = [axis for axis in may if self._is_whole(shape[axis])] or [a for a in may if self._fits(shape[a])]
        if len(fit) == 2:
            wrong = f"either axis of {list(shape)} could be the layers'"
            raise TraceError(f"{self.path}: {wrong}; required: --columns layer=0 or layer=1")
        if not fit:  # says what the model has
            pick_layers(self.path, shape[1], self.ask, f"{self.at['experts']} {list(shape)}")
        return fit[0] if fit else 1

    def _is_whole(self, length: int) -> bool:
        """Whether an axis is as long as the MoE layers or as all layers."""
        return length in (len(self.ask.moe_layers(self.path)), self.ask.model.n_layers)

    def _fits(self, length: int) -> bool:
        """Whether it could be all layers of a model whose number of layers is not known."""
        try:
            pick_layers(self.path, length, self.ask, "")
        except TraceError:
            return False
        return True

    def trace(self) -> RoutingTrace:
        experts = self.arrays["experts"]
        self.ask = replace(self.ask, model=replace(self.ask.model, top_k=self.ask.model.top_k or experts.shape[2]))
        if experts.shape[2] > self.ask.top_k(self.path):
            wrong = f"{self.at['experts']} has {experts.shape[2]} slots; top-k is {self.ask.model.top_k}"
            raise TraceError(f"{self.path}: {wrong}")
        layers = pick_layers(self.path, experts.shape[1], self.ask, self.at["experts"])
        rows = Rows(self.path, self.ask)
        step = max(1, IDS // (experts.shape[1] * experts.shape[2]))
        sequence, position = self._requests(len(experts))
        for lo in range(0, len(experts), step):
            part = slice(lo, lo + step)
            more: dict[str, Array] = {}
            if "weights" in self.arrays:
                more["weights"] = self._padded(self.arrays["weights"][part], layers.take, 0)
            if "token_id" in self.arrays:
                more["token_ids"] = np.asarray(self.arrays["token_id"][part]).astype(np.int64)
            ids = self._padded(self.arrays["experts"][part], layers.take, -1)
            check_ids(ids, self.ask.n_experts(self.path), f"{self.path}: {self.at['experts']}[{lo}] and after")
            rows.add(ids, sequence[part], position[part], self._prefill(position[part], part), **more)
            for array in self.arrays.values():
                give_back(array)
        return rows.trace(layers.layers, tool="npz", slots_ordered_by_weight=False)

    def _padded(self, block: Array, take: list[int], value: int) -> Array:
        """[n, MoE layers, top-k]."""
        block = np.asarray(block)[:, take]
        none = self.ask.top_k(self.path) - block.shape[2]
        return np.pad(block.astype(np.int64) if value else block, ((0, 0), (0, 0), (0, none)), constant_values=value)

    def _requests(self, n: int) -> tuple[Array, Array]:
        """(sequence, position) [n]: as the file has them, else as the flags say."""
        if "sequence" in self.arrays:
            sequence = self._narrow("sequence")
        elif "token" in self.arrays:  # a request begins where a position does not follow the one before
            position = self._narrow("token")
            return np.cumsum(np.append(0, np.diff(position) != 1)), position
        else:
            sequence = self._by_flag(n)
        if "token" in self.arrays:
            return sequence, self._narrow("token")
        first = np.flatnonzero(np.append(True, np.diff(sequence) != 0))
        lengths = np.diff(np.append(first, n))
        start = self.ask.asked("prompt_start") or 0
        return sequence, np.arange(n) - np.repeat(first, lengths) + start

    def _by_flag(self, n: int) -> Array:
        rule, each = self.ask.asked("requests"), self.ask.tokens_each
        if rule != "one" and not each:
            wrong = "the file does not say which tokens are one request"
            raise TraceError(f"{self.path}: {wrong}; required: --requests one or tokens each")
        return np.arange(n) // each if each else np.zeros(n, np.int64)

    def _narrow(self, field: str) -> Array:
        values = np.asarray(self.arrays[field])
        if int(values.min()) < 0 or int(values.max()) >= 2**31:
            name, bad = self.at[field], int(values.min()) if int(values.min()) < 0 else int(values.max())
            raise TraceError(f"{self.path}: {name} holds {bad}; integers from 0 to {2**31 - 1} are required")
        return values.astype(np.int32)

    def _prefill(self, position: Array, part: slice) -> Any:
        if "prefill" in self.arrays:
            return np.asarray(self.arrays["prefill"][part]).astype(np.bool_)
        return self.ask.prefill(self.path, position)


READER = Reader("npz", read, detect, "a .npz of arrays: experts [tokens, layers, k] and more", (*PASSES, "columns"))
