"""What the cells of a notebook showed, as text for a terminal and as one page that asks nobody for anything.

A cell's last value is what it shows: Markdown (marimo's `mo.md`), a plotly figure, a table, or whatever else knows
itself as HTML. Headings open the sections of the page.
"""

import re
from collections.abc import Iterable, Sequence
from html import unescape
from typing import Any

import plotly.graph_objects as go

from analysis.pages.page import render
from analysis.pages.panels import Panel, Section
from analysis.pages.prose import safe
from analysis.showing.words import markup

INTRODUCTION = "What it answers"
# marimo's page asks a CDN for MathJax as soon as it draws a plotly figure, whether or not it has formulas, unless a
# script of that address is in the page. This puts one there that no browser runs.
MATHJAX = "https://cdn.jsdelivr.net/npm/mathjax-full@3.2.2/es5/tex-mml-svg.min.js"
OFFLINE = f"""<iframe hidden onload="const s = document.createElement('script'); s.type = 'text/plain';
s.dataset.status = 'error'; s.src = '{MATHJAX}'; document.head.append(s)"></iframe>"""


def shown(figure: go.Figure) -> Any:
    """The figure as a cell shows it. What stands before it `marimo edit` shows once it trusts the cells; they have run
    by the time that a lazy element gets its content."""
    import marimo

    if not marimo.running_in_notebook():
        return figure
    late = marimo.app_meta().mode == "edit"
    drawn = marimo.lazy(figure) if late else marimo.as_html(figure)
    return marimo.Html(OFFLINE + drawn.text)


def trace_asked(sample: str) -> str:
    """The trace that `marimo edit NOTEBOOK -- --trace FILE` names, or the sample; outside of marimo the sample."""
    import marimo

    if not marimo.running_in_notebook():
        return sample
    return str(marimo.cli_args().get("trace") or sample)


def marked(notes: Iterable[str]) -> str:
    """Markdown: what must be said with the figures of some runs (`notes` of a comparison), above them."""
    return "\n\n".join(f"**! {note}**" for note in notes)


def text(outputs: Iterable[Any]) -> str:
    """Markdown as it is, tables as they are printed, indented as code; of a figure what it shows."""
    return "\n\n".join(filter(None, map(_said, outputs)))


def _said(output: Any) -> str:
    if output is None:
        return ""
    if isinstance(output, go.Figure):
        return f"(figure: {what(output)})"
    if hasattr(output, "_repr_markdown_"):
        return str(output._repr_markdown_()).strip()
    if hasattr(output, "to_string"):
        return _indented(output.to_string())
    return _indented(_bare(_html(output)))


def _indented(lines: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in lines.splitlines())


def _html(output: Any) -> str:
    shown = getattr(output, "_repr_html_", None)
    return (
        safe(shown()).replace("<p><strong>! ", '<p class="loud"><strong>! ')
        if shown
        else f"<pre>{markup(output)}</pre>"
    )


def figures(outputs: Iterable[Any]) -> int:
    return sum(isinstance(output, go.Figure) for output in outputs)


def what(figure: go.Figure) -> str:
    """What a figure shows, by its axes: `generated tokens/s over slots`."""
    bars = [trace.colorbar.title.text for trace in figure.data if trace.type == "heatmap"]
    up, across = ([axis.title.text for axis in axes()] for axes in (figure.select_yaxes, figure.select_xaxes))
    sides = [" and ".join(dict.fromkeys(filter(None, names))) for names in (bars or up, across)]
    return " over ".join(filter(None, sides)) or "a figure"


def page(title: str, outputs: Sequence[Any]) -> str:
    """One HTML file: all outputs in order, as `analysis.pages.page` renders sections."""
    return render(sections(title, outputs), [], title)


def sections(title: str, outputs: Sequence[Any]) -> list[Section]:
    """A section per heading; what stands before the second, under the notebook's title, says what it answers."""
    out = [Section("s0", INTRODUCTION)]
    for output in outputs:
        if isinstance(output, go.Figure):
            _add(out[-1], what(output), figure=output)
        elif output is not None:
            first, *others = _html(output).split("<h2>")
            _add(out[-1], "", prose=first)
            for part in others:
                heading, _, rest = part.partition("</h2>")
                if _bare(heading) != title:
                    out.append(Section(f"s{len(out)}", _bare(heading)))
                _add(out[-1], "", prose=rest)
    return out


def _add(section: Section, heading: str, **content: Any) -> None:
    if heading or content["prose"].strip():
        section.panels.append(Panel(f"{section.key}-{len(section.panels)}", heading, "", wide=True, **content))


def _bare(html: str) -> str:
    return unescape(re.sub("<[^>]*>", "", html))
