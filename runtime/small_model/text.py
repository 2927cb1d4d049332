"""The training text: the Python standard library's own sources, as the running Python brings them.

Licence: CPython is under the PSF License Version 2 (some modules add notices of their own, all compatible
with it); the text is read where Python is installed and is never copied into this project. Files are split by
a hash of their path, so that a file is held out or not whatever else is installed. Left out: tests and
generated machine settings (many distributions do not ship them, or ship other ones) and `encodings`
(generated tables that are near copies of each other, which would leak over the split).
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from traces.errors import UserError

Ids = NDArray[np.int64]

LICENCE = "PSF-2.0 (CPython standard library, read from the running Python)"
FILE_TOKEN = "<|file|>"
FILE_ID = 0
HELDOUT_ONE_IN = 16
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings"}
_GENERATED = ("config-", "_sysconfigdata")  # so begin the folders and files that are


@dataclass(frozen=True)
class SourceFile:
    """One file: `path` relative to the standard library, with `/`; `data` in UTF-8, lines ended by `\\n`."""

    path: str
    data: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def heldout(self) -> bool:
        return is_heldout(self.path)


@dataclass(frozen=True)
class Corpus:
    """Training files and held-out files, each in order of path, with no file in both."""

    train: tuple[SourceFile, ...]
    heldout: tuple[SourceFile, ...]

    def describe(self) -> dict[str, Any]:
        """What a training record says of its data; `sha256` is over every file's path and hash."""
        files = sorted((*self.train, *self.heldout), key=lambda f: f.path)
        listing = "".join(f"{f.sha256} {f.path}\n" for f in files)
        return {
            "licence": LICENCE,
            "sha256": hashlib.sha256(listing.encode()).hexdigest(),
            "split": f"held out when sha256(path) mod {HELDOUT_ONE_IN} = 0",
            "train_files": len(self.train),
            "train_bytes": sum(len(f.data) for f in self.train),
            "heldout_files": len(self.heldout),
            "heldout_bytes": sum(len(f.data) for f in self.heldout),
            "heldout": {f.path: f.sha256 for f in self.heldout},
        }


def is_heldout(path: str) -> bool:
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") % HELDOUT_ONE_IN == 0


def read_corpus(root: Path | None = None, limit_bytes: int | None = None) -> Corpus:
    """Every `.py` file of the standard library at `root` (default: the running Python's), split.

    `limit_bytes` keeps the first training files up to that size, and of the held-out files a sixteenth of it
    (at least one of each), for tests. Raises UserError where `root` holds too little for both parts.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    files = [f for f in _files(root) if f.data]
    train = _first([f for f in files if not f.heldout], limit_bytes)
    heldout = _first([f for f in files if f.heldout], limit_bytes and limit_bytes // HELDOUT_ONE_IN)
    if not train or not heldout:
        counts = f"{len(train)} training and {len(heldout)} held-out .py files"
        raise UserError(f"{root}: {counts}; there must be at least one of each")
    return Corpus(tuple(train), tuple(heldout))


def _files(root: Path) -> Iterable[SourceFile]:
    for relative in sorted(_paths(root)):
        data = (root / relative).read_bytes().replace(b"\r\n", b"\n")
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            continue  # a byte-level tokenizer is lossless on UTF-8 only
        yield SourceFile(relative, data)


def _paths(root: Path) -> Iterable[str]:
    """Relative to root, with `/`; what was generated for this machine, or is nobody's standard library, left out."""
    for folder, inside, names in os.walk(root):
        inside[:] = [name for name in inside if name not in _SKIPPED_FOLDERS and not name.startswith(_GENERATED)]
        here = Path(folder).relative_to(root)
        sources = (name for name in names if name.endswith(".py") and not name.startswith(_GENERATED))
        yield from ((here / name).as_posix() for name in sources)


def _first(files: list[SourceFile], limit_bytes: int | None) -> list[SourceFile]:
    if limit_bytes is None:
        return files
    sizes = np.cumsum([len(f.data) for f in files])
    return files[: max(1, int(np.searchsorted(sizes, limit_bytes)))]


def train_tokenizer(files: Sequence[SourceFile], vocab_size: int) -> Tokenizer:
    """A byte-level byte-pair vocabulary of `vocab_size` learned from `files`; token 0 starts a file."""
    if vocab_size < 257:
        raise UserError(f"vocab_size is {vocab_size}; it must be at least 257 (256 bytes and {FILE_TOKEN})")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[FILE_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((f.data.decode() for f in files), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, files: Sequence[SourceFile]) -> Ids:
    """All files in one stream, each led by the file token: int64 `[tokens]`.

    The file token is not looked for in the text itself: a source that spells it is cut into ordinary tokens.
    """
    tokenizer.encode_special_tokens = True
    return np.concatenate([np.array([FILE_ID, *tokenizer.encode(f.data.decode()).ids], dtype=np.int64) for f in files])


def order2_bits(train: Sequence[Ids], heldout: Sequence[Ids], alphabet: int, pad: int) -> float:
    """Bits that an order-2 model of `train` needs for `heldout`, each a list of symbol sequences.

    The model gives a symbol's probability from the two before it (`pad` stands before a sequence's start),
    with interpolated Witten-Bell smoothing (method C of Witten and Bell 1991): at each order `p(c | ctx) =
    (n(ctx c) + T(ctx) p(c | shorter ctx)) / (n(ctx) + T(ctx))`, T the number of distinct symbols seen after
    ctx, down to a uniform distribution over `alphabet` symbols.
    """
    seen, asked = _contexts(train, alphabet, pad), _contexts(heldout, alphabet, pad)
    p = np.full(len(asked), 1.0 / alphabet)
    for order in range(3):
        size = alphabet ** (order + 1)
        grams, n = np.unique(seen % size, return_counts=True)
        contexts, first = np.unique(grams // alphabet, return_index=True)
        n_context = np.add.reduceat(n, first)
        distinct = np.diff(np.append(first, len(grams)))
        gram = asked % size
        count = _lookup(grams, n, gram)
        total = _lookup(contexts, n_context, gram // alphabet)
        types = _lookup(contexts, distinct, gram // alphabet)
        known = total > 0
        p[known] = (count[known] + types[known] * p[known]) / (total[known] + types[known])
    return float(-np.log2(p).sum())


def _contexts(sequences: Sequence[Ids], alphabet: int, pad: int) -> Ids:
    """Every symbol with the two before it, as digits of one number in base `alphabet`, itself the last."""
    padded = [np.concatenate([[pad, pad], s]).astype(np.int64) for s in sequences]
    return np.concatenate([(s[:-2] * alphabet + s[1:-1]) * alphabet + s[2:] for s in padded])


def _lookup(keys: Ids, values: Ids, asked: Ids) -> Ids:
    at = np.searchsorted(keys, asked)
    keys, values = np.append(keys, -1), np.append(values, 0)  # what lies past the last key is in no table
    return np.where(keys[at] == asked, values[at], 0)


def order2_bits_per_byte(corpus: Corpus) -> float:
    """The order-2 model over bytes (a byte given the two before it), fitted on the training files."""
    train, heldout = (
        [np.frombuffer(f.data, np.uint8).astype(np.int64) for f in part] for part in (corpus.train, corpus.heldout)
    )
    return order2_bits(train, heldout, 256, pad=ord("\n")) / sum(map(len, heldout))


def order2_token_bits_per_byte(corpus: Corpus, tokenizer: Tokenizer) -> float:
    """The same model over the vocabulary's tokens: a stronger one, its context being some six bytes."""
    train, heldout = ([encode(tokenizer, [f])[1:] for f in part] for part in (corpus.train, corpus.heldout))
    bits = order2_bits(train, heldout, tokenizer.get_vocab_size(), pad=0)
    return bits / sum(len(f.data) for f in corpus.heldout)
