"""A figure's legend as HTML: it wraps with the page, is read aloud, and leaves the figure its room."""

from html import escape, unescape
from typing import Any

GLYPHS = {
    "circle": "●○",
    "diamond": "◆◇",
    "square": "■□",
    "triangle-up": "▲△",
    "triangle-down": "▼▽",
    "triangle-right": "▶▷",
    "cross": "✚✛",
    "x": "✖✕",
    "star": "★☆",
    "pentagon": "⬟⬠",
    "hexagram": "✶✡",
    "line-ns": "││",
    "x-thin": "✕✕",
}
PATTERNS = {".": "spotted"}  # of bars, the others are hatched


def legend(figure: dict[str, Any]) -> str:
    """The entries of a figure (data and layout as plotly.js takes them) as a list; "" where one entry says nothing."""
    entries: dict[str, str] = {}
    for trace in figure["data"]:
        if trace.get("name") and trace.get("showlegend") is not False:
            entries.setdefault(unescape(trace["name"]), _swatch(trace))
    if len(entries) < 2 or figure["layout"].get("showlegend") is False:
        return ""
    items = "".join(f"<li>{swatch}{escape(name)}</li>" for name, swatch in entries.items())
    return f'<ul class="legend" aria-label="Legend">{items}</ul>'


def _swatch(trace: dict[str, Any]) -> str:
    """A small sign in the trace's colour: a square for areas (some hatched), a stroke for lines, its symbol."""
    marker, line = trace.get("marker") or {}, trace.get("line") or {}
    shape, colour = (marker.get("pattern") or {}).get("shape"), marker.get("color")
    if shape:
        return _sign(f"area {PATTERNS.get(shape, 'hatched')}", colour if isinstance(colour, str) else "inherit", "")
    if isinstance(colour, list):
        return _sign("area", "inherit", "")
    if trace["type"] == "bar" or trace.get("stackgroup") or str(trace.get("fill", "none")) != "none":
        return _sign("area", trace.get("fillcolor") or marker.get("color"), "")
    if "markers" in str(trace.get("mode")) and "lines" not in str(trace.get("mode")):
        name = str(marker.get("symbol", "circle"))
        full = name.removesuffix("-open")
        return _sign("glyph", marker.get("color"), GLYPHS.get(full, "●○")[name.endswith("-open")])
    return _sign("stroke" if line.get("dash", "solid") == "solid" else "dotted", line.get("color"), "")


def _sign(kind: str, colour: Any, glyph: str) -> str:
    return f'<span class="{kind}" style="color:{escape(str(colour))}" aria-hidden="true">{glyph}</span>'
