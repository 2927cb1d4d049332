"""The passages that a study judges: the unmodified model's guesses of them, and what other guesses are worth."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runtime.closed_loop.by_layer import LayerByLayer, forwarded
from runtime.closed_loop.quality import Sums, compared
from runtime.closed_loop.tasks import Task, right
from runtime.closed_loop.text_windows import TextWindows
from runtime.small_model.model import MoeDecoder
from runtime.small_model.text import Ids


@dataclass(frozen=True)
class Passages:
    """text: its windows; tasks: what is asked of the guesses; base: log-probabilities of the unmodified model, float32
    [n, M - 1, V] of some windows each; best int64 [N, M - 1]: what it thinks the likeliest to come next."""

    text: TextWindows
    tasks: Sequence[Task]
    base: list[Tensor]
    best: Ids

    @staticmethod
    def of(model: MoeDecoder, text: TextWindows, tasks: Sequence[Task]) -> Passages:
        base = [_logp(piece) for piece in forwarded(model, _inputs(text))]
        return Passages(text, tasks, base, _best(base))

    @property
    def content(self) -> str:
        """A hash of what is asked."""
        arrays = [self.text.tokens, self.text.file]
        arrays += [each for task in self.tasks for each in (task.kind, task.window, task.at, task.offset)]
        return hashlib.sha256(b"".join(each.tobytes() for each in arrays)).hexdigest()

    def judged(self, model: MoeDecoder, run: LayerByLayer) -> dict[str, Any]:
        """Run them in a closed loop: `sums` and `tasks` by file. Nothing but the same tensors comes of fetch."""
        logp = [_logp(piece) for piece in forwarded(model, _inputs(self.text), run.answer)]
        return {"sums": self._sums(logp), "tasks": self._tasks(_best(logp))}

    def _sums(self, logp: list[Tensor]) -> dict[str, list[float]]:
        targets = torch.from_numpy(self.text.tokens[:, 1:])
        at = np.cumsum([0, *map(len, logp)])
        parts = [
            compared(a, b, targets[i:j], self.text.n_bytes[i:j])
            for a, b, i, j in zip(self.base, logp, at[:-1], at[1:], strict=True)
        ]
        return Sums.of(parts).by(self.text.file, len(self.text.files))

    def _tasks(self, best: Ids) -> dict[str, dict[str, list[float]]]:
        return {task.name: self._accuracy(task, best) for task in self.tasks}

    def _accuracy(self, task: Task, best: Ids) -> dict[str, list[float]]:
        """Items of each file, and how many of them either model has right."""
        file, n = self.text.file[task.window], len(self.text.files)
        found = {"items": np.ones(len(file), np.bool_)}
        found |= {name: right(task, b, self.text.tokens) for name, b in (("base_right", self.best), ("right", best))}
        return {name: np.bincount(file, each, n).tolist() for name, each in found.items()}


def _inputs(text: TextWindows) -> Tensor:
    return torch.from_numpy(text.tokens[:, :-1])


def _logp(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1)


def _best(logp: list[Tensor]) -> Ids:
    """int64 [N, M - 1]: the token that is thought the likeliest to come next."""
    best: Ids = torch.cat([piece.argmax(-1) for piece in logp]).numpy()
    return best
