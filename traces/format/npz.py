"""Routing traces as `.npz` files: mapped reading, deterministic writing, content hash, look-up by name."""

import hashlib
import json
import os
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from traces.errors import TraceError
from traces.format.check import check_structure, check_values, validate
from traces.format.layout import ARRAYS, Array, chunks
from traces.format.limits import MAX_META_BYTES
from traces.format.members import (
    Member,
    check_crc,
    find_members,
    load,
    npy_head,
    open_zip,
    refuse_constant,
    refusing,
)
from traces.format.trace import RoutingTrace
from traces.slips import did_you_mean

AnyPath = str | os.PathLike[str]

ALIGNMENT = 64
SAMPLES = Path(__file__).parents[1] / "samples"
PADDING_ID = 0xD935  # zip extra field that Android's zipalign introduced: "alignment padding"
# What a file holds, whatever integer type or byte order the arrays have in memory. Weights keep theirs.
FILE_DTYPES = {
    "experts": "<i2",
    "sequence": "<i4",
    "position": "<i4",
    "prefill": "|b1",
    "logits": "<f2",
    "lookahead": "<i2",
    "token_ids": "<i4",
    "resident": "|b1",
}


def read(path: AnyPath, check: bool = True) -> RoutingTrace:
    """The trace at `path`. Stored, aligned members are memory-mapped, others are loaded.

    check: also compare CRCs and validate every value, which reads the file once; without it only headers and
    meta are read and checked, so opening costs the same whatever the size. Raises TraceError, one line, for
    whatever is wrong.
    """
    path = Path(path)
    with open_zip(path) as archive:
        members = find_members(archive, path, ("meta", *ARRAYS))
        meta = read_meta(archive, path, members.pop("meta", None))
        if "experts" not in members and isinstance(meta.get("kind"), str):  # a relative: a profile, a placement
            reason = "it does not say which experts each token used, in which order"
            raise TraceError(f"{path}: a {ascii(meta['kind'][:40])[1:-1].replace('-', ' ')}, not a trace: {reason}")
        check_structure({n: (m.dtype, m.shape) for n, m in members.items()}, meta, str(path))
        arrays = {n: load(archive, path, n, members[n]) for n in ARRAYS if n in members}
    trace = RoutingTrace(meta=meta, **arrays)
    if check:
        for name, member in members.items():
            if member.mappable:
                check_crc(path, name, member, arrays[name])
        check_values(trace, str(path))
    return trace


def read_meta(
    archive: zipfile.ZipFile, path: Path, member: Member | None, what: str = "a routing trace"
) -> dict[str, Any]:
    """The JSON object in the 0-d string array `meta` of a file that ought to be `what`."""
    if member is None:
        raise TraceError(f"{path}: meta is missing; {what} carries its description there")
    if member.dtype.kind not in "US" or member.shape or member.dtype.itemsize == 0:
        found = f"dtype {member.dtype.name}, shape {member.shape}"
        raise TraceError(f"{path}: meta has {found}; one JSON string is required")
    if member.info.file_size > MAX_META_BYTES:
        raise TraceError(f"{path}: meta has {member.info.file_size} bytes; at most {MAX_META_BYTES} are read")
    with refusing(f"{path}: meta is not JSON"):
        value = load(archive, path, "meta", member)[()]
        text = value.decode() if isinstance(value, bytes) else str(value)
        meta = json.loads(text, parse_constant=refuse_constant)
        if not isinstance(meta, dict):
            raise ValueError(f"a JSON object is required, not a {type(meta).__name__}")
    return meta


def read_relative(
    path: Path, kind: str, what: str, right: str, array: str, dtype: type, axes: str
) -> tuple[dict[str, Any], Array]:
    """(meta, the one array) of another file of this family, in memory; whoever asks checks their values.

    kind: of meta; what, right: what the file ought to be, in words; axes: of `array`, as `[rows, columns]`. Raises
    TraceError for another kind, dtype or rank.
    """
    with open_zip(path) as archive:
        members = find_members(archive, path, ("meta", array))
        meta = read_meta(archive, path, members.get("meta"), what)
        if meta.get("kind") != kind or array not in members:
            raise TraceError(f"{path}: meta.kind is {ascii(meta.get('kind'))[:40]}; {right} is required")
        member = members[array]
        if member.dtype != dtype or len(member.shape) != axes.count(",") + 1:
            found = f"{member.dtype.name} {list(member.shape)}"
            raise TraceError(f"{path}: {array} is {found}; {np.dtype(dtype).name} {axes} is required")
        return meta, np.array(load(archive, path, array, member))


def array_names(path: Path) -> set[str]:
    """Names of the arrays of a file, none where it is no zip file: the look before a read."""
    try:
        with open_zip(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except TraceError:
        return set()


def write(path: AnyPath, trace: RoutingTrace) -> None:
    """Write a valid trace: uncompressed, 64-byte aligned, equal bytes for an equal trace, all or nothing.

    experts and lookahead become int16. Raises TraceError for an invalid trace and where nothing can be
    written.
    """
    write_all([(path, trace)])


def write_all(pairs: Sequence[tuple[AnyPath, RoutingTrace]]) -> None:
    """Write several traces as `write` does; no path changes before all of them are on disk."""
    for path, trace in pairs:
        _refuse_special(Path(path))
        validate(trace, str(path))
    _replace([(Path(path), trace.meta, trace.arrays()) for path, trace in pairs])


def write_arrays(path: AnyPath, meta: dict[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write arrays and their `meta` as a trace is written, for other files of this family; checks no value.

    Raises TraceError where meta is not JSON or nothing can be written.
    """
    _refuse_special(Path(path))
    _replace([(Path(path), meta, arrays)])


def _refuse_special(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise TraceError(f"{path}: cannot write: not a regular file")


def _replace(files: Sequence[tuple[Path, dict[str, Any], Mapping[str, Array]]]) -> None:
    """Write each file under a temporary name beside its own, then put all of them in place."""
    paths = [path for path, _, _ in files]
    temporary = [p.with_name(f".{p.name}.{os.getpid()}.{threading.get_ident()}.tmp") for p in paths]
    try:
        for draft, (path, meta, arrays) in zip(temporary, files, strict=True):
            with refusing(f"{path}: cannot write"):
                _write_draft(draft, meta, arrays, str(path))
        for path, draft in zip(paths, temporary, strict=True):
            with refusing(f"{path}: cannot write"):
                os.replace(draft, path)
    finally:
        for draft in temporary:
            with suppress(OSError):
                draft.unlink(missing_ok=True)


def _write_draft(draft: Path, meta: dict[str, Any], arrays: Mapping[str, Array], name: str) -> None:
    text = np.array(_meta_json(meta, name))
    with draft.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        _write_member(archive, file, "meta", text)
        for array, values in arrays.items():
            _write_member(archive, file, array, values)


def _meta_json(meta: dict[str, Any], name: str) -> str:
    """Canonical JSON: ASCII, sorted keys, no spaces; what is not JSON is refused."""
    with refusing(f"{name}: meta is not JSON"):
        return json.dumps(meta, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _write_member(archive: zipfile.ZipFile, file: IO[bytes], name: str, array: Array) -> None:
    info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
    info.create_system, info.external_attr = 3, 0o644 << 16  # the same bytes on every operating system
    # zip64 sizes are always written, as numpy does, so the local header's length is known: 30 + name + 20 + ours
    unpadded = file.tell() + 30 + len(info.filename) + 20 + 4
    padding = -unpadded % ALIGNMENT
    info.extra = PADDING_ID.to_bytes(2, "little") + padding.to_bytes(2, "little") + bytes(padding)
    dtype = _file_dtype(name, array)
    with archive.open(info, "w", force_zip64=True) as stream:
        stream.write(npy_head(dtype, array.shape))
        for block in _blocks(array, dtype):
            stream.write(block)


def _file_dtype(name: str, array: Array) -> np.dtype[Any]:
    return np.dtype(FILE_DTYPES[name]) if name in FILE_DTYPES else array.dtype.newbyteorder("<")


def _blocks(array: Array, dtype: np.dtype[Any]) -> Iterator[memoryview]:
    """The bytes of `array` as `dtype` in C order, a bounded block at a time."""
    parts = [array] if array.ndim in (1, 3) else list(array) if array.ndim else [array.reshape(1)]
    for part in parts:
        for _, chunk in chunks(part):
            yield np.ascontiguousarray(chunk, dtype).reshape(-1).view(np.uint8).data


def content_hash(trace: RoutingTrace) -> str:
    """sha256 (hex) over meta and every array's canonical bytes, in bounded memory.

    It depends on what the trace says alone, not on compression, byte order, integer width or member order of
    a file.
    """
    digest = hashlib.sha256(_meta_json(trace.meta, "trace").encode())
    for name, array in trace.arrays().items():
        dtype = _file_dtype(name, array)
        digest.update(f"\n{name} {dtype.str} {array.shape}\n".encode())
        for block in _blocks(array, dtype):
            digest.update(block)
    return digest.hexdigest()


def find(name: AnyPath) -> Path:
    """The path `name` if it is a file, else the shipped sample of that name, with or without .npz.

    Raises TraceError that lists the samples and the nearest name.
    """
    if os.path.isfile(name):
        return Path(name)
    samples = sample_names()
    text = str(name).removesuffix(".npz")
    if text in samples:
        return SAMPLES / f"{text}.npz"
    if os.path.exists(name):
        of_engine = "; python -m traces convert reads folders that engines wrote" if os.path.isdir(name) else ""
        raise TraceError(f"{name}: not a regular file; a .npz is required{of_engine}")
    if "://" in str(name):
        raise TraceError(f"{name}: is an address, no file; fetch it first, such as: curl -LO {name}")
    hint = did_you_mean(text, samples)
    raise TraceError(f"{name}: no such file or shipped sample; samples: {', '.join(samples) or 'none'}{hint}")


def open_trace(name: AnyPath) -> RoutingTrace:
    """The trace in a file, or the shipped sample of that name (with or without .npz): `traces.open`.

    Its arrays are memory-mapped where they can be; every value is checked. Raises TraceError, one line, for what is not
    there or is no trace.

        trace = traces.open("mixtral.npz")
        trace.experts.shape, trace.meta["model"]
    """
    if not isinstance(name, str | os.PathLike):
        raise TraceError(f"open: {name!r}: must be a file, or the name of a shipped sample")
    trace = read(find(name))
    object.__setattr__(trace, "name", os.fspath(name))  # nothing that a trace is made from
    return trace


def is_name(word: str) -> bool:
    """Whether a word looks like a trace's: a file's, or a sample's."""
    return word.endswith(".npz") or os.path.isfile(word) or word in sample_names()


def sample_names() -> list[str]:
    """Names of the shipped traces, sorted."""
    return sorted(p.stem for p in SAMPLES.glob("*.npz"))
