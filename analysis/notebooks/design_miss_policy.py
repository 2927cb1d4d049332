import marimo

__generated_with = "0.25.2"
app = marimo.App(app_title="Design your own miss policy")

with app.setup:
    import inspect
    import textwrap
    from pathlib import Path

    import marimo as mo

    import sim
    from analysis.comparing import formats
    from analysis.comparing.comparison import compare
    from analysis.comparing.leading import against_baseline
    from analysis.pages import compare_figures, tables
    from analysis.pages.figures import answers_by_layer, time_parts
    from analysis.pages.notebook import marked, shown, trace_asked
    from analysis.timelines import series
    from sim.core.view import FETCH
    from traces.errors import UserError


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    # Design your own miss policy

    An expert is wanted and not on the GPU. Wait for it, leave it out, let a resident one stand in: is a rule of yours
    better than the ones there are? The rule is one small function. Write it in the cell below; it is compiled, and
    raced against fetch, buddy and drop on the same requests.

    What it sees is `view` (every field with its unit in `sim/core/view.py`): who is resident, the router's logits and
    weights, what waits on the link already, what a copy would cost. What it answers is the id of a resident expert, or
    FETCH, DROP or CPU. It has no clock and no future, and it keeps to what numba compiles: numbers, arrays, loops.
    `needs` names the arrays that the trace must have; with `"logits"` there, `view.logits` would rank the residents
    for this very token. `docs/policies.md` has the other kinds: eviction, re-ranking, prefetch.
    """)
    return


@app.cell
def _():
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
    return (thrifty,)


@app.cell
def _():
    TRACE = trace_asked("mixtral.npz")  # or a file of yours: --trace FILE, or its name here
    return (TRACE,)


@app.cell
def _(TRACE, thrifty):
    MINE = thrifty.__name__
    common = {"trace": TRACE, "cache": 0.5, "calibration": 0.3}
    cases = {
        "fetch": {"miss": "fetch"},
        "drop": {"miss": "drop"},
        "buddy": {"miss": "buddy", "set": {"buddy.tau": 0.6}},
        f"{MINE}, 0.3": {"miss": thrifty, "set": {f"{MINE}.below": 0.3}},
        f"{MINE}, 0.5": {"miss": thrifty},
        f"{MINE}, always": {"miss": thrifty, "set": {f"{MINE}.below": 2}},
    }
    tried = sim.simulate_many(cases, record="full", errors="keep", **common)
    left_out = tried["error"].dropna()
    if len(left_out) == len(tried):
        raise UserError(left_out.iloc[0])
    runs = list(tried.loc[tried["error"].isna(), "result"])
    ran = [run.name for run in runs]
    table = compare(runs)
    _why = [f"LEFT OUT: {', '.join(names)}: {why}" for why, names in left_out.index.groupby(left_out).items()]
    mo.md(marked([*_why, *table.notes]))
    return MINE, ran, runs, table


@app.cell
def _(table):
    _known = [row for row in table.rows if row["lost_weight"] is not None]  # without `weights` fetch alone loses none
    shown(compare_figures.pareto(table) if len(_known) > 1 else compare_figures.speed(table))
    return


@app.cell
def _(table):
    mo.plain_text(formats.table(table))
    return


@app.cell(hide_code=True)
def _(MINE, ran):
    mo.stop(
        f"{MINE}, 0.5" not in ran,
        mo.md(f"""
    ## Yours was left out

    `{MINE}` did not run, for the reason above; the others are compared. A policy that does without an array that
    the trace lacks (not in its code, not in `{MINE}.needs`) runs here. Without `weights` nobody can say how much its
    answers lose.
    """),
    )
    OURS = f"{MINE}, 0.5"
    return (OURS,)


@app.cell(hide_code=True)
def _(OURS, ran, table):
    def lost(row):
        return "an unknown part" if row["lost_weight"] is None else f"{row['lost_weight']:.1%}"

    _row = {row["run"]: row for row in table.rows}
    _mine = _row[OURS]
    _buddy = "The buddy was left out."
    if "buddy" in ran:
        _buddy = f"The buddy has {_row['buddy']['tokens_per_s']:,.2f} for {lost(_row['buddy'])}."
    mo.md(f"""
    ## Quality against speed

    **Look** up (faster) and left (nearer to the model); the line joins the runs that nothing beats in both. Ours at
    0.5 generates {_mine["tokens_per_s"]:,.2f} tokens/s where fetch generates {_row["fetch"]["tokens_per_s"]:,.2f}, and
    gives {lost(_mine)} of the router's weight to stand-ins. {_buddy} From 0.3 to always ours is one curve,
    drawn by one parameter: choose the point by what your model forgives.

    Lost weight is all that a replay knows of quality. It counts a good stand-in and a bad one alike, and it cannot see
    that the model would have routed differently afterwards; `python -m runtime.evaluate` asks a model.
    """)
    return (lost,)


@app.cell(hide_code=True)
def _(MINE, OURS, runs):
    parts = tables.time_parts(runs)
    _left = parts.loc[OURS, ["demand", "late", "held"]].sum() / parts.loc[OURS].sum()
    mo.md(f"""
    ## Where the time went

    **Look at** what stays red. Ours at 0.5 still stalls for {_left:.0%} of its time: misses that it chose to wait for,
    and prompts, where lossy answers are off unless `{MINE}.prefill=1`. If red is thin, a better policy is worth
    nothing more; if it is not, ask which misses those were, below.
    """)
    return (parts,)


@app.cell
def _(parts):
    shown(time_parts(parts))
    return


@app.cell(hide_code=True)
def _(OURS):
    mo.md(f"""
    ## What it answered

    `{OURS}`, by layer: of the (token, slot) entries whose expert was not there, prompts included. **Look for** layers
    where it never finds anybody, or always does: a parameter by layer may pay, and `view.layer` is there for it.
    """)
    return


@app.cell
def _(OURS, runs):
    _mine = next(run for run in runs if run.name == OURS)
    shown(answers_by_layer(series.answers_by_layer(_mine.record)))
    return


@app.cell(hide_code=True)
def _(OURS, lost, ran, runs):
    duel = compare(runs, OURS)
    _row = {row["run"]: row for row in duel.rows}
    _mine = _row[OURS]

    def _against(other):
        return f"**{other}**, {lost(_row[other])} of the weight lost, does {against_baseline(_row[other])}"

    _said = "\n".join(f"    - {_against(other)}" for other in ("fetch", "buddy", "drop") if other in ran)
    mo.md(f"""
    ## So: is it better?

    Tokens/s against ours at 0.5 ({_mine["tokens_per_s"]:,.2f}, {lost(_mine)} of the weight lost), 95 %
    intervals over the same {_row["fetch"]["paired_requests"]} requests:

{_said}

    Faster is better only where the loss is no larger. The whiskers of the figure are the same intervals.
    """)
    return (duel,)


@app.cell
def _(duel):
    shown(compare_figures.speed(duel))
    return


@app.cell(hide_code=True)
def _(MINE, OURS, TRACE, ran, thrifty):
    KEEP = None  # a file, such as "thrifty.py": the policy is written there, for the commands below

    source = f"from sim.core.view import FETCH\n\n\n{textwrap.dedent(inspect.getsource(thrifty))}\n\n\n"
    source += f"{MINE}.params, {MINE}.needs = {thrifty.params!r}, {thrifty.needs!r}\n"
    if KEEP:
        Path(KEEP).write_text(source)
    _other = ("buddy", "buddy --set buddy.tau=0.6") if "buddy" in ran else ("drop", "drop")
    _shown = textwrap.indent(source, 8 * " ").rstrip()
    mo.md(f"""
    ## Keep it, and run it again

    From Python, with the function as it stands in this notebook, which makes `{OURS}`:

        sim.simulate("{TRACE}", miss={MINE}, cache=0.5, calibration=0.3, set={{"{MINE}.below": 0.5}})

    From the command line, with this in a file `{MINE}.py` (`KEEP` in this cell writes it):

{_shown}

    Then:

        python -m sim.run --trace {TRACE} --cache 0.5 --calibration 0.3 --miss {MINE}.py:{MINE} --out mine
        python -m sim.run --trace {TRACE} --cache 0.5 --calibration 0.3 --miss {_other[1]} --out {_other[0]}
        python -m analysis.compare mine {_other[0]}
        python -m analysis.notebook design_miss_policy --trace {TRACE} --html design_miss_policy.html

    `NUMBA_DISABLE_JIT=1` runs it as plain Python: `print` and a debugger work inside. `docs/policies.md` has the other
    kinds; `buddy_tradeoff.py` looks closer at the policy to beat.
    """)
    return


if __name__ == "__main__":
    from analysis.notebook import main

    raise SystemExit(main(app=app, file=__file__))
