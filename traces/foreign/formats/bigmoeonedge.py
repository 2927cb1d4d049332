"""BigMoeOnEdge's route trace (`bmoe-cli --route-trace FILE`), v1: which experts, how heavy, and what its cache had.

    # route_trace v1
    # model=PATH arch=qwen3moe n_layer=48 n_expert=128 n_expert_used=8
    # layer=0 expert_bytes=3059712 dense_bytes=11953152                   (one per layer; 0 experts' bytes: dense)
    turn,phase,step,layer,slot,expert,weight,residency,expert_bytes,dropped

turn: a generation, here a request. phase: 0 prompt, 1 generated. step: position in the context; below 0 where the
engine could not say it. slot: 0 = the router's first choice. weight: as applied, nan where the graph has no such node.
residency: 0 read from flash, 1 there already, 2 there because it was fetched ahead, first touch. dropped: left out by
the engine, though routed. Columns are appended within v1, so they are found by name, and from `weight` on each may be
missing. The last layer is computed for a prompt's last token alone: its other prompt cells stay -1.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import TraceError
from traces.foreign.ask import Ask
from traces.foreign.format import Reader
from traces.foreign.long_rows import INTEGER, MOST, Long
from traces.foreign.models import Model, model
from traces.format.layout import MAX_EXPERTS
from traces.format.limits import MOST_LAYERS, MOST_LINE_BYTES
from traces.format.members import refuse_irregular, refusing
from traces.format.trace import RoutingTrace

MAGIC = "# route_trace v1"
FACTS = re.compile(r"# model=(.*) arch=(\S*) n_layer=([0-9]{1,6}) n_expert=([0-9]{1,6}) n_expert_used=([0-9]{1,6})")
LAYER = re.compile(r"# layer=([0-9]{1,6}) expert_bytes=([0-9]{1,18}) dense_bytes=([0-9]{1,18})")
REQUIRED = ("turn", "phase", "step", "layer", "slot", "expert")
PHASES = {"0": 1, "1": 0}  # as Long.add has them
QUANTISED = re.compile(r"[-._](UD[-_])?(I?Q[0-9]|T?Q[12]_0|MXFP4|NVFP4|BF16|F16|F32)\w*$", re.ASCII | re.IGNORECASE)
MOST_WEIGHT = float(np.finfo(np.float32).max)


@dataclass
class Head:
    """What stands above the rows. bytes: (experts', dense part's) of a layer, by its number."""

    file: str
    arch: str
    n_layers: int
    n_experts: int
    top_k: int
    columns: list[str] = field(default_factory=list)
    bytes: dict[int, tuple[int, int]] = field(default_factory=dict)
    lines: int = 0

    @property
    def moe_layers(self) -> list[int]:
        """Of which an expert has bytes; all where no layer is told."""
        return [layer for layer, (experts, _) in sorted(self.bytes.items()) if experts] or list(range(self.n_layers))


def detect(path: Path) -> bool:
    """Whether its first line is this layout's."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.readline(len(MAGIC) + 3).strip() == MAGIC.encode()


def read(path: Path, ask: Ask) -> RoutingTrace:
    """The trace of a file; what it says of the model goes before flags and catalog. Raises TraceError, one line."""
    refuse_irregular(path, "a route trace")
    with refusing(f"{path}: not readable"):
        lines = _lines(path)
        head = _head(path, lines)
        known = ask.model if ask.model.name else model(_name(head.file))
        own = Model(known.name, head.n_experts, head.top_k, head.n_layers, tuple(head.moe_layers))
        rows = _Rows(path, replace(ask, model=own), head)
        for number, line in lines:
            rows.add(number, line)
        return rows.trace(_differences(own, known))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of each line that is not empty."""
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MOST_LINE_BYTES + 1), b""), 1):
            if len(line) > MOST_LINE_BYTES:
                raise TraceError(f"{path}: line {number}: more than {MOST_LINE_BYTES} bytes")
            if line.strip():
                yield number, line.decode("utf-8", "replace").strip()


def _head(path: Path, lines: Iterator[tuple[int, str]]) -> Head:
    """The lines up to the one that names the columns."""
    head: Head | None = None
    for number, line in lines:
        where = f"{path}: line {number}"
        if facts := FACTS.fullmatch(line):
            n_layers, n_experts, top_k = (int(text) for text in facts.groups()[2:])
            head = Head(facts[1], facts[2], n_layers, n_experts, top_k)
            _check_head(head, where)
        elif layer := LAYER.fullmatch(line):
            if head is None or int(layer[1]) >= head.n_layers or int(layer[1]) in head.bytes:
                raise TraceError(f"{where}: layer {layer[1]}; each of the n_layer of the line with model= comes once")
            head.bytes[int(layer[1])] = int(layer[2]), int(layer[3])
        elif not line.startswith("#"):
            if head is None:
                raise TraceError(f"{where}: no line before it says model=, n_layer=, n_expert= and n_expert_used=")
            return _columns(head, line, number, where)
    raise TraceError(f"{path}: no line names the columns; {','.join(REQUIRED)} are required")


def _check_head(head: Head, where: str) -> None:
    limits = {"n_layer": (head.n_layers, MOST_LAYERS), "n_expert": (head.n_experts, MAX_EXPERTS)}
    limits["n_expert_used"] = head.top_k, min(head.n_experts, MOST["rank"])
    for name, (value, most) in limits.items():
        if not 1 <= value <= most:
            raise TraceError(f"{where}: {name} = {value}; an integer from 1 to {most} is required")


def _columns(head: Head, line: str, number: int, where: str) -> Head:
    head.columns, head.lines = [name.strip() for name in line.split(",")], number
    for name in REQUIRED:
        if head.columns.count(name) != 1:
            raise TraceError(f"{where}: column {name} is there {head.columns.count(name)} times; once is required")
    return head


def _name(file: str) -> str:
    """What a GGUF's path calls its model: without folder, number of the part, and quantisation."""
    stem = re.split(r"[/\\]", file)[-1].removesuffix(".gguf")
    stem = re.sub(r"-[0-9]{5}-of-[0-9]{5}$", "", stem)
    return QUANTISED.sub("", stem) or stem or "unknown"


def _differences(own: Model, known: Model) -> list[str]:
    """Where the file says something else of the model than flags or the catalog."""
    words = {"n_experts": "n_expert", "n_layers": "n_layer"}  # of a reduced top-k every trace is asked
    lines = []
    for key, word in words.items():
        mine, theirs = getattr(own, key), getattr(known, key)
        if theirs is not None and mine != theirs:
            lines.append(f"{word} = {mine} in the file, which is taken; {known.name} has {theirs}")
    return lines


class _Rows:
    """Collects the lines below the columns."""

    def __init__(self, path: Path, ask: Ask, head: Head) -> None:
        self.path, self.head, self.counts = path, head, Counter[str]()
        self.layers = set(head.moe_layers)
        self.cells = Long(path, ask, 1, "weight" in head.columns, "residency" in head.columns)

    def add(self, number: int, line: str) -> None:
        where, texts, names = f"{self.path}: line {number}", line.split(","), self.head.columns
        if len(texts) != len(names):
            raise TraceError(f"{where} has {len(texts)} fields; line {self.head.lines} has {len(names)}")
        row = dict(zip(names, texts, strict=True))
        most = {"turn": 2**31 - 1, "step": MOST["token"], "layer": self.head.n_layers - 1}
        most |= {"slot": self.head.top_k - 1, "expert": self.head.n_experts - 1}
        value = {name: _integer(name, row[name], where, limit) for name, limit in most.items()}
        if row["phase"] not in PHASES:
            raise TraceError(f"{where}: phase = {row['phase'][:40]!a}; 0 (prompt) or 1 (generated) is required")
        if value["layer"] not in self.layers:
            raise TraceError(f"{where}: layer = {value['layer']}, of which an expert has 0 bytes above; a MoE layer is")
        resident = (self._resident(row, where),) if self.cells.resident else None
        weight = (self._weight(row["weight"], where),) if self.cells.weights else None
        self.counts["rows"] += 1
        if value["step"] < 0:
            self.counts["no step"] += 1
            return
        self.cells.add(
            number, str(value["turn"]), value["step"], value["layer"], value["slot"], PHASES[row["phase"]],
            (value["expert"],), weight, resident=resident,
        )  # fmt: skip

    def _resident(self, row: dict[str, str], where: str) -> bool:
        found = _integer("residency", row["residency"], where, 2)
        self.counts["fetched ahead"] += found == 2
        self.counts["left out"] += _integer("dropped", row.get("dropped", "0"), where, 1)
        return found > 0

    def _weight(self, text: str, where: str) -> float:
        try:
            weight = float(text)
        except ValueError:
            weight = -1.0
        if math.isnan(weight):
            self.counts["no weight"] += 1
            return 0.0
        if not 0 <= weight <= MOST_WEIGHT:
            raise TraceError(f"{where}: weight = {text[:40]!a}; a finite number >= 0, or nan (unknown), is required")
        return weight

    def trace(self, doubts: list[str]) -> RoutingTrace:
        """What was read. Raises TraceError where it is no valid trace."""
        head, counts = self.head, self.counts
        if counts["no weight"]:
            self.cells.weights = False
        said = {
            "no weight": "of {rows:,} weights are nan, which is unknown: the weights are left out",
            "left out": "routings were left out by the engine (dropped = 1); they stand as the router chose them",
            "fetched ahead": "of the engine's hits are first touches of what it had fetched ahead (residency = 2)",
        }
        doubts = doubts + [f"{counts[why]:,} {text.format(**counts)}" for why, text in said.items() if counts[why]]
        meta: dict[str, Any] = {"tool": "BigMoeOnEdge", "layout": "route_trace v1", "id_space": "logical"}
        meta |= {"slots_ordered_by_weight": True, "model_file": head.file, "arch": head.arch}
        if head.bytes:
            both = [head.bytes.get(layer, (0, 0)) for layer in range(head.n_layers)]
            meta |= {"expert_bytes": [experts for experts, _ in both], "dense_bytes": [dense for _, dense in both]}
        meta |= {"dropped": {"rows without a step": counts["no step"]}} if counts["no step"] else {}
        meta |= {"doubts": doubts} if doubts else {}
        return self.cells.build(**meta)


def _integer(name: str, text: str, where: str, most: int) -> int:
    """The number that a field is, from 0 (a step: from any) to `most`."""
    least = -(10**9) if name == "step" else 0
    if not INTEGER.fullmatch(text) or not least <= int(text) <= most:
        raise TraceError(f"{where}: {name} = {text[:40]!a}; an integer from {max(least, 0)} to {most} is required")
    return int(text)


READER = Reader("bigmoeonedge", read, detect, "BigMoeOnEdge's route trace v1 (CSV)", names_model=True)
