import marimo

__generated_with = "0.25.2"
app = marimo.App(app_title="Explore a trace")

with app.setup:
    import marimo as mo
    import numpy as np

    from analysis.pages import trace_figures, trace_tables
    from analysis.pages.figures import canvas
    from analysis.pages.notebook import shown, trace_asked
    from analysis.showing.palette import BLUE, GREEN, GREY, ORANGE, RED
    from traces.format import npz
    from traces.statistics.describe import LOUD, describe
    from traces.statistics.reuse import reuse_histogram
    from traces.statistics.stats import info


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    # Explore a trace

    What does the routing alone say of how hard the problem is? Five questions, before anything is simulated:

    1. Are some experts used far more than others? Then a small cache goes a long way.
    2. Does a token use what the one before it used? Then recency is worth something.
    3. How many experts does a stretch of text touch? Then you know what a cache has to hold.
    4. Are experts used together? Then one may stand in for another.
    5. Are they known in advance? Then there is something to prefetch.
    """)
    return


@app.cell
def _():
    TRACE = trace_asked("mixtral.npz")  # or a file of yours: --trace FILE, or its name here
    return (TRACE,)


@app.cell
def _(TRACE):
    trace = npz.read(npz.find(TRACE))
    facts = info(trace)
    kind = "a capture of a real model" if trace.real else LOUD
    mo.md(f"## {TRACE}: {kind}")
    return facts, trace


@app.cell(hide_code=True)
def _(TRACE, facts):
    mo.plain_text(describe(facts, TRACE))
    return


@app.cell(hide_code=True)
def _(trace):
    skew = trace_tables.skew(trace)
    _top = max(1, round(trace.n_experts / 4))
    _share = skew.middle[:_top].sum()
    mo.md(f"""
    ## 1. Popularity

    **Look at** how far the line stands above the dotted one. In the median layer the busiest quarter of the experts
    takes **{_share:.0%}** of the uses; an even use would give it {_top / trace.n_experts:.0%}. A steep line is a trace
    in which even a static cache works; a flat one is what load-balanced training makes, and only recency helps there.
    """)
    return (skew,)


@app.cell
def _(skew):
    shown(trace_figures.skew(skew))
    return


@app.cell(hide_code=True)
def _(facts):
    overlap = facts["overlap"]
    _mean = f"{overlap['mean']:.0%}" if overlap["mean"] is not None else "-"
    mo.md(f"""
    ## 2. Repetition

    **Look at** the gap between the blue line and the dashed one. A token shares **{_mean}** of its experts with the
    token before it. Popular experts alone would explain {overlap["popularity"]:.0%}, chance {overlap["random"]:.0%}:
    what is above the dashed line is memory in the text, and it is what LRU lives on. Layers differ, so slots need not
    be alike in all of them (`--cache-spread marginal`).
    """)
    return (overlap,)


@app.cell
def _(overlap, trace):
    _fig = canvas(320, "MoE layer", "of the experts of the token before (%)")
    _layers = list(range(trace.n_moe_layers))
    if overlap["by_layer"]:
        _by = [100 * share for share in overlap["by_layer"]]
        _fig.add_scatter(x=_layers, y=_by, mode="lines+markers", name="this trace", line={"color": BLUE})
    for _name, _colour, _dash in (("popularity", GREEN, "dash"), ("random", GREY, "dot")):
        _line = [100 * overlap[_name]] * len(_layers)
        _fig.add_scatter(x=_layers, y=_line, mode="lines", name=_name, line={"color": _colour, "dash": _dash})
    shown(_fig.update_yaxes(rangemode="tozero"))
    return


@app.cell(hide_code=True)
def _(facts, trace):
    _histogram = reuse_histogram(trace)
    _found = np.cumsum(_histogram[:, :-1], axis=1) / np.maximum(_histogram.sum(axis=1, keepdims=True), 1)
    reused = trace_tables.Spread.of(_found)
    _windows = {n: mean for n, mean in facts["working_set"]["mean"].items() if mean is not None}
    _said = ", ".join(f"{mean:.1f} in {n}" for n, mean in _windows.items())
    _half = int(np.searchsorted(reused.middle, 0.5)) + 1
    mo.md(f"""
    ## 3. What a cache has to hold

    A stretch of tokens touches this many of a layer's {trace.n_experts} experts, on average: **{_said}** tokens.

    The figure is the share of uses whose expert was among the last *c* used: what LRU with *c* slots hits if it takes
    uses one by one. **Look at** the first slots behind the red line (top-{trace.top_k}, one token's own experts) and at
    where the curve flattens. Half of the uses are found with **{_half}** slots in the median layer. How the machine's
    LRU does, with its visits, prompts and times, is in `size_a_cache.py`.
    """)
    return (reused,)


@app.cell
def _(reused, trace):
    _fig = canvas(340, "slots per layer", "uses that find their expert (%)")
    _slots = list(range(1, trace.n_experts + 1))
    _lines = (("best layers", reused.high, 1), ("median layer", reused.middle, 2.5), ("worst layers", reused.low, 1))
    for _name, _values, _width in _lines:
        _fig.add_scatter(x=_slots, y=100 * _values, mode="lines", name=_name, line={"width": _width, "color": BLUE})
    _fig.add_vline(x=trace.top_k, line={"dash": "dot", "color": RED})
    shown(_fig.update_yaxes(range=[0, 102]))
    return


@app.cell(hide_code=True)
def _(trace):
    counts, LAYER = trace_tables.counted(trace), trace.n_moe_layers // 2
    mo.stop(counts is None, mo.md("## 4. Company\n\nOne expert a token, or too many pairs to count: nothing to see."))
    together, mass = 100 * trace_tables.together(counts)[LAYER], trace_tables.q_mass(counts)
    _need = int(np.searchsorted(mass.middle, 0.9 - 1e-12)) + 1
    mo.md(f"""
    ## 4. Company

    Which experts serve the same token? In MoE layer {LAYER} the closest pair is together in
    {float(np.nanmax(together)):.0f} % of the first one's uses. **Look for** bright cells off an even ground: pairs that
    go together. BuddyMoE makes its buddy lists of these; they end where they cover 90 % of an expert's company, which
    takes the median expert **{_need}** of {trace.n_experts - 1} peers here. The nearer the blue line of the second
    figure runs to the dotted one, the less a list says: then any resident is as good a buddy.
    """)
    return mass, together


@app.cell
def _(together):
    shown(trace_figures.pairs(together, "j wanted too (%)"))
    return


@app.cell
def _(mass):
    shown(trace_figures.q_mass(mass))
    return


@app.cell
def _(trace):
    def recall(best: int) -> list[float]:
        """Share of the wanted experts that the first `best` of the lookahead lists name, by distance."""
        wanted, out = np.asarray(trace.experts), []
        for named in np.asarray(trace.lookahead)[..., :best]:
            known = (named >= 0).any(axis=2)
            hit = (wanted[..., None] == named[:, :, None, :]).any(axis=3) & (wanted >= 0)
            out.append(float(hit[known].sum() / max((wanted >= 0)[known].sum(), 1)))
        return out

    mo.stop(
        not trace.has("lookahead"),
        mo.md("## 5. Foresight\n\nNo `lookahead` here: predictors have to learn from what was routed before."),
    )
    tries = (trace.top_k, min(2 * trace.top_k, trace.lookahead.shape[3]))
    named = {best: recall(best) for best in tries}
    return named, tries


@app.cell(hide_code=True)
def _(named, trace, tries):
    _assumed = "" if trace.real else " (in a synthetic trace an assumption of its generator)"
    mo.md(f"""
    ## 5. Foresight

    The trace carries what a later layer's router says of an earlier hidden state. **Look at** how fast the bars fall
    with distance: the nearest layer is the easiest to guess and leaves the least time to copy. The first {tries[0]}
    names hold **{named[tries[0]][0]:.0%}** of what is wanted at the shortest distance{_assumed}. `--prefetch
    gate-lookahead` uses these lists.
    """)
    return


@app.cell
def _(named, trace):
    _fig = canvas(300, "MoE layers ahead", "wanted experts that were named (%)")
    _ahead = list(map(str, trace.lookahead_distances))
    for (_best, _shares), _colour in zip(named.items(), (BLUE, ORANGE), strict=False):
        _values = [100 * share for share in _shares]
        _fig.add_bar(x=_ahead, y=_values, name=f"first {_best} of the list", marker={"color": _colour})
    shown(_fig.update_yaxes(range=[0, 102]))
    return


@app.cell(hide_code=True)
def _(TRACE):
    mo.md(f"""
    ## The same from the command line

        python -m traces info {TRACE}
        python -m analysis.notebook explore_trace --trace {TRACE} --html explore_trace.html
        python -m analysis.notebook size_a_cache --trace {TRACE}
        python -m analysis.notebook design_miss_policy --trace {TRACE}

    The third says what these curves mean in tokens/s on your GPU, the last what to do when an expert is not there.
    """)
    return


if __name__ == "__main__":
    from analysis.notebook import main

    raise SystemExit(main(app=app, file=__file__))
