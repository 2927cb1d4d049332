"""Functions and classes as policies: like the same from a file, by their own names, the last of a name, digests."""

import functools
import hashlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sim
from sim.core.view import DROP
from sim.fit.prediction import Prediction
from sim.memo import Kept
from sim.policies.fingerprint import fingerprint
from sim.policies.in_memory import hold
from sim.prepare import prepare
from sim.spec import RunSpec
from tests.gen import random_trace
from tests.test_run import FIXED
from traces.format import npz

pytestmark = pytest.mark.machine
ROOT = Path(__file__).parent.parent
PLACE = 0


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("in-memory")
    rng = np.random.default_rng(3)
    trace = random_trace(rng, tokens=120, layers=3, experts=8, k=2, requests=6, prompt=0.2, weights=True, logits=True)
    npz.write(folder / "t.npz", trace)
    (folder / "h.toml").write_text(FIXED)
    return {"trace": folder / "t.npz", "hardware": folder / "h.toml", "cache": 4}


def oldest(view, state, params):
    """The earliest to land goes."""
    return view.landed.argmin()


def nth(view, state, params):
    return int(params[0]) % len(view.candidates)


nth.params = {"n": 0}


class Nth:
    """The n-th goes."""

    def __init__(self, n=0):
        self.n = n
        self.twice = 2 * n

    def __call__(self, view, state):
        return int(self.twice - self.n) % len(view.candidates)


class Counts:
    """Answers in turn, by what it has counted in its state."""

    state = 1

    def __call__(self, view, state):
        state[0] += 1
        return int(state[0]) % len(view.candidates)


def counts(view, state, params):
    state[0] += 1
    return int(state[0]) % len(view.candidates)


counts.state = 1


class Rarely:
    """Leaves out what weighs little."""

    needs = ("weights",)

    def __init__(self, below=0.3):
        self.below = below

    def __call__(self, view, state):
        return DROP if view.weight < self.below else -1


class Lighter:
    """The weakest slot counts half."""

    def __call__(self, view, state):
        view.weights[view.weights.argmin()] *= 0.5
        return 0


def again(trace, steps, ahead=1):
    """What the request's last token used."""
    return trace.experts[None], np.stack([steps.previous_rows(trace.sequence)] * ahead)


class Again:
    def __init__(self, ahead=1):
        self.ahead = ahead

    def predict(self, trace, steps):
        return again(trace, steps, self.ahead)


class Busiest:
    """Learned: what the calibration used most."""

    def __init__(self, width=2):
        self.width = width

    def fit(self, calibration):
        uses = [
            np.bincount(layer.ravel(), minlength=calibration.n_experts) for layer in calibration.experts.swapaxes(0, 1)
        ]
        self.lists_ = np.argsort(-np.array(uses), axis=1, kind="stable")[:, : self.width]

    def predict(self, trace, steps):
        return Prediction(self.lists_[None, None].astype(np.int16), np.zeros((1, len(steps.row)), np.int32))


def same(a: sim.Result, b: sim.Result) -> bool:
    """Whether they came to the same, whatever their policies are called."""
    told = ("spec", "policy_files", "policy_from", "notes")
    return {k: v for k, v in a.summary.items() if k not in told} == {
        k: v for k, v in b.summary.items() if k not in told
    }


def differs(a: sim.Result, b: sim.Result) -> bool:
    return a.summary["time_ns"] != b.summary["time_ns"]


# --- like the same from a file, and like built-in ones ---


def test_a_function_is_the_built_in_one_it_imitates_and_itself_from_a_file(common: dict[str, Any]) -> None:
    mine, theirs = (sim.simulate(**common, eviction=name) for name in (oldest, "fifo"))
    from_file = sim.simulate(**common, eviction=f"{__file__}:oldest")
    assert same(mine, theirs) and same(mine, from_file) and mine.spec["eviction"] == "oldest" == mine.name.split()[0]
    assert differs(mine, sim.simulate(**common, eviction="lru"))


def test_it_runs_on_both_machines(common: dict[str, Any]) -> None:
    for policy in (oldest, Counts):
        fast, slow = (sim.simulate(**common, eviction=policy, machine=name) for name in ("compiled", "simpy"))
        assert fast.time_ns == slow.time_ns and fast.by_layer == slow.by_layer


def test_a_class_is_its_function(common: dict[str, Any]) -> None:
    assert same(sim.simulate(**common, eviction=Counts), sim.simulate(**common, eviction=counts))
    for n in (0, 3):
        function = sim.simulate(**common, eviction=nth, set={"nth.n": n})
        of_class = sim.simulate(**common, eviction=Nth, set={"Nth.n": n})
        instance = sim.simulate(**common, eviction=Nth(n))
        from_file = sim.simulate(**common, eviction=f"{__file__}:Nth", set={"Nth.n": n})
        assert same(function, of_class) and same(of_class, instance) and same(instance, from_file)
        assert instance.spec["set"] == ({"Nth.n": n} if n else {})
    assert differs(sim.simulate(**common, eviction=Nth), sim.simulate(**common, eviction=Nth(3)))
    assert sim.simulate(**common, eviction=Nth(3), set={"Nth.n": 0}).spec["set"] == {"Nth.n": 0}


def test_miss_rerank_and_prefetch_may_be_classes(common: dict[str, Any]) -> None:
    dropped = sim.simulate(**common, miss=Rarely)
    assert dropped.dropped > 0 and dropped.lossy and sim.simulate(**common, miss=Rarely(below=0.0)).dropped == 0
    assert sim.simulate(**common, rerank=Lighter).lossy
    function, of_class = sim.simulate(**common, prefetch=again), sim.simulate(**common, prefetch=Again)
    assert same(function, of_class) and same(function, sim.simulate(**common, prefetch="previous-token"))
    two = sim.simulate(**common, prefetch=Again(ahead=2))
    assert same(two, sim.simulate(**common, prefetch="previous-token", set={"previous-token.distance": 2}))
    fitted = sim.simulate(**common, prefetch=Busiest, calibration=0.3)
    assert fitted.prefetched["used"] > 0
    with pytest.raises(sim.UserError, match="Busiest: is fitted and needs --calibration"):
        sim.simulate(**common, prefetch=Busiest)


# --- names ---


def test_it_is_called_by_its_name_everywhere(common: dict[str, Any]) -> None:
    frame = sim.simulate_many(**common, eviction=["lru", oldest, lambda view, state, params: 0, Nth(1)])
    assert list(frame["eviction"]) == ["lru", "oldest", "<lambda>", "Nth"]
    assert list(frame.index) == ["lru", "oldest", "<lambda>", "Nth, Nth.n 1"]
    run = frame["result"].iloc[1]
    assert "eviction oldest" in run.table() and "oldest" in sim.figure(frame).to_json()
    assert "&lt;lambda&gt;" in frame["result"].iloc[2]._repr_html_()


def test_two_of_one_name_in_one_call_are_told_apart(common: dict[str, Any]) -> None:
    def made(n: int) -> Any:
        def place(view: Any, state: Any, params: Any) -> int:
            return n % len(view.candidates)

        return place

    frame = sim.simulate_many(**common, eviction=[made(0), made(3), made(0)])
    assert list(frame.index) == ["place", "place-2"]  # the third is the first
    assert differs(*frame["result"]) and same(frame["result"].iloc[1], sim.simulate(**common, eviction=Nth(3)))
    files = [run.policy_files for run in frame["result"]]
    assert set(files[0]) == {"place"} and set(files[1]) == {"place-2"} and files[0]["place"] != files[1]["place-2"]


def test_the_last_of_a_name_is_the_one_that_runs(common: dict[str, Any]) -> None:
    scope: dict[str, Any] = {}
    runs = []
    for answer in ("0", "len(view.candidates) - 1", "0"):
        exec(f"def typed(view, state, params):\n    return {answer}\n", scope)
        runs.append(sim.simulate(**common, eviction=scope["typed"]))
    assert differs(runs[0], runs[1]) and same(runs[0], runs[2])
    assert runs[0].policy_files == runs[2].policy_files != runs[1].policy_files
    assert runs[0].policy_from == {"typed": "in memory"}


def test_a_memo_tells_two_of_a_name_apart(common: dict[str, Any]) -> None:
    """What a prefetcher says is kept between runs; not for another of its name."""
    memo, spec = Kept(10**9), RunSpec(trace=str(common["trace"]), hardware=str(common["hardware"]), prefetch="listed")
    for width in (1, 2, 1):

        def listed(trace: Any, steps: Any, n: int = width) -> Any:
            return trace.experts[None, :, :, :n], np.stack([steps.previous_rows(trace.sequence)])

        hold("prefetch", listed, ())
        found = prepare(spec, memo).plan.prefetch
        assert found is not None and found.lists.shape[3] == width


def test_what_a_function_uses_from_around_it_counts(common: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def place(view: Any, state: Any, params: Any) -> int:
        return PLACE % len(view.candidates)

    first = sim.simulate(**common, eviction=place)
    monkeypatch.setattr(sys.modules[__name__], "PLACE", 3)
    second = sim.simulate(**common, eviction=place)
    assert differs(first, second) and first.policy_files != second.policy_files


def test_another_process_has_nothing_of_it(common: dict[str, Any]) -> None:
    """Typed at a prompt, where nobody keeps its text: no numba cache of an earlier one is taken for it."""
    script = "import sim\ndef f(view, state, params): return {}\n"
    script += (
        f"print(sim.simulate({str(common['trace'])!r}, hardware={str(common['hardware'])!r}, cache=4, eviction=f).hits)"
    )
    calls = [[sys.executable, "-c", script.format(answer)] for answer in ("0", "len(view.candidates) - 1")]
    hits = [int(subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True).stdout) for call in calls]
    assert hits[0] != hits[1]


def placed(k: int) -> Any:
    def pol(view, state, params):
        return int(params[0]) % len(view.candidates)

    pol.params = {"k": k}
    return pol


def test_what_is_said_beside_a_function_tells_it_from_another(common: dict[str, Any]) -> None:
    """Equal sources, other params, state or needs: each runs as it is, and its digest says so."""
    runs = [sim.simulate(**common, eviction=placed(k)) for k in (0, 3, 0)]
    assert (
        differs(runs[0], runs[1]) and same(runs[0], runs[2]) and same(runs[1], sim.simulate(**common, eviction=Nth(3)))
    )
    assert runs[0].policy_files == runs[2].policy_files != runs[1].policy_files
    changed = placed(0)
    assert same(runs[0], sim.simulate(**common, eviction=changed))
    changed.params = {"k": 3}
    assert same(runs[1], sim.simulate(**common, eviction=changed))
    changed.needs = ("lookahead",)
    with pytest.raises(sim.UserError, match="lookahead"):
        sim.simulate(**common, eviction=changed)
    frame = sim.simulate_many(**common, eviction=[placed(0), placed(3)])
    assert list(frame.index) == ["pol", "pol-2"] and differs(*frame["result"])


def test_one_that_failed_is_tried_anew(common: dict[str, Any]) -> None:
    def late(view, state, params):
        state[0] += 1
        return int(state[0]) % len(view.candidates)

    with pytest.raises(sim.UserError, match="index is out of bounds"):
        sim.simulate(**common, eviction=late)
    late.state = 1  # type: ignore[attr-defined]
    assert same(sim.simulate(**common, eviction=late), sim.simulate(**common, eviction=counts))


def test_the_digest_of_a_class_is_of_what_it_inherits_too() -> None:
    def made(held: int, size: int, default: int) -> Any:
        class Base:
            offset = held

        class Made(Base):
            state = size

            def __init__(self, *, n: int = default) -> None:
                self.n = n + self.offset

            def __call__(self, view: Any, state: Any) -> int:
                return 0

        return Made

    digests = [fingerprint(made(*each)) for each in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0))]
    assert len(set(digests)) == 4 and digests[0] == digests[4]


def test_an_instance_says_what_has_no_default(common: dict[str, Any]) -> None:
    frame = sim.simulate_many(**common, eviction=[NoDefault(0), NoDefault(3)])
    assert list(frame.index) == ["NoDefault, NoDefault.n 0", "NoDefault, NoDefault.n 3"]
    assert [run.spec["set"] for run in frame["result"]] == [{"NoDefault.n": 0}, {"NoDefault.n": 3}]
    assert same(frame["result"].iloc[1], sim.simulate(**common, eviction=Nth(3)))


# --- honest ---


def test_the_digest_is_of_the_source_and_of_what_is_around_it(common: dict[str, Any]) -> None:
    run = sim.simulate(**common, eviction=oldest)
    assert run.policy_files == {"oldest": hashlib.sha256(inspect.getsource(oldest).encode()).hexdigest()}
    assert run.policy_from == {"oldest": f"{__file__}:oldest"}
    assert "policy_from" not in sim.simulate(**common).summary

    def made(n: Any) -> Any:
        return lambda: n

    assert fingerprint(made(1)) == fingerprint(made(1)) != fingerprint(made(2))
    assert fingerprint(made(np.arange(3))) != fingerprint(made(np.arange(4)))
    assert fingerprint(made(object())) == fingerprint(made(object()))  # no address


def test_the_bytecode_does_not_hang_on_who_holds_it() -> None:
    before = fingerprint(compiled := eval("lambda view, state, params: (1.5, 'x')"))
    held = [compiled.__code__.co_consts, *compiled.__code__.co_consts]
    assert fingerprint(compiled) == before and held


# --- refused ---


class Keeps:
    def __init__(self, n=1):
        self.m = n

    def __call__(self, view, state):
        return 0


class Table:
    def __init__(self):
        self.table = np.zeros(3)

    def __call__(self, view, state):
        return 0


class NoDefault:
    def __init__(self, n):
        self.n = n

    def __call__(self, view, state):
        return int(self.n) % len(view.candidates)


class Silent:
    pass


def unknown_field(view, state, params):
    return view.clock


class Asks:
    def helper(self):
        return 0

    def __call__(self, view, state):
        return self.helper()


class Writes:
    def __init__(self, n=0):
        self.n = n

    def __call__(self, view, state):
        self.n += 1
        return 0


class CallsPlain:
    def __call__(self, view, state):
        return plain_helper()


def plain_helper():
    return 0


def calls_plain(view, state, params):
    return plain_helper()


def lru(view, state, params):
    return 0


REFUSED = [
    (max, "eviction: <built-in function max>: must be a policy's name, FILE.py:NAME, a function or a class"),
    (5, "eviction: 5: must be a policy's name"),
    (functools.partial(oldest), "a function or a class; what is fixed goes into its params"),
    (np.argmin, "argmin.*a function or a class; wrap it in a function of your own"),
    (Nth(1).__call__, "a function or a class; give the instance"),
    (functools.partial, "eviction: partial: __init__: no signature"),
    (Asks, "eviction: Asks: __call__: self.helper: self is a tuple of numbers there"),
    (Writes, "eviction: Writes: __call__: self.n = ...: self is a tuple of numbers there"),
    (
        calls_plain,
        "eviction: calls_plain: cannot be compiled: plain_helper is plain Python; decorate it with @numba.njit",
    ),
    (CallsPlain, "plain_helper is plain Python; decorate it with @numba.njit"),
    (lru, "eviction: lru: is the name of a built-in policy; name yours otherwise"),
    (lambda view: 0, r"eviction: <lambda>: takes \(view\); must take \(view, state, params\)"),
    (unknown_field, "eviction: unknown_field: cannot be compiled: Unknown attribute 'clock' of type View"),
    (lambda view, state, params: 0.5, "eviction: <lambda>: returns float64; must return an int on every path"),
    (lambda view, state, params: 99, "eviction: <lambda>: answered 99: is no index into the candidates"),
    (Keeps(2), "eviction: Keeps: __init__: n: is not kept as self.n"),
    (Table, "eviction: Table: self.table is ndarray; must be a number"),
    (NoDefault, "eviction: NoDefault: __init__: n: a parameter needs a name and a default"),
    (Silent, r"eviction: Silent: has no __call__\(self, view, state\)"),
]


@pytest.mark.parametrize(("policy", "message"), REFUSED)
def test_what_is_no_policy_is_one_line(common: dict[str, Any], policy: Any, message: str) -> None:
    with pytest.raises(sim.UserError, match=message) as error:
        sim.simulate(**common, eviction=policy)
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value)


def test_a_prefetcher_that_is_none(common: dict[str, Any]) -> None:
    for policy, message in (
        (Silent, r"Silent: has no predict\(self, trace, steps\)"),
        (lambda trace: 0, r"must take \(trace, steps\)"),
        (lambda trace, steps: 0, r"prefetch: <lambda>: returns int; must return \(lists, row\)"),
        (lambda trace, steps: 1 / 0, "prefetch: <lambda>: raised ZeroDivisionError"),
    ):
        with pytest.raises(sim.UserError, match=message):
            sim.simulate(**common, prefetch=policy)


def test_one_that_cannot_be_compiled_is_a_row_beside_the_others(common: dict[str, Any]) -> None:
    frame = sim.simulate_many(**common, eviction=["lru", unknown_field], errors="keep")
    assert frame["error"].isna().tolist() == [True, False] and "clock" in frame["error"].iloc[1]


def test_a_name_that_nobody_has_any_more(common: dict[str, Any]) -> None:
    with pytest.raises(sim.UserError, match="eviction: 'oldst' is unknown"):
        sim.simulate(**common, eviction="oldst")
