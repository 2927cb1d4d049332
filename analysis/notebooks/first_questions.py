import marimo

__generated_with = "0.25.2"
app = marimo.App(app_title="First questions")

with app.setup:
    import importlib.util
    import os
    import textwrap
    from pathlib import Path

    import marimo as mo
    import numpy as np
    import pandas as pd

    import analysis
    import sim
    import traces
    from analysis.comparing.leading import against_baseline
    from analysis.pages.notebook import shown, trace_asked


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    # First questions

    Four questions that most people come with, each answered by a few lines of Python to copy:

    1. Which policy wins, at five cache sizes?
    2. Is an eviction of my own better than LRU and LFU, and how far is it from two that read the future?
    3. What does my own model route, and what would a cache do for it?
    4. What does a buddy cost?

    Times are simulated. Intervals are 95 %, paired over the requests that both runs judged: they say how far a
    difference hangs on which requests there were, not how far the machine's costs are off. A tie, as
    `python -m analysis.compare` has it, is a difference of 1 % or less, or one whose interval holds zero.
    """)
    return


@app.cell
def _():
    TRACE = trace_asked("mixtral.npz")  # or a file of yours: --trace FILE, or its name here
    return (TRACE,)


@app.cell
def _(TRACE):
    def marked(frame):
        """What must be said with the figures of these runs."""
        return "\n\n".join(f"**! {note}**" for note in sim.compare(frame).attrs["notes"])

    SIZES = [0.25, 0.375, 0.5, 0.625, 0.75]  # the share of the experts that lie on the GPU
    grid = sim.simulate_many(cache=SIZES, eviction=["fifo", "lru", "lfu", "s3-fifo"], trace=TRACE)
    mo.md(f"## 1. Which policy wins, at five cache sizes?\n\n{marked(grid)}")
    return SIZES, grid, marked


@app.cell
def _(SIZES, grid):
    def winner(runs):
        """Who is fastest of some runs, and by how much; a tie by the rule of `python -m analysis.compare`: within 1 %,
        or no more than luck of the requests."""
        ranked = sim.compare(runs).sort_values("tokens_per_s", ascending=False)
        equals, second = ranked.index[ranked["leads"]], ranked.index[1]
        speed = f"{ranked['tokens_per_s'].iloc[0]:,.2f} tokens/s"
        if len(equals) > 1:
            return f"a tie of {', '.join(runs.loc[equals, 'eviction'])}, {speed}"
        lead = against_baseline(sim.compare(runs, baseline=second).loc[equals[0]])
        return f"**{runs.loc[equals[0], 'eviction']}**, {speed}; over {runs.loc[second, 'eviction']} {lead}"

    said = [f"- {size:.1%} of the experts: {winner(grid[grid['cache'] == size])}" for size in SIZES]
    mo.md("\n".join(["Among four evictions that lose nothing:", "", *said]))
    return


@app.cell
def _(grid):
    shown(sim.figure(grid, "along", x="cache"))
    return


@app.cell
def _():
    def settled(view, state, params):
        """Of those not touched lately, the one used least goes."""
        newest, best = view.recency.max(), -1
        for i in range(len(view.candidates)):
            recent = newest - view.recency[i] < params[0]
            if not recent and (best < 0 or view.uses[i] < view.uses[best]):
                best = i
        return best if best >= 0 else view.recency.argmin()

    settled.params = {"spared": 2}
    return (settled,)


@app.cell
def _(TRACE, marked, settled):
    # belady and min read the future, as no engine can; only min may use a newcomer without keeping it
    mine = sim.simulate_many(eviction=[settled, "lru", "lfu", "belady", "min"], cache=0.5, trace=TRACE)
    against = sim.compare(mine, baseline=0)

    def _versus(name, row):
        oracle = " (oracle)" * ("oracle" in row["marks"])
        said = against_baseline(row).replace("faster", "faster than mine").replace("slower", "slower than mine")
        return f"- {name}{oracle}: {row['tokens_per_s']:,.2f} tokens/s, {said}"

    _own = mine.iloc[0]
    _said = [_versus(mine.loc[name, "eviction"], row) for name, row in against.iloc[1:].iterrows()]
    _head = f"`{_own['eviction']}`: {_own['tokens_per_s']:,.2f} tokens/s, {_own['hit_rate']:.1%} hits. Against it:"
    mo.md("\n".join([f"## 2. My own eviction\n\n{marked(mine)}\n\n{_head}\n", *_said]))
    return (mine,)


@app.cell
def _(mine):
    shown(sim.figure(mine, "speed"))
    return


@app.cell
def _():
    mo.stop(
        importlib.util.find_spec("transformers") is None,
        mo.md("## 3. My own model\n\nLeft out: `pip install 'moe-offload-sim[hf]'` brings transformers."),
    )
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # so small a model is fastest on one thread
    import transformers

    transformers.set_seed(0)
    config = transformers.Qwen3MoeConfig(
        vocab_size=512, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        num_experts=16, num_experts_per_tok=4, moe_intermediate_size=32,
    )  # fmt: skip
    # yours: transformers.AutoModelForCausalLM.from_pretrained("...")
    model = transformers.Qwen3MoeForCausalLM(config).eval()
    prompts = np.random.default_rng(0).integers(2, 512, (12, 16))  # token ids; or texts, with tokenizer=...
    captured = traces.capture(model, prompts, generate=32, temperature=0, lookahead=1)

    tiny = sim.simulate_many(eviction=["lru", "lfu", "min"], cache=0.5, hardware="rtx4090", trace=captured)
    return captured, tiny


@app.cell(hide_code=True)
def _(captured, marked, tiny):
    _requests = len(set(captured.sequence.tolist()))
    _lru, _oracle = (tiny[tiny["eviction"] == name].iloc[0] for name in ("lru", "min"))
    mo.md(f"""
    ## 3. My own model

    A Qwen3-MoE of {captured.n_moe_layers} layers x {captured.n_experts} experts, made in memory with **random
    weights**: its routing says nothing of a trained model, nor do its microseconds. The lines are those that any model
    of transformers needs.

{textwrap.indent(marked(tiny), 4 * " ")}

    Captured: {captured.n_tokens:,} tokens of {_requests} requests, top-{captured.top_k}. With half of the
    experts on an rtx4090 LRU hits {_lru["hit_rate"]:.1%} and does {_lru["tokens_per_s"]:,.0f} tokens/s; an
    oracle (`min`, which knows the whole trace) hits {_oracle["hit_rate"]:.1%}.
    """)
    return


@app.cell
def _(tiny):
    shown(sim.figure(tiny, "time"))
    return


@app.cell
def _(marked):
    # routing captured from a model that this project trained; the lists of buddies are learned from another capture
    cases = {"fetch": {"miss": "fetch"}, "buddy, careful": {"miss": "buddy"}, "buddy, open": {"miss": "buddy-b"}}
    sample = {"trace": "tiny-moe.npz", "calibration": "tiny-moe-calibration.npz", "cache": 0.5}
    lossy = sim.simulate_many(cases, **sample)
    _gain = sim.compare(lossy, baseline="fetch")
    _said = [
        f"- {name}: {row['tokens_per_s_change']:+.1%} tokens/s ({row['tokens_per_s_change_low']:+.1%} .. "
        f"{row['tokens_per_s_change_high']:+.1%}), {row['lost_weight']:.1%} of the router's weight given to stand-ins"
        for name, row in _gain.drop("fetch").iterrows()
    ]
    _head = "A replay, with half of the experts on the GPU, against waiting for the expert:"
    mo.md("\n".join([f"## 4. What does a buddy cost?\n\n{marked(lossy)}\n\n{_head}\n", *_said]))
    return (lossy,)


@app.cell
def _(lossy):
    shown(sim.figure(lossy, "speed"))
    return


@app.cell(hide_code=True)
def _():
    _file = Path(analysis.__file__).parent / "results" / "closed_loop_tiny-moe.csv"
    mo.stop(not _file.is_file(), mo.md("What it costs in quality: `analysis/results/closed_loop.md` of the sources."))
    _arms = {"buddy, reading A": "buddy, careful", "buddy, reading B": "buddy, open"}
    _rows = pd.read_csv(_file, comment="#")
    _rows = _rows[(_rows["cache"] == 0.5) & _rows["arm"].isin(_arms)]
    _said = "\n".join(
        f"    - {_arms[row['arm']]}: {row['delta_percent']:+.1f} % bits per byte ({row['delta_interval']}), "
        f"next-token accuracy {row['accuracy_delta']:+.1f} points ({row['accuracy_interval']}); "
        f"{row['gain_percent']:+.1f} % tokens/s"
        for _, row in _rows.iterrows()
    )
    mo.md(f"""
    A replay cannot say what the stand-ins do to the answers. With the same model in the loop
    (`analysis/results/closed_loop_tiny-moe.csv`, held-out text, priced as deepseek-v2-lite) they cost:

{_said}

    So speed is dear here: ask a model of yours with `python -m runtime.evaluate` before you believe a replay.
    """)
    return


@app.cell(hide_code=True)
def _(TRACE):
    mo.md(f"""
    ## The same from the command line

        python -m analysis.notebook first_questions --trace {TRACE} --html first_questions.html
        python -m analysis.miss_curve {TRACE} --eviction fifo,lru,lfu,s3-fifo --out curve.html
        python -m sim.run --trace {TRACE} --cache 0.5 --eviction my_policy.py:settled
        python -m traces capture --model HF-PATH --text FILE --out my.npz
        python -m sim.run --trace tiny-moe.npz --calibration tiny-moe-calibration.npz --cache 0.5 --miss buddy
        python -m runtime.evaluate --model tiny-moe --miss buddy --cache 0.5
    """)
    return


if __name__ == "__main__":
    from analysis.notebook import main

    raise SystemExit(main(app=app, file=__file__))
