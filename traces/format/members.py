"""Arrays inside a zip file, found and read without trusting what the file says of itself.

A `.npz` is a zip of `.npy` members. A stored (uncompressed) member is a run of bytes of the file, so its
array can be memory-mapped once the two headers before it, the zip's local one and numpy's, are parsed.
Nothing is allocated before the size that numpy's header declares has been compared with the size of the
member, and nothing is ever unpickled.
"""

import io
import math
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import TraceError
from traces.format.layout import Array
from traces.format.limits import BOMB_BYTES, BOMB_RATIO, MAX_HEADER_BYTES

# what other tools write, which `traces convert` may read
FOREIGN = (".csv", ".json", ".jsonl", ".ndjson", ".parquet", ".pt", ".npy", ".bin", ".gguf", ".safetensors", ".gz")
_CONVERT = "; python -m traces convert {} {}.npz --model NAME reads what other tools wrote"
BLOCK_BYTES = 1 << 20
LOCAL_HEADER = struct.Struct("<4s22x2H")


@dataclass(frozen=True)
class Member:
    """One array of the file, dtype and shape as declared.

    head: the bytes of numpy's header; offset: of the data in the file when stored, -1 when compressed.
    """

    info: zipfile.ZipInfo
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool
    head: bytes
    offset: int

    @property
    def mappable(self) -> bool:
        """Whether the file's bytes are the array: stored, C order, native bytes, aligned for its dtype."""
        aligned = self.offset >= 0 and self.offset % self.dtype.alignment == 0
        return aligned and self.dtype.isnative and not self.fortran_order


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn whatever a damaged file makes the libraries raise into a one-line TraceError about `what`."""
    try:
        yield
    except TraceError:
        raise
    except OSError as error:
        raise TraceError(f"{what}: {error.strerror or error}") from error
    except MemoryError as error:
        raise TraceError(f"{what}: not enough memory") from error
    except Exception as error:
        # A header is a literal written by the file's author: zipfile, zlib, ast and numpy raise ten kinds for it.
        reason = " ".join(str(error).split())[:200]
        raise TraceError(f"{what}: {reason or type(error).__name__}") from error


def refuse_irregular(path: Path, right: str) -> None:
    """Raise TraceError where `path` is a folder, a device or a pipe; right: what is required, in words."""
    if path.exists() and not path.is_file():
        raise TraceError(f"{path}: not a regular file; {right} is required")


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """The zip file at `path`. Raises TraceError where there is none, or it is cut short."""
    refuse_irregular(path, "a .npz")
    convert = _CONVERT.format(path, path.stem) if path.suffix.lower() in FOREIGN else ""
    with refusing(f"{path}: not a complete .npz (zip) file{convert}"):
        archive = zipfile.ZipFile(path)
    with archive:
        yield archive


def find_members(archive: zipfile.ZipFile, path: Path, names: tuple[str, ...]) -> dict[str, Member]:
    """The members among `names` that are there, by name; other members are left alone."""
    infos: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name not in names or name == info.filename:
            continue
        if name in infos:
            raise TraceError(f"{path}: {name} is in the file twice")
        infos[name] = info
    members = {}
    for name, info in infos.items():
        with refusing(f"{path}: {name} is damaged"):
            members[name] = _member(archive, path, name, info)
    _refuse_bomb(path, [m.info for m in members.values() if m.offset < 0])
    return members


def _member(archive: zipfile.ZipFile, path: Path, name: str, info: zipfile.ZipInfo) -> Member:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise TraceError(f"{path}: {name} is compressed by method {info.compress_type}; stored or deflated is read")
    with archive.open(info) as stream:
        head = stream.read(12 + MAX_HEADER_BYTES)
    dtype, shape, fortran_order, length = npy_header(path, name, head)
    offset = -1
    if info.compress_type == zipfile.ZIP_STORED:
        offset = _data_offset(path, name, info) + length
    declared, held = math.prod(shape) * dtype.itemsize, info.file_size - length
    if declared != held:
        raise TraceError(f"{path}: {name} declares {declared} bytes, shape {shape}; the file holds {held}")
    return Member(info, dtype, shape, fortran_order, head[:length], offset)


def npy_header(path: Path, name: str, head: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    """(dtype, shape, Fortran order, bytes of the header) of an npy file that begins with `head`; `name` in messages."""
    stream = io.BytesIO(head)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise TraceError(f"{path}: {name} has npy version {version}; 1.0 or 2.0 is read")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():  # numpy warns of headers that Python 2 wrote; they are read all the same
        warnings.simplefilter("ignore")
        shape, fortran_order, dtype = read(stream, max_header_size=MAX_HEADER_BYTES)
    if dtype.hasobject:
        raise TraceError(f"{path}: {name} holds Python objects; they are never unpickled")
    if any(n < 0 for n in shape):
        raise TraceError(f"{path}: {name} declares shape {shape}; lengths are >= 0")
    return dtype, tuple(int(n) for n in shape), fortran_order, stream.tell()


def npy_head(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """The header of an npy file in C order, padded to a multiple of 64 bytes."""
    head = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, facts)
    return head.getvalue()


def refuse_constant(word: str) -> None:
    """What json calls for NaN and Infinity, which Python writes and JSON does not have."""
    raise ValueError(f"{word} is not a JSON number")


def _data_offset(path: Path, name: str, info: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin in the file; all of them are there."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        magic, name_length, extra_length = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
        size = file.seek(0, io.SEEK_END)
    start = info.header_offset + LOCAL_HEADER.size + int(name_length) + int(extra_length)
    if magic != b"PK\x03\x04" or info.compress_size != info.file_size or start + info.file_size > size:
        raise TraceError(f"{path}: {name} declares {info.file_size} bytes; the file is cut short or damaged")
    return start


def _refuse_bomb(path: Path, compressed: list[zipfile.ZipInfo]) -> None:
    inflated, packed = sum(i.file_size for i in compressed), sum(i.compress_size for i in compressed)
    if inflated > BOMB_BYTES and inflated > BOMB_RATIO * packed:
        facts = f"{packed} bytes would inflate to {inflated}"
        raise TraceError(f"{path}: {facts}: taken for a zip bomb; a trace this regular is read uncompressed")


def load(archive: zipfile.ZipFile, path: Path, name: str, member: Member) -> Array:
    """The member's array, memory-mapped where its bytes allow, else read in blocks and CRC-checked."""
    with refusing(f"{path}: {name} is damaged"):
        if member.mappable:
            return np.memmap(path, member.dtype, "r", member.offset, member.shape)
        shape = member.shape[::-1] if member.fortran_order else member.shape
        array: Array = np.empty(shape, member.dtype)
        _fill(archive, path, name, member, array.reshape(-1).view(np.uint8).data)
        array = array.T if member.fortran_order else array
        native = np.ascontiguousarray(array, member.dtype.newbyteorder("="))
        return native.reshape(member.shape)  # a 0-d array has become 1-d


def _fill(archive: zipfile.ZipFile, path: Path, name: str, member: Member, out: memoryview) -> None:
    """Read a member's data into `out`; with the last of them zipfile compares the CRC."""
    with archive.open(member.info) as stream:
        stream.read(len(member.head))
        for lo in range(0, len(out), BLOCK_BYTES):
            block = stream.read(min(BLOCK_BYTES, len(out) - lo))
            if len(block) != len(out[lo : lo + BLOCK_BYTES]):
                raise TraceError(f"{path}: {name} ends after {lo + len(block)} of {len(out)} bytes")
            out[lo : lo + len(block)] = block


def check_crc(path: Path, name: str, member: Member, array: Array) -> None:
    """Compare a memory-mapped member with the zip's CRC-32; it reads the whole array."""
    flat = array.view(np.ndarray).reshape(-1).view(np.uint8)
    crc = zlib.crc32(member.head)
    for lo in range(0, len(flat), BLOCK_BYTES):
        crc = zlib.crc32(flat[lo : lo + BLOCK_BYTES].data, crc)
    if crc != member.info.CRC:
        raise TraceError(f"{path}: {name} is damaged: CRC-32 {crc:08x}; the file says {member.info.CRC:08x}")
