"""`python -m runtime.substitutions`: what one substitution of an expert costs a model, and what could have told it.

Thousands of single substitutions, each in a forward pass of its own (`runtime.closed_loop.one_at_a_time`), on text that
policies are fitted on, never on judged text. Kept: substitutions_MODEL.json, .md and .svg in `--out`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runtime.closed_loop import substitution_report
from runtime.closed_loop.clusters import effective_number
from runtime.closed_loop.expert_similarity import DecoderRuns, Similarity, measure
from runtime.closed_loop.judged_model import TINY, Own, own_model
from runtime.closed_loop.one_at_a_time import experiment
from runtime.closed_loop.substitution_figures import all_figures, pairs, pooled
from runtime.closed_loop.substitution_report import INTERVAL
from runtime.closed_loop.text_windows import TextWindows, text_windows
from runtime.similarity import rank_correlation
from sim import __version__
from traces.command import Parser, guarded, out_folder
from traces.errors import UserError
from traces.progress import counted, doing


def arguments() -> Parser:
    out = Parser(prog="python -m runtime.substitutions", description=(__doc__ or "").partition(": ")[2].split("\n")[0])
    out.add_argument("--model", dest="judged_model", default=TINY, metavar="tiny-moe|tiny-moe-8|PATH")
    out.add_argument("--windows", type=int, metavar="N", help="of the calibration text (all)")
    out.add_argument("--length", type=int, default=256, metavar="M", help="tokens of each (256)")
    out.add_argument("--draws", type=int, default=6, metavar="D", help="substitutions by window and layer (6)")
    out.add_argument("--seed", type=int, default=0)
    out.add_argument("--threads", type=int, default=1, metavar="N")
    out.add_argument("--out", metavar="DIR", help="write substitutions_MODEL.{json,md,svg} there")
    return out


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The result as the JSON file has it. Raises UserError, one line, for bad input."""
    model = _decoder(args.judged_model)
    text = _text(args, model)
    doing("comparing the experts with each other")
    found = [
        measure(DecoderRuns(model.model, {}), list(text.tokens[text.file == file]))
        for file in counted(np.unique(text.file).tolist(), "file", lambda file: text.files[file])
    ]
    q, cosine, error = (np.nan_to_num(each) for each in pooled(found, np.ones(len(found))))
    doing("substituting one at a time")
    rows = experiment(model.model, text, q, cosine, args.draws, args.seed)
    doing("correlating", at_once=False)
    return {
        "model": model.shape.name,
        "text": _about(text),
        "substitutions": len(rows),
        "draws": args.draws,
        "seed": args.seed,
        "interval": INTERVAL,
        "pairs": _pairs(found, model.shape.moe_layers, (q, cosine, error), args.seed),
        **all_figures(rows, args.seed),
        "version": __version__,
    }


def _decoder(name: str) -> Own:
    """A decoder of ours that has experts to stand in."""
    model = own_model(name)
    if model.shape.n_experts == model.shape.top_k:
        raise UserError(f"--model {name}: a token has all {model.shape.top_k} experts; one must be left to stand in")
    return model


def _text(args: argparse.Namespace, model: Own) -> TextWindows:
    if not 3 <= args.length <= model.context:
        raise UserError(f"--length {args.length}: 3 .. {model.context} tokens are required")
    for name, least in (("windows", 2), ("draws", 1), ("threads", 1), ("seed", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: at least {least} is required")
    every = args.windows or sys.maxsize
    text = text_windows(model.tokens, every, args.length, args.seed, judged=False, lead=model.lead)
    if len(np.unique(text.file)) < 2:
        raise UserError(f"--windows {len(text.tokens)}: all are of one file, and intervals are over files; give more")
    return text


def _about(text: TextWindows) -> dict[str, Any]:
    """Which text; effective_files: how many files of one size would weigh the same."""
    files, n = np.unique(text.file, return_counts=True)
    return {
        "source": text.source,
        "windows": len(text.tokens),
        "length": text.tokens.shape[1],
        "files": [text.files[file] for file in files],
        "windows_by_file": n.tolist(),
        "effective_files": effective_number(n.astype(np.float64)),
    }


def _pairs(found: list[Similarity], layers: Sequence[int], whole: Sequence[Any], seed: int) -> list[dict[str, Any]]:
    """By layer: how q ranks the pairs as likeness does, with intervals over files and Mantel's p."""
    q, cosine, error = whole
    return [
        {"layer": layer, **row, "p_cosine": rank_correlation(q[at], cosine[at])[1],
         "p_error": rank_correlation(q[at], -error[at])[1]}
        for at, (layer, row) in enumerate(zip(layers, pairs(found, seed), strict=True))
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 what was asked for cannot be done (one line on stderr)."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> None:
    args = arguments().parse_args(argv)
    if args.out is not None:
        out_folder(args.out)
    torch.set_num_threads(max(1, args.threads))
    result = run(args)
    command = shlex.join(["python", "-m", "runtime.substitutions", *argv])
    if args.out is not None:
        substitution_report.write(Path(args.out), result, command)
    print(substitution_report.report(result).markdown(command), end="")


if __name__ == "__main__":
    sys.exit(main())
