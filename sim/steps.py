"""Which tokens run together: from the requests of a trace to prefill and decode steps (design: section 6, Steps).

Requests are admitted in order of first appearance while fewer than `batch` are active, all free places at one instant;
then their prompts run, one request after the other, in prefill steps of at most `prefill_chunk` tokens; a request
without generated tokens leaves when its prompt is done. When no more can be admitted, every active request gives one
token to a decode step, in order of admission; a run that speculates, a window of tokens (sim.speculation), of which
those that are not accepted run again in its next one.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.core.plan import FORGETS_REQUESTS, FORGETS_ROWS, Choice, Leaving, Windows
from sim.errors import SpecError
from sim.speculation import Accept, Speculation
from traces.format.trace import RoutingTrace

Int = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Steps:
    """offset int64 [S + 1], row int32 [R], prefill bool [S]: step s runs trace tokens row[offset[s]:offset[s + 1]].

    request int64 [n]: index of each request in the trace, in order of admission; admitted int64 [n]: the step at whose
    begin it is admitted; last_prefill int64 [n]: the step in which its prompt ends, -1 without one, -2 if the run ends
    before; first_decode int64 [n]: its first decode step, counted among decode steps; generated int64 [n]: its decode
    steps, which follow one another. windows: of a run that speculates; a token may then run more than once.
    """

    offset: Int
    row: npt.NDArray[np.int32]
    prefill: npt.NDArray[np.bool_]
    request: Int
    admitted: Int
    last_prefill: Int
    first_decode: Int
    generated: Int
    windows: Windows | None = None

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

    @property
    def accepted(self) -> npt.NDArray[np.bool_]:
        """bool [R]: the rows that count: all of a prefill step, and of a window those that were accepted."""
        if self.windows is None:
            return np.ones(len(self.row), np.bool_)
        return self.windows.accepted_rows(self.offset, self.prefill)

    def previous_rows(self, sequence: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """int32 [R], given the trace's `sequence` [tokens]: for the first row of each request in each step, the trace
        token before it: that request's last row in an earlier step that counts; -1 for its other rows and for first
        steps."""
        row, whose = self.row, sequence[self.row]
        first = np.ones(len(row), np.bool_)
        first[1:] = whose[1:] != whose[:-1]
        first[self.offset[:-1]] = True
        has = first & (row > 0) & (sequence[row - 1] == whose)  # a request's rows stand together and run in order
        return np.where(has, row - 1, -1).astype(np.int32)


_OF_REQUESTS = ("request", "admitted", "last_prefill", "first_decode", "generated")


class _Builder:
    """Steps as they are laid down, block by block: runs of (steps, rows of each, prefill or not). n: rows that a
    request gives to a decode step, at most."""

    def __init__(self, tokens: int, n: int) -> None:
        self.row, self.n = np.empty(tokens * n, np.int32), n
        self.laid = self.steps = 0
        self.windows: list[tuple[int, int, int, int]] = []
        self.runs: list[tuple[int, int, bool]] = []
        self.requests: list[list[int]] = []

    def add(self, rows: Int, runs: list[tuple[int, int, bool]]) -> None:
        """Some runs, whose rows are given step after step."""
        self.row[self.laid : self.laid + len(rows)] = rows
        self.laid += len(rows)
        self.runs += runs
        self.steps += sum(run[0] for run in runs)

    def prompt(self, first: int, end: int, chunk: int) -> None:
        whole, rest = divmod(end - first, chunk)
        self.add(np.arange(first, end), [(whole, chunk, True), (int(rest > 0), rest, True)])

    def decode(self, active: list["_Active"], n: int) -> None:
        """n decode steps in which every active request gives one token."""
        rows = np.array([one.head for one in active], np.int64)[None, :] + np.arange(n)[:, None]
        self.add(rows.reshape(-1), [(n, len(active), False)])
        for one in active:
            one.head += n

    def verify(self, active: list["_Active"], accept: Accept) -> None:
        """One decode step in which every active request gives its next window, and moves on behind what is accepted of
        it."""
        rows: list[int] = []
        for one in active:
            window = range(one.head, min(one.head + self.n, one.end))
            rows += window
            accepted = accept(one.request, one.window, len(window))
            self.windows.append((self.steps, one.request, len(window), accepted))
            one.head, one.window = one.head + accepted, one.window + 1
        self.add(np.array(rows, np.int64), [(1, len(rows), False)])

    def built(self) -> Steps:
        """All that was laid down."""
        steps, rows, kinds = zip(*self.runs, strict=True)
        offset = np.zeros(self.steps + 1, np.int64)
        np.cumsum(np.repeat(np.array(rows, np.int32), steps), out=offset[1:])
        requests = dict(zip(_OF_REQUESTS, np.array(self.requests, np.int64).T, strict=True))
        there = self.windows if self.n > 1 else []
        windows = Windows(*np.array(there, np.int32).T.copy()) if there else None
        return Steps(offset, self.row[: self.laid], np.repeat(np.array(kinds), steps), **requests, windows=windows)


@dataclass
class _Active:
    """A request that decodes: its next row, its end, its number in order of admission, its next window."""

    head: int
    end: int
    request: int
    window: int = 0


def schedule(
    trace: RoutingTrace,
    batch: int = 1,
    prefill_chunk: int = 512,
    as_decode: bool = False,
    speculation: Speculation | None = None,
    skip_prompts: bool = False,
) -> Steps:
    """Lay a trace's requests out in steps. `as_decode` runs prompt rows as decode steps, `skip_prompts` does not run
    them, nor requests without another row. Raises SpecError where that leaves nothing, and for a file of counts that
    does not say what is accepted of each window."""
    starts, ends = trace.requests()
    prompts = np.zeros(len(starts), np.int64)
    if not as_decode:
        np.add.at(prompts, np.searchsorted(starts, np.flatnonzero(trace.prefill), side="right") - 1, 1)
    if skip_prompts:
        starts, prompts = starts + prompts, np.zeros_like(prompts)
        if (starts == ends).all():
            raise SpecError("skip_prompts: the trace has no generated tokens; must be run with its prompts")
    accept = None if speculation is None else speculation.rule()
    build = _Builder(trace.n_tokens, 1 if speculation is None else speculation.n)
    waiting, decoded = deque(np.flatnonzero(starts < ends).tolist()), 0
    active: list[_Active] = []
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
                build.requests.append([r, now, prompt_end, decoded, 0])
                if end > middle:
                    active.append(_Active(middle, end, len(build.requests) - 1))
        if active and accept is not None:
            steps = 1
            build.verify(active, accept)
        elif active:
            steps = min(one.end - one.head for one in active)
            build.decode(active, steps)
        if active:
            decoded += steps
            for one in active:
                build.requests[one.request][-1] += steps
            active = [one for one in active if one.head < one.end]
    return build.built()


def first_steps(steps: Steps, n: int) -> Steps:
    """The first n steps; requests that are not admitted by then are left out, others end early."""
    if n >= len(steps):
        return steps
    requests = {name: getattr(steps, name)[steps.admitted < n] for name in _OF_REQUESTS}
    decoded = int((~steps.prefill[:n]).sum())
    requests["last_prefill"] = np.where(requests["last_prefill"] < n, requests["last_prefill"], -2)
    requests["generated"] = np.clip(decoded - requests["first_decode"], 0, requests["generated"])
    offset, windows = steps.offset[: n + 1], steps.windows
    if windows is not None:
        there = int(np.searchsorted(windows.step, n))
        windows = Windows(*(column[:there] for column in vars(windows).values()))
    return Steps(offset, steps.row[: offset[-1]], steps.prefill[:n], **requests, windows=windows)


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
