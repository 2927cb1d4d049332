"""python -m analysis.fit_generic: how far the interpolation of traces/generic.py is off, and its constants.

    python -m analysis.fit_generic --out analysis/results/generic.md     # each capture, as if nothing were known of it
    python -m analysis.fit_generic --fit                                 # FITTED, OWN, LEFT_OUT of this file: minutes

The fit bisects memory against overlap and spread of popularity against popularity, in turn, on generated traces. What
they miss then is what so short a trace strays by.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from traces.command import Parser, guarded, write_bytes
from traces.errors import UserError
from traces.foreign.models import model, names
from traces.format import npz
from traces.format.trace import RoutingTrace
from traces.generic import LENGTHS, ROWS, TOPIC, Row, aim, interpolated
from traces.progress import doing
from traces.statistics.stats import overlap
from traces.synthetic import PRESETS, Preset, generate

Pair = tuple[float, float]
CAPTURES = Path(__file__).resolve().parents[2] / "shared" / "traces"
ROUNDS, HALVINGS, MOST_C, MOST_SPREAD = 3, 7, 0.98, 1.5
SHARES = (8, 4, 2)  # of a layer's experts there are slots for one in so many
# model: its capture's file; (c, offset_sd) by the eight other rows, by its own
LEFT_OUT: dict[str, tuple[str, Pair, Pair]] = {
    "mixtral-8x7b": ("mixtral-8x7b", (0.25, 0.72), (0.39, 0.09)),
    "gpt-oss-20b": ("gpt-oss-20b", (0.33, 0.37), (0.52, 0.74)),
    "granite-3.0-1b-a400m": ("granite-3.0-1b", (0.32, 0.67), (0.27, 0.53)),
    "qwen1.5-moe-a2.7b": ("qwen1.5-moe", (0.41, 0.42), (0.16, 0.11)),
    "olmoe-1b-7b": ("olmoe-1b-7b", (0.36, 0.38), (0.52, 0.49)),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> None:
    parser = Parser(prog="python -m analysis.fit_generic", description="Of traces/generic.py: errors, and constants.")
    parser.add_argument("--fit", action="store_true", help="print the constants, fitted again")
    parser.add_argument("--out", metavar="FILE", help="write the page of errors")
    args = parser.parse_args(argv)
    if args.fit:
        for line in constants():
            print(line, flush=True)
        return
    absent = [file for file, *_ in LEFT_OUT.values() if not (CAPTURES / f"{file}.npz").is_file()]
    if absent:
        raise UserError(f"{CAPTURES}: no {', '.join(absent)}; the page compares with captures beside the checkout")
    doing("generating and comparing with captures", at_once=False)
    text = page()
    print(text, end="")
    if args.out is not None:
        write_bytes(args.out, text.encode())


# --- the fit


def figures(trace: RoutingTrace) -> Pair:
    """(overlap, popularity) as `python -m traces info` counts them, of the slots that were recorded."""
    found = overlap(trace)
    return found["recorded"], found["popularity"]


def made(shape: tuple[int, int], values: Pair, layers: int, lengths: dict[str, Any] = LENGTHS) -> RoutingTrace:
    """Generic routing of a shape (top_k, n_experts) with (c, offset_sd)."""
    (k, n), (c, spread) = shape, values
    own: dict[str, Any] = {"memory": ((0, c, 0.0),), "offset_sd": spread, "topic": TOPIC, "logits": False}
    return generate(Preset("fit", n, k, layers, tuple(range(layers)), **own, **lengths), 0)


def fit(shape: tuple[int, int], wanted: Pair) -> Pair:
    """(c, offset_sd) that make (overlap, popularity), to two decimals; in so many layers that chance hardly matters."""
    layers, c, spread = max(8, 2048 // shape[1]), 0.4, 0.4
    for _ in range(ROUNDS):
        c = _bisected(lambda x, y: figures(made(shape, (x, y), layers))[0], spread, wanted[0], MOST_C)
        spread = _bisected(lambda y, x: figures(made(shape, (x, y), layers))[1], c, wanted[1], MOST_SPREAD)
    return round(c, 2), round(spread, 2)


def _bisected(of: Callable[[float, float], float], other: float, wanted: float, high: float) -> float:
    """Where in [0, high] a function that rises with it has the value, or the nearer end."""
    low = 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if of(middle, other) < wanted else (low, middle)
    return (low + high) / 2


def constants() -> Iterator[str]:
    """The lines of FITTED, OWN and LEFT_OUT."""
    generic = {name: model(name) for name in names() if name not in PRESETS}
    own = [row for row in ROWS if row.model in generic]
    shapes = {(of.top_k or 0, of.n_experts or 0) for name, of in generic.items() if name not in {r.model for r in own}}
    yield from (f"    {shape}: {fit(shape, interpolated(*shape))}," for shape in sorted(shapes))
    yield from (f'    "{row.model}": {fit(shape_of(row), aim(row.model, *shape_of(row)))},' for row in own)
    for name, (file, *_) in LEFT_OUT.items():
        row, others = left_out(name)
        without, with_it = fit(shape_of(row), interpolated(*shape_of(row), others)), fit(shape_of(row), row[3:5])
        yield f'    "{name}": ("{file}", {without}, {with_it}),'


def shape_of(row: Row) -> tuple[int, int]:
    return row.top_k, row.n_experts


def left_out(name: str) -> tuple[Row, tuple[Row, ...]]:
    """A model's row, and the others."""
    return next(row for row in ROWS if row.model == name), tuple(row for row in ROWS if row.model != name)


# --- how far off


def lru_hits(trace: RoutingTrace, slots: int) -> float:
    """Share of what tokens want that an LRU of each layer's own has, a token's experts at once, requests one behind
    the other, the first not counted."""
    ids, first = np.asarray(trace.experts), int(trace.requests()[1][0])
    hits = wanted = 0
    for layer in range(trace.n_moe_layers):
        recent: list[int] = []  # oldest first
        for token, row in enumerate(ids[:, layer].tolist()):
            asked = [expert for expert in row if expert >= 0]
            if token >= first:
                wanted += len(asked)
                hits += sum(expert in recent for expert in asked)
            recent = ([expert for expert in recent if expert not in asked] + asked)[-slots:]
    return hits / wanted


def measured(trace: RoutingTrace) -> dict[str, float]:
    """What is compared, by name."""
    slots = [trace.n_experts // share for share in SHARES if trace.n_experts // share >= trace.top_k]
    return dict(zip(("overlap", "popularity"), figures(trace), strict=True)) | {
        f"LRU, {n} of {trace.n_experts} slots": lru_hits(trace, n) for n in slots
    }


def like_capture(capture: RoutingTrace, values: Pair) -> RoutingTrace:
    """Generic routing as long as a capture, in as many requests and layers."""
    requests = len(capture.requests()[0])
    each = capture.n_tokens // requests - 1
    lengths = {"requests": requests, "prompt": (1, 1), "generation": (each, each)}
    return made((capture.top_k, capture.n_experts), values, capture.n_moe_layers, lengths)


class Off(NamedTuple):
    """A figure of a model: in the capture, interpolated from the other rows, and made from its own row."""

    model: str
    figure: str
    capture: float
    interpolated: float
    own: float


def errors(name: str) -> list[Off]:
    """The figures of a model, LEFT_OUT's."""
    file, without, with_it = LEFT_OUT[name]
    capture = npz.read(CAPTURES / f"{file}.npz")
    truth, guess, own = (measured(t) for t in (capture, *(like_capture(capture, of) for of in (without, with_it))))
    return [Off(name, what, truth[what], guess[what], own[what]) for what in truth]


def page() -> str:
    """analysis/results/generic.md."""
    rows = [row for name in LEFT_OUT for row in errors(name)]
    return "\n".join([*_head(rows), *map(_line, rows)]) + "\n"


def _line(row: Off) -> str:
    name, what, truth, guess, own = row
    return f"| {name} | {what} | {truth:.3f} | {guess:.3f} | {guess - truth:+.3f} | {own:.3f} | {own - truth:+.3f} |"


def _head(rows: list[Off]) -> list[str]:
    return [
        "# Generic traces: how far the interpolation is off",
        "",
        "    python -m analysis.fit_generic --out analysis/results/generic.md",
        "",
        "- Each captured model as if nothing were known of it: a generic trace by the other eight rows of "
        "`traces/generic.py`, as long as the capture.",
        "- own row: the same by the model's own overlap and popularity: what is off there, the generator is.",
        "- The topic share was chosen with these captures in view: 0.1 and 0.25 fit their LRU hit rates alike, 0.4 and "
        "0.65 worse; models fitted to published hit rates have up to 0.6.",
        "- LRU: share of hits, each layer its own slots, a token's experts at once, the first request not counted.",
        f"- Mean distance without the own row: {_means(rows, 'interpolated')}. With it: {_means(rows, 'own')}.",
        f"- Interpolated from the other four captures alone: {_from_captures()}.",
        "",
        "| model | figure | capture | interpolated | off | own row | off |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]


def _means(rows: list[Off], column: str) -> str:
    """Mean absolute distance of a column from the capture, by kind of figure."""
    said = []
    for kind in ("overlap", "popularity", "LRU"):
        off = [abs(getattr(row, column) - row.capture) for row in rows if row.figure.startswith(kind)]
        said.append(f"{kind} {np.mean(off):.3f} (most {max(off):.3f})")
    return ", ".join(said)


def _from_captures() -> str:
    """Mean distance of what would be aimed at without the rows that are no captures."""
    off = []
    for name in LEFT_OUT:
        row, others = left_out(name)
        aims = interpolated(*shape_of(row), tuple(other for other in others if other.model in LEFT_OUT))
        off.append([abs(a - b) for a, b in zip(aims, row[3:5], strict=True)])
    over, alone = np.mean(off, axis=0)
    return f"overlap {over:.3f} (most {max(each[0] for each in off):.3f}), popularity {alone:.3f}"


if __name__ == "__main__":
    sys.exit(main())
