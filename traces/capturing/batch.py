"""From what each forward pass computed to the rows of requests: numpy only, torch is not imported here.

A batch is B rows of tokens that go through the model together, each a request. A forward pass computes some *columns*
of it, all rows at once, those after what the key-value cache holds already. The rules:

* A forward pass replaces what was held from its first column on. So a model without a cache, which computes everything
  anew with every token, and a rejected speculation, which the cache is cut back from, leave each token's last routing.
* Padding is no token. A token's position is the number of real tokens before it in its row, wherever the padding is.
* A token belongs to the prompt by its place (column below the prompt's, or position below its length), never by how
  many tokens its forward pass had: prompts come in chunks, and speculation decodes several tokens at once.
* Beam search moves beams between the rows. `parents` says which row of the columns before a row goes on from; followed
  back from the last forward pass, each of its rows is a request with its own ancestors' tokens. Beams that were given
  up leave nothing, tokens that two beams share are in both: as many rows as were computed.
* A row that has ended goes on through the model while others have not: its end token, and the padding fed after it,
  are left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.errors import UserError

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass
class Columns:
    """What one forward pass computed: `arrays` [B, S, ...] by name, `valid` bool [B, S] without padding.

    first: the first column; parents int [B]: the row of the columns before that each row goes on from; None: its own.
    """

    first: int
    arrays: dict[str, Array]
    valid: Bools
    parents: Ints | None = None

    @property
    def last(self) -> int:
        """One past the last column."""
        return self.first + int(self.valid.shape[1])

    def before(self, column: int) -> "Columns":
        kept = slice(0, column - self.first)
        arrays = {name: array[:, kept] for name, array in self.arrays.items()}
        return Columns(self.first, arrays, self.valid[:, kept], self.parents)


@dataclass
class Batch:
    """The requests that go through the model together.

    mask             bool [rows, columns] of the prompt, true where a token is; None: what each forward pass says.
                     A batch of n times as many rows repeats each of its rows n times (beams, several samples).
    prompt_columns   columns of the prompt; prompt_lengths [rows]: its tokens, without padding. Neither: what the first
                     forward pass has.
    end_tokens       a generated one ends its request. declared: by the caller, not found by an empty cache.
    """

    mask: Bools | None = None
    prompt_columns: int | None = None
    prompt_lengths: Ints | None = None
    end_tokens: Sequence[int] = ()
    declared: bool = False
    held: list[Columns] = field(default_factory=list)

    def add(self, new: Columns) -> None:
        """Hold what a forward pass computed, in place of what was held from its first column on."""
        while self.held and self.held[-1].first >= new.first:
            self.held.pop()
        if self.held and self.held[-1].last > new.first:
            self.held[-1] = self.held[-1].before(new.first)
        if self.held and self.held[-1].last < new.first:
            raise UserError(f"the model went on at column {new.first}; the last one recorded is {self.held[-1].last}")
        if self.held and len(self.held[0].valid) != len(new.valid):
            raise UserError(f"a batch of {len(self.held[0].valid)} rows went on as {len(new.valid)}")
        if self.prompt_columns is None and self.prompt_lengths is None:
            self.prompt_columns = new.last
        new.valid = self.tokens_of(new)
        self.held.append(new)

    def tokens_of(self, new: Columns) -> Bools:
        """[B, S]: where a forward pass has tokens, by the mask if there is one."""
        return new.valid if self.mask is None else _told(self.mask, new)

    def repeats(self, tokens: Array) -> bool:
        """Whether token ids [B, S] from column 0 on hold more than is held: the same computed anew, without a cache."""
        if not self.held or len(tokens) != len(self.held[0].valid):
            return False
        return bool(tokens.shape[1] > self.held[-1].last)

    def cut(self, generated: int) -> None:
        """Drop what was computed beyond the tokens that came out: candidates that were rejected last of all.

        generated: tokens after the prompt; the last of them was never computed. Speculation runs one request at a
        time; in a batch rows end at different lengths, and nothing is dropped.
        """
        if self.held and len(self.held[0].valid) == 1 and self.prompt_columns is not None:
            last = self.prompt_columns + generated - 1
            self.held = [c if c.last <= last else c.before(last) for c in self.held if c.first < last]

    def requests(self) -> list[dict[str, Array]]:
        """Each row's arrays by name, with `position` and `prefill`, without padding; none of a row without a token."""
        if not self.held:
            return []
        found = [self._request(row, chain) for row, chain in enumerate(self._ancestors())]
        return [arrays for arrays in found if len(arrays["position"])]

    def _ancestors(self) -> Ints:
        """int [rows, forward passes]: the row in which a request of the last pass stood in each."""
        rows = np.arange(len(self.held[-1].valid))
        chain = [rows]
        for columns in self.held[:0:-1]:
            rows = rows if columns.parents is None else columns.parents[rows]
            chain.append(rows)
        return np.stack(chain[::-1], axis=1)

    def _request(self, row: int, chain: Ints) -> dict[str, Array]:
        valid = np.concatenate([c.valid[at] for c, at in zip(self.held, chain, strict=True)])
        column = np.arange(self.held[0].first, self.held[-1].last)
        position = self._tokens_before(row) + np.cumsum(valid) - 1
        if self.prompt_columns is not None:
            prefill = column < self.prompt_columns
        else:
            assert self.prompt_lengths is not None
            prefill = position < self._of_row(self.prompt_lengths, row)
        arrays = {
            n: np.concatenate([c.arrays[n][at] for c, at in zip(self.held, chain, strict=True)]) for n in self.names
        }
        if "token_ids" in arrays and len(self.end_tokens):
            ended = ~prefill & np.isin(arrays["token_ids"], self.end_tokens)
            valid = valid & (np.cumsum(ended) == 0)
        arrays |= {"position": position.astype(np.int32), "prefill": prefill}
        return {name: array[valid] for name, array in arrays.items()}

    @property
    def names(self) -> list[str]:
        """Arrays that every forward pass has."""
        return [n for n in self.held[0].arrays if all(n in c.arrays for c in self.held)]

    def _tokens_before(self, row: int) -> int:
        """Tokens that an already filled cache held before the first column of ours."""
        first = self.held[0].first
        return first if self.mask is None else int(self._of_row(self.mask, row)[:first].sum())

    def _of_row(self, values: Array, row: int) -> Any:
        return values[row * len(values) // len(self.held[0].valid)]


def _told(mask: Bools, new: Columns) -> Bools:
    """[B, S]: what the caller's mask says of the prompt's columns; later ones hold tokens."""
    rows = len(new.valid)
    if rows % len(mask):
        raise UserError(f"the attention mask has {len(mask)} rows, the batch {rows}; one for each request is required")
    valid = np.ones_like(new.valid)
    part = np.repeat(mask, rows // len(mask), axis=0)[:, new.first : new.last]
    valid[:, : part.shape[1]] = part
    return valid


def score_function(logits: Array, experts: Array, weights: Array) -> tuple[str, bool | None]:
    """(meta.score_function, meta.norm_topk) of a model, from what it did: ("other", None) where neither formula fits.

    logits [N, E], experts and weights [N, K]. Softmax over all experts, or sigmoid, gathered at the routed experts,
    equals the weights up to one factor for all tokens (not normalised), or up to one per token where their sum is
    always the same (normalised). A softmax over the chosen logits alone is the second for softmax. 2 % are allowed for
    rounding.
    """
    wide = logits.astype(np.float64)
    exponentials = np.exp(wide - wide.max(axis=1, keepdims=True))
    scores = {"softmax": exponentials / exponentials.sum(axis=1, keepdims=True), "sigmoid": 1 / (1 + np.exp(-wide))}
    total = weights.sum(axis=1, dtype=np.float64)
    best: tuple[float, str, bool | None] = (0.02, "other", None)
    for name, score in scores.items():
        ratio = weights / np.take_along_axis(score, experts.astype(np.int64), axis=1)
        one = _spread(ratio.ravel())
        per_token = max(_spread(total), max(_spread(row) for row in ratio))
        best = min(best, (one, name, False), (per_token, name, True), key=lambda found: found[0])
    return best[1], best[2]


def _spread(values: Array) -> float:
    """How far from their mean, as a share of it."""
    mean = float(values.mean())
    return float(np.abs(values - mean).max()) / mean if mean > 0 else np.inf


def joined(requests: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """The arrays of all requests one after another, with `sequence`; an array that one of them lacks is left out."""
    if not requests:
        raise UserError("nothing was recorded: run the model while the recorder is open")
    names = [name for name in requests[0] if all(name in r for r in requests)]
    lengths = [len(r["position"]) for r in requests]
    out = {name: np.concatenate([r[name] for r in requests]) for name in names}
    return out | {"sequence": np.repeat(np.arange(len(requests), dtype=np.int32), lengths)}
