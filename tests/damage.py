"""Ways to damage a file, for tests.fuzz_readers: bytes, lines, numbers, and values of what the file is made of."""

import csv
import io
import json
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Rng = np.random.Generator
ODD = ("NaN", "-1", "0", "1.5", "1e400", "10" * 15, "2147483648", "-9223372036854775809", "", "true", "é")
HUGE = 10**30
VALUES = (None, 0, -1, 1, 2, 0.5, float("nan"), 1e300, HUGE, -HUGE, 2**31, 2**63, True)
VALUES = (*VALUES, "", "x", "7", [], [[1]], {}, {"a": 0})


def damaged(rng: Rng, folder: Path, spare: list[bytes]) -> None:
    """Damage one of the files in a folder, once or a few times over. spare: files of other formats."""
    for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        if not files:
            return
        file = files[rng.integers(len(files))]
        data = file.read_bytes()
        ways = [_values] * 3 if rng.random() < 0.6 else [_bytes, _lines, _lines, _numbers, _fields, _members]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            new = ways[rng.integers(len(ways))](rng, data, spare)
        if new is not None:
            file.write_bytes(new)
        elif len(files) > 1 and rng.random() < 0.3:
            other = files[rng.integers(len(files))]
            file.write_bytes(other.read_bytes()) if rng.random() < 0.7 else file.unlink()


def _bytes(rng: Rng, data: bytes, spare: list[bytes]) -> bytes:
    """Bytes changed, cut off, left out, doubled, or another file's."""
    at, to = sorted(int(n) for n in rng.integers(0, len(data) + 1, 2))
    to = min(to, at + 64) if rng.random() < 0.7 else to
    other = spare[rng.integers(len(spare))]
    word = [b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f", b"\0\0\xc0\x7f", b"\r\n", b"\xef\xbb\xbf"][rng.integers(6)]
    some = bytes(rng.integers(0, 256, 1 + int(rng.integers(4)), np.uint8))
    ways = [data[:at], data[:at] + data[to:], data[:to] + data[at:], data[:at] + other[: len(data) - at], data + other]
    ways += [data[:at] + word + data[at + len(word) :], *[data[:at] + some + data[at + len(some) :]] * 4]
    return ways[rng.integers(len(ways))]


def _lines(rng: Rng, data: bytes, spare: list[bytes]) -> bytes:
    """Lines doubled, left out, swapped, moved, or another file's between them."""
    lines = data.splitlines(keepends=True) or [b""]
    a, b = (int(n) for n in rng.integers(0, len(lines), 2))
    theirs = spare[rng.integers(len(spare))].splitlines(keepends=True)[:3]
    way = rng.integers(5)
    if way == 0:
        lines[a], lines[b] = lines[b], lines[a]
    lines[a : a + 1] = [[lines[a]], [lines[a]] * 2, [], [*theirs, lines[a]], [lines[a], b"\n", b"#\n"]][way]
    return b"".join(lines)


def _numbers(rng: Rng, data: bytes, spare: list[bytes]) -> bytes | None:
    """Some numbers of a text become odd ones."""
    places = list(re.finditer(rb"-?[0-9]+(\.[0-9]+)?", data[: 1 << 16]))
    for _ in range(int(rng.integers(1, 3)) if places else 0):
        found, odd = places[rng.integers(len(places))], ODD[rng.integers(len(ODD))].encode()
        data = data.replace(found[0], odd) if rng.random() < 0.1 else data[: found.start()] + odd + data[found.end() :]
    return data


def _fields(rng: Rng, data: bytes, spare: list[bytes]) -> bytes | None:
    """Two fields of a line of CSV exchanged, one doubled, or one left out."""
    lines = data.splitlines(keepends=True) or [b""]
    at = int(rng.integers(len(lines))) if rng.random() < 0.6 else 0
    fields = lines[at].rstrip(b"\n").split(b",")
    a, b = (int(n) for n in rng.integers(0, len(fields), 2))
    fields[a], fields[b] = fields[b], fields[a]
    fields[a : a + 1] = [[fields[a]], [], [fields[a], fields[b]], [b'"' + fields[a]]][rng.integers(4)]
    lines[at] = b",".join(fields) + b"\n"
    return b"".join(lines)


def _members(rng: Rng, data: bytes, spare: list[bytes]) -> bytes | None:
    """Members of a zip exchanged, renamed, left out, doubled, damaged or packed, with right checksums."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except Exception:  # whatever zipfile says of what was damaged before
        return None
    a, b = (int(n) for n in rng.integers(0, len(members), 2)) if members else (0, 0)
    way, (name, held) = rng.integers(6), members[a] if members else ("", b"")
    other, theirs = members[b] if members else ("", b"")
    new = [(name, theirs), (other, held), (name, _bytes(rng, held, spare)), (name, _numbers(rng, held, spare))]
    members[a : a + 1] = [] if way == 4 else [members[a]] if way == 5 else [new[way]]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if rng.random() < 0.2 else zipfile.ZIP_STORED) as archive:
        for name, held in members:
            archive.writestr(name or "x", held)
    return out.getvalue()


def _values(rng: Rng, data: bytes, spare: list[bytes]) -> bytes | None:
    """Something changed in the value of a file, which is written as what it was."""
    for read, write in FORMS:
        try:
            value = read(data)
            return write(changed(rng, value))
        except Exception:  # another form, or a value that the form cannot hold
            continue
    return None


class Pairs(dict[str, Any]):
    """An object of JSON with one of its keys twice."""

    def items(self) -> Any:
        return [*super().items(), *list(super().items())[-1:]]


def changed(rng: Rng, value: Any) -> Any:
    """A copy of a value with one change anywhere inside."""
    import torch

    if isinstance(value, torch.Tensor):
        return torch.from_numpy(_array(rng, value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()))
    if isinstance(value, np.ndarray):
        return _array(rng, value)
    inside: list[Any] = list(value) if isinstance(value, dict | list | tuple) else []
    if not inside or rng.random() < 0.15:
        return VALUES[rng.integers(len(VALUES))]
    a, b, way = rng.integers(len(inside)), rng.integers(len(inside)), rng.random()
    if isinstance(value, dict):
        out = dict(value)
        if way < 0.12:
            del out[inside[a]]
        elif way < 0.18:
            out[inside[a]], out[inside[b]] = out[inside[b]], out[inside[a]]
        elif way < 0.24:
            return Pairs(out)
        elif way < 0.28:
            out[ODD[rng.integers(len(ODD))]] = out.pop(inside[a])
        else:
            out[inside[a]] = changed(rng, out[inside[a]])
        return out
    one = inside[a]
    inside[a : a + 1] = (
        [[], [one, one], [one, None], [inside[b]]][rng.integers(4)] if way < 0.3 else [changed(rng, one)]
    )
    return tuple(inside) if isinstance(value, tuple) else inside


def _array(rng: Rng, array: np.ndarray) -> np.ndarray:
    """An array with another element, kind of number, shape or order."""
    array, way = np.array(array), rng.integers(8)
    with np.errstate(all="ignore"):
        if way < 3 and array.size:
            odd = [-1, 0, 1, 7, 99, 255, 2**15, 2**31 - 1, -(2**31), np.nan, np.inf, 0.5][rng.integers(12)]
            array.flat[rng.integers(array.size)] = np.array(odd).astype(array.dtype)
        elif way == 3:
            array = array.astype(["u1", "i1", "<i8", "<f2", "<f4", "<f8", "?", "<c8"][rng.integers(8)])
        elif way == 4:
            array = [array[:0], array[:1], array[None], array.reshape(-1), array[..., :0]][rng.integers(5)]
        elif way == 5:
            array = np.moveaxis(array, 0, -1) if array.ndim else array
        elif way == 6 and len(array.shape):
            array = np.concatenate([array, array[: 1 + rng.integers(4)]])
        elif way == 7:
            array = np.stack([array, array], axis=-1) if rng.random() < 0.5 else np.array(array.flat[0])
    return array


def _of_lines(data: bytes) -> list[Any]:
    return [json.loads(line) for line in data.splitlines()]


def _of_csv(data: bytes) -> list[list[str]]:
    if b"," not in data or b"\0" in data or data[:1] in b"{[":
        raise ValueError
    return list(csv.reader(io.StringIO(data.decode())))


def _csv(rows: list[list[Any]]) -> bytes:
    return "".join(",".join("" if f is None else str(f) for f in row) + "\n" for row in rows).encode()


def _npy(data: bytes) -> Any:
    return np.lib.format.read_array(io.BytesIO(data))


def _npz(data: bytes) -> Any:
    with np.load(io.BytesIO(data)) as found:
        return dict(found)


def _written(write: Callable[[Any], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def _of_torch(data: bytes) -> Any:
    import torch

    return torch.load(io.BytesIO(data), weights_only=True)


def _torch(value: Any) -> bytes:
    import torch

    return _written(lambda file: torch.save(value, file))


def _of_parquet(data: bytes) -> Any:
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(data))
    return {"": dict(table.schema.metadata or {}), **table.to_pydict()}


def _parquet(value: dict[str, Any]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({name: column for name, column in value.items() if name})
    return _written(lambda file: pq.write_table(table.replace_schema_metadata(value.get("", {})), file))


def _of_safetensors(data: bytes) -> Any:
    from safetensors.numpy import load

    return load(data)


def _safetensors(value: Any) -> bytes:
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(array) for name, array in value.items()})


FORMS: list[tuple[Callable[[bytes], Any], Callable[[Any], bytes]]] = [
    (json.loads, lambda value: json.dumps(value).encode()),
    (_of_lines, lambda value: "".join(json.dumps(line) + "\n" for line in value).encode()),
    (_npy, lambda value: _written(lambda file: np.save(file, value))),
    (_of_torch, _torch),
    (_npz, lambda value: _written(lambda file: np.savez(file, **value))),
    (_of_parquet, _parquet),
    (_of_safetensors, _safetensors),
    (_of_csv, _csv),
]  # fmt: skip
