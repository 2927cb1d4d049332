import marimo

__generated_with = "0.25.2"
app = marimo.App(app_title="Design your own miss policy")

with app.setup:
    import tempfile
    import textwrap
    from pathlib import Path

    import marimo as mo

    from analysis.comparing import formats
    from analysis.comparing.comparison import compare
    from analysis.comparing.side_by_side import race
    from analysis.pages import compare_figures, tables
    from analysis.pages.figures import answers_by_layer, time_parts
    from analysis.timelines import series


@app.cell(hide_code=True)
def _():
    mo.Html(OFFLINE)
    return


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    # Design your own miss policy

    An expert is wanted and not on the GPU. Wait for it, leave it out, let a resident one stand in: that choice is one
    small function. Write it in the next cell; it is compiled, and raced against fetch, buddy and drop on the same
    requests.

    What it sees is `view` (every field with its unit in `sim/core/view.py`): who is resident, the router's logits and
    weights, what waits on the link already, what a copy would cost. What it answers is the id of a resident expert, or
    FETCH, DROP or CPU. It has no clock and no future, and it keeps to what numba compiles: numbers, arrays, loops.
    `needs` names the arrays that the trace must have; with `"logits"` there, `view.logits` would rank the residents
    for this very token. `docs/policies.md` has the other kinds: eviction, re-ranking, prefetch.
    """)
    return


@app.cell
def _():
    POLICY = textwrap.dedent('''
    from sim.core.view import FETCH


    def thrifty(view, state, params):
        """Much weight: wait. Little: the resident that was used most stands in."""
        if view.weight >= params[0]:
            return FETCH
        best = FETCH
        for e in range(view.n_experts):
            if view.resident[e] and not view.used[e] and (best < 0 or view.uses[e] > view.uses[best]):
                best = e
        return best


    thrifty.params, thrifty.needs = {"below": 0.5}, ("weights",)
    ''')

    file = Path(tempfile.mkdtemp()) / "mine.py"
    file.write_text(POLICY)
    mine = f"{file}:thrifty"
    return (mine,)


@app.cell
def _(mine):
    TRACE = mo.cli_args().get("trace") or "mixtral.npz"  # a file of yours, or the name of a shipped sample

    cases = {
        "fetch": {"miss": "fetch"},
        "drop": {"miss": "drop"},
        "buddy": {"miss": "buddy", "set": {"buddy.tau": 0.6}},
        "mine, 0.3": {"miss": mine, "set": {"thrifty.below": 0.3}},
        "mine, 0.5": {"miss": mine},
        "mine, always": {"miss": mine, "set": {"thrifty.below": 2}},
    }
    runs = race(cases, full=True, trace=TRACE, cache=0.5, calibration=0.3, max_steps=200)
    table = compare(runs)
    mo.md("\n\n".join(f"**! {note}**" for note in table.notes))
    return runs, table


@app.cell(hide_code=True)
def _(table):
    _row = {row["run"]: row for row in table.rows}
    _mine = _row["mine, 0.5"]
    mo.md(f"""
    ## Quality against speed

    **Look** up (faster) and left (nearer to the model); the line joins the runs that nothing beats in both. Ours at
    0.5 generates {_mine["tokens_per_s"]:,.2f} tokens/s where fetch generates {_row["fetch"]["tokens_per_s"]:,.2f}, and
    gives {_mine["lost_weight"]:.1%} of the router's weight to stand-ins; the buddy has
    {_row["buddy"]["tokens_per_s"]:,.2f} for {_row["buddy"]["lost_weight"]:.1%}. From 0.3 to always ours is one curve,
    drawn by one parameter: choose the point by what your model forgives.

    Lost weight is all that a replay knows of quality. It counts a good stand-in and a bad one alike, and it cannot see
    that the model would have routed differently afterwards; `python -m runtime.evaluate` asks a model.
    """)
    return


@app.cell
def _(table):
    compare_figures.pareto(table)
    return


@app.cell
def _(table):
    mo.plain_text(formats.table(table))
    return


@app.cell(hide_code=True)
def _(runs):
    parts = tables.time_parts(runs)
    _left = parts.loc["mine, 0.5", ["demand", "late", "held"]].sum() / parts.loc["mine, 0.5"].sum()
    mo.md(f"""
    ## Where the time went

    **Look at** what stays red. Ours at 0.5 still stalls for {_left:.0%} of its time: misses that it chose to wait for,
    and prompts, where lossy answers are off unless `thrifty.prefill=1`. If red is thin, a better policy is worth
    nothing more; if it is not, ask which misses those were, below.
    """)
    return (parts,)


@app.cell
def _(parts):
    time_parts(parts)
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## What it answered

    By layer, of the (token, slot) entries whose expert was not there, prompts included. **Look for** layers where it
    never finds anybody, or always does: a parameter by layer may pay, and `view.layer` is there for it.
    """)
    return


@app.cell
def _(runs):
    _mine = next(run for run in runs if run.name == "mine, 0.5")
    answers_by_layer(series.answers_by_layer(_mine.record))
    return


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    ## Next

    - Keep the function in a file, and use it anywhere: `python -m sim.run --trace TRACE --miss mine.py:thrifty
      --set thrifty.below=0.4 --record full --out run`.
    - See single visits: `python -m analysis.timeline run --steps 10:20`, and open the file at ui.perfetto.dev.
    - `NUMBA_DISABLE_JIT=1` runs it as plain Python: `print` and a debugger work inside.
    - `buddy_tradeoff.py` looks closer at the policy to beat.
    """)
    return


if __name__ == "__main__":
    from analysis.notebook import main

    raise SystemExit(main(app=app, file=__file__))
