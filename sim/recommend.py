"""python -m sim.recommend: what to run to serve a model best within a GPU's memory: engines, one's settings, policies.

Exit status 0 done, 2 bad input, or nothing fits (one line on stderr that says what would), 130 interrupted.
"""

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sim import catalog
from sim.errors import CatalogError, SpecError
from sim.flags import OF_THE_HARDWARE, add_flags, given
from sim.spec import ALL, RunSpec, memory_bytes
from traces.command import Parser, guarded
from traces.progress import doing

ALWAYS = (
    "trace", "model", "hardware", *OF_THE_HARDWARE, "engine", "engine_as_costs", "precision", "batch", "prefill_chunk",
    "as_decode",
    "context_offset", "warmup_steps", "max_steps", "kv_precision", "expert_group", "calibration", "seed", "bulk",
    "bulk_rows", "bulk_touch", "stages", "serial", "merge", "whole_layer", "ahead", "beside",
    "link_share", "cpu_visit_us",
)  # fmt: skip
SEARCHED = (
    "cache_scope",
    "cache_spread",
    "eviction",
    "prefetch",
    "prefetch_budget",
    "miss",
    "placement",
    "transfer_order",
)
WITH_A_TRACE = {"candidates": 640, "time_limit": 120.0}
WITHOUT = {"candidates": 48, "time_limit": 30.0}
OF_WINDOWS = ("accept", "draft_ns")
OF_AN_ENGINE = ("n_cpu_moe", "override_tensor", "dense_on_host", "defer")


def parser() -> Parser:
    """The flags of sim.run that hold for every candidate, those that fix what is searched, and its own."""
    out = Parser(
        prog="python -m sim.recommend",
        description="What to run, and what would help: engines, one's settings, policies.",
    )
    out.named["--model"] = is_model
    group = out.add_argument_group("what is asked for")
    group.add_argument("--vram", metavar="24GB", help="GPU memory to use (default: all that the hardware has)")
    group.add_argument("--context", type=int, default=8192, metavar="N", help="tokens of KV per sequence (8192)")
    group.add_argument(
        "--max-lossy-weight", type=float, default=0.0, metavar="X",
        help="share of the router weight that may be substituted or dropped (default: 0, nothing)",
    )  # fmt: skip
    add_flags(group, ALWAYS)
    group.add_argument(
        "--speculate", action="store_true", help="say whether windows of 2, 3 or 4 rows pay with the best"
    )
    add_flags(group, OF_WINDOWS)
    group = out.add_argument_group("not to be searched, but as given")
    add_flags(group, SEARCHED)
    group = out.add_argument_group("of an engine (--engine) that has them: not to be searched, but as given")
    add_flags(group, OF_AN_ENGINE)
    group = out.add_argument_group("the search")
    group.add_argument(
        "--candidates", type=int, metavar="N",
        help="different candidates that are run, at most (640, without a trace 48); with very few, the plainest, lru + "
        "fetch among them",
    )  # fmt: skip
    group.add_argument(
        "--time-limit", type=float, metavar="SECONDS",
        help="then the search ends and the best so far is the answer (120, without a trace 30; 0: no limit)",
    )  # fmt: skip
    group.add_argument("--workers", type=int, metavar="N", help="processes (default, and at most: every core)")
    group.add_argument("--json", action="store_true", help="print exactly one JSON object")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    wish = _wish(args)
    from sim.search.advice import text
    from sim.search.made import made

    with contextlib.nullcontext() if args.trace else made(args.model, args.seed or 0) as trace:
        if trace is None:
            out = _searched(wish, args.workers)
        else:
            found = replace(wish, base={**wish.base, "trace": trace.path}, straight=True)
            out = trace.told(_searched(found, args.workers))
    print(json.dumps(out) if args.json else text(out))


def _searched(wish: Any, workers: int | None) -> dict[str, Any]:
    """The answer as one JSON object."""
    from sim.search.evaluate import Evaluator
    from sim.search.recommendation import Recommendation
    from sim.search.within_engine import WithinEngine
    from sim.sweeps.session import cores

    doing("reading the trace, the model and the machine")
    within = RunSpec.of({**wish.base, **wish.fixed}).behaves is not None
    recommendation = (WithinEngine if within else Recommendation)(wish, doing)
    if workers is not None and workers > cores():
        print(f"workers: {workers:,}: this machine has {cores()} cores; {cores()} are used", file=sys.stderr)
    evaluate = Evaluator(min(workers or cores(), cores()), wish.time_limit_s, sys.stderr)
    try:
        return recommendation.search(evaluate)
    finally:
        evaluate.close()


def _wish(args: argparse.Namespace) -> Any:
    """What is asked for; without a trace as much of a search as an answer in a minute leaves time for."""
    from sim.search.judging import Wish

    base, fixed = given(args, ALWAYS), given(args, (*SEARCHED, *OF_AN_ENGINE))
    if "trace" not in base:
        if "model" not in base:
            raise SpecError(
                "trace: missing; give --trace FILE (mixtral.npz is a sample), or --model NAME for a made one"
            )
        base["trace"] = ""
    limits = WITH_A_TRACE if base["trace"] else WITHOUT
    for name, value in limits.items():
        setattr(args, name, value if getattr(args, name) is None else getattr(args, name))
    spec = RunSpec.of({**base, **fixed})
    spec.described(), catalog.precision(spec.precision)  # before anything that takes time
    _refuse_without_an_engine(spec, fixed)
    _refuse_unfit(fixed, args.max_lossy_weight)
    if not 0 <= args.max_lossy_weight <= 1:
        raise SpecError(f"max-lossy-weight: {args.max_lossy_weight}: must be a share from 0 to 1")
    for name in ("context", "candidates", "workers"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise SpecError(f"{name}: {getattr(args, name)}: must be at least 1")
    if not 0 <= args.time_limit < math.inf:
        raise SpecError(f"time-limit: {args.time_limit}: must be seconds, or 0 for no limit")
    vram, limit_s = _vram(args.vram), args.time_limit or None
    windows = _windows(args.speculate, given(args, OF_WINDOWS))
    return Wish(base, args.context, vram, args.max_lossy_weight, args.candidates, fixed, limit_s, windows)


def _windows(asked: bool, fields: dict[str, Any]) -> dict[str, Any] | None:
    """What is said of speculative windows, None where they are not asked about."""
    fields = {name: getattr(RunSpec.of({"trace": "", **fields}), name) for name in fields}
    for name, value in fields.items() if not asked else ():
        raise SpecError(f"{name}: {value}: is of speculative windows; needs --speculate")
    if isinstance(accept := fields.get("accept", ALL), str) and accept != ALL:
        raise SpecError(f"accept: {accept}: counts are of windows of one size; must be a share from 0 to 1, or {ALL}")
    return fields if asked else None


def _refuse_without_an_engine(spec: RunSpec, fixed: Mapping[str, Any]) -> None:
    """What says the slots of layers, or is an engine's own, of a search among policies, which finds slots by itself."""
    for name in OF_AN_ENGINE if spec.behaves is None else ():
        if name in fixed:
            wrong = (
                "is for one engine's settings; needs --engine NAME (sim.run --list-engines), without --engine-as-costs"
            )
            raise SpecError(f"{name}: {fixed[name]}: {wrong}")


def _refuse_unfit(fixed: Mapping[str, Any], max_lossy_weight: float) -> None:
    """Nobody can build what reads the future; what is lossy needs leave, and a cost that a replay knows."""
    from sim.policies.registry import find

    for kind in {"eviction", "prefetch", "miss"} & fixed.keys():
        if find(kind, fixed[kind]).oracle:
            raise SpecError(f"{kind}: {fixed[kind]} is an oracle; only what an engine can do is recommended")
    miss = find("miss", fixed.get("miss", "fetch"))
    if "slots" in miss.prepared:
        raise SpecError(
            f"miss: {miss.name}: a replay does not know what low-precision copies cost in quality; simulate it"
        )
    if miss.lossy and not max_lossy_weight:
        raise SpecError(f"miss: {miss.name} is lossy; --max-lossy-weight says how much router weight it may lose")
    if fixed.get("defer") and not max_lossy_weight:
        raise SpecError(f"defer: {fixed['defer']}: is lossy; needs a --max-lossy-weight above 0")


def is_model(word: str) -> bool:
    """Whether the catalog has a model of that name."""
    from sim.catalog import files

    try:
        return bool(files.find("model", word))
    except CatalogError:
        return False


def _vram(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return memory_bytes(text)
    except ValueError as error:
        raise SpecError(f"vram: {text}: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
