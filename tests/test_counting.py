"""Counting as others do: requests that begin as the first one did, some requests of a trace, a share of the steps."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.core.user_code import compile_hook
from sim.core.plan import FORGETS_REQUESTS, FORGETS_ROWS, Choice, Prefetch
from sim.core.worth import USER
from sim.errors import SpecError
from sim.machines import compiled, discrete
from sim.prepare import prepare
from sim.run import main
from sim.spec import RunSpec
from sim.steps import Steps, leaving, resets, schedule
from tests.captures import FOLDER as CAPTURES
from tests.gen import random_trace
from tests.plans import plan
from tests.runs_by_hand import FIXED
from traces.__main__ import main as traces
from traces.errors import TraceError
from traces.format import npz

MACHINES = (compiled, discrete)


def begun_again(wanted: Any, at: list[int], **given: Any) -> Any:
    """A plan of steps of one token, in which requests begin at some of them."""
    made = plan(wanted, 3, [2], dense=10, expert=5, transfer=100, **given)
    return replace(made, resets=np.isin(np.arange(len(wanted)), at))


# --- reset, by hand


@pytest.mark.parametrize("machine", MACHINES)
def test_a_request_finds_the_first_residents(machine: Any) -> None:
    """Residents 0, 1. Step 0 wants 2: routed at 10, lands at 110 in the place of 0, runs until 115. Step 1 wants 0, the
    one that went: there again, so it is routed at 125 and has run at 130; without the reset it would last until 230."""
    record = machine.run(begun_again([[[2]], [[0]]], [1]))
    assert record.steps["end_ns"].tolist() == [115, 130]
    assert (record.counters["fetched"], record.counters["slots_hit"], record.counters["evictions"]) == (1, 1, 1)
    assert machine.run(begun_again([[[2]], [[0]]], [])).steps["end_ns"].tolist() == [115, 230]


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_under_way_ends_unfinished_and_the_link_is_idle(machine: Any) -> None:
    """Step 0 wants 0, a hit, and the list of step 1 says 2: on the link from 10 on, in the place of 1. The step ends at
    15, so the link moved data for 5. Step 1 wants 2: routed at 25 it is a miss and not late, committed at once in the
    place of 0 (the older touch at time 0), lands at 125 and has run at 130: the link moved data for 5 + 100."""
    lists = Prefetch(np.array([[[[-1]], [[2]]]], np.int16), np.array([[0, 1]], np.int32))
    made = begun_again([[[0]], [[2]]], [1], prefetch=lists)
    record = machine.run(made, full=True)
    assert record.steps["end_ns"].tolist() == [15, 130]
    sent = record.groups["transfers"]
    assert sent["outcome"].tolist() == [3, 0] and sent["victim"].tolist() == [1, 0]
    assert (sent["started_ns"].tolist(), sent["landed_ns"].tolist()) == ([10, 25], [-1, 125])
    counted = record.counters
    assert (counted["link_busy_ns"], counted["unfinished"], counted["evictions"]) == (105, 1, 2)
    assert (counted["prefetch_late"], counted["prefetch_used"], counted["prefetch_wasted"]) == (0, 0, 0)
    alone = machine.run(replace(made, resets=None))  # late: lands at 110 and has run at 115
    assert alone.steps["end_ns"].tolist() == [15, 115] and alone.counters["unfinished"] == 0


@pytest.mark.parametrize("machine", MACHINES)
def test_at_the_end_of_a_warm_up_a_reset_counts(machine: Any) -> None:
    """The same with step 0 as the warm-up: counting begins before the reset, at 15, so the transfer under way is
    counted as unfinished, and none of its time."""
    lists = Prefetch(np.array([[[[-1]], [[2]]]], np.int16), np.array([[0, 1]], np.int32))
    made = replace(begun_again([[[0]], [[2]]], [1], prefetch=lists), warmup_steps=1)
    counted = machine.run(made).counters
    assert (counted["link_busy_ns"], counted["unfinished"], counted["evictions"]) == (100, 1, 1)


@pytest.mark.parametrize("machine", MACHINES)
def test_uses_are_forgotten(machine: Any) -> None:
    """lfu with residents 0, 1: 1 is used in steps 0 and 1. Step 2 wants 2; of two equals the older touch goes. As at
    time 0 that is 0, touched first; with the uses of steps before the reset, it is 0 as well, so step 3 uses 1 no more:
    0 is used in step 2, and then 1 goes for 2, though it has been used twice in all."""
    wanted = [[[1]], [[1]], [[0]], [[2]]]
    record = machine.run(begun_again(wanted, [2], eviction="lfu"), full=True)
    assert record.groups["transfers"]["victim"].tolist() == [1]
    assert machine.run(begun_again(wanted, [], eviction="lfu"), full=True).groups["transfers"]["victim"].tolist() == [0]


@pytest.mark.parametrize("machine", MACHINES)
def test_the_future_is_what_it_was(machine: Any) -> None:
    """belady with residents 0, 1; 0 is wanted in steps 0 and 2, 1 in step 3. At the reset, step 1, both are there and 2
    is wanted: 1 goes, so step 2 hits and step 3 does not. If nobody's next use were known, 0 would go, the older touch.
    """
    record = machine.run(begun_again([[[0]], [[2]], [[0]], [[1]]], [1], eviction="belady"), full=True)
    assert record.groups["transfers"]["victim"].tolist()[0] == 1
    assert record.groups["visits"]["hits"].tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("machine", MACHINES)
def test_a_users_own_state_is_zero_again(machine: Any) -> None:
    """A user's eviction takes candidate number 0 at first and 1 ever after, as its state says. Without the reset the
    second request would begin with candidate 1."""
    hook = compile_hook(alternating, 1)
    made = begun_again([[[2]], [[0]], [[2]]], [2])
    own = Choice("alternating", USER, np.zeros(0), hook)
    record = machine.run(replace(made, eviction=own), full=True)
    assert record.groups["transfers"]["victim"].tolist() == [0, 1, 0]


def alternating(view: Any, state: Any, params: Any) -> int:
    """0, then 1."""
    state[0] += 1
    return 0 if state[0] == 1 else 1


# --- which steps


def steps_of(rows: str, batch: int, **more: Any) -> Steps:
    """Requests as words, p a prompt row and d a generated one: `ppd d`."""
    trace = random_trace(np.random.default_rng(0), tokens=len(rows.replace(" ", "")), requests=1, prompt=0.0)
    words = rows.split()
    sequence = np.repeat(np.arange(len(words)), [len(word) for word in words]).astype(np.int32)
    prefill = np.array([letter == "p" for letter in "".join(words)])
    return schedule(replace(trace, sequence=sequence, prefill=prefill), batch, **more)


@pytest.mark.parametrize(
    ("rows", "batch", "fresh"),
    [
        ("ppd pd d", 1, [1, 0, 1, 0, 1]),  # one after another
        ("pd pd", 2, [1, 0, 0]),  # both at once: the prompt of the second is none of its own
        ("d ddd pd", 2, [1, 0, 0, 0]),  # the third joins the second
        ("dd dd d", 2, [1, 0, 1]),  # the third comes when both have ended
        ("p p d", 2, [1, 0, 1]),  # prompts without an answer have left when they are done
    ],
)
def test_first_steps_of_requests_that_are_served_alone(rows: str, batch: int, fresh: list[int]) -> None:
    assert steps_of(rows, batch).fresh.astype(int).tolist() == fresh


def test_resets_are_at_each_admission_but_the_first() -> None:
    found = resets("request", steps_of("ppd pd d", 1))
    assert found is not None and found.astype(int).tolist() == [0, 0, 1, 0, 1]
    assert resets("none", steps_of("ppd pd d", 1)) is None


def test_what_looks_back_forgets_nothing_of_before_a_reset() -> None:
    """Five steps of one row, a reset at step 3. A window of two: row 0 leaves at step 2 and, without the reset, rows 1
    and 2 at steps 3 and 4. Requests: none leaves, for the reset has forgotten it."""
    steps = steps_of("ddd dd", 1)
    again = resets("request", steps)
    sequence = np.array([0, 0, 0, 1, 1], np.int32)
    window = Choice("window", 0, np.array([2.0]), marks=FORGETS_ROWS)
    found = leaving(steps, window, sequence, again)
    assert found is not None and (found.offset.tolist(), found.row.tolist()) == ([0, 0, 0, 1, 1, 1], [0])
    plain = leaving(steps, window, sequence)
    assert plain is not None and (plain.offset.tolist(), plain.row.tolist()) == ([0, 0, 0, 1, 2, 3], [0, 1, 2])
    requests = leaving(steps, Choice("requests", 0, marks=FORGETS_REQUESTS), sequence, again)
    assert requests is not None and requests.offset.tolist() == [0] * 6


def test_without_prompts_the_others_are_run_and_nobody_without_one() -> None:
    """Rows 0 .. 6; prompts are 0, 1, 3 and 6, the third request has nothing else."""
    steps = steps_of("ppd pdd p", 2, skip_prompts=True)
    assert (steps.offset.tolist(), steps.row.tolist()) == ([0, 2, 3], [2, 4, 5])
    assert not steps.prefill.any()
    assert steps.requests.tolist() == [[0, 0, -1, 0, 1], [1, 0, -1, 0, 2]]
    with pytest.raises(SpecError, match="skip_prompts: the trace has no generated tokens"):
        steps_of("p pp", 1, skip_prompts=True)


# --- which requests, how many steps


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trace of five requests, and hardware of fixed durations, in the current folder."""
    monkeypatch.chdir(tmp_path)
    trace = random_trace(np.random.default_rng(5), tokens=40, requests=5, prompt=0.4, layers=3, experts=8, k=2)
    npz.write("t.npz", trace)
    Path("h.toml").write_text(FIXED)
    return tmp_path


def prepared(**fields: Any) -> Any:
    return prepare(RunSpec.of({"trace": "t.npz", "hardware": "h.toml", **fields}))


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [("0", [0]), ("3,0", [3, 0]), ("1:", [1, 2, 3, 4]), (":-3", [0, 1]), ("1:3", [1, 2]), (":", [0, 1, 2, 3, 4])],
)
def test_some_requests_of_a_trace(folder: Path, asked: str, chosen: list[int]) -> None:
    """They alone are there, in the order asked for: as if the trace had no others."""
    whole, setting = npz.read(Path("t.npz")), prepared(requests=asked)
    first, last = whole.requests()
    rows = np.concatenate([np.arange(first[i], last[i]) for i in chosen])
    assert np.array_equal(setting.trace.experts, whole.experts[rows])
    npz.write("some.npz", whole.select(rows))
    alone = prepared(trace="some.npz")
    assert np.array_equal(setting.plan.step_offset, alone.plan.step_offset)
    assert np.array_equal(setting.plan.experts, alone.plan.experts)


def test_a_fraction_is_set_aside_of_what_is_there(folder: Path) -> None:
    setting = prepared(requests="1:4", calibration=0.4)
    aside = setting.calibration
    assert (len(aside.requests()[0]), len(setting.trace.requests()[0])) == (1, 2)
    assert set(aside.sequence.tolist()) | set(setting.trace.sequence.tolist()) == {1, 2, 3}


@pytest.mark.parametrize(("share", "steps", "warm"), [(0.29, 100, 29), (0.5, 5, 2), (0.999, 10, 9), (0.001, 10, 0)])
def test_a_share_of_the_steps_warms_up(folder: Path, share: float, steps: int, warm: int) -> None:
    """The whole ones of the decimal that was written: 0.29 x 100 is 29, which in binary is less."""
    npz.write("long.npz", random_trace(np.random.default_rng(1), tokens=steps, requests=1, prompt=0.0))
    assert prepared(trace="long.npz", warmup_share=share).plan.warmup_steps == warm


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--reset request --batch 2", "reset: request: with --batch 2 requests share the cache; must be --batch 1"),
        ("--requests 5", "requests: 5: no request 5; the trace has 5, from 0 (t.npz)"),
        ("--requests 2:2", "requests: 2:2: chooses none; the trace has 5, from 0 (t.npz)"),
        ("--requests 1,1", "requests: 1,1: names a request twice (t.npz)"),
        ("--requests one", "must be A:B, ordinals from 0 (0,3,5) or KEY=VALUE of a group"),
        ("--skip-prompts --as-decode", "skip_prompts: with --as-decode prompt rows are run; give one of the two"),
        ("--requests domain=code", "requests: domain=code: no group domain; the trace has none (t.npz)"),
        ("--warmup-share 1", "warmup_share: 1.0: must be below 1"),
        ("--warmup-share 0.2 --warmup-steps 3", "warmup_share: 0.2: says what --warmup-steps does, too"),
    ],
)
def test_what_cannot_be_is_one_line(folder: Path, flags: str, said: str, capsys: Any) -> None:
    status = main(["--trace", "t.npz", "--hardware", "h.toml", *flags.split()])
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1) and said in err


def test_a_reset_run_is_its_requests_one_by_one(folder: Path, capsys: Any) -> None:
    """The figures of five runs of one request each, added up: what happens to each is what would happen to it alone."""
    command = ["--trace", "t.npz", "--hardware", "h.toml", "--cache", "3", "--prefetch", "oracle", "--json"]
    assert main([*command, "--reset", "request"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert set(whole["bounds"]) == {"executed_gpu_ns", "executed_link_ns", "executed_ns"}
    parts = []
    for request in range(5):
        assert main([*command, "--requests", str(request)]) == 0
        parts.append(json.loads(capsys.readouterr().out))
    for name in ("hits", "misses", "tokens", "steps"):
        assert whole[name] == sum(part[name] for part in parts), name


# --- groups


def grouped(folder: Path, words: Any) -> None:
    trace = npz.read(folder / "t.npz")
    npz.write(folder / "t.npz", replace(trace, meta=trace.meta | {"groups": words}))


DOMAINS = {"domain": ["code", "prose", "code", "prose", "code"], "text": ["a", "b", "c", "d", "e"]}


def test_a_group_of_requests(folder: Path) -> None:
    """Its requests run, the others are not there; those that are set aside keep their words."""
    grouped(folder, DOMAINS)
    setting = prepared(requests="domain=code", calibration=0.4)
    every = {**setting.trace.meta["groups"]}
    every["text"] = sorted(every["text"] + setting.calibration.meta["groups"]["text"])
    assert every == {"domain": ["code", "code"], "text": ["a", "c", "e"]}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["code"], "meta.groups is ['code']; lists by key are required"),
        ({"domain": "code"}, "meta.groups.domain is 'code'; a list of words, one a request, is required"),
        ({"domain": ["code"] * 4 + [1]}, "a list of words, one a request, is required"),
        ({"domain": ["code"] * 4}, "meta.groups.domain has 4 words; the trace has 5 requests"),
        ({"a=b": ["code"] * 5}, "meta.groups has the key 'a=b'; a word without = is required"),
    ],
)
def test_groups_that_cannot_be(folder: Path, words: Any, said: str) -> None:
    with pytest.raises(TraceError) as refused:
        grouped(folder, words)
    assert str(refused.value).endswith(said)


def test_a_file_for_each_group(folder: Path, capsys: Any) -> None:
    grouped(folder, DOMAINS)
    assert traces(["split", "t.npz", "--by", "domain", "--out", "parts"]) == 0
    whole, code, prose = (npz.read(Path(name)) for name in ("t.npz", "parts/t-code.npz", "parts/t-prose.npz"))
    first, last = whole.requests()
    for part, chosen, word in ((code, [0, 2, 4], "code"), (prose, [1, 3], "prose")):
        rows = np.concatenate([np.arange(first[i], last[i]) for i in chosen])
        assert np.array_equal(part.experts, whole.experts[rows]) and np.array_equal(part.weights, whole.weights[rows])
        assert part.meta["part"] == {"by": "domain", "is": word, "requests": chosen}
        assert part.meta["groups"] == {key: [of[i] for i in chosen] for key, of in DOMAINS.items()}
    assert "t-code.npz: 3 requests" in capsys.readouterr().out
    assert traces(["split", "t.npz", "--by", "request", "--out", "each"]) == 0
    assert sorted(path.name for path in Path("each").iterdir()) == [f"t-{i}.npz" for i in range(5)]
    assert traces(["info", "t.npz"]) == 0
    assert "domain             code 3, prose 2 requests" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--by task --out parts", "no group task; must be one of domain, text"),
        ("--by domain --out parts a.npz", "a.npz: unknown argument"),
        ("--by domain --fraction 0.5 --out parts", "--fraction: not allowed with argument --by"),
        ("--by domain --out nowhere/parts", "--out: nowhere/parts: must be a folder, or a new one in a folder"),
        ("--by same --out parts", "two values make the name t-a-b.npz; they must differ in letters"),
        ("--fraction 0.5 --out parts a.npz b.npz", "--out: parts: goes with --by; --fraction writes OUT_A and OUT_B"),
    ],
)
def test_a_split_that_cannot_be_writes_nothing(folder: Path, flags: str, said: str, capsys: Any) -> None:
    grouped(folder, DOMAINS | ({"same": ["a b", "a/b", "a b", "a b", "a b"]} if "same" in flags else {}))
    there = sorted(folder.iterdir())
    assert traces(["split", "t.npz", *flags.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err
    assert sorted(folder.iterdir()) == there


# --- published counts of one capture

GRANITE = {"prose": "0", "code": "1", "math": "2"}
PAGED_IN = [  # shared/traces/README.md: prompt, slots of one pool, misses of the oracle, of LRU
    ("prose", 77, 8395, 12288), ("prose", 192, 4547, 6590), ("prose", 384, 1978, 4459), ("code", 192, 4724, 7949),
    ("code", 384, 1367, 3221), ("math", 192, 4876, 6886), ("math", 384, 2107, 4800),
]  # fmt: skip


def paged_in(prompt: str, slots: int, **more: Any) -> int:
    """Experts fetched for the generated tokens of a prompt: one pool, empty at first, a layer's own experts protected
    until all of them have run."""
    spec = RunSpec.of({
        "trace": str(CAPTURES / "granite-3.0-1b.npz"), "requests": GRANITE[prompt], "skip_prompts": True,
        "cache": slots, "cache_scope": "global", "placement": "empty", "expert_group": "all", **more,
    })  # fmt: skip
    record = compiled.run(prepare(spec).plan)
    assert record.counters["slots_wanted"] == 12_288
    return int(record.counters["fetched"])


captured = pytest.mark.skipif(not CAPTURES.is_dir(), reason="no captures in ../shared/traces")


@captured
@pytest.mark.parametrize(("prompt", "slots", "oracle", "lru"), PAGED_IN)
def test_published_page_ins(prompt: str, slots: int, oracle: int, lru: int) -> None:
    """LRU with experts of a visit touched in the router's order."""
    assert paged_in(prompt, slots, eviction="belady") == oracle
    assert paged_in(prompt, slots, set={"lru.touches": "listed"}) == lru


@captured
def test_published_page_ins_one_prompt_after_another() -> None:
    """With --reset request a run of all prompts is the sum of the three: 192 slots, 4,547 + 4,724 + 4,876."""
    spec = RunSpec.of({
        "trace": str(CAPTURES / "granite-3.0-1b.npz"), "skip_prompts": True, "cache": 192, "cache_scope": "global",
        "placement": "empty", "expert_group": "all", "eviction": "belady", "reset": "request",
    })  # fmt: skip
    assert compiled.run(prepare(spec).plan).counters["fetched"] == 14_147
