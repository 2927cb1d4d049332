"""`python -m runtime.study`: what every miss and re-ranking policy costs in quality, against what it saves.

Each variant is a teacher-forced closed-loop run of `runtime.evaluate` on the same text, and beside it the open-loop
replay of the unmodified model's routing on the same text: how far a replay is off. Kept: closed_loop.csv, .json, .md
and .svg in `--out`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from runtime.closed_loop import study_report
from runtime.closed_loop.evaluation import captured, evaluated
from runtime.closed_loop.expert_similarity import measure
from runtime.closed_loop.judged_model import JudgedModel, judged_model
from runtime.closed_loop.loop import ClosedLoop
from runtime.closed_loop.priced_as import priced_as
from runtime.closed_loop.runs import Baseline, judge
from runtime.closed_loop.study_result import keep
from runtime.closed_loop.study_statistics import Study as Judged
from runtime.closed_loop.text_windows import TextWindows, text_windows
from sim import __version__
from sim.flags import add_hardware, hardware_fields
from sim.simulation import simulate
from sim.spec import RunSpec
from traces.capturing.command import open_source
from traces.command import Parser, guarded, out_folder
from traces.errors import UserError
from traces.format.trace import RoutingTrace
from traces.progress import counted, doing

CACHES = (0.75, 0.5, 0.375)
MATRIX = "MATRIX"  # stands for the similarity matrix's file
B = {"alpha": 0.95, "percentile": 15.0}  # reading B of the paper's tau


@dataclass(frozen=True)
class Variant:
    """One line of the study: its name, the group it is drawn in, the policy and its parameters."""

    name: str
    group: str
    miss: str = "fetch"
    rerank: str = "none"
    params: dict[str, Any] = field(default_factory=dict)

    def spec(self, **common: Any) -> RunSpec:
        """The run of this variant."""
        policy = self.rerank if self.rerank != "none" else self.miss
        given = {f"{policy}.{key}": value for key, value in self.params.items()}
        return RunSpec.of({**common, "miss": self.miss, "rerank": self.rerank, "set": given})


VARIANTS = (
    Variant("fetch", "fetch"),
    Variant("buddy, reading A", "buddy", "buddy"),
    Variant("buddy, reading B, rho 1", "buddy", "buddy-b", params={"rho": 1}),
    Variant("buddy, reading B, rho 2", "buddy", "buddy-b", params={"rho": 2}),
    Variant("buddy, reading B, rho 3", "buddy", "buddy-b"),
    Variant("buddy, reading B, rho 4", "buddy", "buddy-b", params={"rho": 4}),
    Variant("matched-random, reading B", "matched", "matched-random", params=B),
    Variant("matched-next-ranked, reading B", "matched", "matched-next-ranked", params=B),
    Variant("matched-drop, reading B", "matched", "matched-drop", params=B),
    Variant("buddy, first fit", "buddy", "buddy-first-fit"),
    Variant("similarity, gates of B", "similarity", "similarity", params={"matrix": MATRIX, "percentile": 15.0}),
    Variant("next-ranked, no gate", "ungated", "next-ranked"),
    Variant("random, no gate", "ungated", "random"),
    Variant("drop", "ungated", "drop"),
    Variant("cache-prior 0.1", "re-ranking", rerank="cache-prior", params={"strength": 0.1}),
    Variant("cache-prior 0.3", "re-ranking", rerank="cache-prior"),
    Variant("max-rank 3 of 6", "re-ranking", rerank="max-rank", params={"always": 3, "among": 6}),
    Variant("max-rank 1 of 12", "re-ranking", rerank="max-rank"),
)


@dataclass(frozen=True)
class Study:
    """What all variants share."""

    model: JudgedModel
    text: TextWindows
    base: Baseline
    calibration: RoutingTrace
    routed: RoutingTrace
    common: dict[str, Any]
    like: str
    matrix: str


def row(study: Study, variant: Variant, cache: float) -> dict[str, Any]:
    """One variant's closed-loop figures, and how far its open-loop replay is from them."""
    params = {key: study.matrix if value == MATRIX else value for key, value in variant.params.items()}
    spec = Variant(variant.name, variant.group, variant.miss, variant.rerank, params).spec(cache=cache, **study.common)
    figures, _ = evaluated(study.model, spec, study.text, study.base, study.calibration, study.like)
    return {
        "cache": cache,
        "arm": variant.name,
        "group": variant.group,
        "miss": variant.miss,
        "rerank": variant.rerank,
        "params": {key: "of the model" if value == MATRIX else value for key, value in variant.params.items()},
        **{name: figures[name] for name in ("quality", "shares", "speed", "counts")},
        "open_loop": replayed(study, spec),
    }


def replayed(study: Study, spec: RunSpec) -> dict[str, Any]:
    """The open-loop replay of the unmodified model's routing under the same policies."""
    model = priced_as(study.model.model, study.model.shape, study.like)
    again = spec.model_copy(update={"as_decode": True, "calibration": "captured"})
    summary, _ = simulate(again, trace=study.routed, calibration=study.calibration, model=model)
    slots = summary["slots_wanted"]
    return {
        "wanted": summary["wanted"],
        "misses": summary["misses"],
        "h2d_bytes": sum(summary["h2d_bytes"].values()),
        "time_ns_per_token": summary["time_ns"] / summary["tokens"],
        "substituted_slots": summary["substituted"] / slots,
        "dropped_slots": summary["dropped"] / slots,
    }


def parser() -> Parser:
    out = Parser(prog="python -m runtime.study", description="Quality against bytes and time, policy by policy.")
    out.add_argument("--model", dest="judged_model", default="tiny-moe", metavar="tiny-moe|PATH")
    out.add_argument("--sequences", type=int, default=16, metavar="N", help="passages that are judged (default: 16)")
    out.add_argument("--length", type=int, default=128, metavar="M", help="tokens of a passage (default: 128)")
    out.add_argument("--calibration-tokens", type=int, default=32768, metavar="N", help="default: 32768")
    add_hardware(out, "a100-pcie4")
    out.add_argument("--engine", default="fused")
    out.add_argument("--precision", default="q4")
    out.add_argument("--charge", default="deepseek-v2-lite", metavar="NAME|FILE", help="whose sizes are charged")
    out.add_argument("--seed", type=int, default=0)
    out.add_argument("--threads", type=int, default=1, metavar="N")
    out.add_argument("--quick", action="store_true", help="one cache size, two short passages: a look at the machinery")
    out.add_argument("--out", metavar="DIR", help="write closed_loop.{csv,json,md,svg} there")
    return out


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All variants; the result as closed_loop.json has it. Raises UserError, one line, for bad input."""
    model = judged_model(args.judged_model)
    sequences, length = (2, 24) if args.quick else (args.sequences, args.length)
    if sequences < 2 or not 3 <= length <= model.context:
        raise UserError(f"--sequences {sequences} --length {length}: at least 2 of 3 .. {model.context} are required")
    text = text_windows(model.tokens, sequences, length, args.seed, lead=model.lead)
    doing("capturing a calibration trace")
    calibration = captured(model, min(args.calibration_tokens, 2048 if args.quick else 10**9), args.seed, None)
    common = {"trace": args.judged_model, **hardware_fields(args), "engine": args.engine, "precision": args.precision,
              "engine_as_costs": True, "seed": args.seed}  # fmt: skip
    base = Baseline(model, text, keep=True)
    with tempfile.TemporaryDirectory() as folder:
        matrix = Path(folder) / "similarity.npz"
        other = text_windows(model.tokens, 2 if args.quick else 32, length, args.seed, judged=False, lead=model.lead)
        doing("comparing the experts with each other")
        measure(open_source(args.judged_model, "cpu"), list(other.tokens)).write(matrix)
        doing("routing of the unmodified model")
        study = Study(model, text, base, calibration, _routed(model, text, base, common, args.charge), common,
                      args.charge, str(matrix))  # fmt: skip
        doing("", at_once=False)
        rows = []
        caches = CACHES[1:2] if args.quick else CACHES
        arms = [(variant, cache) for cache in caches for variant in VARIANTS]
        for variant, cache in counted(arms, "arm", lambda arm: f"{arm[0].name} at {arm[1]}"):
            rows.append(row(study, variant, cache))
    return {
        "model": args.judged_model,
        "loop": "closed, teacher-forced, one sequence at a time, every token a decode step, cache carried on",
        "text": {
            "source": text.source,
            "sequences": sequences,
            "length": length,
            "predicted_bytes": int(text.n_bytes.sum()),
        },
        "calibration_tokens": calibration.n_tokens,
        "settings": {**common, "charge": args.charge, "eviction": "lru", "prefetch": "none", "placement": "first"},
        "interval": f"95 % percentile bootstrap over sequences, paired, seed {args.seed}",
        "rows": rows,
        "version": __version__,
    }


def _routed(model: JudgedModel, text: TextWindows, base: Baseline, common: dict[str, Any], like: str) -> RoutingTrace:
    """The unmodified model's routing of the judged text, with its logits."""
    loop = ClosedLoop(
        RunSpec.of(common), model.shape, None, priced_as(model.model, model.shape, like), keep_logits=True
    )
    return judge(model, text, loop, base).trace


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    if args.out:
        out_folder(args.out)
    torch.set_num_threads(args.threads)
    result = run(args)
    result = {"command": study_report.command_line(argv), **result}
    if args.out:
        keep(Path(args.out), result)
        print(study_report.write(Path(args.out)), end="")
    else:
        print(study_report.made([Judged(result)])["closed_loop.md"], end="")


if __name__ == "__main__":
    sys.exit(main())
