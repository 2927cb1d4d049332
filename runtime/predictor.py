"""`python -m runtime.predictor`: learn from one trace which experts another will want, and write it into that
trace.

    python -m runtime.predictor --calibration A.npz --trace B.npz --out B-learned.npz
    python -m sim.run --trace B-learned.npz --prefetch learned

Trains on A, predicts for B, writes B with an array `lookahead` (distances 1 .. D, replacing one that it has).

For each distance d and each MoE layer l from d on there is one small network of one hidden layer: multi-hot
routing in, a score for each expert of layer l out, trained with binary cross-entropy to name what layer l
routes to. Its input is what is known when layer l - d of the token has been routed: the token's routing at
layers l - d, l - d - 1, ... (`history` of them), and the routing of the request's previous token at layer l.
Prompt tokens run side by side in prefill steps, where the token before is routed in the same visit, so prompt
rows do not get that last part, unless `--as-decode` says that they will run as decode steps. The lists are
the best `width` scores, equal ones by lower id; at layers below d they are -1, as the format asks: no hidden
state of that token could foretell them.

Seeded and on the CPU, with one thread unless `--threads` says otherwise: equal arguments give equal files on
one machine.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from traces.command import Parser, guarded
from traces.errors import UserError
from traces.format import npz
from traces.format.trace import RoutingTrace

Ids = npt.NDArray[np.int16]

PREDICT_ROWS = 1024  # fixed, so that a token's sums do not depend on how many tokens there are


@dataclass(frozen=True)
class LearnOptions:
    """How the networks are made and trained.

    distances  1 .. this many MoE layers ahead, each its own networks. width: entries of a list, None = top-k.
    hidden     units of the hidden layer. history: layers of the token's own routing that are seen.
    epochs     passes over the calibration rows, `batch` rows at a time. rate: Adam's learning rate, falling
               linearly to a tenth. decay: weight decay (AdamW's).
    seed       of first weights and of the order of rows.
    as_decode  prompt rows will run as decode steps: the token before is known to them too.
    """

    distances: int = 1
    width: int | None = None
    hidden: int = 128
    history: int = 4
    epochs: int = 20
    batch: int = 128
    rate: float = 1e-2
    decay: float = 0.05
    seed: int = 0
    as_decode: bool = False


@dataclass(frozen=True)
class Weights:
    """The networks of one distance, layers d .. L - 1: w1 [n, (history + 1) E, H], b1 [n, 1, H], w2 [n, H,
    E], b2 [n, 1, E]."""

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor

    @staticmethod
    def first(layers: int, inputs: int, hidden: int, experts: int, random: torch.Generator) -> "Weights":
        """Normal weights of variance 2 / fan-in (He et al. 2015) for w1, 1 / fan-in for w2; biases 0."""
        w1 = torch.randn(layers, inputs, hidden, generator=random) * (2 / inputs) ** 0.5
        w2 = torch.randn(layers, hidden, experts, generator=random) * hidden**-0.5
        parts = (w1, torch.zeros(layers, 1, hidden), w2, torch.zeros(layers, 1, experts))
        return Weights(*(part.requires_grad_() for part in parts))

    def scores(self, seen: Tensor) -> Tensor:
        """float32 [n, rows, E] (logits) from inputs [n, rows, (history + 1) E]."""
        hidden = functional.relu(torch.baddbmm(self.b1, seen, self.w1))
        return torch.baddbmm(self.b2, hidden, self.w2)


@dataclass(frozen=True)
class TokenRows:
    """The rows of a trace as the networks see them. before: int64 [T], the row whose routing at the target
    layer a row may see, -1 = none."""

    trace: RoutingTrace
    before: npt.NDArray[np.int64]

    @staticmethod
    def of(trace: RoutingTrace, as_decode: bool) -> "TokenRows":
        before = np.arange(-1, trace.n_tokens - 1)
        before[np.flatnonzero(trace.sequence[1:] != trace.sequence[:-1]) + 1] = -1
        if not as_decode:
            before[np.asarray(trace.prefill)] = -1
        return TokenRows(trace, before)

    def routed(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """float32 [rows, L, E]: 1 where a row is routed; all 0 for row -1 and absent slots."""
        ids = self.trace.experts[rows].astype(np.int64)
        ids[rows < 0] = -1
        ids[ids < 0] = self.trace.n_experts
        hot = torch.zeros(len(rows), self.trace.n_moe_layers, self.trace.n_experts + 1)
        return hot.scatter_(2, torch.from_numpy(ids), 1.0)[..., :-1]

    def seen(self, rows: npt.NDArray[np.int64], distance: int, history: int) -> tuple[Tensor, Tensor]:
        """(inputs [n, rows, (history + 1) E], targets [n, rows, E]) of layers distance .. L - 1."""
        own, layers = self.routed(rows), self.trace.n_moe_layers
        parts = []
        for back in range(distance, distance + history):
            known = own[:, : max(0, layers - back)]
            missing = layers - distance - known.shape[1]
            parts.append(functional.pad(known, (0, 0, missing, 0)))
        parts.append(self.routed(self.before[rows])[:, distance:])
        seen = torch.cat(parts, dim=2).transpose(0, 1).contiguous()
        return seen, own[:, distance:].transpose(0, 1).contiguous()


def learn(calibration: RoutingTrace, distance: int, options: LearnOptions) -> Weights:
    """The networks of one distance, trained. Layers and rows in which nothing is recorded teach nothing."""
    rows = TokenRows.of(calibration, options.as_decode)
    layers, experts = calibration.n_moe_layers - distance, calibration.n_experts
    random = torch.Generator().manual_seed(options.seed * 1000003 + distance)
    weights = Weights.first(layers, (options.history + 1) * experts, options.hidden, experts, random)
    parameters = [weights.w1, weights.b1, weights.w2, weights.b2]
    optimizer = torch.optim.AdamW(parameters, lr=options.rate, weight_decay=options.decay)
    steps = options.epochs * -(-calibration.n_tokens // options.batch)
    fall = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
    for some in _batches(calibration.n_tokens, options, random):
        seen, target = rows.seen(some, distance, options.history)
        recorded = target.any(dim=2, keepdim=True).float()
        loss = functional.binary_cross_entropy_with_logits(
            weights.scores(seen), target, weight=recorded.expand_as(target), reduction="sum"
        )
        optimizer.zero_grad()
        # a mean over recorded rows and a sum over layers and experts: layers do not slow one another down
        (loss / len(some)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        fall.step()
    return weights


def _batches(tokens: int, options: LearnOptions, random: torch.Generator) -> Iterator[npt.NDArray[np.int64]]:
    for _ in range(options.epochs):
        order = torch.randperm(tokens, generator=random).numpy()
        for lo in range(0, tokens, options.batch):
            yield order[lo : lo + options.batch]


@torch.no_grad()
def foretell(trace: RoutingTrace, weights: Weights, distance: int, options: LearnOptions) -> Ids:
    """int16 [T, L, m]: each token's lists at one distance, best first; -1 at layers below it."""
    width = min(options.width or trace.top_k, trace.n_experts)
    rows = TokenRows.of(trace, options.as_decode)
    lists = np.full((trace.n_tokens, trace.n_moe_layers, width), -1, np.int16)
    for lo in range(0, trace.n_tokens, PREDICT_ROWS):
        some = np.arange(lo, lo + PREDICT_ROWS)
        known = some[some < trace.n_tokens]
        some = np.where(some < trace.n_tokens, some, 0)  # the last rows are repeated rather than few
        scores = weights.scores(rows.seen(some, distance, options.history)[0])
        best = torch.sort(scores, dim=2, descending=True, stable=True).indices[:, : len(known), :width]
        lists[known, distance:] = best.transpose(0, 1).numpy()
    return lists


def with_predictions(
    calibration: RoutingTrace, trace: RoutingTrace, options: LearnOptions | None = None, name: str = ""
) -> RoutingTrace:
    """`trace` with `lookahead` int16 [D, T, L, m] learned from `calibration`, and meta that says so.

    meta: lookahead_distances; lookahead_source "learned: ..."; lookahead_model, the options and the
    calibration's `name` and content hash. Raises UserError for options out of range, a calibration of
    another shape, and one that is the trace itself.
    """
    options = options or LearnOptions()
    _check(calibration, trace, options)
    lists = [foretell(trace, learn(calibration, d, options), d, options) for d in range(1, options.distances + 1)]
    digest = npz.content_hash(calibration)
    meta = trace.meta | {
        "lookahead_distances": list(range(1, options.distances + 1)),
        "lookahead_source": f"learned: runtime.predictor from calibration {digest[:16]}",
        "lookahead_model": asdict(options) | {"calibration": {"name": name, "content_hash": digest}},
    }
    return replace(trace, lookahead=np.stack(lists), meta=meta)


def _check(calibration: RoutingTrace, trace: RoutingTrace, options: LearnOptions) -> None:
    for field in ("distances", "width", "hidden", "history", "epochs", "batch"):
        value = getattr(options, field)
        if value is not None and value < 1:
            raise UserError(f"{field} is {value}; a whole number from 1 is required")
    if not 0 <= options.seed < 2**40:
        raise UserError(f"seed is {options.seed}; a whole number from 0 to 2^40 is required")
    if options.distances >= trace.n_moe_layers:
        raise UserError(
            f"distances is {options.distances}; fewer than the trace's {trace.n_moe_layers} MoE layers are required"
        )
    shapes = [(t.n_moe_layers, t.n_experts, t.top_k) for t in (calibration, trace)]
    if shapes[0] != shapes[1]:
        there, here = (f"{n} MoE layers, {e} experts, top-{k}" for n, e, k in shapes)
        raise UserError(f"the calibration trace has {there}; the trace has {here}")
    if np.array_equal(calibration.experts, trace.experts):
        raise UserError("the calibration trace is the trace itself; other requests are required")


def recall(trace: RoutingTrace, distance: int) -> float:
    """The share of wanted experts at layers from `distance` on that the trace's lists of that distance
    name."""
    assert trace.lookahead is not None
    lists = trace.lookahead[trace.lookahead_distances.index(distance)]
    right = wanted = 0
    for lo in range(0, trace.n_tokens, PREDICT_ROWS):
        ids, guess = (a[lo : lo + PREDICT_ROWS, distance:] for a in (trace.experts, lists))
        right += int(((ids[..., None] == guess[:, :, None, :]).any(axis=3) & (ids >= 0)).sum())
        wanted += int((ids >= 0).sum())
    return right / max(wanted, 1)


def _parser() -> Parser:
    parser = Parser(prog="python -m runtime.predictor", description=(__doc__ or "").split(": ", 1)[1].split("\n")[0])
    parser.add_argument("--calibration", required=True, help="trace to learn from (.npz, or a shipped sample)")
    parser.add_argument("--trace", required=True, help="trace to predict: other requests of the same model")
    parser.add_argument("--out", required=True, help="where the trace with its predictions goes")
    parser.add_argument(
        "--distances", type=int, default=LearnOptions.distances, help="look 1 .. this many MoE layers ahead"
    )
    parser.add_argument("--width", type=int, help="experts in a list; default: the trace's top-k")
    parser.add_argument("--hidden", type=int, default=LearnOptions.hidden, help="units of the hidden layer")
    parser.add_argument("--history", type=int, default=LearnOptions.history, help="layers of the token's routing seen")
    parser.add_argument("--epochs", type=int, default=LearnOptions.epochs)
    parser.add_argument("--seed", type=int, default=LearnOptions.seed)
    parser.add_argument("--threads", type=int, default=1, help="of torch; the sums may differ with it")
    parser.add_argument("--as-decode", action="store_true", help="the run will be --as-decode too")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 done, 2 bad input (one line on stderr, nothing written)."""
    return guarded(_command, arguments)


def _command(arguments: list[str]) -> None:
    given = vars(_parser().parse_args(arguments))
    if given["threads"] < 1:
        raise UserError(f"--threads {given['threads']}: a whole number from 1 is required")
    torch.set_num_threads(given.pop("threads"))
    _run(given.pop("calibration"), given.pop("trace"), given.pop("out"), LearnOptions(**given))


def _run(calibration: Any, trace: Any, out: str, options: LearnOptions) -> None:
    sources = [npz.find(calibration), npz.find(trace)]
    if os.path.realpath(out) in [os.path.realpath(source) for source in sources]:
        raise UserError(f"--out {out} is an input; another path is required")
    if not Path(out).parent.is_dir():
        raise UserError(f"--out {out}: no such folder")
    first, second = (npz.read(source) for source in sources)
    found = with_predictions(first, second, options, sources[0].name)
    npz.write(out, found)
    print(f"{out}: {found.n_tokens:,} tokens, learned from {first.n_tokens:,}")
    for d in found.lookahead_distances:
        print(f"distance {d}: {recall(found, d):.1%} of the wanted experts are on the lists")


if __name__ == "__main__":
    sys.exit(main())
