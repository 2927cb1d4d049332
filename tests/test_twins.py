"""A policy added as CONTRIBUTING says behaves like one that was always there: a twin of every policy of every kind.

In a copy of the sources each policy gets a twin by the written recipe: its branch beside the original's, its line, and
nothing else. The twin must run like its original: with and without a record, on all machines, summary and bounds too.
"""

import re
from pathlib import Path

import numpy as np
import pytest

from sim.core import worth
from tests.copied import copied
from tests.forked import Forks
from tests.gen import random_trace
from tests.on_torch import fixed_hardware
from traces.format import npz, profile
from traces.statistics.stats import profile_of

MISSES = ("FETCH", "DROP", "CPU", "DROP_BY_WEIGHT", "PRECISION", "SPECULATE")
RERANKERS = ("CACHE_PRIOR", "MAX_RANK", "SMOE", "ADAPMOE", "SERE", "CACHE_PRIOR_MASS", "TOLERANCE")
# (file, text that stands there once, the same with the twin's branch)
RECIPE = [
    (
        "sim/core/miss.py",
        "SPECULATE = range(12)",
        f"SPECULATE, {', '.join(f'TWIN_{name}' for name in MISSES)} = range({12 + len(MISSES)})",
    ),
    *(
        (
            "sim/core/miss.py",
            f"if miss.policy.kind == {name}{end}",
            f"if (miss.policy.kind == {name} or miss.policy.kind == TWIN_{name}){end}",
        )
        for name, end in (
            ("DROP", ":"),
            ("CPU", ":"),
            ("DROP_BY_WEIGHT", " and"),
            ("PRECISION", ":"),
            ("SPECULATE", ":"),
        )
    ),
    (
        "sim/core/rerank.py",
        "TOLERANCE = range(8)",
        f"TOLERANCE, {', '.join(f'TWIN_{name}' for name in RERANKERS)} = range({8 + len(RERANKERS)})",
    ),
    *(
        (
            "sim/core/rerank.py",
            f"if miss.policy.rerank == {name}:",
            f"if miss.policy.rerank == {name} or miss.policy.rerank == TWIN_{name}:",
        )
        for name in ("CACHE_PRIOR", "MAX_RANK", "ADAPMOE", "SERE", "CACHE_PRIOR_MASS", "TOLERANCE")
    ),
    ("sim/fit/placement.py", 'kind == "random":', 'kind in ("random", "twin-random"):'),
    ("sim/fit/placement.py", 'kind in ("first", "empty"):', 'kind in ("first", "empty", "twin-first", "twin-empty"):'),
    ("sim/fit/placement.py", 'if kind == "empty":', 'if kind in ("empty", "twin-empty"):'),
    ("sim/fit/placement.py", '"global-popular")', '"global-popular", *(f"twin-{x}" for x in TWINS))'),
    ("sim/fit/placement.py", "BY_USES = ", 'TWINS = ("popular", "profile", "global-popular")\nBY_USES = '),
    ("sim/fit/placement.py", 'if kind == "buddy-coverage":', 'if kind in ("buddy-coverage", "twin-buddy-coverage"):'),
    ("sim/fit/placement.py", '(*BY_USES, "buddy-coverage")', '(*BY_USES, "buddy-coverage", "twin-buddy-coverage")'),
]
WORTH = Path(worth.__file__).read_text()
CODES = re.findall(r"[A-Z][A-Z_0-9]*", re.search(r"^\(\n(.*?)\) = range", WORTH, re.S | re.M)[1])  # type: ignore[index]
TWINS = ", ".join(f"TWIN_{name}" for name in CODES)
IMPORT = "\nfrom sim.core.worth import"
ASKS = (
    "eviction",
    "queues",
    "bypass",
    "swap",
    "link",
    "visit",
    "residency",
    "worth",
)  # of the core, who know an eviction's code


def with_twins(source: str) -> str:
    """An eviction's code wherever it is asked for, and its twin's."""
    known = "|".join(sorted(CODES, key=len, reverse=True))
    more = lambda found: f"in ({found[1]}, {', '.join(f'TWIN_{each}' for each in found[1].split(', '))})"  # noqa: E731
    source = re.sub(rf"\bin \(((?:{known})(?:, (?:{known}))*)\)", more, source)
    source = re.sub(rf"(eviction|kind) != ({known})\b", r"\1 not in (\2, TWIN_\2)", source)
    return re.sub(rf"(eviction|kind) == ({known})\b", r"\1 in (\2, TWIN_\2)", source)


LINES = """
from dataclasses import replace as _replace
from sim.core import rerank as _rerank
def _line(table, policy, module):
    codes = {vars(module)[name.removeprefix("TWIN_")]: code for name, code in vars(module).items() if "TWIN_" in name}
    name = f"twin-{policy.name}"
    table[name] = _replace(policy, name=name, kind=codes.get(policy.kind, policy.kind))
for _table_of, _module in ((EVICTION, worth), (MISS, miss), (RERANK, _rerank), (PLACEMENT, object)):
    for _policy in list(_table_of.values()):
        _line(_table_of, _policy, _module)
"""
CLASSES = """
for _each in list(PREDICTORS.values()):
    PREDICTORS[f"twin-{_each.name}"] = type(f"Twin{_each.__name__}", (_each,), {"name": f"twin-{_each.name}"})
"""
COMPARE = """
import sys
from dataclasses import replace
from pathlib import Path
import sim.core.visit
from runtime.device.virtual import timed
from sim.machines import compiled, discrete
from sim.prepare import prepare
from sim.policies.registry import TABLES, find
from sim.outcome.report import result
from sim.spec import RunSpec
from tests.devices import difference, machine_on

assert Path(sim.core.visit.__file__).is_relative_to(Path.cwd()), "not the copy"
FILES = {"matrix": "matrix.npz", "file": "counts.npz"}
BASE = {"trace": "t.npz", "hardware": "fixed.toml", "calibration": 0.3, "batch": 2, "prefill_chunk": 5, "cache": 3}

def plain(summary):
    out = {key: value for key, value in summary.items() if key not in ("spec", "machine")}
    return out | {"notes": [note.replace("twin-", "") for note in out["notes"]]}  # an oracle's names it

def setting_of(kind, name, **more):
    needs = {f"{name}.{key}": file for key, file in FILES.items() if key in find(kind, name).parameters}
    more |= {"speculate": 2} if find(kind, name).drafts else {}
    return prepare(RunSpec.of({**BASE, **more, kind: name, "set": needs}))

def twins(kind, name, **more):
    mine, theirs = setting_of(kind, f"twin-{name}", **more), setting_of(kind, name, **more)
    for run in (compiled.run, discrete.run):
        for full in (False, True):
            a, b = run(mine.plan, full), run(theirs.plan, full)
            wrong = difference(b, a)
            assert wrong is None, (kind, name, more, run.__module__, full, wrong)
            assert plain(result(mine, a)) == plain(result(theirs, b)), (kind, name, more, run.__module__, full)
    if name != "remote":  # which the torch machine refuses
        assert difference(compiled.run(theirs.plan, True), machine_on(mine.plan, timed()).run()) is None, (kind, name)

for kind in sys.argv[1:]:
    names = [name for name in TABLES[kind] if not name.startswith("twin-")]
    for name in names:
        twins(kind, name)
        if kind == "eviction":
            scope = {} if name == "window-swap" else {"cache_scope": "global", "cache": 5}
            twins(kind, name, **scope, as_decode=True, prefetch="gate-lookahead")
    print(kind, len(names))
"""


@pytest.fixture(scope="module")
def copy(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources with the twins in them, and what the runs need."""
    folder = copied(sources, tmp_path_factory.mktemp("twins"))
    for file, right, with_twin in RECIPE:
        path = folder / file
        source = path.read_text()
        assert source.count(right) == 1, f"{file} has changed: the recipe stands elsewhere for {right!r}"
        path.write_text(source.replace(right, with_twin))
    for name in ASKS:
        path = folder / "sim" / "core" / f"{name}.py"
        source = with_twins(path.read_text())
        path.write_text(source.replace(IMPORT, f"{IMPORT} {TWINS}{IMPORT}", 1))
    path = folder / "sim" / "core" / "worth.py"
    path.write_text(path.read_text().replace(") = range(25)", f"    {TWINS},\n) = range({25 + len(CODES)})"))
    for file, more in (("sim/policies/registry.py", LINES), ("sim/fit/predictors.py", CLASSES)):
        (folder / file).write_text((folder / file).read_text() + more)
    rng = np.random.default_rng(11)
    trace = random_trace(rng, 24, 2, 6, 2, requests=5, prompt=0.4, logits=True, lookahead=3, lookahead_source="learned")
    npz.write(folder / "t.npz", trace)
    fixed_hardware(folder, 700)
    np.savez(folder / "matrix.npz", similarity=rng.random((2, 6, 6)))
    profile.write(folder / "counts.npz", profile_of(trace))
    return folder


@pytest.mark.parametrize("kind", ["eviction", "miss", "rerank", "prefetch", "placement"])
def test_a_twin_runs_like_its_original(copy: Path, forks: Forks, kind: str) -> None:
    status, said = forks.run(copy, COMPARE, kind)
    assert status == 0, said
    assert int(said.split()[1]) >= 5
