"""`.pt` files: read without executing anything in them, and written as plain tensors.

torch.load(weights_only=True) unpickles tensors, lists, dicts, strings and numbers and nothing else; storages are
mapped, not read. What a tensor claims (a view can repeat one byte a million times) is compared with the file's size.
"""

import ctypes
import mmap
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from traces.command import replace
from traces.errors import TraceError, UserError
from traces.extras import needed
from traces.format.layout import Array
from traces.format.members import refuse_irregular, refusing

PICKLE = "data.pkl"
LOOK_BYTES = 1 << 20
MADV_PAGEOUT = 21  # of Linux; Python has no name for it


def load(path: Path) -> Any:
    """The object of a `.pt` file. Raises TraceError for anything but a plain, complete one."""
    _refuse_odd_zip(path)
    torch = needed("torch", "a .pt file")
    with refusing(f"{path}: torch.load(weights_only=True) refuses it"):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _refuse_odd_zip(path: Path) -> None:
    """torch.save stores members as they are, so no file is larger inside than outside."""
    refuse_irregular(path, "a .pt")
    with refusing(f"{path}: not a complete .pt file of torch.save's zip format"), zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise TraceError(f"{path}: {info.filename} is compressed; torch.save stores its members")


def tensor(value: Any, what: str, path: Path, dims: tuple[int, ...], kinds: str = "iu") -> Any:
    """A tensor whose rows `numbers` may be asked for. Raises TraceError for anything else, another rank than one of
    `dims`, another kind of number, and a tensor that claims more than the file holds."""
    torch = needed("torch", "a .pt file")
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        raise TraceError(f"{path}: {what} is a {type(value).__name__}; a tensor is required")
    if value.dim() not in dims or value.numel() * value.element_size() > path.stat().st_size:
        held = f"the file has {path.stat().st_size} bytes"
        right = " or ".join(map(str, dims))
        raise TraceError(f"{path}: {what} has shape {list(value.shape)}; {right} dimensions are required, and {held}")
    with refusing(f"{path}: {what}"):
        kind = numbers(value.reshape(-1)[:0]).dtype
    if kind.kind not in kinds:
        names = "numbers" if "f" in kinds else "integers"
        raise TraceError(f"{path}: {what} holds {kind.name}; {names} are required")
    return value


def numbers(value: Any) -> Array:
    """A tensor, or some rows of one, as a numpy array: a view, but for bf16, which becomes float32."""
    torch = needed("torch", "a .pt file")
    out: Array = (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()
    return out


def give_back(value: Any) -> None:
    """As traces.format.layout.give_back, of a tensor of `load`. The system is told that its pages are not needed now:
    none is lost, whether it is of the file or not."""
    if not sys.platform.startswith("linux"):
        return
    storage, page = value.untyped_storage(), mmap.PAGESIZE
    begin, end = -(-storage.data_ptr() // page) * page, (storage.data_ptr() + storage.nbytes()) // page * page
    if end > begin:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), MADV_PAGEOUT)


def array(value: Any, what: str, path: Path, dims: int, kinds: str = "iu") -> Array:
    """All of `tensor` as a numpy array. Raises TraceError."""
    found = tensor(value, what, path, (dims,), kinds)
    with refusing(f"{path}: {what}"):
        return numbers(found)


def look(path: Path) -> Any:
    """What a `.pt` file holds, None for anything else: what detection looks at."""
    if not words(path):
        return None
    try:
        return load(path)
    except UserError:  # torch may not be there
        return None


def is_tensor(value: object) -> bool:
    """Whether something is a tensor; nothing is where torch was never loaded, as `load` does."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def words(path: Path) -> bytes:
    """The begin of the pickle of a `.pt` file, unread: b"" where it is none. What detection looks at."""
    try:
        with refusing(f"{path}: not a .pt"), zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.split("/")[-1] == PICKLE)
            with archive.open(name) as file:
                return file.read(LOOK_BYTES)
    except TraceError:
        return b""


def save(path: Path, value: dict[str, Array] | Array) -> None:
    """Write arrays as tensors, a dict of them or one alone, with torch.save, whole or not at all."""
    torch = needed("torch", "a .pt file")

    def tensor(values: Array) -> Any:
        return torch.from_numpy(np.array(values))

    out = {name: tensor(values) for name, values in value.items()} if isinstance(value, dict) else tensor(value)
    replace(path, lambda file: torch.save(out, file))
