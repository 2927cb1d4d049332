"""`python -m runtime.similarity`: how alike the experts of a layer are, and whether co-activation tells.

A buddy policy lets expert j answer for expert i. What that costs at the layer is how far f_j(x) lies from f_i(x) on the
hidden states x that want i; BuddyMoE (arXiv 2511.10054) takes co-activation for a sign of it. Both are measured here on
held-out text: every expert of a layer is run on every token's router input, and for the tokens routed to i

    similarity[l, i, j]      mean of cos(f_i(x), f_j(x))
    relative_error[l, i, j]  mean of |f_j(x) - f_i(x)| / |f_i(x)|

while co_activation[l, i, j] is q(j|i) of the same tokens (sim.fit.coactivation). The report says how well q ranks the
pairs as similarity does (Spearman). Pairs of a layer share experts, so they are not independent: p is of a permutation
test that renames the experts of one matrix (Mantel 1967).
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from runtime.closed_loop.expert_similarity import STATES, Float, Similarity, measure
from sim.experiments.tables import Column, Report, Row
from traces.capturing.command import NAMES, open_source, windows
from traces.command import Parser, guarded
from traces.errors import UserError
from traces.progress import doing

PERMUTATIONS = 999
COLUMNS = (
    Column("layer", "MoE layer"),
    Column("rho_cosine", "rho(q, cosine)", 3, signed=True),
    Column("p_cosine", "p", 3),
    Column("rho_by_expert", "mean rho by expert", 3, signed=True),
    Column("rho_error", "rho(q, -error)", 3, signed=True),
    Column("p_error", "p", 3),
    Column("cosine_mean", "cosine: mean pair", 3, signed=True),
    Column("cosine_of_first_buddy", "first by q", 3, signed=True),
    Column("cosine_of_best", "best", 3, signed=True),
    Column("error_mean", "error: mean pair", 3),
    Column("error_of_first_buddy", "first by q", 3),
    Column("error_of_best", "best", 3),
    Column("fewest_tokens", "fewest tokens of an expert"),
)
FOOT = (
    "rho: Spearman's rank correlation over the ordered pairs i != j of a layer; +1: what is wanted together is alike. "
    "p: share of 999 renamings of the experts (and the one found) with a rho at least as far from 0.",
    "mean rho by expert: the same over each expert's own peers, which is the order that its buddy list has, averaged.",
    "first by q: the peer that the expert is most often wanted with, its first buddy; best: its most similar peer, "
    "least erring peer. Means over experts.",
    "error: |f_j(x) - f_i(x)| / |f_i(x)|. Leaving the slot empty has the error 1, so a stand-in above 1 is further off "
    "than nothing, at the layer; what that does to the text, the closed loop says (`runtime.evaluate`).",
)


# --- does co-activation tell?


def rank_correlation(a: Float, b: Float, seed: int = 0) -> tuple[float | None, float | None]:
    """(Spearman's rho, p) of two matrices [E, E] off the diagonal; None where one of them is constant.

    p: of renaming the experts of the second, PERMUTATIONS times, two-sided (Mantel 1967).
    """
    off = ~np.eye(len(a), dtype=np.bool_)
    left, right = _standard(a[off]), np.zeros(b.shape)
    ranks = _standard(b[off])
    if left is None or ranks is None:
        return None, None
    right[off] = ranks
    rho = float(left @ ranks)
    rng = np.random.default_rng(seed)
    renamed = (rng.permutation(len(a)) for _ in range(PERMUTATIONS))
    far = sum(abs(left @ right[np.ix_(order, order)][off]) >= abs(rho) - 1e-12 for order in renamed)
    return rho, (1 + int(far)) / (1 + PERMUTATIONS)


def _standard(values: Float) -> Float | None:
    """Ranks with mean 0 and length 1, so that a product of two is their correlation; None for equal values."""
    ranks = rankdata(values)
    ranks = ranks - ranks.mean()
    length = float(np.sqrt(ranks @ ranks))
    return None if length == 0 else ranks / length


def _by_expert(q: Float, cosine: Float) -> float | None:
    """Mean over experts of the correlation over their own peers."""
    peers = [np.delete(np.arange(len(q)), i) for i in range(len(q))]
    pairs = [(_standard(q[i, p]), _standard(cosine[i, p])) for i, p in enumerate(peers)]
    found = [float(a @ b) for a, b in pairs if a is not None and b is not None]
    return float(np.mean(found)) if found else None


def layer_row(found: Similarity, place: int) -> Row:
    """What the report says of one layer."""
    q, cosine, error = found.q[place], found.cosine[place], found.error[place]
    off = ~np.eye(len(q), dtype=np.bool_)
    row = np.arange(len(q))
    first = np.where(off, q, -np.inf).argmax(axis=1)
    rho, p = rank_correlation(q, cosine)
    rho_error, p_error = rank_correlation(q, -error)
    return {
        "layer": int(found.meta["moe_layers"][place]),
        "rho_cosine": rho,
        "p_cosine": p,
        "rho_by_expert": _by_expert(q, cosine),
        "rho_error": rho_error,
        "p_error": p_error,
        "cosine_mean": float(cosine[off].mean()),
        "cosine_of_first_buddy": float(cosine[row, first].mean()),
        "cosine_of_best": float(np.where(off, cosine, -np.inf).max(axis=1).mean()),
        "error_mean": float(error[off].mean()),
        "error_of_first_buddy": float(error[row, first].mean()),
        "error_of_best": float(np.where(off, error, np.inf).min(axis=1).mean()),
        "fewest_tokens": int(found.tokens[place].min()),
    }


def report(found: Similarity) -> Report:
    """The table, a row for each layer."""
    meta = found.meta
    head = [
        f"`{meta['model']}`, {found.q.shape[0]} MoE layers x {found.q.shape[1]} experts; {meta['tokens']:,} tokens",
        meta["metric"] + "; q(j|i) of the same tokens, binary counts",
    ]
    head += [meta[name] for name in ("data",) if name in meta]
    rows = [layer_row(found, place) for place in range(len(found.q))]
    return Report("Does co-activation tell which experts are alike?", head, COLUMNS, rows, FOOT)


# --- the command line


def arguments() -> Parser:
    out = Parser(prog="python -m runtime.similarity", description=(__doc__ or "").partition(": ")[2].partition("\n")[0])
    out.add_argument("--model", required=True, metavar="NAME|PATH", help=f"{NAMES}, or a Hugging Face model")
    out.add_argument("--out", type=Path, metavar="FILE", help="write the matrices there (.npz)")
    out.add_argument("--report", type=Path, metavar="DIR", help="write similarity.md and similarity.csv there")
    out.add_argument(
        "--text", nargs="+", type=Path, metavar="FILE", help=f"text to measure on ({NAMES}: held-out text)"
    )
    out.add_argument("--requests", type=_positive, default=64, metavar="N", help="pieces of text (64)")
    out.add_argument("--prompt-tokens", type=_positive, default=256, metavar="P", help="tokens of each (256)")
    out.add_argument("--batch", type=_positive, default=8, metavar="B", help="pieces that run together (8)")
    out.add_argument("--states", choices=STATES, default="routed", help="mean over tokens routed to i, or all (routed)")
    out.add_argument("--seed", type=int, default=0, help="which pieces (0)")
    out.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, ... (auto)")
    return out


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 what was asked for cannot be done (one line on stderr)."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> None:
    given = arguments().parse_args(argv)
    if given.out is not None and not given.out.absolute().parent.is_dir():
        raise UserError(f"--out {given.out}: its folder is not there")
    source = open_source(given.model, given.device)
    if source.context is not None and given.prompt_tokens > source.context:
        raise UserError(f"--prompt-tokens {given.prompt_tokens}; the model's context is {source.context}")
    texts = source.heldout() if not given.text else [source.encode(path.read_text()) for path in given.text]
    prompts = windows(texts, given.prompt_tokens, 0, given.seed)[: given.requests]
    if len(prompts) < given.requests:
        raise UserError(f"--requests {given.requests}: the text gives {len(prompts)}; fewer, or more text is needed")
    whence = ", ".join(path.name for path in given.text) if given.text else "held-out files of the standard library"
    source.meta["data"] = f"{len(prompts)} pieces of {given.prompt_tokens} tokens of {whence}"
    doing("running every expert on every token")
    found = measure(source, prompts, given.batch, given.states)
    doing("correlating", at_once=False)
    made = report(found)
    command = shlex.join(["python", "-m", "runtime.similarity", *argv])
    if given.out is not None:
        found.write(given.out)
    if given.report is not None:
        made.write(given.report, "similarity", command)
    print(made.markdown(command), end="")


if __name__ == "__main__":
    sys.exit(main())
