import marimo

__generated_with = "0.25.2"
app = marimo.App(app_title="Check the simulator on your machine")

with app.setup:
    import tempfile
    import time
    from dataclasses import replace
    from pathlib import Path

    import marimo as mo
    import numpy as np

    import sim
    from analysis.curves.curve import curve, setting_of, simulated
    from analysis.pages import tables
    from analysis.pages.figures import bounds
    from analysis.pages.notebook import shown, trace_asked
    from sim.machines import compiled, discrete
    from sim.prepare import prepare
    from sim.spec import RunSpec
    from traces.format import npz
    from traces.format.trace import RoutingTrace


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    # Check the simulator on your machine

    Does the simulator compute what it says? What you can check yourself in a few seconds, without trusting any test of
    ours, from small to large. Every check stops the notebook where it fails. The last section says what only your
    GPU can tell.
    """)
    return


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    ## 1. A case small enough for paper

    One layer, three experts, two slots that hold experts 0 and 1. Dense part 10 ns, an expert 5, a transfer 100, all
    else 0. Three tokens want expert 0, then 2, then 1; LRU evicts.

    | token | what happens | until |
    |---|---|---|
    | 0 | dense to 10, expert 0 is there, runs to 15 | 15 |
    | 1 | dense to 25, expert 2 is missing: 1 goes (0 was used at 15), lands at 125, runs | 130 |
    | 2 | dense to 140, expert 1 is missing again: 0 goes, lands at 240, runs | 245 |

    So: 245 ns, of which the GPU stalls 200; one hit, two misses. What does the simulator say?
    """)
    return


@app.cell
def _():
    folder = Path(tempfile.mkdtemp())
    durations = {"dense_ns": 10, "expert_ns": 5, "transfer_ns": 100, "decide_ns": 0}
    (folder / "paper.toml").write_text("[fixed]\n" + "\n".join(f"{name} = {ns}" for name, ns in durations.items()))
    facts = {
        "format_version": 1,
        "model": "paper",
        "n_experts": 3,
        "top_k": 1,
        "n_layers": 1,
        "moe_layers": [0],
        "real": False,
    }
    three = RoutingTrace(
        experts=np.array([[[0]], [[2]], [[1]]], np.int16),
        sequence=np.zeros(3, np.int32),
        position=np.arange(3, dtype=np.int32),
        prefill=np.zeros(3, bool),
        meta=facts,
    )
    npz.write(folder / "paper.npz", three)
    paper = {"trace": str(folder / "paper.npz"), "hardware": str(folder / "paper.toml")}
    said = sim.simulate(cache=2, **paper).summary

    assert said["time_ns"] == 245 and said["breakdown_ns"]["stall"] == 200
    assert (said["hits"], said["misses"], said["evictions"]) == (1, 2, 2)
    stall = said["breakdown_ns"]["stall"]
    mo.md(f"It says {said['time_ns']} ns, stall {stall}, hits {said['hits']}, misses {said['misses']}. ✓")
    return (paper,)


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    ## 2. Two machines, one answer

    The compiled machine is fast and hard to read. The simpy machine is the same run as processes and events, slow and
    plain (`sim/machines/discrete.py`). They must agree to the nanosecond: every visit, execution and transfer, not just
    the totals. **Look at** the last two columns, too: what the compiled machine is for.
    """)
    return


@app.cell
def _():
    TRACE = trace_asked("mixtral.npz")  # or a file of yours: --trace FILE, or its name here
    return (TRACE,)


@app.cell
def _(TRACE):
    STEPS = 40  # the simpy machine is slow

    policies = {
        "lru, fetch": {},
        "pool of slots": {"cache_scope": "global", "eviction": "lfu"},
        "drop": {"miss": "drop", "batch": 2},
        "CPU beside the GPU": {"miss": "cpu", "hardware": "rtx4090"},
        "transition prefetch": {"prefetch": "transition", "prefetch_budget": 2, "calibration": 0.3},
    }

    def timed(machine, plan):
        begin = time.perf_counter()
        record = machine.run(plan, full=True)
        return record, time.perf_counter() - begin

    def same(one, other):
        """Every column of every group, every step and counter."""
        groups = zip(
            (one.groups | {"steps": one.steps}).items(), (other.groups | {"steps": other.steps}).items(), strict=True
        )
        assert all(np.array_equal(a[column], b[column]) for (_, a), (_, b) in groups for column in a)
        assert one.counters == other.counters

    compared = []
    for name, chosen in policies.items():
        plan = prepare(RunSpec.of({"trace": TRACE, "cache": 0.5, "max_steps": STEPS, **chosen})).plan
        compiled.run(plan, full=True)  # compiled, if it was not
        (fast, fast_s), (slow, slow_s) = timed(compiled, plan), timed(discrete, plan)
        same(fast, slow)
        rows_in = sum(len(next(iter(group.values()))) for group in fast.groups.values())
        compared.append(
            f"| {name} | {int(fast.steps['end_ns'][-1]):,} | {rows_in:,} ✓ | {1e3 * fast_s:.1f} | {1e3 * slow_s:,.0f} |"
        )
    mo.md(
        "\n".join(
            [
                "| run | time, ns | rows of the record, equal | compiled, ms | simpy, ms |",
                "|---|---|---|---|---|",
                *compared,
            ]
        )
    )
    return (STEPS,)


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    ## 3. What no policy beats

    A bound is a proof (`sim/outcome/bounds.py`), a run is an experiment; no run may be faster than its bound. **Look
    at** how near the lossless marks come to 100 %: there the run does about as well as it could. The third mark is
    another thing: the run's own transfers and kernels, had nothing waited; another policy may need less of them.
    """)
    return


@app.cell
def _(TRACE):
    racers = {
        "lru": {},
        "fifo": {"eviction": "fifo"},
        "oracle eviction": {"eviction": "belady"},
        "oracle prefetch": {"prefetch": "oracle"},
        "noisy oracle": {"prefetch": "noisy-oracle"},
    }
    bounded = list(sim.simulate_many(racers, trace=TRACE, cache=0.5)["result"])
    for run in bounded:
        assert all(
            bound <= run.summary["time_ns"] for name, bound in run.summary["bounds"].items() if name.endswith("_ns")
        )
    shown(bounds(tables.bounds(bounded)))
    return


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    ## 4. Limits that need no proof

    - Everything resident: no miss, no stall, whatever the policy.
    - A link that takes no time: no stall, whatever the cache.
    - LRU counted in another way, by stack distances and without any clock
      (`analysis/curves/stack_distances.py`), misses exactly as often.
    """)
    return


@app.cell
def _(STEPS, TRACE, paper):
    whole = sim.simulate(TRACE, cache=1.0, max_steps=STEPS).summary
    assert whole["misses"] == 0 and whole["breakdown_ns"]["stall"] == 0

    setting = prepare(RunSpec.of({**paper, "cache": 1}))
    free = replace(setting.plan, costs=replace(setting.plan.costs, transfer_ns=np.zeros(2, np.int64)))
    assert compiled.run(free).counters["stall_ns"] == 0

    sizing = setting_of({"trace": TRACE, "max_steps": 4 * STEPS})
    counted = curve(sizing)
    for slots in range(1, len(counted.slots) + 1, max(1, len(counted.slots) // 8)):
        assert simulated(sizing, slots)["misses"] == counted.misses[:, :, slots - 1].sum()
    mo.md("All three hold. ✓")
    return


@app.cell(hide_code=True)
def _(TRACE):
    mo.md(f"""
    ## 5. Against your GPU

    All this says that the simulator does what it says, not that your machine does. For that the same trace is replayed
    on the device, with the same policy code, real memory, real copies and kernels, and every part of the time is
    compared:

        python -m runtime.validate --trace {TRACE} --device cuda

    It measures, fits a hardware file, simulates and replays a grid of policies and capacities, and prints the signed
    error of each component beside the spread of the replays: exit status 0 within tolerance, 1 outside, 3 where the
    spread is wider than the tolerance. `--device cpu --quick` shows how it goes without a GPU. With
    `python -m runtime.calibrate --device cuda --out my-gpu.toml` the file is yours for `--hardware my-gpu.toml`; and a
    replay's record (`runtime.replay --record full --out run`) opens in the timeline beside the simulated one:

        python -m analysis.timeline run --steps 10:20

    All of this again, as a page: `python -m analysis.notebook check_the_simulator --trace {TRACE} --html check.html`.
    """)
    return


if __name__ == "__main__":
    from analysis.notebook import main

    raise SystemExit(main(app=app, file=__file__))
