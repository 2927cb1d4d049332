"""Sections as one HTML page that asks nobody for anything: style, script and plotly.js are in it, once.

Every text is escaped here, whoever wrote it; figures travel as JSON that cannot end its script element, and a content
security policy forbids the page any request, should something have slipped through.
"""

import json
import re
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io
from plotly.offline import get_plotlyjs

from analysis.comparing.comparison import CLOSED_LOOP
from analysis.pages.legend import legend
from analysis.pages.panels import Cells, First, Panel, Section
from analysis.showing.words import markup
from sim import __version__

LONG = 44  # characters from which on a cell may break anywhere
MARK = re.compile(r"(?:MIXED|FEW) \w+|[A-Z]{3,}(?: [A-Z]{3,})*")  # the word that a note begins with
MOST_MIXED = 2  # kinds of mixed settings that have a mark each
HERE = Path(__file__).parent
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
)


def render(sections: list[Section], notes: list[str], title: str, first: First | None = None) -> str:
    """The whole page. notes: what must be said with any figure; first: what is seen first."""
    every = [*([first.panel] if first else []), *(panel for section in sections for panel in section.panels)]
    ids = {panel.key: f"p{i}" for i, panel in enumerate(every)}
    figures = {ids[panel.key]: _figure(panel) for panel in every if panel.figure is not None}
    parts = {
        "POLICY": POLICY,
        "TITLE": markup(title),
        "VERSION": markup(__version__),
        "STYLE": (HERE / "report.css").read_text(),
        "LINKS": "\n".join(f'<li><a href="#{s.key}">{markup(s.heading)}</a></li>' for s in sections),
        "FIRST": _first(first, notes, ids, figures) if first else _marks(notes),
        "BODY": "\n".join(_section(section, ids, figures) for section in sections),
    }
    for figure in figures.values():
        figure["layout"]["showlegend"] = False  # the page has it
    parts |= {
        "FIGURES": _for_script(json.dumps(figures, separators=(",", ":"))),
        "PLOTLY": get_plotlyjs().replace("</script", "<\\/script"),
        "SCRIPT": (HERE / "report.js").read_text(),
    }
    # one pass over the template: what is put in is never looked at again
    pieces = (HERE / "report.html").read_text().split("@@")
    return "".join(piece if i % 2 == 0 else parts[piece] for i, piece in enumerate(pieces))


def _first(first: First, notes: list[str], ids: dict[str, str], figures: dict[str, dict[str, Any]]) -> str:
    key = ids[first.panel.key]
    held = f'<p id="held-back">{markup(first.held_back)}</p>' if first.held_back else ""
    return (
        f'<section id="answer" aria-labelledby="answer-h"><h2 id="answer-h">{markup(first.sentence)}</h2>'
        f"{_marks(notes)}{_panel(first.panel, key, figures.get(key), held)}</section>"
    )


def _marks(notes: list[str]) -> str:
    """The notes, folded: their marks are seen."""
    if not notes:
        return ""
    found = [MARK.match(note) for note in notes]
    words = list(dict.fromkeys(each.group() for each in found if each))
    words = [word for word in words if word != CLOSED_LOOP]  # beside OPEN LOOP, which is a mark of its own
    mixed = [word for word in words if word.startswith("MIXED")]
    if len(mixed) > MOST_MIXED:
        words = ["MIXED settings", *(word for word in words if word not in mixed)]
    others = sum(each is None for each in found)
    words += [f"{others} more note{'s' * (others > 1)}"] if others else []
    marks = "".join(f'<span class="mark">{markup(word)}</span> ' for word in words)
    told = "".join(f'<p class="loud">{markup(note)}</p>' for note in notes)
    return f'<details id="notes"><summary>{marks}<span class="more">in full</span></summary>{told}</details>'


def _for_script(code: str) -> str:
    """JSON that no HTML parser takes for the end of its element, nor for a comment."""
    for mark in "<>&\u2028\u2029":
        code = code.replace(mark, f"\\u{ord(mark):04x}")
    return code


def _figure(panel: Panel) -> dict[str, Any]:
    """Data and layout as plotly.js takes them, and what a heatmap's choice of layers puts in."""
    assert panel.figure is not None
    figure: dict[str, Any] = json.loads(plotly.io.to_json(panel.figure, validate=False, remove_uids=True))
    figure["layout"].pop("template", None)
    if len(panel.choices) > 1:
        arrays = go.Figure([go.Heatmap(z=z) for _, z in panel.choices])  # as a figure, they are packed in base 64
        encoded = json.loads(plotly.io.to_json(arrays, validate=False))
        figure["choices"] = [trace["z"] for trace in encoded["data"]]
    return figure


def _section(section: Section, ids: dict[str, str], figures: dict[str, dict[str, Any]]) -> str:
    panels = "\n".join(_panel(panel, ids[panel.key], figures.get(ids[panel.key])) for panel in section.panels)
    remarks = "".join(f'<p class="remark">{markup(remark)}</p>' for remark in section.remarks)
    heading = f'<h2 id="{section.key}-h">{markup(section.heading)}</h2>'
    told = f'{remarks}<div class="panels">{panels}</div>'
    inside = f"<details><summary>{heading}</summary>{told}</details>" if section.folded else heading + told
    return f'<section id="{section.key}" aria-labelledby="{section.key}-h">{inside}</section>'


def _panel(panel: Panel, key: str, figure: dict[str, Any] | None, below: str = "") -> str:
    """below: what stands right below a figure."""
    if panel.prose:
        return f'<div class="prose">{panel.prose}</div>'
    box = f'class="panel{" wide" * panel.wide}"{_among(panel)}'
    caption = f'<p class="caption" id="{key}-c">{markup(panel.caption)}</p>' if panel.caption else ""
    if figure is None:
        table = _table(panel.table, panel.title, key) if panel.table else ""
        facts = "".join(f"<div><dt>{markup(name)}</dt><dd>{markup(value)}</dd></div>" for name, value in panel.facts)
        table += f"<dl>{facts}</dl>" if facts else ""
        return f'<div {box}><h3 id="{key}-t">{markup(panel.title)}</h3>{table}{caption}</div>'
    described = f' aria-describedby="{key}-c"' if panel.caption else ""
    plot = f'<div class="plot" id="{key}" role="img" aria-labelledby="{key}-t"{described}></div>'
    table = ""
    if panel.table:
        shown = _table(panel.table, panel.title, key)
        table = f"<details><summary>The same as a table</summary>{shown}</details>"
    return (
        f'<figure {box}><h3 id="{key}-t">{markup(panel.title)}</h3>'
        f"{_choices(panel, key)}{legend(figure)}{plot}{below}"
        f"<figcaption>{caption}{table}</figcaption></figure>"
    )


def _among(panel: Panel) -> str:
    """Attributes of a panel of which one of several is shown: the script makes the select."""
    names = ("among", "what", "option")
    return "".join(f' data-{name}="{markup(value)}"' for name, value in zip(names, panel.among or (), strict=False))


def _choices(panel: Panel, key: str) -> str:
    """A select of the layers that a heatmap can show."""
    if len(panel.choices) < 2:
        return ""
    options = "".join(
        f'<option value="{i}"{" selected" if i == panel.chosen else ""}>{markup(name)}</option>'
        for i, (name, _) in enumerate(panel.choices)
    )
    return f'<p class="choice"><label>Shown: <select data-for="{key}">{options}</select></label></p>'


def _table(cells: Cells, caption: str, key: str) -> str:
    """A table in a frame that is reachable by keyboard. The row's name is its heading. Where there is no room for its
    columns the script stacks them, each cell below its title; roles say that it stays a table."""
    titles, rows = cells
    name = titles.index("run") if "run" in titles else 0
    columns = list(zip(*rows, strict=True)) or [()] * len(titles)
    numbers = [i != name and any(map(_is_number, column)) for i, column in enumerate(columns)]
    head = "".join(
        f'<th scope="col" role="columnheader"{" class=n" if number else ""}>{markup(title)}</th>'
        for title, number in zip(titles, numbers, strict=True)
    )
    body = "".join(
        f'<tr role="row">{"".join(_cell(value, titles[i], i == name) for i, value in enumerate(row))}</tr>'
        for row in rows
    )
    return (
        f'<div class="frame" tabindex="0" role="region" aria-labelledby="{key}-t"><table role="table">'
        f'<caption>{markup(caption)}</caption><thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{body}</tbody></table></div>'
    )


def _cell(value: str, title: str, heading: bool) -> str:
    kind = "n" if _is_number(value) and not heading else "long" if len(value) > LONG else ""
    tag, role = ("th", 'scope="row" role="rowheader"') if heading else ("td", 'role="cell"')
    look = f' class="{kind}"' if kind else ""
    return f'<{tag} {role}{look} data-title="{markup(title)}">{markup(value)}</{tag}>'


def _is_number(value: str) -> bool:
    return value[:1] in tuple("+-0123456789") and any(c.isdigit() for c in value[:2])
