"""What is compiled is said, exactly when it is, and no command is silent for long."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np
import pytest
from numba.core import event

from sim import compiling
from sim.core import jit, user_code
from sim.machines import compiled
from traces import progress
from traces.command import guarded
from traces.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("traces", "sim", "runtime", "analysis")
NONE, SOME = numba.types.none, numba.typeof(np.zeros(1))

pytestmark = pytest.mark.skipif(not jit.compiles(), reason="nothing is compiled")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, whose parent holds the seconds; and somebody who listens."""
    folder = tmp_path / "cache" / "core-0"
    folder.mkdir(parents=True)
    monkeypatch.setattr(jit, "CACHE_DIR", folder)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(folder))
    monkeypatch.delenv(progress.QUIET, raising=False)
    return folder


def policy(folder: Path, body: str = "return int(state[0]) + 1") -> Any:
    """A function of a file, as a user's policy is loaded: new each time, so that only the cache remembers it."""
    path = folder / "mine.py"
    path.write_text(f"def nearest(view, state, params):\n    {body}\n")
    space: dict[str, Any] = {"__name__": "mine"}
    exec(compile(path.read_text(), str(path), "exec"), space)
    return space["nearest"]


def heard(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


# --- once, when it is compiled, and not when it is read from the cache ---


def test_a_policy_of_a_user_is_said_when_it_is_compiled_and_not_when_it_is_read(
    tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    user_code.compile_hook(policy(tmp_path), 1)
    begun, ended = heard(capsys)
    assert begun == f"compiling your policy nearest (about 1 s; kept in {own_cache}) ..."
    assert ended.startswith("compiled your policy nearest in ") and ended.endswith(" s")
    assert compiling.about_s("your policy nearest") == pytest.approx(float(ended.split()[-2]), abs=0.06)
    user_code.compile_hook(policy(tmp_path), 1)
    assert heard(capsys) == []


def test_what_it_took_here_is_what_it_is_said_to_take_next_time(own_cache: Path) -> None:
    part = "the machine: caches alone"
    assert compiling.about_s(part) == compiling.WALL_S[part]
    assert compiling.about_s(part + compiling.FULL_RECORD) == pytest.approx(1.1 * compiling.WALL_S[part])
    compiling._keep(part, 61.238)
    assert compiling.about_s(part) == 61.24 and (own_cache.parent / compiling.SECONDS).is_file()
    for damaged in ("", "[]", '{"a": "b"}', '{"the machine: caches alone": null}'):
        (own_cache.parent / compiling.SECONDS).write_text(damaged)
        assert compiling.about_s(part) == compiling.WALL_S[part]


def test_a_policy_that_cannot_be_compiled_has_its_one_line_and_no_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="cannot be compiled"):
        user_code.compile_hook(policy(tmp_path, "return view.nothing"), 1)
    assert [line.split()[0] for line in heard(capsys)] == ["compiling"]
    assert compiling._seconds() == {}


def test_nobody_hears_what_is_compiled_quietly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(progress.QUIET, "1")
    user_code.compile_hook(policy(tmp_path), 1)
    assert heard(capsys) == []


def test_of_processes_that_compile_the_same_one_says_so(
    tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "import sys; sys.stdin.read(1); from sim import compiling as c; s = c.Said(); s.what = 'bounds'; "
    script += f"c.jit.CACHE_DIR = c.Path({str(own_cache)!r}); print(s._first(), flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        other.stdin.write("-")
        other.stdin.flush()
        assert other.stdout.readline() == "True\n"
        said = compiling.Said()
        said.what = "bounds"
        assert not said._first()
        said.what = "miss curve"  # another part is another matter
        assert said._first()
        said._release()
        other.stdin.close()
    said.what = "bounds"
    assert said._first()
    said._release()


# --- what it is called ---


def dispatcher(room: str, name: str) -> Any:
    return SimpleNamespace(py_func=SimpleNamespace(__module__=room, __name__=name))


@pytest.mark.parametrize(
    ("has", "called"),
    [
        ("", "the machine: caches alone"),
        ("ahead", "the machine: prefetch"),
        ("hooks", "the machine: evictions that look back, or of your own"),
        ("ahead hooks", "the machine: prefetch, evictions that look back, or of your own"),
        ("miss ahead hooks", "the machine: prefetch, and any answer to a miss"),
        ("ahead rules", "the machine: engines' own ways on a miss, prefetch"),
        (
            "miss ahead hooks rules",
            "the machine: engines' own ways on a miss, any eviction, prefetch, and any answer to a miss",
        ),
        ("log", "the machine: caches alone, full record"),
        ("log ahead", "the machine: prefetch, full record"),
        ("log ahead rules", "the machine: engines' own ways on a miss, prefetch, full record"),
    ],
)
def test_each_version_of_the_machine_has_a_name(has: str, called: str) -> None:
    code = compiled._loop.py_func.__code__
    left_out = {"log", "miss", "ahead", "hooks", "rules"} - set(has.split())
    args = [NONE if name in left_out else SOME for name in code.co_varnames[: code.co_argcount]]
    assert compiling.part(compiled._loop, args) == called
    assert compiling.about_s(called) > compiling.A_CHOICE_S
    assert called.removesuffix(compiling.FULL_RECORD) in compiling.WALL_S


def test_what_else_is_ours_has_a_name_and_what_is_not_has_none() -> None:
    assert compiling.part(dispatcher("sim.core.visit", "decide"), [SOME]) == "visit.decide, one choice"
    assert compiling.part(dispatcher("sim.outcome.packing", "slack"), [SOME]) == "bounds"
    assert compiling.part(dispatcher("analysis.curves.stack_distances", "_walk"), [SOME]) == "miss curve"
    assert compiling.part(dispatcher("somebody.elses", "kernel"), [SOME]) == ""


def test_what_is_compiled_inside_is_part_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    said = compiling.Said()
    outer, inner = (dispatcher(*place) for place in (compiling.LOOP, ("sim.core.visit", "decide")))
    outer._cache = SimpleNamespace(cache_path=None)
    args = [NONE] * 11

    def told(of: Any, status: Any) -> None:
        said.notify(event.Event("numba:compile", status, {"dispatcher": of, "args": args}))

    progress.doing("round 1", at_once=False)
    for of, status in ((outer, "START"), (inner, "START"), (inner, "END")):
        told(of, event.EventStatus[status])
        assert progress.now_doing() == "compiling the machine: caches alone"
    told(outer, event.EventStatus.END)
    assert progress.now_doing() == "round 1"
    progress.doing("", at_once=False)
    begun, ended = heard(capsys)
    assert begun.startswith("compiling the machine: caches alone (about 9 s; kept in ")
    assert ended.startswith("compiled the machine: caches alone in 0.0 s")


# --- where it is kept ---


def test_where_nothing_can_be_written_it_is_said_and_nothing_is_left_behind(tmp_path: Path) -> None:
    """Below a file is no folder, not even for root: a run goes on, with code that goes with its process."""
    script = "from sim.core import jit; from sim import compiling; from types import SimpleNamespace as N; import os; "
    script += "print(jit.KEPT, jit.CACHE_DIR.parent, os.environ['NUMBA_CACHE_DIR']); "
    script += "print(compiling._kept(N(py_func=print, _cache=N(cache_path='x'))))"
    (tmp_path / "file").touch()
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "file" / "cache"), "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, told = done.stdout.splitlines()
    kept, folder, shared = first.split()
    assert kept == "False" and folder == shared and Path(folder).parent == tmp_path and not Path(folder).exists()
    assert told.startswith(f"NOT KEPT: {tmp_path / 'file' / 'cache'} cannot be written, so each process compiles")
    assert not list(tmp_path.glob("moe-offload-sim-*"))


# --- everybody ---

COMPILES = tuple(
    f"sim.core.{name}"
    for name in ("hooks", "inputs", "jit", "kept", "link", "residency", "stages", "user_code", "visit")
)
# through sim.machines, or with sim.prepare: imported by who has a plan before anything of theirs is compiled
THROUGH = {"sim/policies/policy.py", "sim/compiling.py", "sim/outcome/packing.py", "sim/sweeps/session.py",
           "analysis/curves/stack_distances.py"}  # fmt: skip


def imports(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return found | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


def files() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def test_whoever_calls_what_is_compiled_has_it_said() -> None:
    for path in files():
        name, found = str(path.relative_to(ROOT)), imports(path)
        if name.startswith(("sim/core/", "sim/machines/")) or name in THROUGH or not found & set(COMPILES):
            continue
        assert any(one == "sim.compiling" or one.startswith("sim.machines") for one in found), name


def test_only_one_file_asks_whether_somebody_looks() -> None:
    assert [path.name for path in files() if "isatty" in path.read_text()] == ["progress.py"]


def test_every_command_is_watched() -> None:
    """A `main` that does not go through `guarded` has nobody who says every ten seconds what is being done."""
    for path in files():
        # no commands; parts of `runtime.gpu`, which watches them; what hands on to another `main`
        if path.parts[-2] in ("notebooks", "parts") or path == ROOT / "sim" / "__main__.py":
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name == "main":
                last = node.body[-1]
                assert isinstance(last, ast.Return) and ast.unparse(last).startswith("return guarded("), path


def test_things_are_counted_behind_what_is_done_already(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def command(argv: list[str]) -> None:
        for _ in progress.counted(["lru", "lfu"], "arm", str):
            seen.append(progress.now_doing())
            for _ in progress.counted(range(3), "run", at_once=False):
                seen.append(progress.now_doing())
        seen.append(progress.now_doing())

    assert guarded(command, []) == 0
    assert seen[:3] == ["arm 1 of 2: lru", "arm 1 of 2: lru, run 1 of 3", "arm 1 of 2: lru, run 2 of 3"]
    assert seen[4] == "arm 2 of 2: lfu" and seen[-1] == ""


def test_make_keeps_what_commands_compile_where_python_looks_for_it(tmp_path: Path) -> None:
    """`make run` leaves the user's cache folder alone; the tests have one in the checkout."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "cache=$NUMBA_CACHE_DIR"\n')
    python.chmod(0o755)
    for name in (".run", ".ready"):
        (tmp_path / name).touch()
    env = {"PATH": "/usr/bin:/bin"}
    for target, cache in (("run", ""), ("gpu", ""), ("test", str(ROOT / ".numba_cache"))):
        command = ["make", "-s", target, f"VENV={tmp_path}", f"CURDIR={ROOT}"]
        made = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert f"cache={cache}\n" in made.stdout, made
