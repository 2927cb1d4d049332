"""What a small code model can do, beside predicting bytes: tasks scored from its best guesses on Python source.

A task is a list of items; an item is one or more positions of one window, and is right where the guess at each of them
is of the same kind as what really comes next. So the unmodified and the modified model, given the same tokens, answer
the same items, and figures are paired.

* closing bracket: at a token that closes a bracket which the window opened, the guess closes with the same one, and
  did not close another token too early. (Judged at the closing alone, the answer `)` whatever the text would be right
  four times in five.) `'):` and `)` are the same answer.
* indentation: where a line ends, the guess ends it too and indents the next line as far. Blank lines between the
  two are passed over. Lines within brackets and strings count as well.
* repeated identifier: an identifier of several tokens that the window had before: given its first token, the guesses
  complete it.
* copying: the second time that a passage is read, each of its tokens (what induction heads do: Olsson et al. 2022,
  arXiv 2209.11895).

The first three go by the spelling of tokens, not by a parse: a window begins and ends anywhere, so words, brackets and
lines of comments and strings are items like any other.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.small_model.text import Ids
from traces.errors import UserError

KNOWS_WHERE = 4  # tokens of a passage's second copy after which a reader can know where it is
OPENS = {b")": b"(", b"]": b"[", b"}": b"{"}
# a name of ASCII letters; where other letters touch it it would be a piece of a longer one
NAME = re.compile(rb"(?<![\w\x80-\xff])[A-Za-z_]\w*(?![\w\x80-\xff])")
Items = Callable[[list[int]], Iterable[range]]  # a window's tokens -> the positions of each of its items


@dataclass(frozen=True)
class Task:
    """Items in windows int64 [N, M], whose position p = 0 .. M - 2 predicts token p + 1.

    kind int64 [V]: tokens of one kind are the same answer. Item i is of window `window[i]` and of the positions
    `at[offset[i]:offset[i + 1]]`, one at least: window int64 [items], at int64 [positions], offset int64 [items + 1].
    """

    name: str
    kind: Ids
    window: Ids
    at: Ids
    offset: Ids


def right(task: Task, best: Ids, windows: Ids) -> npt.NDArray[np.bool_]:
    """bool [items]: whether the best guesses, int64 [N, M - 1], are of the right kind at all positions of an item."""
    same = task.kind[best] == task.kind[windows[:, 1:]]
    each = same[np.repeat(task.window, np.diff(task.offset)), task.at]
    return np.logical_and.reduceat(each, task.offset[:-1])


def tasks_of(vocabulary: Sequence[bytes], windows: Ids) -> list[Task]:
    """The tasks that windows of source, int64 [N, M], hold as they are; vocabulary: what each token spells."""
    return [make(vocabulary, windows) for make in (closing_bracket, indentation, repeated_identifier)]


def copying(passages: Ids, size: int, lead: int | None, length: int) -> tuple[Ids, Task]:
    """Windows of their own, int64 [N, 1 + 2 length] (without the 1 where there is no lead), and their task: the lead,
    a passage, the passage again; an item is a token of the second copy but for the first four.

    passages int64 [N, M], of a vocabulary of `size` tokens: what is copied are the `length` tokens after the first,
    which may be a lead. Raises UserError where they have not so many, or where no item would be left.
    """
    if not KNOWS_WHERE < length < passages.shape[1]:
        most = passages.shape[1] - 1
        raise UserError(f"copying: a passage of {length} tokens; it must have {KNOWS_WHERE + 1} .. {most}")
    passage = passages[:, 1 : length + 1]
    led = np.full((len(passages), 0 if lead is None else 1), lead or 0, np.int64)
    windows = np.concatenate([led, passage, passage], axis=1)
    end = windows.shape[1] - 1
    judged = [range(p, p + 1) for p in range(end - length + KNOWS_WHERE, end)]
    return windows, _task("copying", np.arange(size), windows, lambda _: judged)


def _task(name: str, kind: Ids, windows: Ids, items: Items) -> Task:
    found = [(i, positions) for i, row in enumerate(windows.tolist()) for positions in items(row)]
    return Task(
        name,
        kind,
        np.array([i for i, _ in found], np.int64),
        np.array([p for _, positions in found for p in positions], np.int64),
        np.cumsum([0, *(len(positions) for _, positions in found)], dtype=np.int64),
    )


def _kinds(keys: Iterable[bytes]) -> Ids:
    """One number for each key; 0 for an empty one."""
    numbers = {b"": 0}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def closing_bracket(vocabulary: Sequence[bytes], windows: Ids) -> Task:
    """Two positions an item: that of the closing token and the one before. A token's kind is the first bracket that it
    closes without having opened it: of `())` it is `)`, of `()` none."""
    brackets = [_unpaired(token) for token in vocabulary]
    kind = _kinds(each[:1] if each[:1] in OPENS else b"" for each in brackets)

    def items(row: list[int]) -> Iterator[range]:
        due = b""
        for i, own in enumerate(brackets[token] for token in row):
            if i >= 2 and due and OPENS.get(own[:1]) == due[-1:]:
                yield range(i - 2, i)
            due = _unpaired(due + own) if own else due

    return _task("closing bracket", kind, windows, items)


def _unpaired(text: bytes) -> bytes:
    """Its brackets but for those that pair up within it: of `a(b[0]))[` it is `)[`."""
    left = re.sub(rb"[^()\[\]{}]", b"", text)
    while (fewer := re.sub(rb"\(\)|\[\]|\{\}", b"", left)) != left:
        left = fewer
    return left


def indentation(vocabulary: Sequence[bytes], windows: Ids) -> Task:
    """An item is all tokens of blanks from a line's end to the next line's text; one that the window's edge cuts is
    left out. A token's kind is what it spells from its last line end on. (Our vocabulary spells a line's end and the
    next line's blanks but for the last, which belongs to the word after it, as one token where it can.)"""
    blank = [token.isspace() for token in vocabulary]
    ends = [token.isspace() and b"\n" in token for token in vocabulary]
    kind = _kinds(t[max(0, t.rfind(b"\n")) :] if b else b"" for t, b in zip(vocabulary, blank, strict=True))

    def items(row: list[int]) -> Iterator[range]:
        start = None
        for i, token in enumerate(row):
            if start is None and ends[token]:
                start = i
            elif start is not None and not blank[token]:
                if start:
                    yield range(start - 1, i - 1)
                start = None

    return _task("indentation", kind, windows, items)


def repeated_identifier(vocabulary: Sequence[bytes], windows: Ids) -> Task:
    """An item is all tokens but the first of a name that the window had before. Only names that whole tokens spell,
    maybe with one blank before; keywords are none, nor what the window's edge may have cut."""

    def items(row: list[int]) -> Iterator[range]:
        spelled = [vocabulary[token] for token in row]
        text, starts = b"".join(spelled), np.cumsum([0, *map(len, spelled)]).tolist()
        token_at, seen = {start: i for i, start in enumerate(starts)}, set()
        for name, start, end in _names(text):
            with_blank = start - (text[start - 1 : start] == b" ")
            first, behind = token_at.get(start, token_at.get(with_blank)), token_at.get(end)
            if name in seen and first is not None and behind is not None and behind - first > 1:
                yield range(first, behind - 1)
            seen.add(name)

    return _task("repeated identifier", np.arange(len(vocabulary)), windows, items)


def _names(text: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The identifiers that begin and end within a text, with their bytes start .. end."""
    for name in NAME.finditer(text):
        if name.start() > 0 and name.end() < len(text) and not keyword.iskeyword(name[0].decode()):
            yield name[0], *name.span()
