"""Speculative windows: how many rows of each are accepted, what drafting them takes, what may come in time for them.

A window is what a request gives to a decode step: `n` rows at most, of which the first is what the model itself has
said and the others are a draft model's guesses. Rejected rows are routed and paid, and run again in the next window:
what they would really have been routed to nobody recorded, so the trace's own next rows stand for it.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sim.core.plan import Costs, Windows
from sim.errors import SpecError
from traces.format.trace import hash64

Int = npt.NDArray[np.int64]
Accept = Callable[[int, int, int], int]  # (request, window from 0 within it, rows of the window) -> rows accepted
DRAWN = 256  # windows whose acceptance is drawn together
MOST_BYTES = 1 << 30  # of a file of counts


@dataclass(frozen=True)
class Speculation:
    """Windows of at most n rows. accept: how likely a guess is right, in [0, 1]; or a file of counts. seed: of a chance
    between 0 and 1, else 0: no other draws."""

    n: int
    accept: float | str
    seed: int

    def rule(self) -> Accept | None:
        """Asked once for each window, in run order; raises SpecError where a file cannot say. None: nothing is asked,
        for a window of one row is what any decode step gives."""
        if isinstance(self.accept, str):
            return _Counted(self.accept)
        return _Drawn(self.n, self.accept, self.seed) if self.n > 1 else None


class _Drawn:
    """1 + the leading guesses i = 1, 2, .. of a window with hash64(seed, request, window, i) / 2^64 < chance."""

    def __init__(self, n: int, chance: float, seed: int) -> None:
        self.n, self.chance, self.seed = n, chance, seed
        self.drawn: dict[int, list[int]] = {}  # of each request: its next windows, from a multiple of DRAWN on

    def __call__(self, request: int, window: int, rows: int) -> int:
        if window % DRAWN == 0:
            self.drawn[request] = self._draw(request, window)
        return min(self.drawn[request][window % DRAWN], rows)

    def _draw(self, request: int, first: int) -> list[int]:
        below = math.ceil(Fraction(self.chance) * 2**64)
        if below in (0, 2**64):
            return [self.n if below else 1] * DRAWN
        windows = np.arange(first, first + DRAWN)[:, None]
        right = hash64(self.seed, request, windows, np.arange(1, self.n)) < np.uint64(below)
        found: list[int] = (1 + np.logical_and.accumulate(right, axis=1).sum(axis=1)).tolist()
        return found


class _Counted:
    """The counts of a file, one for each window in run order, whosever it is."""

    def __init__(self, name: str) -> None:
        self.name, self.counts, self.asked = name, read_counts(name), 0

    def __call__(self, request: int, window: int, rows: int) -> int:
        at, self.asked = self.asked, self.asked + 1
        if at == len(self.counts):
            raise SpecError(f"accept: {self.name}: has {at} counts; the run has more windows, and needs one for each")
        if not 1 <= self.counts[at] <= rows:
            wrong = f"count {at + 1} is {self.counts[at]}; its window has {rows} rows: must be from 1 to {rows}"
            raise SpecError(f"accept: {self.name}: {wrong}")
        return self.counts[at]


def read_counts(name: str) -> list[int]:
    """Whole numbers with spaces, commas or lines between, or a JSON list of them. Raises SpecError, one line."""
    try:
        path = Path(name)
        if path.stat().st_size > MOST_BYTES:
            raise SpecError(f"accept: {name}: {path.stat().st_size} bytes; must be at most {MOST_BYTES}")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        why = (error.strerror or "cannot be read").lower()
        raise SpecError(f"accept: {name}: {why}; must be a share from 0 to 1, all, or a file of counts") from None
    except ValueError:
        raise SpecError(f"accept: {name}: is no text; must be whole numbers, one for each window") from None
    try:
        found = json.loads(text) if text.lstrip().startswith("[") else list(map(int, text.replace(",", " ").split()))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(type(each) is int for each in found):
        raise SpecError(f"accept: {name}: must be whole numbers with spaces, commas or lines between, or a JSON list")
    return found


def draft_ns(each_ns: int, windows: Windows | None, steps: int) -> Int:
    """int64 [S]: what the draft model takes before each step, so much for each row but the first of each window."""
    out = np.zeros(0 if windows is None else steps, np.int64)
    if windows is not None:
        np.add.at(out, windows.step, (windows.rows.astype(np.int64) - 1) * each_ns)
    return out


def within_ns(costs: Costs, prefill: npt.NDArray[np.bool_], distances: int) -> Int:
    """int64 [D, L]: the least from the routed instant of a visit of MoE layer l to that of the visit d behind it, at
    [d - 1, l]: dense parts, decisions, ends of steps and drafts, each the cheapest that any step has (a draft: any
    decode step, for what comes in time is for those)."""
    dense, layers = costs.dense_ns.min(axis=0), costs.dense_ns.shape[1] - 1
    drafts = costs.draft_ns[~prefill] if len(costs.draft_ns) else costs.draft_ns
    before = dense[:-1] + costs.decide_ns  # of each visit, from the end of the one before it
    before[0] += dense[-1] + costs.head_ns.min() + drafts.min(initial=np.iinfo(np.int64).max if len(drafts) else 0)
    following = (np.arange(layers)[None, :] + np.arange(1, distances + 1)[:, None]) % layers
    return np.asarray(np.cumsum(before[following], axis=0), np.int64)
