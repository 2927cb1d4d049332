"""Buddy lists as `.npz` files, written and refused as traces are; and similarity matrices read from them.

A file of lists holds `peers`, `q`, `coverage` and `meta` (see BuddyLists); a file of similarities holds
`similarity`, floating [MoE layers, experts, experts], and may hold `meta`, a JSON object. Other members are
left alone, nothing is unpickled, and no declared size is believed.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.errors import SpecError
from sim.fit.buddies import FORMAT_VERSION, SCHEMA, BuddyLists, check_similarity
from sim.fit.coactivation import check_cells
from traces.format.layout import MAX_EXPERTS
from traces.format.members import check_crc, find_members, load, open_zip
from traces.format.npz import read_meta, write_arrays

Array = npt.NDArray[Any]
Header = tuple[np.dtype[Any], tuple[int, ...]]
AnyPath = str | os.PathLike[str]

KINDS = {"peers": ("iu", "integer"), "q": ("f", "float"), "coverage": ("f", "float")}
# What meta tells of the source, by `how`: the report rests on it.
PROVENANCE = {
    "co-activation": {
        "trace.name": "text",
        "trace.content_hash": "text",
        "trace.model": "text",
        "trace.real": "true or false",
        "moe_layers": "list of counts",
        "count": "text",
        "mix": "number",
        "eps": "number",
        "warmup": "count",
        "warmup_weight": "number",
        "decode_only": "true or false",
        "n_tokens": "number",
        "mean_pairs": "number",
        "pairs_per_token": "number",
        "experts_alone": "count",
    },
    "similarity": {
        "similarity.name": "text",
        "similarity.content_hash": "text",
        "similarity.symmetric": "true or false",
    },
}
COVERAGE_SLACK = 1e-4  # q is float32, coverage was summed before


def write(path: AnyPath, lists: BuddyLists) -> None:
    """Write valid lists: uncompressed, aligned, equal bytes for equal lists, all or nothing.

    Raises SpecError for invalid lists, TraceError where nothing can be written.
    """
    validate(lists, str(path))
    arrays: dict[str, Array] = {
        "peers": lists.peers.astype(np.int16),
        "q": lists.q.astype(np.float32),
        "coverage": lists.coverage.astype(np.float64),
    }
    write_arrays(path, lists.meta, arrays)


def read(path: AnyPath) -> BuddyLists:
    """The lists at `path`, in memory, every value checked. Raises TraceError for what is no archive of
    arrays, SpecError for what is no lists."""
    path = Path(path)
    with open_zip(path) as archive:
        members = find_members(archive, path, ("meta", *KINDS))
        meta = read_meta(archive, path, members.pop("meta", None), "a file of buddy lists")
        check_structure({n: (m.dtype, m.shape) for n, m in members.items()}, meta, str(path))
        arrays = {n: load(archive, path, n, members[n]) for n in KINDS}
        for name, member in members.items():
            if member.mappable:
                check_crc(path, name, member, arrays[name])
    check_values(arrays, meta, str(path))
    return BuddyLists(
        peers=np.array(arrays["peers"], np.int16),
        q=np.array(arrays["q"], np.float32),
        coverage=np.array(arrays["coverage"], np.float64),
        meta=meta,
    )


def read_similarity(path: AnyPath) -> tuple[npt.NDArray[np.float64], dict[str, Any]]:
    """(matrix float64 [L, E, E], what `meta` says, or {}) of the file at `path`. Raises as `read`."""
    path = Path(path)
    with open_zip(path) as archive:
        members = find_members(archive, path, ("meta", "similarity"))
        if "similarity" not in members:
            raise SpecError(f"{path}: similarity is missing; an array [MoE layers, experts, experts] is required")
        member = members["similarity"]
        if member.dtype.kind != "f":
            raise SpecError(f"{path}: similarity has dtype {member.dtype.name}; a floating type is required")
        if len(member.shape) == 3:
            check_cells(member.shape[0], max(member.shape[1:]))
        about = read_meta(archive, path, members["meta"]) if "meta" in members else {}
        array = load(archive, path, "similarity", member)
        if member.mappable:
            check_crc(path, "similarity", member, array)
    matrix = np.array(array, np.float64)
    check_similarity(matrix, str(path))
    return matrix, about


def validate(lists: BuddyLists, name: str = "buddy lists") -> None:
    """Check structure, meta and every value. Raises SpecError with one line that begins with `name`."""
    arrays: dict[str, Array] = {"peers": lists.peers, "q": lists.q, "coverage": lists.coverage}
    check_structure({n: (a.dtype, a.shape) for n, a in arrays.items()}, lists.meta, name)
    check_values(arrays, lists.meta, name)


def check_structure(headers: Mapping[str, Header], meta: dict[str, Any], name: str) -> None:
    """Check meta, dtypes and shapes without reading an array. headers: (dtype, shape) by array name."""
    _check_meta(meta, name)
    for array, (kinds, words) in KINDS.items():
        if array not in headers:
            raise SpecError(f"{name}: {array} is missing; a file of buddy lists has it")
        dtype = headers[array][0]
        if dtype.kind not in kinds:
            raise SpecError(f"{name}: {array} has dtype {dtype.name}; {words} is required")
    shape = headers["peers"][1]
    width = min(meta["k_max"], meta["n_experts"] - 1)
    if len(shape) != 3 or shape[0] == 0 or shape[1:] != (meta["n_experts"], width):
        want = f"[MoE layers, {meta['n_experts']}, {width}]"
        raise SpecError(f"{name}: peers has shape {shape}; meta.n_experts and meta.k_max ask for {want}")
    check_cells(shape[0], shape[1])
    for array, right in (("q", shape), ("coverage", shape[:2])):
        if headers[array][1] != right:
            raise SpecError(f"{name}: {array} has shape {headers[array][1]}; peers asks for {right}")
    for key, value in (("alpha", meta["alpha"]), ("moe_layers", meta.get("moe_layers"))):
        if isinstance(value, list) and len(value) != shape[0]:
            raise SpecError(f"{name}: meta.{key} lists {len(value)} values; peers has {shape[0]} MoE layers")


def _check_meta(meta: dict[str, Any], name: str) -> None:
    if meta.get("schema") != SCHEMA:
        raise SpecError(f"{name}: meta.schema is {_short(meta.get('schema'))}; {SCHEMA!r} is required")
    found = meta.get("format_version")
    if not _is("count", found) or found != FORMAT_VERSION:
        raise SpecError(f"{name}: meta.format_version is {_short(found)}; version {FORMAT_VERSION} is read")
    how = meta.get("how")
    if not isinstance(how, str) or how not in PROVENANCE:
        raise SpecError(f"{name}: meta.how is {_short(how)}; one of {', '.join(PROVENANCE)} is required")
    for key, least, most in (("n_experts", 2, MAX_EXPERTS), ("k_max", 1, 1 << 31)):
        value: Any = meta.get(key)
        if not _is("count", value) or not least <= value <= most:
            right = f"an integer from {least} to {most}"
            raise SpecError(f"{name}: meta.{key} is {_short(value)}; {right} is required")
    alphas: Any = meta.get("alpha")
    for alpha in alphas if isinstance(alphas, list) else [alphas]:
        if not _is("number", alpha) or not 0 < alpha <= 1:
            raise SpecError(f"{name}: meta.alpha is {_short(alpha)}; a share in (0, 1] is required")
    _check_provenance(meta, PROVENANCE[how], name)


def _check_provenance(meta: dict[str, Any], facts: Mapping[str, str], name: str) -> None:
    for key, kind in facts.items():
        value: Any = meta
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not _is(kind, value):
            raise SpecError(f"{name}: meta.{key} is {_short(value)}; {kind} is required")
    if not isinstance(meta.get("seed"), int):
        raise SpecError(f"{name}: meta.seed is {_short(meta.get('seed'))}; an integer is required")
    threshold: Any = meta.get("threshold")
    if threshold is not None and not (isinstance(threshold, int | float) and -1 <= threshold <= 1):
        right = "a number from -1 to 1, or null, is required"
        raise SpecError(f"{name}: meta.threshold is {_short(threshold)}; {right}")


def _is(kind: str, value: Any) -> bool:
    """Whether a JSON value is of a kind of PROVENANCE; numbers and counts are >= 0 and fit 8 bytes."""
    if kind == "list of counts":
        return isinstance(value, list) and all(_is("count", v) for v in value)
    if kind == "text" or kind == "true or false":
        return isinstance(value, str if kind == "text" else bool)
    if isinstance(value, bool) or not isinstance(value, int if kind == "count" else int | float):
        return False
    return 0 <= value < (1 << 63 if kind == "count" else 1e300)


def _short(value: object) -> str:
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # integers of thousands of digits, nesting without end
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def check_values(arrays: Mapping[str, Array], meta: dict[str, Any], name: str) -> None:
    """Check every value of arrays whose structure is right."""
    peers, q, coverage = (np.asarray(arrays[n]) for n in KINDS)
    n = peers.shape[1]
    empty = peers < 0
    _refuse(name, "peers", peers, (peers < -1) | (peers >= n), f"peers lie in [-1, {n})")
    _refuse(name, "peers", peers, peers == np.arange(n)[None, :, None], "an expert is not its own buddy")
    _refuse(
        name,
        "peers",
        peers,
        _after(empty[..., :-1] & ~empty[..., 1:]),
        "a list has no gap: -1 only at its end",
    )
    _refuse(name, "peers", peers, _repeated(peers), "the peers of a list are distinct")
    if meta.get("threshold") is None:
        first = np.zeros_like(empty)
        first[..., 0] = empty[..., 0]
        _refuse(name, "peers", peers, first, "a list has at least one peer")
    _refuse(name, "q", q, ~((q >= 0) & (q <= 1 + COVERAGE_SLACK)), "a share from 0 to 1 is required")
    _refuse(name, "q", q, empty & (q != 0), "0 is required after a list's end")
    _refuse(name, "q", q, _after(q[..., 1:] > q[..., :-1]), "q does not rise along a list")
    off = ~(np.abs(q.sum(axis=2, dtype=np.float64) - coverage) <= COVERAGE_SLACK)
    _refuse(name, "coverage", coverage, off, "the sum of the list's q is required")


def _after(bad: Array) -> Array:
    """[L, E, W] from what is wrong between neighbours, [L, E, W - 1]: laid to the second of the two."""
    none = np.zeros((*bad.shape[:2], 1), np.bool_)
    return np.concatenate([none, bad], axis=2)


def _repeated(peers: Array) -> Array:
    """bool [L, E, W]: entries >= 0 that stand earlier in their list too."""
    order = np.argsort(peers, axis=2, kind="stable")
    ranked = np.take_along_axis(peers, order, axis=2)
    again = _after((ranked[..., 1:] == ranked[..., :-1]) & (ranked[..., 1:] >= 0))
    out = np.zeros_like(again)
    np.put_along_axis(out, order, again, axis=2)
    return out


def _refuse(name: str, array: str, values: Array, bad: Array, right: str) -> None:
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise SpecError(f"{name}: {array}{list(at)} = {values[at]}; {right}")
