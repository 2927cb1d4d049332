"""The text on which a model is judged, and other text on which policies are fitted.

By default both come from the held-out files of `runtime.small_model.text` (the standard library's sources that training
never saw): a file belongs to the one or the other by a hash of its path. Windows are of one file each, without
overlap, drawn by the seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from runtime.small_model import text
from runtime.small_model.text import Ids
from traces.errors import UserError


class Tokens(Protocol):
    """A tokenizer, as far as it is needed here."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def n_bytes(self, ids: Sequence[int]) -> int:
        """Bytes of the text that these tokens spell."""
        ...


@dataclass(frozen=True)
class TextWindows:
    """tokens int64 [N, M]; n_bytes int64 [N], of the tokens that are predicted (all but the first); source: whose
    text it is; files: the names of its files, file int64 [N]: which of them each window is of."""

    tokens: Ids
    n_bytes: Ids
    source: str
    files: tuple[str, ...]
    file: Ids


def is_judged(path: str) -> bool:
    """Whether a held-out file is judged; the others calibrate."""
    return hashlib.sha256(f"judged {path}".encode()).digest()[0] % 2 == 0


def _texts(path: str | None, judged: bool) -> tuple[dict[str, str], str]:
    """Text by file, and whose it is."""
    if path is not None:
        try:
            whole = Path(path).read_text("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{path}: is no UTF-8; a text file is required") from None
        half = len(whole) // 2  # the first half is judged, the second calibrates
        return {Path(path).name: whole[:half] if judged else whole[half:]}, Path(path).name
    files = [f for f in _heldout() if is_judged(f.path) == judged]
    return {f.path: f.data.decode() for f in files}, "held-out sources of the Python standard library"


@cache
def _heldout() -> tuple[text.SourceFile, ...]:
    """Read once: finding them means to read the whole library."""
    return text.read_corpus().heldout


def text_windows(
    tokenizer: Tokens,
    n: int | None,
    length: int,
    seed: int,
    path: str | None = None,
    judged: bool = True,
    lead: int | None = None,
) -> TextWindows:
    """`n` windows of `length` tokens (None: all there are), drawn by `seed`; lead: a token that stands before every
    text. To calibrate on (not `judged`) fewer will do.

    Raises UserError, one line, where there is too little text.
    """
    texts, source = _texts(path, judged)
    windows: list[list[int]] = []
    file: list[int] = []
    for place, each in enumerate(texts.values()):
        ids = ([] if lead is None else [lead]) + tokenizer.encode(each)
        windows += [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]
        file += [place] * (len(windows) - len(file))
    most = len(windows) or 1
    n = most if n is None else n if judged else min(n, most)
    if len(windows) < n:
        raise UserError(f"{source}: {len(windows)} passages of {length} tokens; {n} are asked for")
    chosen = np.random.default_rng(seed).permutation(len(windows))[:n]
    tokens = np.array([windows[i] for i in chosen], np.int64).reshape(n, length)
    n_bytes = np.array([tokenizer.n_bytes(row[1:]) for row in tokens.tolist()], np.int64)
    return TextWindows(tokens, n_bytes, source, tuple(texts), np.array(file, np.int64)[chosen])


def spelled(tokens: Tokens, size: int) -> list[bytes]:
    """What each of the vocabulary's `size` tokens spells where another stands before it (at a text's beginning some
    tokenizers leave a blank out). A piece of a character is spelled U+FFFD."""
    before = tokens.encode("a")[-1:]
    known = len(tokens.decode(before))
    return [tokens.decode([*before, i])[known:].encode() for i in range(size)]


class OwnTokens:
    """The vocabulary of our own model (`tokenizers`), byte level: a token's characters are its bytes."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        try:
            self.tokenizer: Any = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise UserError(f"{path}: {error}; a tokenizer.json is required") from None
        self.tokenizer.encode_special_tokens = True

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def n_bytes(self, ids: Sequence[int]) -> int:
        return sum(len(self.tokenizer.id_to_token(i)) for i in ids)


class HfTokens:
    """A tokenizer of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids)))

    def n_bytes(self, ids: Sequence[int]) -> int:
        return len(self.decode(ids).encode())
