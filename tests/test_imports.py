"""The rule of the house and who may import whom, held against the sources."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("traces", "sim", "runtime", "analysis")
# what a room may import of the other rooms, and what it must never import
MAY = {"traces": (), "sim": ("traces",), "runtime": ("traces", "sim"), "analysis": ("traces", "sim")}
NEVER = {
    "sim/core": ("time", "datetime", "random", "simpy", "torch", "pydantic", "pandas"),
    "sim": ("torch", "pandas", "plotly", "libcachesim"),
    "traces": ("torch", "pandas", "plotly", "simpy", "libcachesim"),
    "analysis": ("torch", "simpy"),
}
# the files of their room that need torch, late: one records from a live model, one reads and writes .pt files
CAPTURE = tuple(f"capturing/{name}.py" for name in ("recorder", "routers", "inputs", "facts", "hf"))
WITH_TORCH = (*(f"traces/{name}" for name in CAPTURE), "traces/foreign/torch_file.py")


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at the top or late."""
    out = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "needed":
            out |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}  # traces.extras.needed
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            out.add(node.module or "")
    return out


def files(room: str) -> list[Path]:
    found = sorted((ROOT / room).rglob("*.py"))
    assert found, f"{room}: no such folder, nothing would be checked"
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_they_may(room: str) -> None:
    for path in files(room):
        others = {name.split(".")[0] for name in imports(path)} & set(ROOMS) - {room, *MAY[room]}
        assert not others, f"{path} imports {others}"


@pytest.mark.parametrize("place", NEVER)
def test_what_a_place_never_imports(place: str) -> None:
    for path in files(place):
        if str(path.relative_to(ROOT)) in WITH_TORCH:
            continue
        found = {name.split(".")[0] for name in imports(path)} & set(NEVER[place])
        assert not found, f"{path} imports {found}"


def test_only_the_discrete_machine_imports_simpy() -> None:
    users = [path.name for room in ROOMS for path in files(room) if "simpy" in imports(path)]
    assert users == ["discrete.py"]


def test_the_core_knows_no_machine() -> None:
    for path in files("sim/core"):
        outside = {name for name in imports(path) if name.startswith("sim.") and not name.startswith("sim.core")}
        assert not outside, f"{path} imports {outside}"


def test_libraries_of_formats_are_imported_late_by_the_files_that_need_them() -> None:
    users = {
        (path.name, name.split(".")[0])
        for path in files("traces")
        for name in imports(path) & {"torch", "pyarrow", "pyarrow.parquet", "pyarrow.types", "safetensors", "gguf"}
    }
    wanted = {("torch_file.py", "torch"), ("parquet_file.py", "pyarrow"), ("trtllm.py", "safetensors")}
    live = {Path(name).name for name in CAPTURE}
    assert {user for user in users if user[0] not in live} == wanted


def test_nothing_that_is_shipped_imports_a_test() -> None:
    for room in ROOMS:
        for path in files(room):
            assert not {name for name in imports(path) if name.split(".")[0] == "tests"}, path


def test_there_is_a_class_of_errors_only_where_somebody_tells_it_apart() -> None:
    nodes = [node for room in ROOMS for path in files(room) for node in ast.walk(ast.parse(path.read_text()))]
    caught = [node.type for node in nodes if isinstance(node, ast.ExceptHandler) and node.type]
    told = {ast.unparse(name) for kind in caught for name in getattr(kind, "elts", [kind])}
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    ours = {each.name for each in classes if "UserError" in map(ast.unparse, each.bases)}
    assert len(ours) > 3 and ours <= told


@pytest.mark.parametrize("call", ["sim.run --help", "sim.sweep --help", "sim.recommend --help"])
def test_who_asks_for_help_does_not_wait_for_the_core(call: str) -> None:
    script = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_module(sys.argv[0], run_name='__main__')"
    caller = f"import atexit, sys; atexit.register(lambda: print('numba' in sys.modules)); {script}"
    done = subprocess.run([sys.executable, "-c", caller, *call.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("False\n"), done.stdout + done.stderr


PLAIN = "--trace mixtral.npz --as-decode --max-steps 1 --json"
# what a plain run does without, and the words with which a run needs it
ONLY_WITH = {
    "simpy": f"{PLAIN} --machine simpy",
    "sim.outcome.aiperf": PLAIN.replace("--json", "--format aiperf"),
    "sim.outcome.otel": PLAIN.replace("--json", "--format otel"),
    "sim.policies.describe": "--list-policies",
    "sim.catalog.listing": "--list-links",
    "sim.outcome.glossary": "--describe hit",
}
OF_OTHERS = ("numba", "scipy", "numpy.f2py", "pandas", "plotly", "pyarrow", "ray", "torch", "sim.experiments",
             "sim.search", "sim.sweeps", "traces.capturing", "traces.foreign", "traces.synthetic")  # fmt: skip


def test_a_plain_run_imports_nothing_that_only_others_need() -> None:
    """Each line: the modules that are there after a command, one process running them one after another."""
    script = """if True:
        import contextlib, io, json, sys
        from sim import run
        for words in sys.argv[1:]:
            with contextlib.redirect_stdout(io.StringIO()):
                assert run.main(words.split()) == 0, words
            print(json.dumps(sorted(sys.modules)))"""
    done = subprocess.run(
        [sys.executable, "-c", script, PLAIN, *ONLY_WITH.values()], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    plain, *others = map(json.loads, done.stdout.splitlines())
    assert not {*OF_OTHERS, *ONLY_WITH} & set(plain)
    for module, there in zip(ONLY_WITH, others, strict=True):
        assert module in there, f"{module}: no longer what the words beside it need"
