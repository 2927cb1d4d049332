"""A user's own policies: like built-in ones where they say the same; errors that name them."""

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from sim import run
from sim.core.jit import CACHE_DIR
from sim.core.plan import Choice, Plan
from sim.errors import SpecError
from sim.machines import compiled, discrete
from sim.machines.record import RunRecord
from sim.policies.registry import MISS, RERANK, find
from tests.gen import random_trace
from tests.plans import named, plan, random_lossy_plan, random_plan, substitute
from tests.reference import simulate
from tests.test_agreement import difference
from tests.test_run import FIXED
from tests.variants import with_eviction
from traces.errors import UserError
from traces.format import npz

ROOT = Path(__file__).resolve().parent.parent
OWN = ROOT / "tests" / "own_policies.py"
MACHINES = pytest.mark.parametrize("machine", [compiled, discrete], ids=["compiled", "simpy"])
SEEDS = 100


def own(kind: str, name: str, **given: float) -> Choice:
    return find(kind, f"{OWN}:{name}").choice(given)  # type: ignore[no-any-return]


def unlike(a: RunRecord, b: RunRecord, but: tuple[str, ...] = ()) -> list[str]:
    """Where two records differ, but for some columns and counters."""
    left = {f"{name}.{column}": values for name, group in a.groups.items() for column, values in group.items()}
    right = {f"{name}.{column}": values for name, group in b.groups.items() for column, values in group.items()}
    out = [key for key in left if key not in but and left[key].tolist() != right[key].tolist()]
    return out + [key for key in a.counters if not key.startswith(but) and a.counters[key] != b.counters[key]]


# --- like the built-in ones ---


@MACHINES
@pytest.mark.parametrize("name", ["lru", "fifo"])
def test_eviction_like_a_built_in_one(machine: ModuleType, name: str) -> None:
    function = own("eviction", name)
    for seed in range(SEEDS):
        for base in (random_plan(seed), random_lossy_plan(seed)):
            record = machine.run(replace(base, eviction=function), full=True)
            assert difference(simulate(with_eviction(base, name)), record) is None, seed


def lossy(seed: int) -> Plan:
    """A random lossy plan without gates whose weights fall from slot to slot, as Algorithm 1 goes."""
    base = random_lossy_plan(seed)
    weights = np.broadcast_to(0.5 ** np.arange(1, base.experts.shape[2] + 1), base.experts.shape)
    return replace(base, rerank=None, tau=np.zeros(0), weights=weights.astype(np.float32))


@MACHINES
@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("drop", named(MISS["drop"], ())),
        ("cpu", named(MISS["cpu"], ())),
        ("ranked", substitute("next-ranked", selector=2)),
    ],
)
def test_miss_like_a_built_in_one(machine: ModuleType, name: str, like: Choice) -> None:
    function, answered = own("miss", name), 0
    for seed in range(SEEDS):
        base = lossy(seed)
        mine = machine.run(replace(base, miss=function), full=True)
        theirs = machine.run(replace(base, miss=like), full=True)
        # a built-in substitution also says why nobody stood in
        assert unlike(mine, theirs, ("answers.gate", "stopped_")) == [], seed
        answered += mine.counters["slots_wanted"] - mine.counters["slots_hit"] - mine.counters["fetched"]
    assert answered > 100


@MACHINES
def test_reranking_like_a_built_in_one(machine: ModuleType) -> None:
    function, like = own("rerank", "adapmoe"), Choice("adapmoe", RERANK["adapmoe"].kind, np.array([0.04]))
    left_out = 0
    for seed in range(SEEDS):
        base = random_lossy_plan(seed)
        mine = machine.run(replace(base, rerank=function), full=True)
        assert unlike(mine, machine.run(replace(base, rerank=like), full=True)) == [], seed
        left_out += mine.counters["wanted_before"] - sum(mine.layer[name].sum() for name in ("hits", "late", "misses"))
    assert left_out > 100


def test_prefetch_like_a_built_in_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    several = ["--batch", 4, "--as-decode", "--cache", 2]  # what the last token used is not always resident
    mine = call(capsys, folder, *several, "--prefetch", f"{OWN}:again", "--set", "again.ahead=2")
    like = ["--prefetch", "previous-token", "--set", "previous-token.distance=2"]
    theirs = call(capsys, folder, *several, *like)
    assert mine["transfers"]["withdrawn"] + mine["transfers"]["promoted"] > 0
    for out in (mine, theirs):
        del out["spec"], out["policy_files"]
    assert mine == theirs


# --- what a function sees and keeps ---


@MACHINES
def test_state_is_kept_within_a_run_and_empty_at_its_begin(machine: ModuleType) -> None:
    wanted = [[[2, 3]], [[2, 3]], [[2, 3]]]  # two slots hold 0 and 1 at first
    base = plan(wanted, 4, [2], miss="drop", miss_params=())
    for _ in range(2):
        record = machine.run(replace(base, miss=own("miss", "every_other")), full=True)
        # 2 is dropped and 3 fetched (0 goes); then 2 is dropped again
        assert record.groups["answers"]["answer"].tolist() == [2, 0, 2, 0][: len(record.groups["answers"]["answer"])]
        assert record.groups["answers"]["wanted"].tolist()[:3] == [2, 3, 2]
    third = machine.run(replace(base, miss=own("miss", "every_other", of=3)), full=True)
    assert third.groups["answers"]["answer"].tolist()[:2] == [2, 0]


@MACHINES
def test_what_a_miss_function_sees(machine: ModuleType) -> None:
    """The function raises on a contradiction; the durations are those of the plan below."""
    for seed in range(SEEDS):
        base = random_lossy_plan(seed)
        rows = int(np.diff(base.step_offset).max())
        costs = plan([[[0]]], 1, 1, [[0]], per_token=2, transfer=(100, 90)).costs
        tokens = np.arange(rows + 1)
        steps, layers = len(base.step_prefill), base.experts.shape[1]
        costs = replace(
            costs,
            dense_ns=np.full((1, layers + 1), 10),
            cost_class=np.zeros(steps, np.int32),
            expert_ns=5 + 2 * tokens,
            cpu_expert_ns=np.array([7 + tokens, 9 + 2 * tokens]),
        )
        machine.run(replace(base, miss=own("miss", "watchful"), costs=costs, rerank=None), full=True)


@MACHINES
def test_what_an_eviction_function_sees(machine: ModuleType) -> None:
    evictions = 0
    for seed in range(SEEDS):
        record = machine.run(replace(random_plan(seed), eviction=own("eviction", "newest_first")))
        evictions += record.counters["evictions"]
    assert evictions > 100


# --- errors ---


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("miss", "two_arguments", "takes (view, state); must take (view, state, params)"),
        ("miss", "unknown_field", "cannot be compiled: Unknown attribute 'clock' of type View"),
        ("miss", "fraction", "returns float64; must return an int"),
        ("miss", "sometimes", "returns OptionalType(int64); must return an int on every path"),
        ("eviction", "text", "returns unicode_type; must return an int"),
        ("miss", "nowhere", "function: 'nowhere' is unknown"),
        ("miss", "a_number", "function: 'a_number' is unknown"),
        ("rerank", "bad_params", "params: {'reach': 'far'}: must be a dict of names and numbers"),
        ("miss", "bad_state", "state: -1: must be a whole number"),
        ("miss", "taken", "params: late: every miss policy has this one"),
        ("miss", "bad_needs", "needs: 'logit' is unknown; did you mean logits?"),
        (
            "prefetch",
            "lru",
            "takes (view, state, params); must take (trace, steps) and then parameters with defaults",
        ),
    ],
)
def test_a_function_that_cannot_be_used(kind: str, name: str, says: str) -> None:
    with pytest.raises(SpecError) as found:
        find(kind, f"{OWN}:{name}")
    message = str(found.value)
    assert message.startswith(f"{kind}: {OWN}:{name}: ") and says in message
    assert "\n" not in message and len(message) < 400 + 2 * len(str(OWN)), message


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def f(view, state, params:\n", "does not load: SyntaxError"),
        ("import no_such_module\n", "does not load: ModuleNotFoundError: No module named 'no_such_module'"),
        (None, "No such file or directory"),
    ],
)
def test_a_file_that_does_not_load(
    folder: Path, capsys: pytest.CaptureFixture[str], source: str | None, says: str
) -> None:
    if source is not None:
        (folder / "mine.py").write_text(source)
    status = run.main([*flags(folder), "--miss", f"{folder}/mine.py:f"])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    *compiling, line = err.splitlines()
    assert all(other.startswith("compiling the machine") for other in compiling)
    assert line.startswith(f"error: miss: {folder}/mine.py:f: ") and says in line


@MACHINES
@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("eviction", "past_the_end", "answered 2: is no index into the candidates (at step 0, layer 0)"),
        (
            "miss",
            "not_resident",
            "answered 2: that expert is not resident (at step 0, layer 0, token 0, slot 0)",
        ),
        ("miss", "no_expert", "answered 4: the layer has no such expert"),
        ("miss", "no_code", "answered -4: must be an expert, or FETCH -1, DROP -2, CPU -3"),
        ("miss", "beyond", "raised IndexError"),
        ("miss", "raises", "raised ValueError: out of ideas (at step 0, layer 0, token 0, slot 0)"),
        ("rerank", "twice", "wrote expert 0 into ids twice (at step 0, layer 0, token 0)"),
        ("rerank", "unknown_expert", "wrote 4 into ids: the layer has no such expert"),
        ("rerank", "no_weight", "wrote a weight that is negative or no number, beside expert 2"),
    ],
)
def test_a_wrong_answer_names_the_function(machine: ModuleType, kind: str, name: str, says: str) -> None:
    base = plan([[[2, 3]]], 4, [2], weights=np.ones((1, 1, 2), np.float32))
    changed: dict[str, Any] = {kind: own(kind, name)}
    with pytest.raises(UserError) as found:
        machine.run(replace(base, **changed))
    assert str(found.value).startswith(f"{kind}: {OWN}:{name}: ") and says in str(found.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("three_axes", "lists: shape is (40, 3, 2); must be (1 or 1, rows, 3 layers, entries)"),
        ("too_high", "lists: 8 .. 15; must lie in -1 .. 7"),
        ("too_many_ahead", "row: shape is (4, 40); must be (distances 1 .. 3, 40 rows)"),
        ("fractions", "lists: dtype is float64; must be a whole-number type"),
        ("nothing", "returns NoneType; must return (lists, row)"),
        ("fails", "raised AttributeError: 'RoutingTrace' object has no attribute 'no_such_array'"),
    ],
)
def test_a_prediction_that_is_no_use(folder: Path, name: str, says: str) -> None:
    trace = npz.read(folder / "t.npz")
    from sim.steps import schedule

    with pytest.raises(SpecError) as found:
        find("prefetch", f"{OWN}:{name}").predictor({}).predict(trace, schedule(trace))
    assert str(found.value) == f"prefetch: {OWN}:{name}: {says}"


def test_a_parameter_that_it_does_not_have(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, setting in (("miss", "every_other.often=3"), ("prefetch", "again.often=3")):
        assert run.main([*flags(folder), f"--{kind}", f"{OWN}:{setting.split('.')[0]}", "--set", setting]) == 2
        assert "'often' is unknown" in capsys.readouterr().err


def test_cpu_answers_that_the_hardware_has_no_durations_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "h.toml").write_text(FIXED.replace("cpu_expert_ns = 7\n", ""))
    assert run.main([*flags(folder), "--miss", f"{OWN}:cpu"]) == 2
    assert "answered CPU: the hardware has no durations for it" in capsys.readouterr().err
    assert run.main([*flags(folder), "--miss", f"{OWN}:drop", "--json"]) == 0


# --- the command line ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    trace = random_trace(rng, tokens=40, layers=3, experts=8, k=2, requests=4, weights=True, logits=True)
    npz.write(tmp_path / "t.npz", trace)
    (tmp_path / "h.toml").write_text(FIXED)
    return tmp_path


def flags(folder: Path) -> list[str]:
    return ["--trace", f"{folder}/t.npz", "--hardware", f"{folder}/h.toml", "--cache", "3"]


def call(capsys: pytest.CaptureFixture[str], folder: Path, *args: Any) -> dict[str, Any]:
    assert run.main([*flags(folder), *map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_the_summary_says_which_file_it_was(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{OWN}:every_other"
    out = call(capsys, folder, "--miss", name, "--set", "every_other.of=3", "--set", "every_other.prefill=1")
    assert out["spec"]["miss"] == name
    assert out["policy_files"] == {name: hashlib.sha256(OWN.read_bytes()).hexdigest()}
    # one of three misses is dropped, from the first on
    assert out["dropped"] == -(-(out["dropped"] + out["fetched"]) // 3)
    slow = call(
        capsys,
        folder,
        "--miss",
        name,
        "--set",
        "every_other.of=3",
        "--set",
        "every_other.prefill=1",
        "--machine",
        "simpy",
    )
    assert {**slow, "machine": "compiled"} == out


def test_an_oracle_is_called_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = "def seer(trace, steps):\n    return trace.experts[None], np.arange(trace.n_tokens)[None]\n"
    (folder / "mine.py").write_text(f"import numpy as np\n{source}seer.oracle = True\n")
    notes = call(capsys, folder, "--prefetch", folder / "mine.py:seer")["notes"]
    assert any(note.startswith("ORACLE") and "mine.py:seer" in note for note in notes)
    assert not any(note.startswith("ORACLE") for note in call(capsys, folder)["notes"])


def test_the_second_start_loads_everything_from_the_cache(folder: Path, tmp_path: Path) -> None:
    (folder / "mine.py").write_text("def f(view, state, params):\n    return -1 - view.slot % 2\n")
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "0"}
    command = [sys.executable, "-m", "sim.run", *flags(folder), "--miss", f"{folder}/mine.py:f", "--json"]
    outputs, compiled_files = [], []
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
        compiled_files.append({(path, path.stat().st_mtime_ns) for path in CACHE_DIR.rglob("mine.*.nbc")})
    assert outputs[0] == outputs[1]
    assert compiled_files[0] == compiled_files[1] != set()


PLAIN = """
from dataclasses import replace
import pytest

from sim.core.jit import CACHE_DIR
from sim.machines import compiled, discrete
from tests.plans import plan, random_plan
from tests.test_user_policies import SEEDS, difference, own, simulate, with_eviction
from traces.errors import UserError

for seed in range(40):
    base = random_plan(seed)
    record = compiled.run(replace(base, eviction=own("eviction", "lru")), full=True)
    assert difference(simulate(with_eviction(base, "lru")), record) is None
for name, says in (("beyond", "IndexError"), ("fraction", "returns float"), ("not_resident", "not resident")):
    with pytest.raises(UserError, match=says):
        discrete.run(replace(plan([[[2, 3]]], 4, [2]), miss=own("miss", name)))
print("agreed")
"""


def test_it_runs_as_plain_python_too() -> None:
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-W", "error", "-c", PLAIN]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "agreed\n"


# --- the page that says how ---


def test_the_examples_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "policies.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    commands = re.findall(r"^    python -m sim\.run (.*)$", page, re.MULTILINE)
    assert len(examples) == len(commands) == 5
    (tmp_path / "my_policy.py").write_text("\n\n".join(examples))
    monkeypatch.chdir(tmp_path)
    plainly = run_json(capsys, "--trace mixtral.npz --max-steps 100")
    for command in commands:
        out = run_json(capsys, command)
        assert len(out["policy_files"]) == 1
        assert out["time_ns"] != plainly["time_ns"]


def run_json(capsys: pytest.CaptureFixture[str], command: str) -> dict[str, Any]:
    assert run.main([*shlex.split(command), "--json"]) == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]
