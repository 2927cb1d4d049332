"""The figure of engines over link/host ratios."""

import plotly.graph_objects as go

from analysis.comparing.by_ratio import PHASES, ByRatio
from analysis.pages.figures import SMALL, log_said, two_plots
from analysis.showing.palette import GREY, colours
from analysis.showing.words import label

TICKS = "%{x:.3g}: %{y:,.2f} tokens/s"


def by_ratio(found: ByRatio) -> go.Figure:
    """Tokens/s by ratio, decode above and prompts below, a line for each engine, on logarithmic axes; who wins
    somewhere has a colour."""
    colour = colours(name for phase in PHASES for name in found.winners(phase))
    fig, shown = two_plots(620, 0.08), set[str]()
    for row, (phase, word) in enumerate(PHASES.items(), start=1):
        speeds = found.speeds[phase]
        for name in sorted(speeds, key=lambda name: name in colour):
            fig.add_trace(_line(name, speeds[name], colour.get(name), name not in shown), row=row, col=1)
            shown.add(name)
        title = {"text": f"{word} tokens/s", "font": SMALL}
        fig.update_yaxes(title=title, type="log", dtick="D2", row=row, col=1)
    ticks = {"type": "log", "tickvals": list(found.ratios), "ticktext": [f"{ratio:.2g}" for ratio in found.ratios]}
    fig.update_xaxes(**ticks)
    return log_said(fig.update_xaxes(title={"text": "link rate / host read rate", "font": SMALL}, row=2, col=1))


def _line(name: str, at: dict[float, float], colour: str | None, first: bool) -> go.Scatter:
    ratios = sorted(at)
    return go.Scatter(
        x=ratios,
        y=[at[ratio] for ratio in ratios],
        mode="lines+markers",
        name=label(name),
        legendgroup=label(name),
        showlegend=first and colour is not None,
        line={"color": colour or GREY, "width": 2.6 if colour else 1},
        marker={"size": 9 if colour else 4},
        opacity=1 if colour else 0.6,
        hovertemplate=f"{label(name)} at {TICKS}<extra></extra>",
    )
