"""moe-offload-sim: every command by one name; what one lacks is one line; a wheel has all of it."""

import ast
import fnmatch
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from sim.__main__ import COMMANDS, MODULES, main
from tests.blocked import EXTRA_LIBRARIES, blocked

ROOT = Path(__file__).parent.parent
PACKAGES = ("analysis", "runtime", "sim", "traces")
NO_COMMANDS = ("sim", "runtime.gpu.table")  # this one itself; a page of the GPU's parts, which runtime.gpu runs
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]


@pytest.fixture(autouse=True)
def as_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the console script; what it tells the commands of their name ends with the test."""
    monkeypatch.setattr(sys, "argv", ["/bin/moe-offload-sim"])


# --- names ---


def test_every_command_of_a_package_is_there() -> None:
    found = {path for package in PACKAGES for path in (ROOT / package).glob("*.py") if _has_main(path)}
    found |= {path for package in PACKAGES for path in (ROOT / package).glob("*/__main__.py") if _has_main(path)}
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in found}
    assert names - {f"{package}.__main__" for package in ("sim", "analysis", "runtime")} == set(MODULES.values())


def _has_main(path: Path) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in ast.parse(path.read_text()).body)


def test_every_command_that_is_documented_is_there() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {name for page in pages for name in re.findall(r"python -m ((?:\w+\.)*\w+)", page.read_text())}
    ours = {name for name in named if name.split(".")[0] in PACKAGES} - set(NO_COMMANDS)
    assert len(ours) > 15 and ours <= {module.removesuffix(".__main__") for module in MODULES.values()}


def test_help_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for group in COMMANDS.values():
        for name, (_, what) in group.items():
            assert sum(line.split()[:1] == [name] and line.endswith(what) for line in lines) == 1
    assert max(map(len, lines)) <= 100 and main([]) == 2


def test_the_script_is_this() -> None:
    assert PROJECT["project"]["scripts"] == {"moe-offload-sim": "sim.__main__:main"}


@pytest.mark.parametrize("name", MODULES)
def test_its_usage_says_what_was_typed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main([name, "--help"]) == 0
    except SystemExit as done:
        assert not done.code
    assert capsys.readouterr().out.startswith(f"usage: moe-offload-sim {name} ")


def test_errors_say_what_was_typed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--trac", "x"]) == 2
    assert (
        capsys.readouterr().err
        == "error: --trac: unknown argument; did you mean --trace?; see moe-offload-sim run --help\n"
    )
    assert main(["traces", "info"]) == 2
    assert "file: missing; such as: moe-offload-sim traces info mixtral.npz" in capsys.readouterr().err
    assert main(["miss_curv"]) == 2
    told = "error: miss-curv: no such command; did you mean miss-curve?; moe-offload-sim --help lists them\n"
    assert capsys.readouterr().err == told


def test_a_module_is_started_as_it_always_was(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sim import run

    monkeypatch.setattr(sys, "argv", [run.__file__])
    assert run.main(["--trac", "x"]) == 2
    assert "see python -m sim.run --help" in capsys.readouterr().err


def test_where_things_lie(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--where"]) == 0
    places = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    for name, file in (("samples", "mixtral.npz"), ("notebooks", "size_a_cache.py"), ("docs", "python.md")):
        assert (Path(places[name]) / file).is_file()
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"moe-offload-sim {PROJECT['project']['version']}\n"


# --- without the libraries of extras ---


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """[exit status, lines on stdout, what stands on stderr] of each call of tests.blocked."""
    folder = tmp_path_factory.mktemp("without")
    call = [sys.executable, "-m", "tests.blocked", str(folder)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NUMBA_DISABLE_JIT": "1"})
    assert done.returncode == 0, done.stderr
    found: dict[str, list[Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_every_extra_s_library_is_blocked() -> None:
    from traces.extras import EXTRAS

    assert set(EXTRAS) <= set(EXTRA_LIBRARIES)
    extras = PROJECT["project"]["optional-dependencies"]
    for module, extra in EXTRAS.items():
        assert re.search(rf"\b{module.replace('_', '-')}\b", " ".join(_all_of(extras, extra))), (module, extra)


def _all_of(extras: dict[str, list[str]], name: str) -> list[str]:
    inner = [each for line in extras[name] for each in re.findall(r"moe-offload-sim\[([\w,-]+)\]", line)]
    return extras[name] + [line for each in inner for part in each.split(",") for line in _all_of(extras, part)]


@pytest.mark.parametrize("name", [*MODULES, *blocked("")])
def test_what_is_missing_is_one_line(name: str, without: dict[str, list[Any]]) -> None:
    status, printed, err = without[name]
    if status == 0:
        assert printed and not err
    else:
        assert status == 2 and err.startswith("error: ") and err.count("\n") == 1, err
        assert re.search(r"pip install '?moe-offload-sim\[[\w,-]+\]'?", err), err


def test_what_needs_none_of_them_works(without: dict[str, list[Any]]) -> None:
    working = {name for name, (status, *_) in without.items() if status == 0}
    assert {"run", "sweep", "recommend", "traces", "profile", "compare", "timeline", "miss-curve", "model"} <= working
    assert {"api: simulate", "api: table", "api: save", "a run", "miss-curve as text"} <= working
    assert not {"report", "live", "validate", "api: figure", "a sweep", "a report"} & working


@pytest.mark.parametrize("module", ["analysis.report", "runtime.replay", "runtime.predictor"])
def test_so_it_is_by_its_module(module: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({EXTRA_LIBRARIES}))\n")
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 2 and re.match(
        rf"error: python -m {module} needs \w+, which is not installed: pip", done.stderr
    )
    assert done.stderr.count("\n") == 1


# --- a wheel ---


def test_the_wheel_has_every_package() -> None:
    found = {path.parent.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("__init__.py")}
    assert set(SETUPTOOLS["packages"]) == {".".join(path.parts) for path in found} | {"analysis.docs"}
    assert SETUPTOOLS["packages"] == sorted(SETUPTOOLS["packages"])


def test_the_wheel_has_every_file_that_is_no_module() -> None:
    globs = {name.replace(".", "/"): patterns for name, patterns in SETUPTOOLS["package-data"].items()}
    packages = {name.replace(".", "/") for name in SETUPTOOLS["packages"]}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    files = [Path(line) for line in listed.stdout.splitlines() if line.split("/")[0] in PACKAGES]
    if not files:
        pytest.skip("no git checkout: what is shipped is not known")
    left_out = []
    for file in files:
        holder = next(str(place) for place in file.parents if str(place) in packages)
        if file.suffix == ".py" and holder == str(file.parent):
            continue
        if not any(fnmatch.fnmatch(str(file.relative_to(holder)), pattern) for pattern in globs.get(holder, ())):
            left_out.append(file)
    assert not left_out
    assert (
        set(SETUPTOOLS["package-data"]["analysis.docs"]) == {"**/*"}
        and SETUPTOOLS["package-dir"]["analysis.docs"] == "docs"
    )


def test_every_package_says_that_it_is_typed() -> None:
    assert all((ROOT / package / "py.typed").is_file() for package in PACKAGES)
