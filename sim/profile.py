"""Command line of BuddyMoE's offline profile: `python -m sim.profile --trace calib.npz --out buddies.npz`.

Prints how long the lists are and how much of the co-activation they cover, and warns when the sample is too
small to tell one pair of experts from another.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sim.errors import SpecError
from sim.fit import buddies_file
from sim.fit.buddies import BuddyLists, BuddyProfile, from_similarity
from sim.fit.coactivation import COUNTS
from traces.command import Parser, add_force, guarded, out_file
from traces.format import npz
from traces.progress import doing
from traces.statistics.describe import LOUD


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit, write, report. Returns the exit status: 0 done, 2 bad input (one line on stderr)."""
    return guarded(_command, arguments)


def _command(arguments: list[str]) -> None:
    options = _parser().parse_args(arguments)
    if options.out == "":
        options.out = f"{Path(options.trace or options.similarity).stem}-buddies.npz"
        print(f"lists: {options.out}", file=sys.stderr)
    doing(f"fitting buddies of {options.trace or options.similarity}", at_once=False)
    lists = _fit(options)
    facts = report(lists, options.pair_error)
    if options.out is not None:
        buddies_file.write(out_file(options.out, options.force), lists)
    print(json.dumps(facts, allow_nan=False) if options.json else describe(facts))
    if facts["warning"]:
        print(f"warning: {facts['warning']}", file=sys.stderr)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m sim.profile",
        example="--trace mixtral.npz --out buddies.npz",
        description="Buddy lists of a model: which experts may stand in for which "
        "(BuddyMoE, arXiv 2511.10054). (P) marks what the paper says, (N) what its readers report, (I) what is ours.",
    )
    group = parser.add_argument_group("from and to")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--trace", metavar="FILE", help="calibration trace, or the name of a shipped sample")
    source.add_argument(
        "--similarity",
        metavar="FILE",
        help=".npz with `similarity` [MoE layers, experts, experts] instead (I)",
    )
    group.add_argument(
        "--out", metavar="FILE", nargs="?", const="", help="write the lists here (--out alone: TRACE-buddies.npz)"
    )
    add_force(group)
    group.add_argument("--json", action="store_true", help="print one JSON object instead of tables")

    group = parser.add_argument_group("lists")
    group.add_argument(
        "--alpha",
        type=_numbers,
        metavar="A[,A...]",
        help="coverage at which a list ends, the paper's CFT (P): one, or one for each MoE layer; "
        "default 0.9 (I), 1 with --similarity",
    )
    group.add_argument("--k-max", type=int, default=16, metavar="N", help="longest list (P); default 16 (N)")
    group.add_argument("--threshold", type=float, metavar="S", help="least similarity; --similarity only (I)")
    group.add_argument("--seed", type=int, default=0, help="orders equal peers (I); default 0")

    group = parser.add_argument_group("counting, with --trace")
    group.add_argument("--count", choices=COUNTS, help="a pair counts 1, or its lower router weight (P), or a mixture")
    group.add_argument("--mix", type=float, metavar="X", help="share of the weighted counts in mixed (I); default 0.5")
    group.add_argument("--eps", type=float, metavar="X", help="added to every count (P); default 1e-6 (I)")
    group.add_argument("--warmup", type=int, metavar="N", help="first tokens of a request that count less (P)")
    group.add_argument("--warmup-weight", type=float, metavar="X", help="what each counts (I); default 0.5")
    group.add_argument("--decode-only", action="store_true", default=None, help="leave prompt tokens out (I)")
    group.add_argument(
        "--pair-error",
        type=float,
        default=0.1,
        metavar="X",
        help="warn above this relative error; default 0.1",
    )
    return parser


def _numbers(text: str) -> float | list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number, nor numbers with commas between") from None
    return values if len(values) > 1 else values[0]


def _fit(options: argparse.Namespace) -> BuddyLists:
    if not 0 < options.pair_error < math.inf:
        raise SpecError(f"--pair-error is {options.pair_error}; a relative error above 0 is required")
    counting = ("count", "mix", "eps", "warmup", "warmup_weight", "decode_only")
    given = {k: getattr(options, k) for k in ("alpha", "k_max", "seed") if getattr(options, k) is not None}
    own = {k: getattr(options, k) for k in counting if getattr(options, k) is not None}
    if options.similarity is not None:
        if own:
            raise SpecError(f"--{next(iter(own)).replace('_', '-')} counts tokens; it needs --trace")
        _refuse_same(options.out, options.similarity)
        matrix, about = buddies_file.read_similarity(options.similarity)
        name = Path(options.similarity).name
        return from_similarity(matrix, threshold=options.threshold, name=name, about=about, **given)
    if options.threshold is not None:
        raise SpecError("--threshold is a least similarity; it needs --similarity")
    path = npz.find(options.trace)
    _refuse_same(options.out, path)
    return BuddyProfile(**given, **own).fit(npz.read(path), path.name).lists_


def _refuse_same(out: str | None, source: str | Path) -> None:
    if out is not None and os.path.realpath(out) == os.path.realpath(source):
        raise SpecError(f"--out {out} is the input; another file is required")


def report(lists: BuddyLists, stated_error: float = 0.1) -> dict[str, Any]:
    """What the lists are like, as a JSON object: sizes, covered mass, share bound by K_max, sample size.

    stated_error: the relative error of a mean pair count above which `warning` is a sentence, not null.
    """
    sizes, coverage, bound = lists.sizes, lists.coverage, lists.bound
    sample = _sample(lists.meta, stated_error)
    layers = []
    for layer in range(lists.n_moe_layers):
        facts = _spread(sizes[layer], coverage[layer], bound[layer])
        layers.append({"layer": layer, "alpha": float(lists.alpha[layer])} | facts)
    return {
        "meta": lists.meta,
        "longest": int(lists.peers.shape[2]),
        **_spread(sizes, coverage, bound),
        "sample": sample,
        "warning": None if sample is None else _warning(sample),
        "layers": layers,
    }


def _spread(sizes: Any, coverage: Any, bound: Any) -> dict[str, Any]:
    return {
        "list_size": {"min": int(sizes.min()), "mean": float(sizes.mean()), "max": int(sizes.max())},
        "covered_mass": {"min": float(coverage.min()), "mean": float(coverage.mean())},
        "bound_by_k_max": float(np.mean(bound)),
    }


def _sample(meta: dict[str, Any], stated_error: float) -> dict[str, Any] | None:
    """Sampling error of co-activation lists; null for others.

    A count of n events has the relative error 1 / sqrt(n), so an error r needs 1 / r^2 events of a mean pair:
    with every slot filled T K (K - 1) / (E (E - 1)) of them are in T tokens.
    """
    if meta["how"] != "co-activation":
        return None
    pairs, per_token = float(meta["mean_pairs"]), float(meta["pairs_per_token"])
    needed = None if per_token == 0 else math.ceil(round(stated_error**-2 / per_token, 6))
    return {
        "tokens": float(meta["n_tokens"]),
        "mean_pairs": pairs,
        "pair_error": None if pairs == 0 else pairs**-0.5,
        "stated_error": stated_error,
        "tokens_needed": needed,
    }


def _warning(sample: dict[str, Any]) -> str | None:
    if sample["tokens_needed"] is None:
        return "no token has two routed experts: co-activation says nothing, the lists are random"
    if sample["tokens"] >= sample["tokens_needed"]:
        return None
    have = f"{sample['tokens']:,.0f} tokens leave a mean pair of experts an error of {sample['pair_error']:.0%}"
    return f"{have}; {sample['tokens_needed']:,} tokens would do for {sample['stated_error']:.0%}"


def describe(facts: dict[str, Any]) -> str:
    """What `report` returned, as lines for people."""
    rows = _source(facts["meta"]) | {
        "list size": "mean {mean:.2f}, {min} to {max}".format(**facts["list_size"]) + f" of {facts['longest']}",
        "covered mass": "mean {mean:.3f}, least {min:.3f}".format(**facts["covered_mass"]),
        "bound by K_max": f"{facts['bound_by_k_max']:.1%} of the lists end before they cover alpha",
    }
    lines = [f"{key:16} {value}" for key, value in rows.items()]
    lines += ["", "layer  alpha   list size min   mean   max   covered mean  least   bound by K_max"]
    return "\n".join(lines + [_row(layer) for layer in facts["layers"]])


def _source(meta: dict[str, Any]) -> dict[str, str]:
    """Where the lists come from, in words. A file's own text is printed as ASCII literals."""
    cut = f"K_max {meta['k_max']}, seed {meta['seed']}"
    if meta["how"] == "similarity":
        kind = "symmetric" if meta["similarity"]["symmetric"] else "not symmetric"
        threshold = "" if meta["threshold"] is None else f", at least {meta['threshold']:g}"
        return {"similarity": f"{_plain(meta['similarity']['name'])}, {kind}{threshold}; {cut}"}
    trace = meta["trace"]
    kind = "a real capture" if trace["real"] else LOUD
    share = f", {meta['mix']:g} of it weighted" if meta["count"] == "mixed" else ""
    warmup = f", first {meta['warmup']} of a request x {meta['warmup_weight']:g}" if meta["warmup"] else ""
    tokens = f"{meta['n_tokens']:,.0f} counted{', decode only' if meta['decode_only'] else ''}{warmup}"
    return {
        "trace": f"{_plain(trace['name'])}: {_plain(trace['model'])}, {kind}",
        "co-activation": f"{meta['count']}{share}, eps {meta['eps']:g}; {cut}",
        "tokens": f"{tokens}; {meta['mean_pairs']:,.1f} per pair of experts",
        "never with others": f"{meta['experts_alone']:,} experts over all layers; their lists are random",
    }


def _plain(text: str) -> str:
    return "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in text)


def _row(layer: dict[str, Any]) -> str:
    size, mass = layer["list_size"], layer["covered_mass"]
    head = f"{layer['layer']:5}  {layer['alpha']:<5g}   {size['min']:13} {size['mean']:6.2f} {size['max']:5}"
    return f"{head}   {mass['mean']:12.3f}  {mass['min']:5.3f}   {layer['bound_by_k_max']:14.1%}"


if __name__ == "__main__":
    sys.exit(main())
