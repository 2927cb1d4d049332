"""`python -m runtime.lm_eval_adapter`: tasks of the lm-evaluation-harness with the expert cache in the loop.

    python -m runtime.lm_eval_adapter --model PATH --tasks arc_easy --limit 50 --miss buddy-b --cache 0.5

Extra "lm-eval". A request's context is one prefill step, and every token that is scored or generated behind it a decode
step of its own: so a policy is judged where it acts. The cache is carried on from request to request. Generation is
greedy.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import torch

from runtime.closed_loop.driver import Driver
from runtime.closed_loop.evaluation import CALIBRATION_TOKENS, LEFT_OUT, calibration_of, means_of
from runtime.closed_loop.judged_model import JudgedModel, judged_model
from runtime.closed_loop.loop import ClosedLoop
from runtime.closed_loop.priced_as import priced_as
from runtime.closed_loop.runs import forwarded
from sim.flags import add_groups, spec_of
from sim.outcome.summary import summarise
from traces.command import Parser, guarded
from traces.errors import UserError
from traces.progress import doing

NEEDED = "lm-evaluation-harness is not installed: pip install 'moe-offload-sim[lm-eval]'"
MOST_NEW_TOKENS = 256


class Scorer:
    """A judged model's log-likelihoods and greedy continuations through an open driver (None: the unmodified model)."""

    def __init__(self, model: JudgedModel, driver: Driver | None) -> None:
        self.model, self.driver = model, driver
        self._request = 0

    def encoded(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids of both, cut where the joint text is cut; spaces at the context's end belong to what follows."""
        kept = context.rstrip()
        context, continuation = kept, context[len(kept) :] + continuation
        front = self.model.tokens.encode(context) if context else []
        lead = [] if self.model.lead is None else [self.model.lead]
        return lead + front, self.model.tokens.encode(context + continuation)[len(front) :]

    def score(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        """(log-likelihood of the continuation, whether greedy decoding gives it). What is too long loses its front."""
        if not context or not continuation:
            raise UserError(
                "a request without context or continuation cannot be scored; the model has no leading token"
            )
        room = self.model.context + 1 - len(continuation)
        if room < 1:
            raise UserError(
                f"a continuation of {len(continuation)} tokens; the model has {self.model.context} positions"
            )
        total, greedy = 0.0, True
        steps = self._steps(list(context)[-room:])
        logits = next(steps)
        for i, token in enumerate(continuation):
            total += float(logits.double().log_softmax(-1)[token])
            greedy &= int(logits.argmax()) == token
            if i + 1 < len(continuation):
                logits = steps.send(token)
        return total, greedy

    def generate(self, context: Sequence[int], until: Sequence[str], most: int) -> str:
        """The greedy continuation up to the first stop text (left out), or `most` tokens."""
        room = self.model.context - most
        if room < 1 or not context:
            raise UserError(f"{most} new tokens; the model has {self.model.context} positions")
        steps, out = self._steps(list(context)[-room:]), []
        logits = next(steps)
        for i in range(most):
            out.append(int(logits.argmax()))
            text = self.model.tokens.decode(out)
            ends = [text.index(stop) for stop in until if stop and stop in text]
            if ends:
                return text[: min(ends)]
            if i + 1 < most:
                logits = steps.send(out[-1])
        return self.model.tokens.decode(out)

    def _steps(self, context: list[int]) -> Any:
        """A generator: logits [V] behind the context, then behind each token that is sent."""
        cache, at, ids, request = self.model.fresh(), 0, context, self._request
        self._request += 1
        while True:
            logits = forwarded(self.model, torch.tensor(ids), cache, self.driver, request, at, at == 0)
            at += len(ids)
            ids = [(yield logits[-1])]


def language_model(scorer: Scorer) -> Any:
    """The scorer as the harness wants a model. Raises UserError where the harness is not installed."""
    try:
        from lm_eval.api.model import LM
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    except ImportError:
        raise UserError(NEEDED) from None

    class ClosedLoopLM(LM):  # type: ignore[misc]
        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return [scorer.score(*scorer.encoded(*request.args)) for request in requests]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            return [self._rolling(*request.args) for request in requests]

        def _rolling(self, text: str) -> float:
            lead, ids = scorer.encoded("", text)
            windows = get_rolling_token_windows(ids, lead[0] if lead else ids[0], scorer.model.context, 1)
            return sum(scorer.score(*make_disjoint_window(window))[0] for window in windows)

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            return [self._generated(*request.args) for request in requests]

        def _generated(self, context: str, given: dict[str, Any]) -> str:
            if given.get("do_sample") and given.get("temperature", 1):
                raise UserError("a task asks for sampling; the closed loop generates greedily")
            until = given.get("until") or []
            most = int(given.get("max_gen_toks", MOST_NEW_TOKENS))
            ids = scorer.encoded(context, "")[0] or scorer.model.tokens.encode(context)
            return scorer.generate(
                ids, [until] if isinstance(until, str) else until, min(most, scorer.model.context // 2)
            )

    return ClosedLoopLM()


def parser() -> Parser:
    out = Parser(prog="python -m runtime.lm_eval_adapter", description="lm-evaluation-harness with the loop closed.")
    group = out.add_argument_group("model and tasks")
    group.add_argument("--model", dest="judged_model", default="tiny-moe", metavar="tiny-moe|tiny-moe-8|PATH")
    group.add_argument("--tasks", required=True, metavar="A[,B...]", help="tasks of the harness")
    group.add_argument("--limit", type=int, metavar="N", help="documents of each task")
    group.add_argument("--include-path", metavar="DIR", help="folder with tasks of one's own")
    group.add_argument("--charge", metavar="NAME|FILE", help="charge layers and experts of this model's width instead")
    group.add_argument("--calibration-tokens", type=int, default=CALIBRATION_TOKENS, metavar="N")
    add_groups(out, LEFT_OUT)
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status. Prints one JSON object: the harness's results and the loop's."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise UserError(NEEDED) from None
    args.trace = args.judged_model
    spec, model = spec_of(args), judged_model(args.judged_model)
    doing("capturing a calibration trace", at_once=False)
    calibration = calibration_of(model, spec, args.calibration_tokens, None)
    means = means_of(model, spec, args.calibration_tokens, None)
    loop = ClosedLoop(spec, model.shape, calibration, priced_as(model.model, model.shape, args.charge), means=means)
    with model.looped(loop) as driver:
        doing(f"evaluating {args.tasks}", at_once=False)
        found = simple_evaluate(
            model=language_model(Scorer(model, driver)),
            tasks=args.tasks.split(","),
            limit=args.limit,
            task_manager=TaskManager(include_path=args.include_path),
            random_seed=spec.seed,
        )
    summary = summarise(loop.record())
    kept = {name: summary[name] for name in ("substituted", "dropped", "slots_wanted", "h2d_bytes", "tpot_ms")}
    print(json.dumps({"results": found["results"], "loop": kept, "spec": spec.saved(LEFT_OUT)}))


if __name__ == "__main__":
    sys.exit(main())
