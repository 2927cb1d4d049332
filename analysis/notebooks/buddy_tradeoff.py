import marimo

__generated_with = "0.25.2"
app = marimo.App(app_title="The buddy trade-off")

with app.setup:
    import textwrap

    import marimo as mo
    import numpy as np

    import sim
    import traces
    from analysis.comparing import formats
    from analysis.comparing.comparison import compare
    from analysis.pages import compare_figures
    from analysis.pages.figures import canvas
    from analysis.pages.notebook import marked, shown, trace_asked
    from analysis.showing.palette import BLUE, GREEN, GREY, ORANGE, RED
    from sim.fit.coactivation import co_activation, conditional
    from traces.errors import UserError
    from traces.format.trace import split


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    # The buddy trade-off

    How much faster is a run that lets other experts answer, what does it give away, and does it matter *who* answers?

    BuddyMoE (arXiv 2511.10054) lets a resident *buddy* stand in for a missing expert: one that often serves the same
    tokens. Three knobs decide how often:

    - `tau`, how undecided the router must have been about a token (entropy of its weights, 0 to 1): the higher, the
      fewer tokens take a stand-in;
    - `beta`, the share of what a visit wants that may be away before nothing is substituted at all;
    - `rho`, how many of a token's experts may be replaced.

    Every copy avoided is time won, every stand-in is weight given to another expert.
    """)
    return


@app.cell
def _():
    TRACE = trace_asked("mixtral.npz")  # or a file of yours: --trace FILE, or its name here
    return (TRACE,)


@app.cell
def _(TRACE):
    CALIBRATION, SEED = 0.3, 0  # the share of the requests that the buddy lists are learned from; never judged

    trace = traces.open(TRACE)
    if not trace.has("weights"):  # every gate of a buddy weighs with them, and so does what a stand-in costs
        raise UserError(
            f"buddy_tradeoff: {TRACE} has no `weights`, the router's, without which no buddy can run; a capture by "
            "`python -m traces capture` has them, and explore_trace, size_a_cache and first_questions need none"
        )
    common = {"trace": TRACE, "cache": 0.5, "calibration": CALIBRATION, "seed": SEED}
    TAUS = (0.95, 0.8, 0.6, 0.4, 0.0)
    cases = {"fetch": {"miss": "fetch"}, "drop": {"miss": "drop"}}
    cases |= {f"buddy, tau {tau:g}": {"miss": "buddy", "set": {"buddy.tau": tau}} for tau in TAUS}
    runs = list(sim.simulate_many(cases, **common)["result"])
    table = compare(runs)
    return CALIBRATION, SEED, TAUS, common, runs, table, trace


@app.cell(hide_code=True)
def _(TAUS, runs, table):
    _row = {row["run"]: row for row in table.rows}
    _tight, _open = (_row[f"buddy, tau {tau:g}"] for tau in (TAUS[0], TAUS[-1]))
    _quality = next(run for run in runs if run.name == f"buddy, tau {TAUS[-1]:g}").summary["quality"]
    _stopped = {name: n for name, n in _quality["stopped"].items() if n and name != "prefill"}
    _most = max(_stopped, key=_stopped.get) if _stopped else "nothing"
    mo.md(f"""
    ## From careful to careless

{textwrap.indent(marked(table.notes), 4 * " ")}

    **Look at** the slope: tokens/s won for each per cent of weight lost. With tau at {TAUS[0]:g} buddies take
    {_tight["lost_weight"]:.1%} of the weight and the run does {_tight["tokens_per_s"]:,.2f} tokens/s; with the gate
    open {_open["lost_weight"]:.1%} and {_open["tokens_per_s"]:,.2f}. Fetch, which loses nothing, does
    {_row["fetch"]["tokens_per_s"]:,.2f}; drop, which waits for nobody, {_row["drop"]["tokens_per_s"]:,.2f}.

    With that gate open, what still stops a substitution most often is **{_most}** ({_stopped.get(_most, 0):,} entries:
    `beta` is the gate called distribution). Prompts are fetched for unless `buddy.prefill=1`.
    """)
    return


@app.cell
def _(table):
    shown(compare_figures.pareto(table))
    return


@app.cell
def _(table):
    mo.plain_text(formats.table(table))
    return


@app.cell
def _(common, trace):
    # the controls: the same gates, the same budget, another stand-in
    TAU = 0.4
    names = ["buddy", "matched-random", "matched-drop"]
    if trace.has("logits"):
        names.insert(2, "matched-next-ranked")
    chosen = {name: {"miss": name, "set": {f"{name}.tau": TAU}} for name in names}
    controls = list(sim.simulate_many(chosen, record="full", **common)["result"])
    controlled = compare(controls)
    return TAU, controlled, controls


@app.cell
def _(CALIBRATION, SEED, controls, trace):
    def company(of):
        """q(j|i), the share of i's companions that j is, over the share that j's popularity alone would give it."""
        found = co_activation(of)
        alone = np.repeat(found.uses[:, None, :], found.uses.shape[1], axis=1)
        return conditional(found.m) / np.maximum(conditional(alone), 1e-9)

    def lift(run, ratio):
        """Its mean over the stand-ins that a run chose, given the experts that they stood in for."""
        answers = run.record.groups["answers"]
        used = answers["stand_in"] >= 0
        layer = run.record.groups["visits"]["layer"][answers["visit"][used]]
        return float(ratio[layer, answers["wanted"][used], answers["stand_in"][used]].mean())

    texts = dict(zip(("where it was learned", "in what was judged"), split(trace, CALIBRATION, SEED), strict=True))
    lifts = {
        name: {run.name: lift(run, company(text)) for run in controls if run.summary["substituted"]}
        for name, text in texts.items()
    }
    return (lifts,)


@app.cell(hide_code=True)
def _(TAU, controlled, controls, lifts):
    _seen, _new = lifts.values()
    _speeds = [run.summary["tokens_per_s"] for run in controls]
    mo.md(f"""
    ## Does it matter who stands in?

{textwrap.indent(marked(controlled.notes), 4 * " ")}

    The same gates (tau {TAU:g}), another stand-in: the buddy, any resident, the resident that the router ranks next
    (where the trace has its logits), nobody. They do {min(_speeds):,.2f} to {max(_speeds):,.2f} tokens/s and lose about
    the same weight. **Speed cannot tell a good buddy from any other**: a buddy result without these controls says
    little.

    What a trace can tell is whether the stand-in keeps company with the expert that it replaces, more than its
    popularity explains. **Look at** the bars against the red line, where popularity explains all: grey is where the
    lists were learned, blue is text that they had not seen. There the buddy has {_new.get("buddy", 0):.2f} (where it
    was learned {_seen.get("buddy", 0):.2f}), a random resident {_new.get("matched-random", 0):.2f}. In the shipped
    synthetic trace experts are drawn apart from each other, so blue is near the line whatever grey says: lists learned
    there are lists of noise. Try a capture.

    Whether company means likeness of *output* only a model can say: `python -m runtime.evaluate`.
    """)
    return


@app.cell
def _(lifts):
    _fig = canvas(330, "", "company of the wanted expert, times its popularity's")
    for (_name, _found), _colour in zip(lifts.items(), (GREY, BLUE), strict=True):
        _fig.add_bar(x=list(_found), y=list(_found.values()), name=_name, marker={"color": _colour})
    _fig.add_hline(y=1, line={"dash": "dot", "color": RED})
    shown(_fig.update_yaxes(rangemode="tozero"))
    return


@app.cell
def _(controlled):
    mo.plain_text(formats.table(controlled))
    return


@app.cell
def _(common):
    # the same at three cache sizes: how much there is to win
    SIZES = (0.375, 0.5, 0.75)
    grid = {
        f"{miss}, {size:g}": {"miss": miss, "cache": size, "set": {"buddy.tau": 0.6} if miss == "buddy" else {}}
        for size in SIZES
        for miss in ("fetch", "buddy", "drop")
    }
    sized = list(sim.simulate_many(grid, **common)["result"])
    return SIZES, sized


@app.cell(hide_code=True)
def _(SIZES, sized):
    speeds = {run.name: run.summary["tokens_per_s"] for run in sized}
    _lost = {run.name: run.lost_weight for run in sized}
    _rows = [
        (size, speeds[f"buddy, {size:g}"] / speeds[f"fetch, {size:g}"], _lost[f"buddy, {size:g}"]) for size in SIZES
    ]
    _gains = "; ".join(f"with {size:.1%} in the cache {gain:.2f} x for {lost:.1%}" for size, gain, lost in _rows)
    mo.md(f"""
    ## When is it worth it?

{textwrap.indent(marked(compare(sized).notes), 4 * " ")}

    **Look at** the space between grey (wait for everything) and orange (wait for nothing): it is about all that a lossy
    policy can win. Buddies at tau 0.6, against fetch and for how much of the weight: {_gains}.
    """)
    return (speeds,)


@app.cell
def _(SIZES, speeds):
    _fig = canvas(330, "share of the experts in the cache", "generated tokens/s")
    for _miss, _colour in (("drop", ORANGE), ("buddy", GREEN), ("fetch", GREY)):
        _y = [speeds[f"{_miss}, {size:g}"] for size in SIZES]
        _fig.add_scatter(x=list(SIZES), y=_y, mode="lines+markers", name=_miss, line={"color": _colour, "width": 2.2})
    shown(_fig.update_yaxes(rangemode="tozero"))
    return


@app.cell(hide_code=True)
def _(TRACE):
    mo.md(f"""
    ## The same from the command line

        python -m analysis.notebook buddy_tradeoff --trace {TRACE} --html buddy_tradeoff.html
        python -m sim.run --trace {TRACE} --cache 0.5 --miss buddy --set buddy.tau=0.6 --calibration 0.3
        python -m sim.profile --trace {TRACE}
        python -m runtime.evaluate --model tiny-moe --miss buddy --cache 0.5

    The third prints how long buddy lists are and what they cover, the last what a stand-in costs a model in quality.
    """)
    return


if __name__ == "__main__":
    from analysis.notebook import main

    raise SystemExit(main(app=app, file=__file__))
