import marimo

__generated_with = "0.25.2"
app = marimo.App(app_title="Size a cache for your GPU")

with app.setup:
    import shlex
    import textwrap

    import marimo as mo
    import numpy as np

    import sim
    from analysis.comparing import formats
    from analysis.comparing.comparison import compare
    from analysis.comparing.leading import against_baseline
    from analysis.curves.curve import curve, rows, setting_of, to_check
    from analysis.curves.formats import HARDLY, headlines, notes
    from analysis.pages import compare_figures, tables
    from analysis.pages.curve import figure
    from analysis.pages.figures import by_layer, time_parts
    from analysis.pages.notebook import marked, shown, trace_asked


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    # Size a cache for your GPU

    How many experts should lie in GPU memory, and would a better policy or more slots add more? Every slot costs memory
    that the KV cache could use, and the first slots pay differently from the last. LRU is looked at with every number
    of slots at once, in tokens/s on a GPU of your choice; then, at one size, how much a better policy would add.
    """)
    return


@app.cell
def _():
    TRACE = trace_asked("mixtral.npz")  # or a file of yours: --trace FILE, or its name here
    return (TRACE,)


@app.cell
def _(TRACE):
    HARDWARE = "a100-pcie4"  # python -m sim.run --list-hardware, or a TOML file of your own
    ENGINE = "ideal"  # python -m sim.run --list-engines
    PRECISION = "bf16"  # of the experts: bf16, q8, q4, ...
    STEPS = None  # of the trace; None: all

    fields = {"trace": TRACE, "hardware": HARDWARE, "engine": ENGINE, "precision": PRECISION, "max_steps": STEPS}
    fields = {name: value for name, value in fields.items() if value is not None}
    setting = setting_of(fields)
    found = curve(setting)
    knee, sharpness = found.knee()
    lines = rows(setting, found, to_check(found))
    if sharpness < HARDLY:  # none is drawn where every slot pays about alike
        lines = [row | {"marks": [mark for mark in row["marks"] if mark != "knee"]} for row in lines]
    mo.md("\n\n".join([*headlines(setting), marked(notes(setting))]))
    return fields, found, knee, lines, sharpness


@app.cell(hide_code=True)
def _(found, knee, lines, sharpness):
    _cliff, _all = (lines[slots - 1]["tokens_per_s"] for slots in (found.cliff, len(lines)))
    _bend = "There is **no knee**: every slot pays about alike, so buy what you can."
    if sharpness >= HARDLY:
        _bend = f"The **knee**, {knee} slots: furthest above the straight line from the cliff to all experts."
    _fits = "What **fits**: of this hardware file no memory size is known."
    if found.fits is not None:
        _fits = f"What **fits** into the GPU beside everything else: {found.fits} slots."
    mo.md(f"""
    ## All sizes at once

    **Look at** three places.

    - The **cliff**, {found.cliff} slots: as many as one step wants of a layer. Below it a token's own experts do not
      fit; no policy repairs that. At the cliff you get {_cliff:,.2f} tokens/s, with everything resident {_all:,.2f}.
    - {_bend}
    - {_fits}

    Tokens/s bend upward where hits rise evenly: time goes with the *misses*, and the last misses are the largest
    share of those left. Diamonds are full simulations; the line must go through them.
    """)
    return


@app.cell
def _(lines):
    shown(figure(lines))
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Layers are not alike

    The hit rate of each layer at three sizes. **Look for** columns that stay dark: layers that would use another slot
    more than their neighbours do. `--cache-spread marginal` moves slots there.
    """)
    return


@app.cell
def _(found):
    _sizes = sorted({found.cliff, len(found.slots) // 2, max(1, len(found.slots) - 1)})
    _each = max(found.wanted[0] / found.misses.shape[1], 1)  # wanted of a layer: as many in each
    _shares = [1 - found.misses[0, :, slots - 1] / _each for slots in _sizes]
    shown(by_layer([f"{slots} slots" for slots in _sizes], np.array(_shares), "hits (%)"))
    return


@app.cell
def _(fields, found):
    # at one size: what would a better policy add? belady and min read the future: no engine can do what they do
    size = found.fits if found.fits and found.fits < len(found.slots) else max(found.cliff, len(found.slots) // 2)
    cases = {
        "lru": {},
        "lfu": {"eviction": "lfu"},
        "belady": {"eviction": "belady"},
        "min": {"eviction": "min"},
        "oracle prefetch": {"prefetch": "oracle"},
    }
    runs = list(sim.simulate_many(cases, cache=int(size), **fields)["result"])
    table = compare(runs)
    return runs, size, table


@app.cell(hide_code=True)
def _(runs, size, table):
    _row = {row["run"]: row for row in table.rows}
    _bound = runs[0].summary["bounds"]["lossless_ns"] / runs[0].summary["time_ns"]
    _belady, _min = (against_baseline(_row[name]) for name in ("belady", "min"))
    mo.md(f"""
    ## At {size} slots: is it the policy or the size?

{textwrap.indent(marked(table.notes), 4 * " ")}

    **Look at** how little or how much the future helps. Against LRU two evictions that know the whole trace have, in
    tokens/s: belady {_belady}; min, which may also use a newcomer without keeping it, {_min}. They are oracles, not
    ceilings: they count misses, not time. No lossless policy at all, oracles included, takes less than
    **{_bound:.0%}** of LRU's time. Where that is near 100 %, do not look for a better policy: find slots (a lower
    precision), a faster link, or answers that need no copy (`design_miss_policy.py`).
    """)
    return


@app.cell
def _(table):
    shown(compare_figures.speed(table))
    return


@app.cell
def _(runs):
    shown(time_parts(tables.time_parts(runs)))
    return


@app.cell
def _(table):
    mo.plain_text(formats.table(table))
    return


@app.cell(hide_code=True)
def _(TRACE, fields, size):
    _trace = shlex.quote(TRACE)
    _flags = " ".join(
        f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in fields.items() if name != "trace"
    )
    mo.md(f"""
    ## The same from the command line

        python -m analysis.notebook size_a_cache --trace {_trace} --html size_a_cache.html
        python -m analysis.miss_curve {_trace} {_flags} --out curve.html
        python -m sim.run --trace {_trace} {_flags} --cache {size}
        python -m sim.run --trace {_trace} {_flags} --cache {size} --eviction min

    Misses are exact (`analysis/curves/stack_distances.py` says for what). `--cache` takes bytes, too (`--cache 20GB`),
    and shares them over the layers for you.
    """)
    return


if __name__ == "__main__":
    from analysis.notebook import main

    raise SystemExit(main(app=app, file=__file__))
