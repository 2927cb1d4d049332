"""What a routing trace of format 1 must hold, and the one-line refusal of what does not.

Structure (dtypes, shapes, meta) is checked from headers alone: no array is read, so a file can be refused
before anything is allocated. Values are checked in chunks of tokens, so memory stays bounded whatever the
trace's size.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from traces.errors import TraceError
from traces.format.layout import (
    ARRAYS,
    CHUNK_ELEMENTS,
    FORMAT_VERSION,
    MAX_EXPERTS,
    SCORE_FUNCTIONS,
    Array,
    Header,
    ascending,
    chunks,
    is_int,
)
from traces.format.trace import RoutingTrace


def validate(trace: RoutingTrace, name: str = "trace") -> None:
    """Check structure and every value. Raises TraceError with one line that begins with `name`."""
    check_structure({n: (a.dtype, a.shape) for n, a in trace.arrays().items()}, trace.meta, name)
    check_values(trace, name)


def check_structure(headers: Mapping[str, Header], meta: object, name: str) -> None:
    """Check dtypes, ranks, lengths, meta without reading an array. headers: (dtype, shape) by array name."""
    facts = check_meta(meta, name)
    for array, (words, rank, required) in ARRAYS.items():
        if array in headers:
            _check_header(name, array, headers[array], words, rank)
        elif required:
            raise TraceError(f"{name}: {array} is missing; the format requires it")
    _check_shapes(headers, facts, name)


def _check_header(name: str, array: str, header: Header, words: str, rank: int) -> None:
    dtype, shape = header
    good = dtype.kind in "iu" if words == "integer" else dtype.newbyteorder("=").name in words.split(" or ")
    if not good:
        raise TraceError(
            f"{name}: {array} has dtype {'a structure' if dtype.names else dtype.name}; {words} is required"
        )
    if len(shape) != rank:
        raise TraceError(f"{name}: {array} has rank {len(shape)}, shape {shape}; rank {rank} is required")
    if 0 in shape:
        raise TraceError(f"{name}: {array} has no rows, shape {shape}; no axis may be empty")


def _check_shapes(headers: Mapping[str, Header], meta: dict[str, Any], name: str) -> None:
    """Every array's shape against that of experts and against meta."""
    tokens, layers, top_k = headers["experts"][1]
    if layers != len(meta["moe_layers"]):
        raise TraceError(f"{name}: experts has {layers} MoE layers; meta.moe_layers lists {len(meta['moe_layers'])}")
    if top_k != meta["top_k"]:
        raise TraceError(f"{name}: experts has {top_k} slots per token; meta.top_k is {meta['top_k']}")
    want: dict[str, tuple[int, ...]] = {n: (tokens,) for n in ("sequence", "position", "prefill", "token_ids")}
    want |= {name: (tokens, layers, top_k) for name in ("weights", "resident")}
    want["logits"] = (tokens, layers, meta["n_experts"])
    for array, shape in want.items():
        if array in headers and headers[array][1] != shape:
            raise TraceError(f"{name}: {array} has shape {headers[array][1]}; experts and meta ask for {shape}")
    if "lookahead" in headers:
        _check_lookahead_shape(headers["lookahead"][1], (tokens, layers), meta, name)


def _check_lookahead_shape(shape: tuple[int, ...], rows: tuple[int, int], meta: dict[str, Any], name: str) -> None:
    if shape[1:3] != rows:
        raise TraceError(f"{name}: lookahead has shape {shape}; experts asks for [distances, {rows[0]}, {rows[1]}, m]")
    distances = meta.get("lookahead_distances")
    if distances is not None and len(distances) != shape[0]:
        raise TraceError(f"{name}: lookahead has {shape[0]} distances; meta.lookahead_distances lists {len(distances)}")


def check_meta(meta: object, name: str) -> dict[str, Any]:
    """The meta as a dict, its keys and types checked; unknown keys pass."""
    if not isinstance(meta, dict):
        raise TraceError(f"{name}: meta is {_short(meta)}; a JSON object is required")
    for key in ("format_version", "model", "n_experts", "top_k", "n_layers", "moe_layers", "real"):
        if key not in meta:
            raise TraceError(f"{name}: meta.{key} is missing")
    if not is_int(meta["format_version"]) or meta["format_version"] != FORMAT_VERSION:
        found = _short(meta["format_version"])
        raise TraceError(f"{name}: meta.format_version is {found}; this reader knows version {FORMAT_VERSION}")
    for key in ("real", "norm_topk", "slots_ordered_by_weight"):
        if key in meta and not isinstance(meta[key], bool):
            raise TraceError(f"{name}: meta.{key} is {_short(meta[key])}; true or false is required")
    if not isinstance(meta["model"], str) or not meta["model"]:
        raise TraceError(f"{name}: meta.model is {_short(meta['model'])}; a name is required")
    _check_meta_counts(meta, name)
    _check_groups(meta.get("groups", {}), name)
    _check_said(meta, name)
    return meta


def _check_said(meta: dict[str, Any], name: str) -> None:
    """What a reader said of the recording: lines, and how much it left out by why."""
    said, dropped = meta.get("doubts", []), meta.get("dropped", {})
    if not isinstance(said, list) or not all(isinstance(line, str) for line in said):
        raise TraceError(f"{name}: meta.doubts is {_short(said)}; a list of lines is required")
    if not isinstance(dropped, dict) or not all(map(is_int, dropped.values())):
        raise TraceError(f"{name}: meta.dropped is {_short(dropped)}; numbers of rows by why are required")


def _check_groups(groups: object, name: str) -> None:
    """Lists of words by key; how many there must be, the rows say."""
    if not isinstance(groups, dict):
        raise TraceError(f"{name}: meta.groups is {_short(groups)}; lists by key are required")
    for key, of in groups.items():
        if not key or "=" in key:
            raise TraceError(f"{name}: meta.groups has the key {_short(key)}; a word without = is required")
        if not isinstance(of, list) or not all(isinstance(each, str) and each for each in of):
            raise TraceError(f"{name}: meta.groups.{key} is {_short(of)}; a list of words, one a request, is required")


def _check_meta_counts(meta: dict[str, Any], name: str) -> None:
    _check_count(meta, "n_experts", MAX_EXPERTS, name)
    _check_count(meta, "top_k", meta["n_experts"], name)
    _check_count(meta, "n_layers", 1 << 31, name)
    layers = meta["moe_layers"]
    if not ascending(layers) or not layers or layers[0] < 0 or layers[-1] >= meta["n_layers"]:
        right = f"ascending layer indices from 0 to {meta['n_layers'] - 1}"
        raise TraceError(f"{name}: meta.moe_layers is {_short(layers)}; it must list {right}")
    score = meta.get("score_function")
    if score is not None and score not in SCORE_FUNCTIONS:
        raise TraceError(f"{name}: meta.score_function is {_short(score)}; one of {', '.join(SCORE_FUNCTIONS)}")
    distances = meta.get("lookahead_distances")
    if distances is not None and (not ascending(distances) or (distances and distances[0] < 1)):
        found = _short(distances)
        raise TraceError(f"{name}: meta.lookahead_distances is {found}; it must list ascending integers from 1")


def _check_count(meta: dict[str, Any], key: str, most: int, name: str) -> None:
    if not is_int(meta[key]) or not 1 <= meta[key] <= most:
        raise TraceError(f"{name}: meta.{key} is {_short(meta[key])}; an integer from 1 to {most} is required")


def _short(value: object) -> str:
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # integers of thousands of digits, nesting without end
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def check_values(trace: RoutingTrace, name: str) -> None:
    """Check every value of a trace whose structure is right, in bounded memory."""
    _check_rows(trace, name)
    for lo, chunk in chunks(trace.experts):
        _check_ids(name, "experts", (lo, 0, 0), chunk, trace.n_experts)
        _check_distinct(name, lo, chunk)
    for d in range(0 if trace.lookahead is None else trace.lookahead.shape[0]):
        assert trace.lookahead is not None
        for lo, chunk in chunks(trace.lookahead[d]):
            _check_ids(name, "lookahead", (d, lo, 0, 0), chunk, trace.n_experts)
    if trace.weights is not None:
        for lo, chunk in chunks(trace.weights):
            # One comparison finds NaN, negative and infinite: false for all three.
            bad = ~((chunk >= 0) & (chunk < np.inf))
            _refuse(name, "weights", lo, chunk, bad, "a finite weight >= 0 is required")
    if trace.logits is not None:
        for lo, chunk in chunks(trace.logits):
            _refuse(name, "logits", lo, chunk, ~(chunk < np.inf), "a number is required (-inf passes)")


def _refuse(name: str, array: str, lo: int, chunk: Array, bad: Array, right: str) -> None:
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise TraceError(f"{name}: {array}{[lo + at[0], *at[1:]]} = {chunk[at]}; {right}")


def _check_ids(name: str, array: str, base: tuple[int, ...], chunk: Array, n_experts: int) -> None:
    if int(chunk.min()) >= -1 and int(chunk.max()) < n_experts:
        return
    at = tuple(int(i) for i in np.argwhere((chunk < -1) | (chunk >= n_experts))[0])
    index = [*base[:-3], base[-3] + at[0], *at[1:]]
    raise TraceError(f"{name}: {array}{index} = {chunk[at]}; expert ids lie in [-1, {n_experts})")


def _check_distinct(name: str, lo: int, chunk: Array) -> None:
    """Refuse the same expert twice in a token: all pairs of slots are compared."""
    slots = np.ascontiguousarray(np.moveaxis(chunk, 2, 0), dtype=np.int16)
    # Absent slots become ids of their own, so that equal means the same expert.
    slots = np.where(slots < 0, -1 - np.arange(len(slots), dtype=np.int16)[:, None, None], slots)
    for i, j in combinations(range(len(slots)), 2):
        same = slots[i] == slots[j]
        if same.any():
            t, layer = (int(v) for v in np.argwhere(same)[0])
            where = f"experts{[lo + t, layer, j]} = {chunk[t, layer, j]}"
            raise TraceError(f"{name}: {where} is already in slot {i}; a token's experts are distinct")


def _check_rows(trace: RoutingTrace, name: str) -> None:
    """Requests stand together, positions rise by one from >= 0, prompt rows come first."""
    first, _ = trace.requests()
    ids, counts = np.unique(trace.sequence[first], return_counts=True)
    if len(ids) < len(first):
        again = int(first[np.flatnonzero(trace.sequence[first] == ids[counts > 1][0])[1]])
        where = f"sequence[{again}] = {trace.sequence[again]}"
        raise TraceError(f"{name}: {where} comes back after another request; a request's rows stand together")
    for key, of in trace.meta.get("groups", {}).items():
        if len(of) != len(first):
            raise TraceError(f"{name}: meta.groups.{key} has {len(of)} words; the trace has {len(first)} requests")
    starts = trace.position[first]
    if starts.min() < 0:
        row = int(first[np.argmax(starts < 0)])
        raise TraceError(f"{name}: position[{row}] = {trace.position[row]}; positions are >= 0")
    for lo in range(0, trace.n_tokens - 1, CHUNK_ELEMENTS):
        _check_neighbours(trace, lo, min(lo + CHUNK_ELEMENTS + 1, trace.n_tokens), name)


def _check_neighbours(trace: RoutingTrace, lo: int, hi: int, name: str) -> None:
    """Each row of lo + 1 .. hi - 1 against the row before it."""
    same = trace.sequence[lo + 1 : hi] == trace.sequence[lo : hi - 1]
    position = trace.position[lo:hi].astype(np.int64)
    bad = np.flatnonzero(same & (np.diff(position) != 1))
    if len(bad):
        row, before = lo + 1 + int(bad[0]), int(position[bad[0]])
        where = f"position[{row}] = {trace.position[row]}"
        raise TraceError(f"{name}: {where} follows {before}; positions rise by one inside a request")
    prompt = trace.prefill[lo:hi]
    bad = np.flatnonzero(same & prompt[1:] & ~prompt[:-1])
    if len(bad):
        row = lo + 1 + int(bad[0])
        raise TraceError(
            f"{name}: prefill[{row}] = True follows a generated token; prompt rows come first in a request"
        )
