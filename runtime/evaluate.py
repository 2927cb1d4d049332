"""`python -m runtime.evaluate`: what a cache and its policies cost a model in quality, with the loop closed.

The model runs with the cache and the policies in it: a stand-in or a dropped slot changes what the layers behind it
see, and so what they route to. Printed: quality against the unmodified model (run in the same steps), what was
substituted and dropped, bytes over the link, and the simulated time per token of the hardware asked for.

Exit status 0 done, 2 bad input (one line on stderr), 1 a failure of ours.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import torch

from runtime.closed_loop.judged_model import JudgedModel, judged_model
from runtime.closed_loop.loop import ClosedLoop
from runtime.closed_loop.priced_as import priced_as
from runtime.closed_loop.quality import LEVEL, figures
from runtime.closed_loop.runs import Baseline, JudgedRun, Progress, calibrate, free_running, judge, quiet
from runtime.closed_loop.text_windows import TextWindows, text_windows
from sim import __version__
from sim.outcome.summary import summarise
from sim.policies.registry import find
from sim.prepare import fitted
from sim.run import add_flags, announce_compiling, spec_of
from sim.spec import RunSpec
from traces.command import Parser, guarded, out_folder, write_bytes
from traces.errors import UserError
from traces.format import npz
from traces.format.trace import RoutingTrace

# fields of RunSpec that a closed loop of one sequence at a time has no use for
LEFT_OUT = ("trace", "model", "batch", "prefill_chunk", "as_decode", "max_steps", "machine", "config")
CALIBRATION_TOKENS = 16384
SHOWN = ("bits_per_byte", "bits_per_byte_delta", "perplexity", "perplexity_ratio", "accuracy", "accuracy_delta",
         "kl_nats", "agreement")  # fmt: skip


def evaluated(
    model: JudgedModel,
    spec: RunSpec,
    text: TextWindows,
    base: Baseline,
    calibration: RoutingTrace | None = None,
    like: str | None = None,
    progress: Progress = quiet,
) -> tuple[dict[str, Any], JudgedRun]:
    """(the figures of one teacher-forced closed-loop run, the run). Raises UserError, one line."""
    loop = ClosedLoop(spec, model.shape, calibration, priced_as(model.model, model.shape, like))
    run = judge(model, text, loop, base, progress)
    summary, tokens = summarise(run.record), run.trace.n_tokens
    out = {
        "quality": figures(run.sums, spec.seed),
        "shares": _shares(run),
        "speed": {
            "time_ns_per_token": summary["time_ns"] / summary["tokens"],
            "tokens_per_s": summary["tokens_per_s"],
            "h2d_bytes": sum(summary["h2d_bytes"].values()),
            "h2d_bytes_per_token": sum(summary["h2d_bytes"].values()) / tokens,
            "breakdown_ns": summary["breakdown_ns"],
        },
        "counts": {name: summary[name] for name in ("wanted", "hits", "late", "misses", "evictions", "transfers")},
        "charged": loop.setting.model.name if loop.setting.model else None,
    }
    return out, run


def _shares(run: JudgedRun) -> dict[str, float]:
    """Shares of all slots that the router filled, and of their router weight. Re-ranking comes first: what it
    replaced is no miss any more."""
    c, trace = run.record.counters, run.trace
    assert trace.weights is not None
    slots, weight = int((trace.experts >= 0).sum()), float(trace.weights.sum())
    return {
        "substituted_slots": c["substituted"] / slots,
        "dropped_slots": c["dropped"] / slots,
        "cpu_slots": c["cpu"] / slots,
        "low_slots": c["low"] / slots,
        "substituted_weight": c["weight_substituted"] / weight,
        "dropped_weight": c["weight_dropped"] / weight,
        "reranked_slots": run.reranked[0] / slots,
        "reranked_weight": run.reranked[1] / weight,
    }


FILES = ("evaluation.json", "routed.npz")


def needs_calibration(spec: RunSpec) -> bool:
    """Whether something in the run is fitted, or takes a threshold from other text."""
    percentile = {**find("miss", spec.miss).prepared, **spec.params("miss")}.get("percentile", -1)
    return bool(fitted(spec) or float(percentile) >= 0)


def calibration_of(model: JudgedModel, spec: RunSpec, tokens: int, text: str | None) -> RoutingTrace | None:
    """The trace that the spec names, or one captured now from text that is not judged; None where nothing is fitted."""
    if isinstance(spec.calibration, float):
        raise UserError("calibration: a fraction is of a trace's requests; give a FILE, or leave it out")
    if spec.calibration is not None:
        return npz.read(npz.find(spec.calibration))
    return captured(model, tokens, spec.seed, text) if needs_calibration(spec) else None


def captured(model: JudgedModel, tokens: int, seed: int, text: str | None) -> RoutingTrace:
    """A calibration trace of about so many tokens, from text that is not judged."""
    length = min(model.context, 256)
    return calibrate(model, text_windows(model.tokens, max(1, tokens // length), length, seed, text, False, model.lead))


def parser() -> Parser:
    out = Parser(prog="python -m runtime.evaluate", description="Judge a model with its expert cache in the loop.")
    group = out.add_argument_group("model and text")
    which = "our own model, a folder of runtime.train, or a Hugging Face model (default: tiny-moe)"
    group.add_argument("--model", dest="judged_model", default="tiny-moe", metavar="tiny-moe|PATH", help=which)
    group.add_argument("--charge", metavar="NAME|FILE", help="charge layers and experts of this model's width instead")
    group.add_argument("--text", metavar="FILE", help="UTF-8 text (default: held-out sources of the standard library)")
    group.add_argument("--sequences", type=int, default=16, metavar="N", help="passages that are judged (default: 16)")
    group.add_argument("--length", type=int, default=128, metavar="M", help="tokens of a passage (default: 128)")
    what = f"captured from other text where a policy is fitted (default: {CALIBRATION_TOKENS})"
    group.add_argument("--calibration-tokens", type=int, default=CALIBRATION_TOKENS, metavar="N", help=what)
    group.add_argument("--free-running", action="store_true", help="also generate from the first half of each passage")
    group.add_argument("--device", metavar="cpu|cuda|...", help="where the model computes (default: the CPU)")
    group.add_argument("--threads", type=int, default=1, metavar="N", help="of torch (default: 1)")
    add_flags(out, LEFT_OUT)
    group = out.add_argument_group("output")
    group.add_argument("--out", metavar="DIR", help="write evaluation.json and routed.npz (what was routed) there")
    group.add_argument("--force", action="store_true", help="replace results that are in DIR already")
    group.add_argument("--json", action="store_true", help="print exactly one JSON object")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    for name, least in (("sequences", 1), ("length", 3), ("calibration_tokens", 1), ("threads", 1)):
        if getattr(args, name) < least:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be at least {least}")
    out = out_folder(args.out, () if args.force else FILES) if args.out else None
    torch.set_num_threads(args.threads)
    args.trace = args.judged_model
    spec = spec_of(args)
    model = judged_model(args.judged_model, args.device)
    if args.length > model.context:
        raise UserError(f"--length is {args.length}; the model has {model.context} positions")
    announce_compiling()
    result, run = _run(args, spec, model)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_bytes(out / FILES[0], (json.dumps(result, indent=1) + "\n").encode())
        npz.write(out / FILES[1], run.trace)
    print(json.dumps(result) if args.json else table(result))


def _run(args: argparse.Namespace, spec: RunSpec, model: JudgedModel) -> tuple[dict[str, Any], JudgedRun]:
    text = text_windows(model.tokens, args.sequences, args.length, spec.seed, args.text, True, model.lead)
    calibration = calibration_of(model, spec, args.calibration_tokens, args.text)
    base, progress = Baseline(model, text), _progress()
    result, run = evaluated(model, spec, text, base, calibration, args.charge, progress)
    if args.free_running:
        loop = ClosedLoop(spec, model.shape, calibration, priced_as(model.model, model.shape, args.charge))
        result["free_running"] = free_running(model, text, loop, progress)
    result["text"] = {"source": text.source, "sequences": args.sequences, "length": args.length,
                      "predicted_bytes": int(text.n_bytes.sum())}  # fmt: skip
    result["calibration_tokens"] = None if calibration is None else calibration.n_tokens
    result["model"], result["loop"], result["batch"] = args.judged_model, "closed", 1
    result["spec"] = spec.model_dump(exclude=set(LEFT_OUT) - {"config"})
    result["interval"] = f"{LEVEL} % percentile bootstrap over sequences, paired, seed {spec.seed}"
    result["version"] = __version__
    return result, run


def _progress() -> Progress:
    """Text windows done, on a terminal only."""
    if not sys.stderr.isatty():
        return quiet
    return lambda done, of: print(f"\r{done}/{of} passages", end="\n" if done == of else "", file=sys.stderr)


def table(result: dict[str, Any]) -> str:
    """The same for people."""
    spec, text, quality = result["spec"], result["text"], result["quality"]
    lines = [
        f"{result['model']}, CLOSED LOOP, batch 1: cache {spec['cache']}, {spec['eviction']}, miss {spec['miss']}, "
        f"prefetch {spec['prefetch']}, rerank {spec['rerank']}",
        f"{text['sequences']} passages x {text['length']} tokens of {text['source']}; seed {spec['seed']}",
        "",
        f"{'':22}{'value':>11}   {LEVEL} % interval over passages",
    ]
    for name in SHOWN:
        f = quality[name]
        lines.append(f"{name:22}{f['value']:11.5f}   {f['low']:.5f} .. {f['high']:.5f}")
    base = {name: quality[f"base_{name}"]["value"] for name in ("bits_per_byte", "perplexity", "accuracy")}
    lines.append("unmodified: {bits_per_byte:.5f} bits per byte, perplexity {perplexity:.4f}, "
                 "accuracy {accuracy:.5f}".format(**base))  # fmt: skip
    lines += ["", *(f"{name:22}{100 * share:10.2f} %" for name, share in result["shares"].items())]
    speed, counts = result["speed"], result["counts"]
    lines += [
        "",
        f"{'per token':22}{speed['time_ns_per_token'] / 1e6:10.4f} ms simulated on {spec['hardware']} "
        f"({spec['engine']}, {spec['precision']}), charged as {result['charged'] or 'fixed durations'}",
        f"{'H2D per token':22}{speed['h2d_bytes_per_token'] / 1e6:10.4f} MB",
        f"{'wanted experts':22}{counts['wanted']:11}   hits {counts['hits']}, late {counts['late']}, "
        f"misses {counts['misses']}",
    ]
    if "free_running" in result:
        free = result["free_running"]
        lines += ["", f"free-running, {free['generated_tokens']} tokens behind {free['prompt_tokens']}: "
                  f"{100 * free['same_tokens']:.1f} % of tokens as unmodified, first difference after "
                  f"{free['tokens_until_first_difference']:.1f}, perplexity to the unmodified model "
                  f"{free['perplexity_of_modified']:.3f} (its own {free['perplexity_of_own']:.3f}), "
                  f"{free['tpot_ms']:.4f} ms per token"]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
