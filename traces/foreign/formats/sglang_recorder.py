"""SGLang's expert distribution recorder, mode `per_token`: one `.pt` per rank.

The file is {"records": [one dict per forward pass], "last_physical_to_logical_map": [L, Ephys]}; topk_ids_of_layer is
[L, T, columns] of *physical* expert ids, -1 where a column or a dense layer has none (0.5.23 always has 8 columns). A
pass knows its positions and mode, not its requests; they are linked again here:

- an extend pass has segments (extend_seq_lens) of rising positions. A segment continues the request whose prompt
  stopped just there (chunked prefill; of several the last that was extended, and its rows are counted as ambiguous),
  else it begins one, at position 0 or after a cached prefix.
- a decode pass has one row for each running request, in the order in which they joined. Each row goes to the first
  request in that order, after the row before's, whose next position it is. Requests that a decode pass leaves out have
  ended. Where more requests wait for a position than it has rows, the first ones are taken, and the rows are counted
  as ambiguous. A row that nobody waits for begins a request (recording began late).
- a mixed pass is segments again; those of length one that go on after a prompt are generated rows unless more of
  the prompt follows.
- passes of other modes (idle, speculative verification, draft) do not give one row per token and are left out, counted.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.errors import TraceError
from traces.foreign import torch_file
from traces.foreign.ask import Ask, Axis, pick_layers
from traces.foreign.format import Reader
from traces.foreign.spill import BLOCK_ROWS
from traces.foreign.whole_rows import Rows
from traces.format.layout import Array, is_int
from traces.format.trace import RoutingTrace

RECORDS, MAP, IDS = "records", "last_physical_to_logical_map", "topk_ids_of_layer"
COUNTS, PRIMARY = "global_physical_count", "primary"
EXTEND, DECODE, MIXED = 1, 2, 3
MODES = {4: "idle", 5: "target-verify", 6: "draft-extend"}


def detect(path: Path) -> bool:
    """Whether it is a `.pt` whose pickle has records of forward passes with ids per token."""
    words = torch_file.words(path)
    return RECORDS.encode() in words and IDS.encode() in words


def read(path: Path, ask: Ask) -> RoutingTrace:
    """The trace of one rank's file. Raises TraceError, one line, for every other kind of dump too."""
    dump = torch_file.load(path)
    records, physical = parts(dump, path)
    top_k = ask.top_k(path)
    axis = pick_layers(path, len(physical), ask, MAP)
    rows = Rows(path, ask)
    links = Links()
    for i, record in enumerate(records):
        where = f"{path}: {RECORDS}[{i}]"
        found = _pass(record, where, path)
        why = _unusable(record)
        if why:
            rows.dropped[why] += found.shape[1]
        else:
            _add(rows, links, record, _logical(found, physical, axis, top_k, where), where)
        torch_file.give_back(record[IDS])
    meta: dict[str, Any] = {"requests_by": "position continuity", "ambiguous_rows": links.ambiguous}
    kept = {"tool": "sglang", "layout": "expert distribution recorder, per_token", "id_space": "logical"}
    _set_phases(rows, links)
    return rows.trace(axis.layers, slots_ordered_by_weight=False, **kept, **meta)


def parts(dump: Any, path: Path) -> tuple[list[Any], Array]:
    """(records, map from physical to logical ids [L, Ephys]) of a dump by pass."""
    records = dump.get(RECORDS) if isinstance(dump, dict) else None
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise TraceError(f"{path}: no {RECORDS} of forward passes; a dump of mode per_token is required")
    return records, torch_file.array(dump.get(MAP), MAP, path, 2).astype(np.int64)  # -1 is put beside


def _pass(record: dict[str, Any], where: str, path: Path) -> Array:
    """Physical ids [L, T, columns] of one pass."""
    if IDS not in record:
        raise TraceError(f"{where}: no {IDS}: counts alone; a trace needs recorder mode per_token (this is per_pass)")
    return torch_file.array(record[IDS], f"{where}: {IDS}", path, 3)


def _unusable(record: dict[str, Any]) -> str:
    """Why the rows of a pass are left out; empty where they are not."""
    mode = record.get("forward_mode")
    if record.get("gatherer_key", PRIMARY) != PRIMARY:
        return f"rows of gatherer {str(record['gatherer_key'])[:20]!r} (a part of a pass)"
    if not is_int(mode):
        return f"rows of passes whose mode is a {type(mode).__name__}"
    return "" if mode in (EXTEND, DECODE, MIXED) else f"rows of {MODES.get(mode, f'mode {str(mode)[:20]}')} passes"


def _logical(ids: Array, physical: Array, axis: Axis, top_k: int, where: str) -> Array:
    """Logical ids [T, MoE layers, K]."""
    if len(ids) != len(physical) or ids.shape[2] < top_k:
        right = f"{len(physical)} layers and {top_k} columns at least"
        raise TraceError(f"{where}: {IDS} has shape {list(ids.shape)}; {right} are required")
    if (ids[:, :, top_k:] >= 0).any():
        raise TraceError(f"{where}: {IDS} has more than {top_k} experts a token; --top-k says {top_k}")
    if (ids[axis.dense] >= 0).any():
        raise TraceError(f"{where}: {IDS} has experts in a layer that is no MoE layer")
    chosen = ids[axis.take][:, :, :top_k].transpose(1, 0, 2)
    if chosen.size and int(chosen.max()) >= physical.shape[1]:
        raise TraceError(f"{where}: physical expert {chosen.max()}; the map has {physical.shape[1]}")
    none = np.full((len(axis.take), 1), -1, physical.dtype)
    table = np.concatenate([physical[axis.take], none], axis=1)
    return table[np.arange(len(table))[None, :, None], np.where(chosen < 0, -1, chosen)]


@dataclass
class Request:
    """What is known of a request so far. prompt_end: position after its last row that is surely a prompt row."""

    number: int
    following: int
    prompt_end: int
    generated: bool = False
    extended: int = 0  # which segment extended it last


@dataclass
class Links:
    """Rows to requests, by position."""

    requests: list[Request] = field(default_factory=list)
    running: list[Request] = field(default_factory=list)
    parked: list[Request] = field(default_factory=list)  # left out of a decode pass, and no row generated: chunks
    ambiguous: int = 0
    extends: int = 0

    def begin(self, position: int) -> Request:
        request = Request(len(self.requests), position, position)
        self.requests.append(request)
        return request

    def extend(self, first: int, length: int, sure: bool) -> Request:
        """The request of a segment. sure: its rows are prompt rows (in a mixed pass one row may be generated)."""
        others = self.parked + self.running
        waiting = [r for r in others if r.following == first and first > 0 and not (sure and r.generated)]
        self.ambiguous += length if len(waiting) > 1 else 0
        request = max(waiting, key=lambda r: r.extended) if waiting else self.begin(first)
        self.extends += 1
        request.extended = self.extends
        if request not in self.running:
            self.running.append(request)
        self.parked = [r for r in self.parked if r is not request]
        request.following = first + length
        request.generated = request.generated or not sure
        if sure:
            request.prompt_end = request.following
        return request

    def decode(self, positions: list[int]) -> list[Request]:
        """The request of each row of a decode pass."""
        out, after = [], 0
        rows_at, waiting_at = Counter(positions), Counter(request.following for request in self.running)
        for position in positions:
            self.ambiguous += rows_at[position] < waiting_at[position]
            place = next((i for i in range(after, len(self.running)) if self.running[i].following == position), None)
            if place is None:
                request = self.begin(position)
            else:
                request, after = self.running[place], place + 1
            request.generated = True
            out.append(request)
        going = {request.number for request in out}
        self.parked = [r for r in self.parked + self.running if not r.generated and r.number not in going]
        self.running = list(out)
        for request in out:
            request.following += 1
        return out


def _add(rows: Rows, links: Links, record: dict[str, Any], experts: Array, where: str) -> None:
    """Append the rows of one pass."""
    positions = _integers(record, "positions", len(experts), where)
    tokens = _integers(record, "input_ids", len(experts), where)
    if record["forward_mode"] == DECODE:
        sequence = np.array([r.number for r in links.decode(positions.tolist())], np.int64)
    else:
        sequence = _segments(links, record, positions, where)
    rows.add(experts, sequence, positions, False, token_ids=tokens)


def _segments(links: Links, record: dict[str, Any], positions: npt.NDArray[np.int64], where: str) -> Array:
    """The request of each row of an extend or mixed pass."""
    lengths = record.get("extend_seq_lens")
    if not isinstance(lengths, list) or not all(isinstance(n, int) and n > 0 for n in lengths):
        raise TraceError(f"{where}: extend_seq_lens is {ascii(lengths)[:40]}; a list of lengths is required")
    if sum(lengths) != len(positions):
        raise TraceError(f"{where}: extend_seq_lens add up to {sum(lengths)}; the pass has {len(positions)} tokens")
    out, lo = np.empty(len(positions), np.int64), 0
    for length in lengths:
        segment = positions[lo : lo + length]
        if (np.diff(segment) != 1).any():
            raise TraceError(f"{where}: positions of tokens {lo} to {lo + length - 1} do not rise by one")
        sure = record["forward_mode"] == EXTEND or length > 1 or segment[0] == 0
        out[lo : lo + length] = links.extend(int(segment[0]), length, sure).number
        lo += length
    return out


def _integers(record: dict[str, Any], key: str, length: int, where: str) -> npt.NDArray[np.int64]:
    value = record.get(key)
    if not isinstance(value, list) or len(value) != length:
        found = f"has {len(value)} entries" if isinstance(value, list) else f"is a {type(value).__name__}"
        raise TraceError(f"{where}: {key} {found}; a list of {length}, one per token, is required")
    if not all(is_int(v) and 0 <= v < 2**31 for v in value):
        raise TraceError(f"{where}: {key} holds something else than integers from 0 to {2**31 - 1}")
    return np.array(value, np.int64)


def _set_phases(rows: Rows, links: Links) -> None:
    """A request's rows up to its last sure prompt row are prompt rows."""
    ends = np.array([request.prompt_end for request in links.requests], np.int64)
    facts = rows.facts.array()
    for lo in range(0, len(facts), BLOCK_ROWS):
        block = facts[lo : lo + BLOCK_ROWS]
        block["prefill"] = block["position"] < ends[block["sequence"]]


READER = Reader("sglang", read, detect, "SGLang's expert distribution recorder, per_token .pt")
