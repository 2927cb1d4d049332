"""Single `.npy` arrays, as files and inside JSON, whose declared size is never trusted."""

import math
import tempfile
import zipfile
from pathlib import Path
from shutil import copyfileobj
from typing import Any

import numpy as np

from traces.errors import TraceError
from traces.format.layout import Array
from traces.format.limits import MAX_HEADER_BYTES
from traces.format.members import Member, load, npy_header, refusing

LOOK_NUMBERS = 1 << 16
MAGIC = b"\x93NUMPY"


def read_npy(path: Path) -> Array:
    """The array of a `.npy` file, mapped. Raises TraceError for objects, other sizes than declared, other files."""
    with refusing(f"{path}: not a complete .npy file"):
        with path.open("rb") as file:
            head = file.read(12 + MAX_HEADER_BYTES)
        dtype, shape, fortran_order, length = npy_header(path, "the array", head)
        _check_size(f"{path}: the array", dtype, shape, path.stat().st_size - length)
        if 0 in shape:
            raise TraceError(f"{path}: the array has no elements, shape {shape}")
        order: Any = "F" if fortran_order else "C"
        return np.memmap(path, dtype, "r", length, shape, order)


def mapped(archive: zipfile.ZipFile, path: Path, name: str, member: Member, scratch: Path | None) -> Array:
    """A member's array, mapped: from a temporary file where the zip has it compressed."""
    if member.mappable:
        return load(archive, path, name, member)
    if 0 in member.shape:
        raise TraceError(f"{path}: {name} has no elements, shape {member.shape}")
    with tempfile.TemporaryFile(dir=scratch) as file, refusing(f"{path}: {name} is damaged"):
        with archive.open(member.info) as stream:
            copyfileobj(stream, file)
        order: Any = "F" if member.fortran_order else "C"
        return np.memmap(file, member.dtype, "r", len(member.head), member.shape, order)


def numbers(path: Path, dims: int, right: str) -> Array:
    """`read_npy` of so many dimensions; right: what is required, in words."""
    array = read_npy(path)
    if array.ndim != dims or array.dtype.kind not in "iuf":
        raise TraceError(f"{path}: {array.dtype.name} {list(array.shape)}; {right} are required")
    return array


def npy_of(data: bytes, where: str) -> Array:
    """The array of a `.npy` file's bytes; `where` begins the message of a TraceError."""
    with refusing(f"{where} is not a complete .npy"):
        dtype, shape, fortran_order, length = npy_header(Path(where), "its array", data[: 12 + MAX_HEADER_BYTES])
        _check_size(where, dtype, shape, len(data) - length)
        array: Array = np.frombuffer(data, dtype, offset=length)
        return array.reshape(shape, order="F" if fortran_order else "C")


def _check_size(where: str, dtype: np.dtype[Any], shape: tuple[int, ...], held: int) -> None:
    declared = math.prod(shape) * dtype.itemsize
    if declared != held:
        raise TraceError(f"{where} declares {declared} bytes, shape {shape}; there are {held}")


def no_counts(path: Path) -> bool:
    """Whether a `.npy` of floats begins with numbers that are no counts, negative or broken: for detection."""
    try:
        first = np.asarray(read_npy(path).ravel(order="K")[:LOOK_NUMBERS], np.float64)
    except TraceError:
        return False
    with np.errstate(invalid="ignore"):  # of a NaN that signals
        return bool(((first < 0) | (first != np.floor(first))).any())


def head_of(path: Path) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
    """(dtype, shape) that a `.npy` file declares, None for anything else: what detection looks at."""
    try:
        with path.open("rb") as file:
            head = file.read(12 + MAX_HEADER_BYTES)
        if not head.startswith(MAGIC):
            return None
        with refusing(f"{path}: not a .npy file"):
            dtype, shape, _, _ = npy_header(path, "the array", head)
        return dtype, shape
    except (OSError, TraceError):
        return None
