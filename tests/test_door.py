"""The door: what `import sim` and `import traces` offer, by name, without the rooms above or any weight; its stub."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import sim
import traces
from tests import stub

ROOT = Path(__file__).parent.parent
DOORS = pytest.mark.parametrize("door", [sim, traces], ids=["sim", "traces"])
HEAVY = ("numpy", "numba", "pydantic", "pandas", "plotly", "torch", "simpy", "analysis", "sim.spec")


def python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)


@DOORS
def test_every_name_resolves_and_no_other_does(door: object) -> None:
    for name, place in door._DOOR.items():  # type: ignore[attr-defined]
        module, _, attribute = place.partition(":")
        assert getattr(door, name) is getattr(importlib.import_module(module), attribute)
        assert name in dir(door)
    with pytest.raises(AttributeError, match="no attribute 'simulat'"):
        door.simulat  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("package", ["sim", "traces"])
def test_the_door_holds_nothing_else(package: str) -> None:
    body = ast.parse((ROOT / package / "__init__.py").read_text()).body
    names = {node.targets[0].id for node in body if isinstance(node, ast.Assign)}  # type: ignore[attr-defined]
    defined = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    imported = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in body if isinstance(node, ast.ImportFrom)}
    assert names <= {"_DOOR", "__all__", "__version__"} and defined == {"__getattr__", "__dir__"}
    assert imported == {"importlib", "typing"} | ({"sys"} if package == "sim" else set())
    late = [ast.unparse(node.test) for node in body if isinstance(node, ast.If)]
    assert late == (
        ["sys.argv[:1] == ['-m']"] if package == "sim" else []
    )  # for `python -m sim.rum`, which is not there


def test_the_doors_import_nothing_heavy() -> None:
    done = python(f"import sim, traces, sys; dir(sim); print([name for name in {HEAVY} if name in sys.modules])")
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_all_is_the_table_but_for_open() -> None:
    assert set(sim.__all__) == {*sim._DOOR, "__version__"}  # type: ignore[attr-defined]
    assert traces.__all__ == [name for name in traces._DOOR if name != "open"]  # type: ignore[attr-defined]


def test_nobody_s_open_is_taken() -> None:
    script = "from traces import *; import traces, builtins; traces.open; traces.open('mixtral.npz')"
    assert python(f"{script}; assert open is builtins.open and 'open' not in vars(traces)").returncode == 0


def test_the_stub_is_what_the_specification_says() -> None:
    written, made = stub.STUB.read_text(), stub.stub()
    assert ast.dump(ast.parse(written)) == ast.dump(ast.parse(made)), "python -m tests.stub writes it"


@DOORS
def test_the_stub_has_the_names_of_the_table(door: object) -> None:
    name = door.__name__  # type: ignore[attr-defined]
    body = ast.parse((ROOT / name / "__init__.pyi").read_text()).body
    found = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    aliases = [alias for node in body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert found | {alias.asname for alias in aliases if alias.asname} == set(door._DOOR)  # type: ignore[attr-defined]


def test_help_shows_every_field() -> None:
    import inspect

    from sim.spec import RunSpec

    shown = inspect.signature(sim.simulate).parameters
    assert set(RunSpec.model_fields) <= set(shown) and shown["cache"].default == 0.5
    assert all(f"\n        {name}: " in sim.simulate.__doc__ for name in RunSpec.model_fields)
