"""Law 11, the tests can fail: faults planted in a copy of sim/core are caught.

A fault is an edit of the core, made in a copy of the sources in a temporary folder. A process of its own runs
the compiled machine's code there as plain Python (no compile) over random plans and stops at the first that
differs from the reference, or breaks a law, or runs into one of the core's own guards.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLANS = 800  # a fault must show within so many
CAUGHT, CLEAN = 7, 0  # exit statuses; sources that do not even import give another one
WATCH = """
import sys
from pathlib import Path
import sim.core.visit
from sim.machines import compiled
from tests.groups import as_groups
from tests.laws import check_all
from tests.plans import any_plan, random_lossy_plan
from tests.reference import simulate
from tests.test_agreement import difference

def by_reference(plan):
    return difference(simulate(plan), compiled.run(plan, full=True))

def by_law(plan):
    try:
        check_all(plan, as_groups(plan, compiled.run(plan, full=True)))
    except AssertionError:
        return ["a law is broken"]

assert Path(sim.core.visit.__file__).is_relative_to(Path.cwd()), "not the copy"
look, plans, caught = globals()[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3])
for seed in range(plans):
    plan = random_lossy_plan(seed // 2) if look is by_reference and seed % 2 == 0 else any_plan(seed)
    try:
        found = look(plan)
    except RuntimeError as error:  # IllegalTransition, a held victim, a deadlock
        found = [type(error).__name__]
    if found:
        print("caught at plan", seed, found[:2])
        sys.exit(caught)
"""


@dataclass(frozen=True)
class Fault:
    """In each (file of sim/core, right, wrong) the text `right`, there exactly once, becomes `wrong`."""

    name: str
    edits: tuple[tuple[str, str, str], ...]
    law: bool = False  # the laws alone catch it too, without the reference


def fault(name: str, file: str, right: str, wrong: str, law: bool = False) -> Fault:
    return Fault(name, ((file, right, wrong),), law)


RANKS = "for r in range(lists.shape[2]):\n"
TOKENS = "for i in range(route.step_offset[step], route.step_offset[step + 1]):\n"
FAULTS = [
    Fault(
        "a held victim is allowed and the guard is gone",
        (
            ("eviction.py", " or s.x[g, WORK] > 0:\n        return False", ":\n        return False"),
            ("residency.py", 'raise RuntimeError("a held expert was chosen as victim")', "pass"),
        ),
        law=True,
    ),
    fault(
        "ties are reversed",
        "eviction.py",
        "better = key < best_key or (key == best_key and stamp < best_stamp)",
        "better = key < best_key or (key == best_key and stamp > best_stamp)",
    ),
    fault(
        "belady takes the nearest use",
        "eviction.py",
        "_least(s, scope, spare_from, NEXT, -1)",
        "_least(s, scope, spare_from, NEXT, 1)",
    ),
    fault("fifo goes by the last touch", "residency.py", "        if s.c[st.EVICTION] == LRU:\n", "        if True:\n"),
    fault("lru goes by the landing", "residency.py", "        if s.c[st.EVICTION] == LRU:\n", "        if False:\n"),
    fault(
        "the spared list is ignored",
        "eviction.py",
        "return spare_from < 0 or not _listed(s, g, spare_from)",
        "return True",
        law=True,
    ),
    fault("a decayed score keeps its date", "eviction.py", "    s.x[g, LAST] = visits_of_layer(s, g)\n", ""),
    fault(
        "the last free slot stays free",
        "residency.py",
        "if s.scope[scope, USED] < s.scope[scope, CAPACITY]:",
        "if s.scope[scope, USED] < s.scope[scope, CAPACITY] - 1 or s.scope[scope, USED] == 0:",
        law=True,
    ),
    fault(
        "a landing is not a touch",
        "residency.py",
        "\n    s.x[g, LANDED] = s.c[st.STAMPS]\n    _touch(s, g)",
        "",
    ),
    fault(
        "a landing is a use",
        "residency.py",
        "    _join_order(s, g)\n    s.c[st.LANDED_DEMAND",
        "    _join_order(s, g)\n    s.x[g, USES] += 1\n    s.c[st.LANDED_DEMAND",
    ),
    fault("an expert stays held after its group", "residency.py", "    s.x[g, WORK] = 0\n", ""),
    fault("a promoted prefetch keeps its cause", "link.py", "    s.x[g, ORIGIN] = 0\n", "", law=True),
    fault(
        "prefetch goes before demand",
        "link.py",
        "    if s.c[DEMAND_HEAD] < s.c[DEMAND_TAIL]:\n",
        "    if s.c[QUEUE_LEN] == 0:\n",
    ),
    fault(
        "the link takes one too many",
        "link.py",
        "s.c[FLIGHT_LEN] < s.c[st.DEPTH]",
        "s.c[FLIGHT_LEN] <= s.c[st.DEPTH]",
        law=True,
    ),
    fault(
        "equal keys go last in, first out",
        "link.py",
        "s.queue[i - 1, Q_KEY] > key",
        "s.queue[i - 1, Q_KEY] >= key",
    ),
    fault(
        "a rejected prefetch holds up the next",
        "link.py",
        "        lg.ended(s, log, g, REJECTED)\n",
        "        lg.ended(s, log, g, REJECTED)\n        return -1\n",
    ),
    fault("an unwanted prefetch is not withdrawn", "ahead.py", "withdraw(s, log, unwanted[i])", "pass"),
    fault(
        "the prefetch of a dropped expert is not withdrawn",
        "answer.py",
        "            withdraw(s, log, g)\n",
        "            pass\n",
    ),
    fault("late is a miss", "visit.py", "LATE if now == COMMITTED else MISS", "MISS"),
    fault("the budget is one too large", "ahead.py", "if left > 0 and", "if left >= 0 and", law=True),
    fault(
        "lists merge token by token",
        "ahead.py",
        f"    {RANKS}        {TOKENS}",
        f"    {TOKENS}        {RANKS}",
    ),
    fault("draws go on from visit to visit", "visit.py", "    s.c[st.DRAWS] = 0\n", ""),
    fault(
        "prompts are answered lossily",
        "answer.py",
        "route.step_prefill[step] and not miss.lossy_prefill",
        "False",
        law=True,
    ),
    fault(
        "a stand-in serves a token twice", "miss.py", "            s.x[base + chosen, st.USED_BY] = s.c[st.TOKEN]\n", ""
    ),
    fault("rho allows one more", "miss.py", "done >= miss.params[RHO_MAX]", "done > miss.params[RHO_MAX]"),
    fault("the TAE gate opens the wrong way", "miss.py", "<= miss.tau[layer]", "> miss.tau[layer]"),
    fault("the control is not matched", "miss.py", "miss.params[MATCHED] != 0.0", "False"),
    fault("a use as stand-in always counts", "residency.py", "s.c[st.NO_TOUCH] == 0 or", "True or"),
    fault(
        "a background transfer is withdrawn like a prefetch",
        "ahead.py",
        " and s.x[g, st.ORIGIN] == 1:\n            unwanted",
        ":\n            unwanted",
    ),
    fault("a resident gets no bonus", "rerank.py", "(bonus if _resident(s, layer, e) else 0.0)", "0.0"),
    fault("least-stale takes the layer that comes next", "eviction.py", "return -float((layer", "return float((layer"),
    fault(
        "a window never forgets",
        "eviction.py",
        "route.leaving_row[i], layer, -1.0)",
        "route.leaving_row[i], layer, 0.0)",
    ),
    fault(
        "a request's tokens stay",
        "eviction.py",
        "route.leaving_row[i], each, -1.0)",
        "route.leaving_row[i], each, 0.0)",
    ),
    fault(
        "a copy is taken where the original is due",
        "miss.py",
        "share <= miss.params[0] else",
        "share < miss.params[0] else",
    ),
    fault("a copy is demanded for every token", "answer.py", " == ABSENT and s.x[low, st.ASKED] == 0:", " == ABSENT:"),
    fault("all never gives up waiting", "visit.py", " and not _stuck(s):", ":"),
]


def copy_sources(folder: Path, *more: str) -> None:
    """All that the watching process imports, and more packages."""
    for package in ("sim", "traces", *more):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("*.pyc", "samples"))
    (folder / "tests").mkdir()
    for path in (ROOT / "tests").glob("*.py"):
        shutil.copy(path, folder / "tests")


def plant(fault: Fault, folder: Path) -> None:
    for file, right, wrong in fault.edits:
        path = folder / "sim" / "core" / file
        source = path.read_text()
        assert source.count(right) == 1, f"{file} has changed: plant this fault elsewhere"
        path.write_text(source.replace(right, wrong))


def watch(folder: Path, look: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONWARNINGS": "ignore", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", WATCH, look, str(PLANS), str(CAUGHT)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("look", ["by_reference", "by_law"])
def test_without_a_fault_nothing_is_caught(look: str, tmp_path: Path) -> None:
    copy_sources(tmp_path)
    done = watch(tmp_path, look)
    assert done.returncode == CLEAN, done.stdout + done.stderr


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_caught(fault: Fault, tmp_path: Path) -> None:
    copy_sources(tmp_path)
    plant(fault, tmp_path)
    done = watch(tmp_path, "by_reference")
    assert done.returncode == CAUGHT, done.stdout + done.stderr


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.law], ids=lambda fault: fault.name)
def test_the_laws_alone_catch_it(fault: Fault, tmp_path: Path) -> None:
    copy_sources(tmp_path)
    plant(fault, tmp_path)
    done = watch(tmp_path, "by_law")
    assert done.returncode == CAUGHT, done.stdout + done.stderr
