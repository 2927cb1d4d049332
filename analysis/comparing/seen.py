"""What was measured beside what was simulated: the same steps, tokens, requests or figures of both."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.comparing.own_times import OwnTimes
from sim.machines.record import RunRecord
from sim.outcome.summary import summarise
from sim.timings.rows import DECODE, MS, PREFILL
from traces.errors import UserError

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """What both have. kind: step, token, request or figure. ms float64 [n]: measured; of: the same of a record of this
    run; step int64 [n]: in which step each lies, or nothing; prefill bool [n]; names: of figures; left_out: so many
    measured ones that the run has not."""

    kind: str
    ms: Float
    of: Callable[[RunRecord], Float]
    step: Int | None
    prefill: npt.NDArray[np.bool_]
    names: tuple[str, ...] = ()
    left_out: int = 0

    @property
    def weight(self) -> Float:
        """Of each in the sum that has to agree: one over its phase's mean, so that a prompt's few long steps do not
        outweigh all others; figures count alike."""
        if self.kind == "figure":
            return 1 / self.ms
        out = np.ones(len(self.ms))
        for phase in (self.prefill, ~self.prefill):
            out[phase] /= self.ms[phase].mean() if phase.any() else 1.0
        return out


def seen(own: OwnTimes, record: RunRecord) -> Seen:
    """What can be compared. Raises UserError, one line, where that is nothing."""
    made = _figures(own, record) if own.figures else _times(own, record)
    if not len(made.ms):
        has = f"{len(record.steps['prefill'])} steps and requests {_some(record.requests['request'])}"
        raise UserError(f"{own.source}: none of its {len(own.ms)} times is of this run, which has {has}")
    return made


def _some(requests: Int) -> str:
    return f"{requests.min()} to {requests.max()}" if len(requests) else "none"


# --- of steps, tokens, requests ---


def _times(own: OwnTimes, record: RunRecord) -> Seen:
    """By place: the step's time; a request's gap in front of a token; a request's time."""
    prefill = record.steps["prefill"].astype(np.bool_)
    if set(own.places) == {"request"}:
        rows, keep = _rows_of(own.places["request"], record)
        done = record.requests["last_ns"][rows] >= 0
        rows, keep = rows[done], keep[done]
        return _made("request", own, keep, lambda r: _ms(r.requests["last_ns"] - r.requests["admitted_ns"])[rows])
    if "request" in own.places:
        return _of_requests(own, record)
    step, kind = (own.places["step"], "step") if "step" in own.places else (own.places["token"], "token")
    if kind == "token":
        decode = np.flatnonzero(~prefill)
        step = np.where(step < len(decode), decode[np.minimum(step, len(decode) - 1)] if len(decode) else -1, -1)
    keep = np.flatnonzero((step >= 0) & (step < len(prefill)))
    at = step[keep]
    return _made(kind, own, keep, lambda r: _ms(r.steps["end_ns"] - r.steps["begin_ns"])[at], at, prefill[at])


def _of_requests(own: OwnTimes, record: RunRecord) -> Seen:
    """Token 0 of a request with a prompt is its first decode step, whose gap begins at the end of the prompt."""
    rows, keep = _rows_of(own.places["request"], record)
    token, r = own.places["token"][keep], record.requests
    decode = np.flatnonzero(record.steps["prefill"] == 0)
    there = (token < r["generated"][rows]) & ((token > 0) | (r["last_prefill_step"][rows] >= 0))
    rows, keep, token = rows[there], keep[there], token[there]
    at = decode[r["first_decode"][rows] + token]
    before = np.where(
        token > 0, decode[np.maximum(r["first_decode"][rows] + token - 1, 0)], r["last_prefill_step"][rows]
    )
    return _made("token", own, keep, lambda r: _ms(r.steps["end_ns"][at] - r.steps["end_ns"][before]), at)


def _rows_of(request: Int, record: RunRecord) -> tuple[Int, Int]:
    """(row of the record's requests, place among the measured) of those that the run has."""
    place = {int(name): row for row, name in enumerate(record.requests["request"])}
    found = np.array([place.get(int(name), -1) for name in request], np.int64)
    keep = np.flatnonzero(found >= 0)
    return found[keep], keep


def _made(
    kind: str,
    own: OwnTimes,
    keep: Int,
    of: Callable[[RunRecord], Float],
    step: Int | None = None,
    prefill: npt.NDArray[np.bool_] | None = None,
) -> Seen:
    none = np.zeros(len(keep), np.bool_)
    return Seen(kind, own.ms[keep], of, step, none if prefill is None else prefill, (), len(own.ms) - len(keep))


def _ms(ns: npt.NDArray[Any]) -> Float:
    return ns.astype(np.float64) / 1e6


# --- of figures ---


def _figures(own: OwnTimes, record: RunRecord) -> Seen:
    """Speeds as ms per token. Those that the run has none of are left out."""
    every = _figures_of(record)
    names = tuple(name for name in own.figures if every.get(name))
    ms = np.array([1e3 / own.figures[n] if n in (DECODE, PREFILL) else own.figures[n] for n in names])
    prompts = np.array([name == PREFILL or name.startswith("ttft") for name in names], np.bool_)
    of: Callable[[RunRecord], Float] = lambda r: np.array([_figures_of(r)[name] for name in names])  # noqa: E731
    return Seen("figure", ms, of, None, prompts, names, len(own.figures) - len(names))


def _figures_of(record: RunRecord) -> dict[str, float | None]:
    out = summarise(record)
    decode = out["decode_ns"] / 1e6 / out["tokens"] if out["tokens"] else None
    prompt = out["prefill_ns"] / 1e6 / out["prompt_tokens"] if out["prompt_tokens"] else None
    spreads = {f"{name} {of} ms": value for name in ("ttft", "tpot", "itl") for of, value in out[f"{name}_ms"].items()}
    return {DECODE: decode, MS: decode, PREFILL: prompt, **spreads}
