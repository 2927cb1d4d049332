"""Closed-loop runs over text windows: teacher-forced, and free-running, each against the unmodified model.

Batch 1: one sequence at a time, each its own request; the expert cache is carried on from one to the next.
Teacher-forced, every token is a decode step of its own, whatever comes out (`--as-decode` of a replay): a cache that
serves decoding is judged on decoding. Free-running, the first half of a window is the prompt, run as one prefill step
(in which a policy is lossless unless it is told otherwise), and the rest is generated greedily.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runtime.closed_loop.driver import Driver
from runtime.closed_loop.judged_model import JudgedModel
from runtime.closed_loop.loop import ClosedLoop
from runtime.closed_loop.quality import Sums, compared
from runtime.closed_loop.text_windows import TextWindows
from sim.machines.record import RunRecord
from sim.outcome.summary import summarise
from traces.capturing.recorder import Recorder
from traces.format.trace import RoutingTrace
from traces.progress import counted


def forwarded(
    model: JudgedModel,
    ids: Tensor,
    cache: Any,
    driver: Driver | None,
    request: int,
    at: int,
    prefill: bool,
    then: Sequence[int] | None = (),
) -> Tensor:
    """Logits [n, V] behind each of the ids [n] of one request, which stand at `at` and on, in one step of the driver
    (Driver.step has `then`); driver None: of the unmodified model."""
    if driver is None:
        return model.forward(ids, cache)
    with driver.step([request] * len(ids), range(at, at + len(ids)), prefill, then):
        return model.forward(ids, cache)


def following(request: int, ends: bool, last: bool) -> tuple[int, ...] | None:
    """Whose row the next step has: the same request's, or, where this one ends, the next one's, if there is one."""
    return (request,) if not ends else None if last else (request + 1,)


def stepwise(
    model: JudgedModel, tokens: Tensor, driver: Driver | None = None, request: int = 0, last: bool = True
) -> Tensor:
    """Logits [M - 1, V] for what follows each token of a sequence [M] but the last, one decode step each."""
    cache, n = model.fresh(), len(tokens) - 1
    out = []
    for i in range(n):
        then = following(request, i == n - 1, last)
        out.append(forwarded(model, tokens[i : i + 1], cache, driver, request, i, False, then))
    return torch.cat(out)


class Baseline:
    """The unmodified model's logits of each text window, run in the same steps; kept when there is room (`keep`)."""

    def __init__(self, model: JudgedModel, text: TextWindows, keep: bool = False) -> None:
        self.model, self.text, self.keep = model, text, keep
        self._kept: dict[int, Tensor] = {}

    def __getitem__(self, i: int) -> Tensor:
        if i in self._kept:
            return self._kept[i]
        logits = stepwise(self.model, torch.from_numpy(self.text.tokens[i]))
        if self.keep:
            self._kept[i] = logits
        return logits


@dataclass(frozen=True)
class JudgedRun:
    """A teacher-forced closed-loop run: quality sums by sequence, the record, what was routed, what re-ranking
    replaced (slots and router weight)."""

    sums: Sums
    record: RunRecord
    trace: RoutingTrace
    reranked: tuple[int, float]


def judge(model: JudgedModel, text: TextWindows, loop: ClosedLoop, base: Baseline) -> JudgedRun:
    """Run all text windows through a fresh closed loop, teacher-forced."""
    rows, n = [], len(text.tokens)
    with model.looped(loop) as driver:
        for i, tokens in enumerate(counted([*map(torch.from_numpy, text.tokens)], "passage", at_once=False)):
            unmodified = base[i]
            logits = stepwise(model, tokens, driver, i, i == n - 1)
            a, b = (each.double().log_softmax(-1)[None] for each in (unmodified, logits))
            rows.append(compared(a, b, tokens[None, 1:], text.n_bytes[i : i + 1]))
    record = loop.record()
    return JudgedRun(Sums.of(rows), record, loop.trace(), (loop.slots_reranked, loop.weight_reranked))


def generate(
    model: JudgedModel,
    tokens: Tensor,
    prompt: int,
    driver: Driver | None = None,
    request: int = 0,
    last: bool = True,
) -> Tensor:
    """The tokens [M - prompt] that the model continues tokens[:prompt] with, greedily."""
    cache, new, out = model.fresh(), tokens[:prompt], []
    n = len(tokens) - prompt
    for i in range(n):
        at, then = 0 if i == 0 else prompt + i - 1, following(request, i == n - 1, last)
        new = forwarded(model, new, cache, driver, request, at, i == 0, then)[-1:].argmax(-1)
        out.append(new)
    return torch.cat(out)


def free_running(model: JudgedModel, text: TextWindows, loop: ClosedLoop) -> dict[str, Any]:
    """Greedy generations beside the unmodified model's: how long they agree, and how likely the unmodified model finds
    either (perplexity of its own generations, and of the modified model's)."""
    n, length = text.tokens.shape
    prompt = length // 2
    same, first, whole, nats = [], [], 0, np.zeros(2)
    with model.looped(loop) as driver:
        for i, tokens in enumerate(
            counted([*map(torch.from_numpy, text.tokens)], "free-running passage", at_once=False)
        ):
            own = generate(model, tokens, prompt)
            other = generate(model, tokens, prompt, driver, i, i == n - 1)
            equal = (own == other).numpy()
            same.append(equal.mean())
            first.append(len(equal) if equal.all() else int(equal.argmin()))
            whole += bool(equal.all())
            nats += [_nats(model, tokens[:prompt], continued) for continued in (own, other)]
    summary = summarise(loop.record())
    generated = n * (length - prompt)
    return {
        "prompt_tokens": prompt,
        "generated_tokens": length - prompt,
        "same_tokens": float(np.mean(same)),
        "tokens_until_first_difference": float(np.mean(first)),
        "same_generations": whole / n,
        "perplexity_of_own": float(np.exp(nats[0] / generated)),
        "perplexity_of_modified": float(np.exp(nats[1] / generated)),
        "tpot_ms": summary["tpot_ms"]["mean"],
        "h2d_bytes": sum(summary["h2d_bytes"].values()),
    }


def _nats(model: JudgedModel, prompt: Tensor, continued: Tensor) -> float:
    """What the unmodified model charges for a continuation."""
    logits = model.forward(torch.cat([prompt, continued[:-1]]), model.fresh())[len(prompt) - 1 :]
    return -logits.double().log_softmax(-1)[torch.arange(len(continued)), continued].sum().item()


def calibrate(model: JudgedModel, text: TextWindows) -> RoutingTrace:
    """The unmodified model's routing of other text, for what is fitted: a whole text window in one forward pass."""
    with Recorder(model.model, logits=False, lookahead=0) as recorder:
        for tokens in map(torch.from_numpy, text.tokens):
            recorder.begin(prompt_lengths=[0])
            model.forward(tokens, model.fresh())
    return recorder.trace(norm_topk=model.shape.norm_topk, data=text.source)
