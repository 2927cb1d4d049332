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

from runtime.closed_loop.evaluation import CALIBRATION_TOKENS, LEFT_OUT, calibration_of, evaluated, means_of
from runtime.closed_loop.judged_model import JudgedModel, judged_model
from runtime.closed_loop.loop import ClosedLoop
from runtime.closed_loop.priced_as import priced_as
from runtime.closed_loop.quality import LEVEL
from runtime.closed_loop.runs import Baseline, JudgedRun, free_running
from runtime.closed_loop.text_windows import text_windows
from sim import __version__
from sim.flags import add_groups, spec_of
from sim.outcome.marks import machine_words
from sim.spec import RunSpec
from traces.command import Parser, guarded, out_folder, write_bytes
from traces.errors import UserError
from traces.format import npz
from traces.progress import doing

SHOWN = ("bits_per_byte", "bits_per_byte_delta", "perplexity", "perplexity_ratio", "accuracy", "accuracy_delta",
         "kl_nats", "agreement")  # fmt: skip


FILES = ("evaluation.json", "routed.npz")


def parser() -> Parser:
    out = Parser(prog="python -m runtime.evaluate", description="Judge a model with its expert cache in the loop.")
    group = out.add_argument_group("model and text")
    which = "a model of our own, a folder of runtime.train, or a Hugging Face model (default: tiny-moe)"
    names = "tiny-moe|tiny-moe-8|PATH"
    group.add_argument("--model", dest="judged_model", default="tiny-moe", metavar=names, help=which)
    group.add_argument("--charge", metavar="NAME|FILE", help="charge layers and experts of this model's width instead")
    group.add_argument("--text", metavar="FILE", help="UTF-8 text (default: held-out sources of the standard library)")
    group.add_argument("--sequences", type=int, default=16, metavar="N", help="passages that are judged (default: 16)")
    group.add_argument("--length", type=int, default=128, metavar="M", help="tokens of a passage (default: 128)")
    what = f"captured from other text where a policy is fitted (default: {CALIBRATION_TOKENS})"
    group.add_argument("--calibration-tokens", type=int, default=CALIBRATION_TOKENS, metavar="N", help=what)
    group.add_argument("--free-running", action="store_true", help="also generate from the first half of each passage")
    group.add_argument("--device", metavar="cpu|cuda|...", help="where the model computes (default: the CPU)")
    group.add_argument("--threads", type=int, default=1, metavar="N", help="of torch (default: 1)")
    add_groups(out, LEFT_OUT)
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
    result, run = _run(args, spec, model)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_bytes(out / FILES[0], (json.dumps(result, indent=1) + "\n").encode())
        npz.write(out / FILES[1], run.trace)
    print(json.dumps(result) if args.json else table(result))


def _run(args: argparse.Namespace, spec: RunSpec, model: JudgedModel) -> tuple[dict[str, Any], JudgedRun]:
    text = text_windows(model.tokens, args.sequences, args.length, spec.seed, args.text, True, model.lead)
    doing("capturing a calibration trace", at_once=False)
    calibration = calibration_of(model, spec, args.calibration_tokens, args.text)
    means = means_of(model, spec, args.calibration_tokens, args.text)
    doing("judging")
    result, run = evaluated(model, spec, text, Baseline(model, text), calibration, args.charge, means)
    if args.free_running:
        charged = priced_as(model.model, model.shape, args.charge)
        loop = ClosedLoop(spec, model.shape, calibration, charged, means=means)
        result["free_running"] = free_running(model, text, loop)
    result["text"] = {"source": text.source, "sequences": args.sequences, "length": args.length,
                      "predicted_bytes": int(text.n_bytes.sum())}  # fmt: skip
    result["calibration_tokens"] = None if calibration is None else calibration.n_tokens
    result["model"], result["loop"], result["batch"] = args.judged_model, "closed", 1
    result["spec"] = spec.saved(LEFT_OUT)
    result["interval"] = f"{LEVEL} % percentile bootstrap over sequences, paired, seed {spec.seed}"
    result["version"] = __version__
    return result, run


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
        f"{'per token':22}{speed['time_ns_per_token'] / 1e6:10.4f} ms simulated on {machine_words(spec)} "
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
