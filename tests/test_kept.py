"""Machine code that is kept: used if it is what was written and ours alone, else ignored and written anew."""

import ctypes
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.core import jit, kept
from sim.core.kept import Whole
from sim.machines import compiled
from tests.machine import ROOT
from tests.plans import plan

pytestmark = [
    pytest.mark.skipif(not jit.compiles(), reason="nothing is compiled"),
    pytest.mark.skipif(not kept.POSSIBLE, reason="numba keeps what it compiles here"),
]


class TooMany(Exception):
    """Raised by compiled code."""


def powers(out: Any, n: int) -> None:
    """n powers of 1.5; it needs `pow` from outside, and refuses more than there is room for."""
    if n > len(out):
        raise TooMany("no room", 7)
    for i in range(n):
        out[i] = 1.5 ** float(i * n)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(jit, "CACHE_DIR", tmp_path)
    return tmp_path


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was compiled."""
    seen: list[Any] = []
    before = Whole._compiled

    def noted(self: Whole, kinds: Any) -> Any:
        seen.append(kinds)
        return before(self, kinds)

    monkeypatch.setattr(Whole, "_compiled", noted)
    return seen


def run() -> list[float]:
    """By a Whole that has never run, as in a new process."""
    out = np.zeros(4)
    Whole(powers)(out, 3)
    return out.tolist()  # type: ignore[no-any-return]


RIGHT = [1.0, 1.5**3, 1.5**6, 0.0]


def only(folder: Path) -> Path:
    (file,) = folder.glob("*.o")
    return file


def test_what_was_compiled_is_loaded_the_next_time(folder: Path, counted: list[Any]) -> None:
    assert run() == RIGHT and len(counted) == 1
    assert only(folder).stat().st_mode & 0o777 == 0o600
    assert run() == RIGHT and len(counted) == 1
    assert json.loads(only(folder).read_bytes().partition(b"\n")[0])["needs"] == ["pow"]


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)


def without_its_end(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def no_header(file: Path) -> None:
    file.write_bytes(file.read_bytes().partition(b"\n")[2])


def header(file: Path, **changed: Any) -> None:
    head, _, code = file.read_bytes().partition(b"\n")
    file.write_bytes(json.dumps(json.loads(head) | changed).encode() + b"\n" + code)


def of_other_code(file: Path) -> None:
    header(file, sha256="0" * 64)


def needs_what_is_not_there(file: Path) -> None:
    header(file, needs=["pow", "no_such_function_anywhere"])


def another_name(file: Path) -> None:
    header(file, name="no_such_function_anywhere")


def writable_by_others(file: Path) -> None:
    file.chmod(0o662)


def writable_by_the_group(file: Path) -> None:
    file.chmod(0o660)


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file, 0o600)


def a_deep_header(file: Path) -> None:
    file.write_bytes(b"[" * 200_000 + b"\n")


def no_code(file: Path) -> None:
    file.write_bytes(json.dumps({"needs": [], "name": "f", "sha256": hashlib.sha256(b"").hexdigest()}).encode() + b"\n")


SPOILT = (flipped, without_its_end, empty, no_header, of_other_code, needs_what_is_not_there, another_name,
          writable_by_others, writable_by_the_group, a_folder, a_pipe, a_deep_header, no_code)  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_a_damaged_or_foreign_file_is_ignored_and_written_anew(
    spoil: Callable[[Path], None], folder: Path, counted: list[Any]
) -> None:
    run()
    spoil(only(folder))
    assert run() == RIGHT and len(counted) == 2
    if spoil is not a_folder:  # which nothing can be written in place of
        assert run() == RIGHT and len(counted) == 2


def test_a_file_of_somebody_else_is_ignored(folder: Path, counted: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    monkeypatch.setattr(os, "geteuid", lambda: only(folder).stat().st_uid + 1)
    assert run() == RIGHT and len(counted) == 2


def test_it_is_of_its_sources_its_types_and_numbas_settings(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, kinds = Whole(powers), ((np.dtype(np.float64), 1), int)
    names = {code._file(kinds), code._file(((np.dtype(np.float32), 1), int)), code._file((kinds[0], None))}
    assert len(names) == 3 and code._file(kinds) in names
    kept._circumstances.cache_clear()
    monkeypatch.setenv("NUMBA_BOUNDSCHECK", "1")
    names.add(code._file(kinds))
    monkeypatch.setattr(kept.inspect, "getfile", lambda _: str(ROOT / "pyproject.toml"))  # another text around it
    names.add(code._file(kinds))
    monkeypatch.setattr(jit, "CACHE_DIR", tmp_path / "core-of-other-sources")
    names.add(code._file(kinds))
    kept._circumstances.cache_clear()
    assert len(names) == 6


def test_what_numbas_own_file_says_counts_until_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NUMBA_DISABLE_JIT", raising=False)
    for said, compiles in (
        ("disable_jit: 1", 0),
        ("disable_jit: true", 0),
        ("disable_jit: 0", 1),
        ("opt: 1", 1),
        ("", 1),
    ):
        (tmp_path / ".numba_config.yaml").write_text(said)
        assert jit.compiles.__wrapped__() == compiles
    assert "NUMBA_OPT" not in jit.settings()
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert not jit.compiles.__wrapped__()


@pytest.mark.parametrize("loaded", [False, True])
def test_what_it_raises_is_raised(loaded: bool) -> None:
    if loaded:
        run()
    with pytest.raises(TooMany, match="'no room', 7"):
        Whole(powers)(np.zeros(2), 3)


def test_other_threads_go_on_meanwhile() -> None:
    """Of ctypes' two kinds of functions, the one that hands on the interpreter's lock."""
    code = kept._callable(ctypes.cast(ctypes.pythonapi.Py_IsInitialized, ctypes.c_void_p).value or 0, (), None)
    kind = type(code.__closure__[0].cell_contents)  # type: ignore[index]
    assert not kind._flags_ & ctypes.PYFUNCTYPE(None)._flags_ & 4


def test_threads_that_need_it_at_once_compile_it_once(counted: list[Any]) -> None:
    both, outs = Whole(powers), np.zeros((8, 4))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda out: both(out, 3), outs))
    assert outs.tolist() == [RIGHT] * 8 and len(counted) == 1


def test_threads_load_with_one_engine() -> None:
    """In a process of its own, in which nothing is loaded yet: a second engine would take the first one's code along
    when it goes."""
    script = """
from concurrent.futures import ThreadPoolExecutor
from sim.machines import compiled
from tests.plans import plan
made = [plan([[[0, 1]], [[2, 1]]] * 50, 3, [n % 2 + 2]) for n in range(64)]
if {alone}:
    compiled.run(made[0])
print(len(list(ThreadPoolExecutor(8).map(compiled.run, made))))
"""
    for alone in (True, False, False, False):  # the first may compile
        command = [sys.executable, "-c", script.format(alone=alone)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "64\n"), done.stderr


def test_an_interrupt_that_llvm_has_swallowed_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """numba takes the object in a call back, and what is raised there goes no further than to a line on stderr."""

    def nothing(self: Any) -> bytes:
        raise RuntimeError("no compiled object yet")

    monkeypatch.setattr(jit.compiler().JITCodeLibrary, "_get_compiled_object", nothing)
    with pytest.raises(KeyboardInterrupt):
        run()


def test_where_nothing_can_be_kept_it_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "file").touch()
    monkeypatch.setattr(jit, "CACHE_DIR", folder / "file" / "cache")
    assert run() == RIGHT


def test_a_warm_run_loads_no_numba() -> None:
    """In a process of its own, for others have loaded it here."""
    script = "import sys; from sim.machines import compiled; from tests.plans import plan;"
    script += "print(compiled.run(plan([[[0, 1]], [[2, 1]]], 3, [2])).warmup_steps, 'numba' in sys.modules)"
    for _ in range(2):  # the first may compile
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1] == "False"


def test_a_run_by_numbas_own_way_is_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = plan([[[0, 1]], [[2, 1]], [[0, 3]], [[1, 2]]], 4, [2])
    monkeypatch.undo()  # where the machine is compiled already
    ours = compiled.run(tiny)
    monkeypatch.setattr(kept, "POSSIBLE", False)
    assert compared(compiled.run(tiny)) == compared(ours)


def compared(record: Any) -> Any:
    tables = (record.steps, record.requests, record.layer)
    return str(record.counters), [{name: column.tolist() for name, column in table.items()} for table in tables]
