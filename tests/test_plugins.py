"""Policies, engines and readers of another distribution: found by name, listed; one that is wrong disturbs nobody."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.machine
ROOT = Path(__file__).parent.parent
ENTRIES = """
[moe_offload_sim.policies]
eviction.mine = moe_mine:oldest
eviction.Nth = moe_mine:Nth
eviction.as_fifo = moe_mine:AS_FIFO
eviction.lru = moe_mine:oldest
eviction.Sieve = moe_mine:oldest
eviction.gone = moe_gone:oldest
eviction.leaves = moe_leaves:oldest
eviction.narrow = moe_mine:narrow
prefetch.table = moe_mine:ENGINE
odd = moe_mine:oldest

[moe_offload_sim.engines]
my-engine = moe_mine:ENGINE
llama.cpp = moe_mine:ENGINE
my-file = moe_mine:FILE
wrong-key = moe_mine:WRONG
gone = moe_gone:ENGINE

[moe_offload_sim.readers]
my-log = moe_mine:READER
no-reader = moe_mine:ENGINE
gone = moe_gone:READER
"""
SOURCE = '''
from pathlib import Path
from sim.core import worth
from sim.policies.policy import Policy
from traces.foreign.format import Reader
from traces.format import npz
ENGINE = {"like": "ktransformers", "does": "as mine does"}
FILE = Path(__file__).with_name("my-file.toml")
WRONG = {"like": "ktransformers", "dose": 1}
AS_FIFO = Policy("x", worth.FIFO, "as fifo", "here", keeps=("landings",))


def oldest(view, state, params):
    """The earliest to land goes."""
    return view.landed.argmin()


def narrow(view):
    return 0


class Nth:
    def __init__(self, n=0):
        self.n = n

    def __call__(self, view, state):
        return int(self.n) % len(view.candidates)


def read(path, ask):
    return npz.read(npz.find("mixtral.npz"))


READER = Reader("another", read, lambda path: path.read_bytes().startswith(b"MINE"), "a log of mine", exact=True)
'''
SCRIPT = """
import contextlib, io, json, sys
import sim, sim.run, traces.__main__
folder, *_ = sys.argv[1:]
SHORT = ["--trace", "mixtral.npz", "--max-steps", "12", "--cache", "3"]
CALLS = {
    "built in": (sim.run, [*SHORT, "--eviction", "lfu"]),
    "help": (traces.__main__, ["convert", "--help"]),
    **{name: (sim.run, [*SHORT, "--eviction", name]) for name in ("gone", "leaves", "narrow", "mien")},
    "policies": (sim.run, ["--list-policies"]),
    "engines": (sim.run, ["--list-engines"]),
    **{name: (sim.run, [*SHORT, "--engine", name, "--json"]) for name in ("my-engine", "my-file", "wrong-key")},
    "convert": (traces.__main__, ["convert", f"{folder}/a.log", f"{folder}/a.npz", "--model", "mixtral-8x7b"]),
    "no reader": (traces.__main__, ["convert", "--from", "gone", "a.log", f"{folder}/b.npz", "--model", "m"]),
}
done = {}
for name, (module, words) in CALLS.items():
    out, err, status = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
        status = module.main(words)
    done[name] = [status, out.getvalue(), err.getvalue(), "moe_mine" in sys.modules]
given = dict(trace="mixtral.npz", max_steps=12, cache=3)
runs = [sim.simulate(eviction=name, **given) for name in ("fifo", "mine", "as_fifo", "MINE", "AS-FIFO")]
done["sieve"] = [sim.simulate(eviction=name, **given).policy_files for name in ("Sieve", "sieve")]
runs += [sim.simulate(eviction="Nth", set={"Nth.n": n}, **given) for n in (0, 1)]
done["runs"] = [(run.name, run.hits, run.policy_files, run.summary.get("policy_from")) for run in runs]
print(json.dumps(done))
"""
Done = dict[str, Any]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """By name what each call came to, where the distribution is installed: [exit status, out, err, whether it was
    loaded by then]."""
    site = tmp_path_factory.mktemp("site")
    (site / "moe_mine.py").write_text(SOURCE)
    (site / "moe_leaves.py").write_text("raise SystemExit(3)")
    (site / "my-file.toml").write_text('like = "ktransformers"\ndoes = "from a file"\n')
    (site / "a.log").write_text("MINE")
    about = site / "moe_mine-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: moe-mine\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text(ENTRIES)
    env = os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    call = [sys.executable, "-c", SCRIPT, str(site)]
    ran = subprocess.run(call, cwd=site, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert not (site / "b.npz").exists() and (site / "a.npz").is_file()
    found: Done = json.loads(ran.stdout)
    return found


def test_nothing_is_loaded_before_it_is_asked_for(done: Done) -> None:
    assert done["built in"][0] == 0 and not done["built in"][3]
    assert "my-log" in done["help"][1] and not done["help"][3]  # a list of names is no reason either
    assert done["policies"][3]


def test_a_policy_is_found_by_its_name_and_says_where_it_came_from(done: Done) -> None:
    fifo, mine, as_fifo, *otherwise, zero, one = done["runs"]
    assert otherwise == [mine, as_fifo] and done["sieve"] == [{}, {}]  # whatever the case; a built-in is a built-in
    assert fifo[1] == mine[1] == as_fifo[1] and zero[1] != one[1]
    assert mine[0] == "mine + fetch" and len(mine[2]["mine"]) == 64
    assert mine[3] == {"mine": "moe-mine 0.1 (moe_mine:oldest)"} and fifo[3] is None
    assert as_fifo[3] == {"as_fifo": "moe-mine 0.1 (moe_mine:AS_FIFO)"}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gone", "plug-in eviction.gone of moe-mine 0.1 (moe_gone:oldest): ModuleNotFoundError: No module named"),
        ("leaves", "plug-in eviction.leaves of moe-mine 0.1 (moe_leaves:oldest): SystemExit: 3"),
        ("narrow", "plug-in eviction.narrow of moe-mine 0.1 (moe_mine:narrow): takes (view); must take"),
        ("mien", "eviction: 'mien' is unknown; did you mean min"),
        ("wrong-key", "plug-in wrong-key of moe-mine 0.1 (moe_mine:WRONG): dose: unknown key"),
        ("no reader", "error: plug-in gone of moe-mine 0.1 (moe_gone:READER)"),
    ],
)
def test_one_that_is_wrong_is_one_line(done: Done, name: str, why: str) -> None:
    status, _, err, _ = done[name]
    assert status == 2 and err.count("\n") == 1 and why in err


def test_the_list_has_them_all_and_says_what_is_wrong(done: Done) -> None:
    assert done["policies"][0] == 0
    for part in (
        "The earliest to land goes.",
        "plug-in of moe-mine 0.1 (moe_mine:oldest)",
        "lru built in; the plug-in of moe-mine 0.1 (moe_mine:oldest) is not used",
        "Sieve built in; the plug-in of moe-mine 0.1 (moe_mine:oldest) is not used",
        "plug-in eviction.gone of moe-mine 0.1 (moe_gone:oldest): ModuleNotFoundError",
        "plug-in prefetch.table of moe-mine 0.1 (moe_mine:ENGINE): is dict; must be a function, a class or a Policy",
        "plug-in odd of moe-mine 0.1 (moe_mine:oldest): its name must be KIND.NAME",
    ):
        assert part in " ".join(done["policies"][1].split()), part


def test_engines(done: Done) -> None:
    status, listed, *_ = done["engines"]
    assert status == 0 and "as mine does" in listed and "from a file" in listed
    assert "built in; the plug-in of moe-mine 0.1 (moe_mine:ENGINE) is not used" in listed
    assert "BROKEN: plug-in gone of moe-mine 0.1" in listed and "BROKEN: plug-in wrong-key of moe-mine 0.1" in listed
    for name in ("my-engine", "my-file"):
        assert json.loads(done[name][1])["spec"]["miss"] == "cpu"


def test_readers(done: Done) -> None:
    status, out, err, _ = done["convert"]
    assert status == 0 and "read as my-log: a log of mine" in out
    assert "! plug-in gone of moe-mine 0.1 (moe_gone:READER): ModuleNotFoundError" in err
    assert "! plug-in no-reader of moe-mine 0.1 (moe_mine:ENGINE): is dict; must be a traces.foreign" in err
