"""The section of a report about the trace itself, and expert similarity: what buddies live on."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.pages import trace_figures, trace_tables
from analysis.pages.panels import Panel, Section
from analysis.pages.trace_tables import Spread
from analysis.reading.run import Run
from analysis.showing.words import shortened
from sim.fit import buddies_file
from traces.errors import UserError
from traces.format import npz
from traces.format.trace import RoutingTrace
from traces.statistics.describe import marked

Float = npt.NDArray[np.float64]
MAX_DRAWN = 120_000  # cells of all layers that one heatmap can show
MAX_SIDE = 256  # experts of a side; more are averaged in blocks


def find_trace(run: Run, given: str | None) -> tuple[RoutingTrace | None, str]:
    """(the run's trace, "") or (None, why not). Raises UserError where `given` is another trace than the run's."""
    name = given or str(run.spec["trace"])
    try:
        trace = npz.read(npz.find(name))
    except UserError as error:
        if given:
            raise
        return None, f"the trace is not there to be looked at ({error}); --trace FILE gives it"
    if npz.content_hash(trace) != run.trace["hash"]:
        if given:
            raise UserError(
                f"trace: {given}: is not the trace of run {run.name}, whose hash is {run.trace['hash'][:16]}..."
            )
        return None, f"{name} is another trace by now than the one that was run; --trace FILE gives it"
    return trace, ""


def trace_section(trace: RoutingTrace | None, why: str, buddies: str | None, similarity: str | None) -> Section:
    """Skew, q mass over rank, co-activation and similarity; what cannot be shown is said. Raises UserError."""
    section = Section("trace", "The experts")
    found = None
    if trace is None:
        section.remarks.append(f"Activation skew and co-activation are not shown: {why}.")
    else:
        section.panels.append(_skew(trace))
        found = trace_tables.counted(trace)
        if found is None:
            section.remarks.append(
                "Co-activation is not shown: no two experts serve one token, or too many pairs exist."
            )
    section.panels.extend(_q_mass(found, buddies))
    if found is not None and trace is not None:
        layers = list(trace.meta["moe_layers"])
        section.panels.append(_co_activation(found, layers))
    if similarity is not None:
        section.panels.append(_similarity(similarity))
    else:
        section.remarks.append("Expert similarity is not shown: --similarity FILE.npz gives it.")
    return section


def _skew(trace: RoutingTrace) -> Panel:
    found = trace_tables.skew(trace)
    top = max(1, round(0.2 * trace.n_experts))
    kind = "real capture" if trace.real else "SYNTHETIC trace" + marked(trace.meta)
    return Panel(
        "skew",
        f"The busiest fifth of a layer's experts takes {100 * found.middle[:top].sum():.3g} % of its uses",
        f"Uses by popularity rank, in the {kind} of {shortened(trace.model, 60)}, prompts included. An even use would "
        f"be {100 / trace.n_experts:.3g} % each.",
        trace_figures.skew(found),
    )


def _q_mass(found: Any, buddies: str | None) -> list[Panel]:
    """From a file of buddy lists where one is given, else from the trace's own counts."""
    if buddies is not None:
        lists = buddies_file.read(buddies)
        mass = Spread.of(np.cumsum(lists.q.astype(np.float64), axis=2).reshape(-1, lists.q.shape[2]))
        sizes = lists.sizes
        title = f"Buddy lists hold {sizes.mean():.3g} peers on average and cover {100 * lists.coverage.mean():.3g} %"
        about = (
            f"q(j|i) summed over the lists of {shortened(Path(buddies).name, 60)}; a list ends where it reaches alpha."
        )
        return [Panel("q-mass", title, about, trace_figures.q_mass(mass, float(lists.alpha.mean())))]
    if found is None:
        return []
    mass = trace_tables.q_mass(found)
    need = int(np.searchsorted(mass.middle, 0.9 - 1e-12)) + 1
    title = f"The median expert needs {need} of {len(mass.middle)} peers to cover 90 % of its co-activation"
    about = "q(j|i) is the share of expert i's companions that j is; summed over its best peers (BuddyMoE's CFT)."
    return [Panel("q-mass", title, about, trace_figures.q_mass(mass))]


def _co_activation(found: Any, moe_layers: list[int]) -> Panel:
    squares = trace_tables.together(found)
    even = (np.nansum(found.uses) and np.nanmean(squares)) or 0.0
    peak = float(np.nanmax(squares)) if np.isfinite(squares).any() else 0.0
    title = f"Experts wanted together: up to {100 * peak:.3g} % of an expert's uses, {100 * even:.3g} % on average"
    caption = "Share of the uses of expert i (row) in which the same token also wants expert j (column)."
    return _heatmap("co-activation", title, caption, 100 * squares, moe_layers, "j wanted too (%)")


def _similarity(path: str) -> Panel:
    matrix, _ = buddies_file.read_similarity(path)
    off = matrix.copy()
    np.einsum("lii->li", off)[...] = np.nan
    best = np.nanmax(off, axis=2)
    title = f"An expert's most similar peer has a similarity of {np.nanmedian(best):.3g} in the median"
    name = shortened(Path(path).name, 60)
    caption = f"Similarity of the outputs of experts i and j, from {name}; the diagonal is left out."
    return _heatmap("similarity", title, caption, off, list(range(len(off))), "similarity")


def _heatmap(key: str, title: str, caption: str, squares: Float, layers: list[int], what: str) -> Panel:
    """One layer at a time, a few to choose from; the middle one first."""
    side = min(squares.shape[1], MAX_SIDE)
    most = max(1, min(len(squares), MAX_DRAWN // (side * side)))
    shown = np.unique(np.linspace(0, len(squares) - 1, most).round().astype(np.int64))
    chosen = len(shown) // 2
    drawn = [averaged(squares[i]) for i in shown]
    if squares.shape[1] > MAX_SIDE:
        caption += f" Blocks of {-(-squares.shape[1] // MAX_SIDE)} experts are averaged."
    choices = [(f"MoE layer {layers[i]}", square.astype(np.float32)) for i, square in zip(shown, drawn, strict=True)]
    return Panel(key, title, caption, trace_figures.pairs(drawn[chosen], what), choices=choices, chosen=chosen)


def averaged(square: Float, side: int = MAX_SIDE) -> Float:
    """[E, E] as at most [side, side]: means of blocks, NaN left out."""
    n = len(square)
    if n <= side:
        return square
    block = -(-n // side)
    padded = np.full((block * -(-n // block),) * 2, np.nan)
    padded[:n, :n] = square
    blocks = padded.reshape(len(padded) // block, block, len(padded) // block, block)
    known = np.isfinite(blocks)
    total = np.where(known, blocks, 0.0).sum(axis=(1, 3))
    count = known.sum(axis=(1, 3))
    mean: Float = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean
