"""Expert selection traces of "Patterns behind Chaos" (ISCA'26, arXiv 2510.05497; core12345/MoE_expert_selection_trace).

A file is a request: one JSON list of forward passes, each {"LAYER": null or [tokens][k] ids}. Pass 0 is the prompt, the
others are generated; null is a dense layer. A folder is as many requests as it has `.json` files, by their names; the
data set lies as MODEL/BENCHMARK/SUBJECT/N.json. No weights, no token ids; how many experts there are is not said.

A file is one value and may be of any size, so it is not handed to json whole: a window slides over it, and json decodes
one layer of one pass at a time. (ijson, which streams JSON, gives every number as an event of its own.)
"""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from traces.errors import TraceError
from traces.foreign.ask import Ask, place_layers
from traces.foreign.format import Reader
from traces.foreign.json_lines import by_layer
from traces.foreign.spill import check_ids
from traces.foreign.whole_rows import Rows
from traces.format.limits import MOST_IDS, MOST_LAYERS
from traces.format.members import refuse_constant, refuse_irregular, refusing
from traces.format.trace import RoutingTrace

WINDOW = 1 << 16  # characters that are read at a time
MOST_WINDOW = 32 << 20  # of one layer of one pass: about a million tokens of top-8
SPACES = re.compile(r"[ \t\r\n]++")
Ids = npt.NDArray[np.int64]


def detect(path: Path) -> bool:
    """Whether it begins as such a list of passes, or is a folder whose first `.json` does."""
    if path.is_dir():
        first = min(path.rglob("*.json"), default=None)
        return first is not None and by_layer(first)
    return by_layer(path)


def read(path: Path, ask: Ask) -> RoutingTrace:
    """The trace of a file, or of a folder of them. Raises TraceError, one line that names file and pass."""
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    if not files:
        raise TraceError(f"{path}: no .json in it")
    rows = _Rows(path, ask)
    for request, file in enumerate(files):
        for number, (where, found) in enumerate(_passes(file)):
            rows.add(request, number, found, where)
        if rows.request != request:
            raise TraceError(f"{file}: no passes in it; a request has at least one")
    groups = _groups([file.relative_to(path).with_suffix("") for file in files]) if path.is_dir() else {}
    return rows.trace(**groups)


def _groups(files: list[Path]) -> dict[str, Any]:
    """What each request is: its file, and its folder where there are any."""
    groups = {"file": [file.as_posix() for file in files]}
    folders = [file.parent.as_posix() for file in files]
    return {"groups": groups | ({"folder": folders} if len(set(folders)) > 1 else {})}


class _Rows:
    """Passes become rows; every one must have the layers and slots of the first."""

    def __init__(self, path: Path, ask: Ask) -> None:
        self.ask, self.rows = ask, Rows(path, ask)
        self.layers: list[int] = []
        self.n_layers = self.top_k = self.position = 0
        self.request = -1

    def add(self, request: int, number: int, found: dict[int, Ids | None], where: str) -> None:
        ids = {layer: values for layer, values in sorted(found.items()) if values is not None}
        if not ids:
            raise TraceError(f"{where} has no layer with experts; every pass has the MoE layers of the first")
        if request != self.request:
            self.request, self.position = request, 0
        shape = next(iter(ids.values())).shape
        self.layers, self.top_k = self.layers or list(ids), self.top_k or shape[1]
        self.n_layers = max(self.n_layers, *(layer + 1 for layer in found))
        if list(ids) != self.layers:
            differ = sorted(set(ids) ^ set(self.layers))[:5]
            raise TraceError(f"{where} has other dense layers (null) than the first pass: they differ in {differ}")
        for layer, values in ids.items():
            if values.shape != (shape[0], self.top_k):
                right = f"{[shape[0], self.top_k]}, as in layer {self.layers[0]} and in the first pass"
                raise TraceError(f"{where}: layer {layer} has {list(values.shape)} ids; {right}, are required")
        experts = np.stack(list(ids.values()), 1)
        check_ids(experts, self.ask.n_experts(self.rows.path), where)
        self.rows.add(experts, request, self.position + np.arange(shape[0]), number == 0)
        self.position += shape[0]

    def trace(self, **meta: Any) -> RoutingTrace:
        layers = place_layers(self.rows.path, self.layers, self.ask)
        if self.ask.model.n_layers is None:  # the file lists the dense layers too
            self.rows.ask = replace(self.ask, model=replace(self.ask.model, n_layers=self.n_layers))
        meta |= {"tool": "expert selection traces", "id_space": "logical", "slots_ordered_by_weight": False}
        return self.rows.trace(layers, **meta)


def _passes(path: Path) -> Iterator[tuple[str, dict[int, Ids | None]]]:
    """(where, ids [tokens, k] by layer, None of a dense one) of each pass of a file."""
    refuse_irregular(path, "JSON")
    with refusing(f"{path}: not JSON"), path.open(encoding="utf-8-sig") as file:
        text = _Window(file)
        for number, _ in enumerate(text.items("[", "]")):
            where = f"{path}: pass {number}"
            found: dict[int, Ids | None] = {}
            for _ in text.items("{", "}"):
                layer = _layer(text.value(), where)
                if layer in found:
                    raise TraceError(f"{where}: layer {layer} is there twice")
                text.take(":")
                found[layer] = _ids(text.value(), f"{where}: layer {layer}")
            yield where, found
        if text.next():
            raise TraceError(f"{path}: {text.next()!a} after the list of passes; a file is one list")


def _layer(key: object, where: str) -> int:
    if not isinstance(key, str) or not re.fullmatch("[0-9]{1,4}", key, re.ASCII) or int(key) >= MOST_LAYERS:
        raise TraceError(f"{where}: key {ascii(key)[:40]}; the number of a layer is required")
    return int(key)


def _ids(value: object, where: str) -> Ids | None:
    if value is None:
        return None
    right = "null (a dense layer) or ids [tokens][k], as many of each token,"
    try:
        ids = np.array(value)
    except (ValueError, OverflowError):
        raise TraceError(f"{where}: tokens with different numbers of ids; {right} are required") from None
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or not 0 < ids.size <= MOST_IDS:
        found = f"{ids.dtype.name} {list(ids.shape)}" if isinstance(value, list) else ascii(value)[:40]
        raise TraceError(f"{where}: {found}; {right} are required")
    return ids.astype(np.int64)


class _Window:
    """The part of a file of JSON that is being looked at; what was taken is forgotten. Raises ValueError."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.text, self.at = file, "", 0
        self.decode = json.JSONDecoder(parse_constant=refuse_constant).raw_decode

    def _more(self) -> bool:
        """Whether there was more to read; the window doubles while nothing is taken."""
        if len(self.text) - self.at > MOST_WINDOW:
            raise ValueError(f"more than {MOST_WINDOW} characters in one layer of a pass")
        found = self.file.read(max(WINDOW, len(self.text) - self.at))
        self.text, self.at = self.text[self.at :] + found, 0
        return bool(found)

    def next(self) -> str:
        """The next character that is no space, "" at the end; it stays."""
        while True:
            if spaces := SPACES.match(self.text, self.at):
                self.at = spaces.end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def take(self, wanted: str) -> str:
        """The next character, which must be one of `wanted`."""
        found = self.next()
        if not found or found not in wanted:
            raise ValueError(f"{found!a} where one of {wanted!a} is required" if found else "it is cut short")
        self.at += 1
        return found

    def value(self) -> Any:
        """The next string, null, number or list."""
        while True:
            self.next()
            try:
                value, end = self.decode(self.text, self.at)
            except json.JSONDecodeError:
                if not self._more():
                    raise
                continue
            if end < len(self.text) or not self._more():  # a number could go on
                self.at = end
                return value

    def items(self, begin: str, end: str) -> Iterator[None]:
        """Once before each element of a list or object, from its first character to its last."""
        self.take(begin)
        if self.next() == end:
            self.at += 1
            return
        yield
        while self.take("," + end) == ",":
            yield


READER = Reader("expert-selection", read, detect, 'passes by layer: [{"0": null or [[ids], ...], ...}, ...]')
