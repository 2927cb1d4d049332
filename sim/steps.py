"""Which tokens run together: from the requests of a trace to prefill and decode steps (design: section 6, Steps).

Requests are admitted in order of first appearance while fewer than `batch` are active, all free places at one instant;
then their prompts run, one request after the other, in prefill steps of at most `prefill_chunk` tokens; a request
without generated tokens leaves when its prompt is done. When no more can be admitted, every active request gives one
token to a decode step, in order of admission.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.core.plan import FORGETS_REQUESTS, FORGETS_ROWS, Choice, Leaving
from sim.errors import SpecError
from traces.format.trace import RoutingTrace

Int = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Steps:
    """offset int64 [S + 1], row int32 [R], prefill bool [S]: step s runs trace tokens row[offset[s]:offset[s + 1]].

    request int64 [n]: index of each request in the trace, in order of admission; admitted int64 [n]: the step at whose
    begin it is admitted; last_prefill int64 [n]: the step in which its prompt ends, -1 without one, -2 if the run ends
    before; first_decode int64 [n]: its first decode step, counted among decode steps; generated int64 [n]: its decode
    steps, which follow one another.
    """

    offset: Int
    row: npt.NDArray[np.int32]
    prefill: npt.NDArray[np.bool_]
    request: Int
    admitted: Int
    last_prefill: Int
    first_decode: Int
    generated: Int

    def __len__(self) -> int:
        return len(self.prefill)

    @property
    def fresh(self) -> npt.NDArray[np.bool_]:
        """bool [S]: the first step of a request (of several, their first) that is admitted while no other is served."""
        out = np.zeros(len(self), np.bool_)
        before = np.concatenate([[-1], np.maximum.accumulate(self._last_step())[:-1]])
        out[self.admitted[self.admitted > before]] = True
        return out

    def _last_step(self) -> Int:
        """int64 [n]: of each request; the run's last where it ends before the prompt does."""
        decode, last = np.flatnonzero(~self.prefill), self.last_prefill.copy()
        last[last == -2] = len(self) - 1
        some = self.generated > 0
        last[some] = decode[(self.first_decode + self.generated - 1)[some]]
        return last

    @property
    def requests(self) -> Int:
        """int64 [n, 5]: request, admitted, last_prefill, first_decode, generated."""
        return np.stack([getattr(self, name) for name in _OF_REQUESTS], axis=1)

    def previous_rows(self, sequence: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """int32 [tokens], given the trace's `sequence` [tokens]: for the first row of each request in each step, that
        request's last row in an earlier step; -1 for its other rows, for first steps, and for tokens that no step runs.
        """
        out = np.full(len(sequence), -1, np.int32)
        step = np.full(len(sequence), -1, np.int64)
        step[self.row] = np.repeat(np.arange(len(self)), np.diff(self.offset))
        rows = self.row[self.row > 0]
        rows = rows[sequence[rows] == sequence[rows - 1]]  # a request's rows stand together and run in order
        out[rows] = np.where((step[rows - 1] >= 0) & (step[rows - 1] < step[rows]), rows - 1, -1)
        return out


_OF_REQUESTS = ("request", "admitted", "last_prefill", "first_decode", "generated")


class _Builder:
    """Steps as they are laid down, block by block: runs of (steps, rows of each, prefill or not)."""

    def __init__(self, tokens: int) -> None:
        self.row = np.empty(tokens, np.int32)
        self.laid = self.steps = 0
        self.runs: list[tuple[int, int, bool]] = []
        self.requests: list[tuple[int, int, int, int, int]] = []

    def add(self, rows: Int, runs: list[tuple[int, int, bool]]) -> None:
        """Some runs, whose rows are given step after step."""
        self.row[self.laid : self.laid + len(rows)] = rows
        self.laid += len(rows)
        self.runs += runs
        self.steps += sum(run[0] for run in runs)

    def prompt(self, first: int, end: int, chunk: int) -> None:
        whole, rest = divmod(end - first, chunk)
        self.add(np.arange(first, end), [(whole, chunk, True), (int(rest > 0), rest, True)])

    def decode(self, heads: list[int], n: int) -> None:
        """n decode steps in which every active request gives one token."""
        rows = np.array(heads, np.int64)[None, :] + np.arange(n)[:, None]
        self.add(rows.reshape(-1), [(n, len(heads), False)])

    def built(self) -> Steps:
        """All that was laid down."""
        steps, rows, kinds = zip(*self.runs, strict=True)
        offset = np.zeros(self.steps + 1, np.int64)
        np.cumsum(np.repeat(np.array(rows, np.int32), steps), out=offset[1:])
        requests = dict(zip(_OF_REQUESTS, np.array(self.requests, np.int64).T, strict=True))
        return Steps(offset, self.row[: self.laid], np.repeat(np.array(kinds), steps), **requests)


def schedule(
    trace: RoutingTrace, batch: int = 1, prefill_chunk: int = 512, as_decode: bool = False, skip_prompts: bool = False
) -> Steps:
    """Lay a trace's requests out in steps. `as_decode` runs prompt rows as decode steps, `skip_prompts` does not run
    them, nor requests without another row. Raises SpecError where that leaves nothing."""
    starts, ends = trace.requests()
    prompts = np.zeros(len(starts), np.int64)
    if not as_decode:
        np.add.at(prompts, np.searchsorted(starts, np.flatnonzero(trace.prefill), side="right") - 1, 1)
    if skip_prompts:
        starts, prompts = starts + prompts, np.zeros_like(prompts)
        if (starts == ends).all():
            raise SpecError("skip_prompts: the trace has no generated tokens; must be run with its prompts")
    build, waiting, decoded = _Builder(trace.n_tokens), deque(np.flatnonzero(starts < ends).tolist()), 0
    active: list[list[int]] = []  # [next row, end] of each
    while waiting or active:
        while waiting and len(active) < batch:
            now = build.steps
            arrivals: list[int] = []
            while waiting and len(active) + len(arrivals) < batch:
                arrivals.append(waiting.popleft())
            for r in arrivals:
                first, middle, end = int(starts[r]), int(starts[r] + prompts[r]), int(ends[r])
                if middle > first:
                    build.prompt(first, middle, prefill_chunk)
                prompt_end = build.steps - 1 if middle > first else -1
                build.requests.append((r, now, prompt_end, decoded, end - middle))
                if end > middle:
                    active.append([middle, end])
        if active:
            n = min(end - head for head, end in active)
            build.decode([head for head, _ in active], n)
            decoded += n
            active = [[head + n, end] for head, end in active if head + n < end]
    return build.built()


def first_steps(steps: Steps, n: int) -> Steps:
    """The first n steps; requests that are not admitted by then are left out, others end early."""
    if n >= len(steps):
        return steps
    requests = {name: getattr(steps, name)[steps.admitted < n] for name in _OF_REQUESTS}
    decoded = int((~steps.prefill[:n]).sum())
    requests["last_prefill"] = np.where(requests["last_prefill"] < n, requests["last_prefill"], -2)
    requests["generated"] = np.clip(decoded - requests["first_decode"], 0, requests["generated"])
    offset = steps.offset[: n + 1]
    return Steps(offset, steps.row[: offset[-1]], steps.prefill[:n], **requests)


def resets(reset: str, steps: Steps) -> npt.NDArray[np.bool_] | None:
    """bool [S]: the steps at whose begin all is as at time 0 again; None where that is never. `request`: each admission
    but the first, of a run that serves one request at a time."""
    if reset == "none":
        return None
    out = steps.fresh.copy()
    out[:1] = False
    return out


def leaving(
    steps: Steps,
    eviction: Choice,
    sequence: npt.NDArray[np.int32],
    resets: npt.NDArray[np.bool_] | None = None,
) -> Leaving | None:
    """What an eviction policy that looks back forgets at each step (sim.core.eviction).

    A window (its first parameter): at step s the rows of step s - window. Requests: every row of those whose last row
    ran in step s - 1; sequence int32 [tokens] says whose a row is. A reset has forgotten what lies before it. None for
    a policy that does not look back. Raises SpecError for a window that is no whole number from 1.
    """
    n = len(steps)
    since = np.maximum.accumulate(np.where(resets if resets is not None else np.zeros(n, np.bool_), np.arange(n), 0))
    if eviction.marks & FORGETS_ROWS:
        window = eviction.params[0]
        if not 1 <= window < 2**31 or window != int(window):
            raise SpecError(f"set: {eviction.name}.window={window:g}: must be a whole number from 1")
        gone = np.arange(n) - int(window)
        sizes = np.where(gone >= since, np.diff(steps.offset)[np.maximum(gone, 0)], 0)
        offset = np.concatenate([[0], np.cumsum(sizes)])
        first = np.repeat(steps.offset[np.maximum(gone, 0)] - offset[:-1], sizes)
        return Leaving(offset, steps.row[first + np.arange(int(offset[-1]))])
    if not eviction.marks & FORGETS_REQUESTS:
        return None
    step_of = np.repeat(np.arange(n), np.diff(steps.offset))
    whose = np.unique(sequence[steps.row], return_inverse=True)[1]
    last = np.zeros(int(whose.max(initial=0)) + 1, np.int64)
    np.maximum.at(last, whose, step_of)
    at = last[whose] + 1
    rows = np.flatnonzero(at < n)
    rows = rows[step_of[rows] >= since[at[rows]]]
    rows = rows[np.argsort(at[rows], kind="stable")]
    offset = np.concatenate([[0], np.cumsum(np.bincount(at[rows], minlength=n))])
    return Leaving(offset, steps.row[rows])
