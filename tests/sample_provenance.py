"""How the shipped sample was fitted and how far it lies from a real capture: the tables of its README.

`python -m tests.sample_provenance` prints the tables; `--write` puts them into traces/samples/README.md. The
column "model" is what the constants in traces/synthetic.py give in the mean, by which they were chosen. The
capture is read from ../shared/traces where it is there; it is compared with, never fitted to.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from traces.format import npz
from traces.format.trace import RoutingTrace
from traces.synthetic import PRESETS, Preset, generate

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "traces" / "samples" / "README.md"
SAMPLE = ROOT / "traces" / "samples" / "mixtral.npz"
CAPTURE = ROOT.parent / "shared" / "traces" / "mixtral-8x7b.npz"
BEGIN, END = "<!-- made by python -m tests.sample_provenance --write -->", "<!-- end -->"

Floats = npt.NDArray[np.float64]

# arXiv 2401.04088 Table 5, mean over its eight datasets, and the lowest and highest of them:
# MoE layer: (first choice repeated, either choice repeated)
PUBLISHED_SHARES = {0: (0.1409, 0.4804), 15: (0.2640, 0.6369), 31: (0.2268, 0.5091)}
PUBLISHED_RANGES = {
    0: ((0.136, 0.149), (0.449, 0.499)),
    15: ((0.236, 0.284), (0.616, 0.670)),
    31: ((0.197, 0.263), (0.445, 0.536)),
}
# github.com/efeslab/fiddler @ 5e5ed673, benchmarks/results/popularity/mixtral_8x7b_instruct, seven MMLU
# subjects, layers 0, 3, 7, ... 31: spread (sd / mean) of an expert's share, mean over the subjects, and rms
# distance of a subject's shares from that mean
PUBLISHED_POPULARITY_CV, PUBLISHED_SUBJECT_RMS = 0.156, 0.139
# Assumed, within what is published for other models and methods (71.6-96 % one layer ahead)
ASSUMED_RECALL = {1: 0.86, 2: 0.76}
HYBRIMOE_LRU = {
    2: 0.302,
    6: 0.806,
}  # arXiv 2504.05897, Mixtral, 25 % and 75 % of the experts resident; not fitted


def common(trace: RoutingTrace) -> npt.NDArray[np.int64]:
    """Experts that a row shares with the row before it, int64 [tokens - 1, layers]; -1 never matches."""
    now, before = trace.experts[1:, :, :, None], trace.experts[:-1, :, None, :]
    return ((now == before) & (now >= 0)).sum(axis=(2, 3))


def repeat_shares(trace: RoutingTrace) -> tuple[Floats, Floats]:
    """Per layer: how often a row's first choice is the previous row's; how often the two share an expert."""
    same = trace.sequence[1:] == trace.sequence[:-1]
    first = (trace.experts[1:, :, 0] == trace.experts[:-1, :, 0])[same].mean(axis=0)
    return first, (common(trace) > 0)[same].mean(axis=0)


def overlap(trace: RoutingTrace) -> float:
    """Mean share of a generated token's experts that the token before it used too."""
    counted = (trace.sequence[1:] == trace.sequence[:-1]) & ~trace.prefill[1:]
    return float(common(trace)[counted].sum() / (trace.experts[1:][counted] >= 0).sum())


def lru_hit_rate(trace: RoutingTrace, slots: int) -> float:
    """Hits / wanted of a per-layer LRU over one request's generated tokens, empty before its prompt."""
    hits = wanted = 0
    for layer in range(trace.n_moe_layers):
        recent: list[int] = []  # oldest first
        for row, prompt in zip(trace.experts[:, layer].tolist(), trace.prefill.tolist(), strict=True):
            asked = [expert for expert in row if expert >= 0]
            if not prompt:
                wanted += len(asked)
                hits += sum(expert in recent for expert in asked)
            recent = ([expert for expert in recent if expert not in asked] + asked)[-slots:]
    return hits / wanted


def recall(trace: RoutingTrace, distance: int) -> float:
    """Share of the routed experts that are among the first top_k predicted `distance` layers earlier."""
    assert trace.lookahead is not None
    guess = trace.lookahead[trace.lookahead_distances.index(distance), :, distance:, : trace.top_k]
    return float((trace.experts[:, distance:, :, None] == guess[:, :, None, :]).any(axis=3).mean())


def popularity(trace: RoutingTrace) -> tuple[float, float]:
    """Spread (sd / mean) of the experts' shares, mean over layers; rms distance of a request's from it."""
    n = trace.n_experts
    shares = np.array(
        [
            [np.bincount(one.experts[:, layer].ravel(), minlength=n) for layer in range(trace.n_moe_layers)]
            for one in requests(trace)
        ],
        np.float64,
    )
    shares *= n / shares.sum(axis=2, keepdims=True)
    mean, count = shares.mean(axis=0), len(shares)
    return float(mean.std(axis=1).mean()), float(np.sqrt(((shares - mean) ** 2).mean() * count / (count - 1)))


def requests(trace: RoutingTrace) -> list[RoutingTrace]:
    """One trace per request."""
    return [trace.select(np.arange(lo, hi)) for lo, hi in zip(*trace.requests(), strict=True)]


def fitted_table(sample: RoutingTrace) -> list[str]:
    """Markdown: what was fitted, published against achieved."""
    first, either = repeat_shares(sample)
    lines = ["| figure | published (lowest-highest) | model | this sample |", "|---|---|---|---|"]
    for layer, published in PUBLISHED_SHARES.items():
        model = population(layer)
        for i, (name, achieved) in enumerate((("first choice repeats", first), ("a choice repeats", either))):
            low, high = PUBLISHED_RANGES[layer][i]
            lines.append(
                f"| {name}, layer {layer} | {published[i]:.3f} ({low:.3f}-{high:.3f}) | {model[i]:.3f} "
                f"| {achieved[layer]:.3f} |"
            )
    cv, rms = popularity(long_run(PRESETS["mixtral-8x7b"]))
    own_cv, own_rms = popularity(sample)
    lines.append(f"| popularity, sd / mean | {PUBLISHED_POPULARITY_CV:.3f} | {cv:.3f} | {own_cv:.3f} |")
    lines.append(f"| request from the mean, rms | {PUBLISHED_SUBJECT_RMS:.3f} | {rms:.3f} | {own_rms:.3f} |")
    for distance, assumed in ASSUMED_RECALL.items():
        got = recall(sample, distance)
        lines.append(f"| recall@2 at distance {distance} | {assumed:.2f}, assumed | | {got:.3f} |")
    for slots, published in HYBRIMOE_LRU.items():
        got = np.mean([lru_hit_rate(one, slots) for one in requests(sample)])
        name = f"LRU hit rate, {slots} of 8 slots (arXiv 2504.05897)"
        lines.append(f"| {name} | {published:.3f}, not fitted | | {got:.3f} |")
    return lines


def distance_table(sample: RoutingTrace, capture: RoutingTrace) -> list[str]:
    """Markdown: sample beside capture, each as mean over its requests (lowest-highest of them)."""
    figures = {"overlap with the previous token": overlap}
    for slots in (2, 4, 6):
        figures[f"LRU hit rate, {slots} of 8 slots"] = lambda one, slots=slots: lru_hit_rate(one, slots)
    lines = ["| figure | sample | capture | distance | spread of the capture |", "|---|---|---|---|---|"]
    for name, figure in figures.items():
        ours, theirs = ([figure(one) for one in requests(trace)] for trace in (sample, capture))
        apart, spread = np.mean(ours) - np.mean(theirs), max(theirs) - min(theirs)
        shown = [f"{np.mean(x):.3f} ({min(x):.3f}-{max(x):.3f})" for x in (ours, theirs)]
        lines.append(f"| {name} | {shown[0]} | {shown[1]} | {apart:+.3f} | {spread:.3f} |")
    return lines


def population(layer: int, seed: int = 7) -> tuple[float, float]:
    """The repeat shares that the model gives at a known layer: mean over 32 layers made with its figures."""
    preset = PRESETS["mixtral-8x7b"]
    knot = next(knot for knot in preset.memory if knot[0] == layer)
    first, either = repeat_shares(generate(replace(preset, memory=(knot,), noise=()), seed))
    return float(first.mean()), float(either.mean())


def long_run(preset: Preset, seed: int = 7) -> RoutingTrace:
    """The preset with requests so long that the shares of experts are the model's, not the sampling's."""
    return generate(replace(preset, noise=(), generation=(2000, 2000)), seed)


def page(text: str) -> str:
    """The README with its tables made anew."""
    sample = npz.read(SAMPLE)
    block = [*fitted_table(sample), ""]
    if CAPTURE.exists():
        block += distance_table(sample, npz.read(CAPTURE))
    else:
        block += [f"(no capture at ../shared/traces/{CAPTURE.name}: distances not computed)"]
    head, rest = text.split(BEGIN)
    return "\n".join([head + BEGIN, *block, END]) + rest.split(END)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="rewrite the tables of traces/samples/README.md")
    args = parser.parse_args()
    if args.write and not CAPTURE.exists():
        parser.error(f"--write needs the capture {CAPTURE.name} in ../shared/traces: it would lose the distances")
    text = page(PAGE.read_text())
    if args.write:
        PAGE.write_text(text)
    print(text[text.index(BEGIN) :])


if __name__ == "__main__":
    main()
