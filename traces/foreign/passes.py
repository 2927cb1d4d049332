"""Logs written layer by layer as a model runs: one block of tokens per MoE layer of each forward pass.

Blocks are taken in order. A pass ends where a layer comes that it has already, a lower one, or one that the writer
says belongs to another step; every pass has the layers of the first. Which rows are prompt rows and where a request
begins is not in such a log: see Ask.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import TraceError
from traces.foreign.ask import Ask, place_layers
from traces.foreign.spill import check_ids
from traces.foreign.whole_rows import Rows
from traces.format.layout import Array
from traces.format.limits import MOST_IDS
from traces.format.trace import RoutingTrace

SMALL = 8  # tokens of a pass that could verify drafts


@dataclass
class Passes:
    """Collects the blocks of a pass, then appends its tokens.

    short_last: the last layer may have fewer tokens than the others (llama.cpp computes it only for tokens whose
    output is asked for); which ones is not said, so they are left out there and counted.
    """

    path: Path
    ask: Ask
    logits: bool = False
    short_last: bool = False
    rows: Rows = field(init=False)
    layers: list[int] = field(default_factory=list)
    _step: int | None = None
    _blocks: dict[int, Array] = field(default_factory=dict)
    _logits: dict[int, Array] = field(default_factory=dict)
    _weights: dict[int, Array] = field(default_factory=dict)
    _said: tuple[str | None, int | None] = (None, None)
    _named: dict[str, int] = field(default_factory=dict)
    _following: list[int] = field(default_factory=list)
    _request: int = -1
    _position: int = 0
    _prompt: bool = False
    _first: bool = True
    _small: list[int] = field(default_factory=list)  # tokens of the passes that could verify drafts, or do

    def __post_init__(self) -> None:
        self.rows = Rows(self.path, self.ask)

    def add(
        self, layer: int, ids: Array, where: str, step: int | None = None, logits: Array | None = None,
        weights: Array | None = None, request: str | None = None, prefill: int | None = None,
    ) -> None:  # fmt: skip
        """One block: ids [n, K], logits [n, E], weights [n, K] (all blocks or none). where: file and line.

        request, prefill (1, 0): of a log that says them by itself; a pass is of one request and phase.
        """
        if ids.size > MOST_IDS:
            raise TraceError(f"{where}: {ids.size} ids in one pass of layer {layer}; at most {MOST_IDS} are read")
        check_ids(ids, self.ask.n_experts(self.path), where)
        if self._blocks and (layer <= max(self._blocks) or step != self._step or (request, prefill) != self._said):
            self.flush(where)
        self._step, self._said = step, (request, prefill)
        self._blocks[layer] = ids
        if logits is not None:
            self._logits[layer] = logits
        if weights is not None:
            self._weights[layer] = weights

    def flush(self, where: str) -> None:
        """Append the tokens of the pass. Raises TraceError where its layers are not alike."""
        found = sorted(self._blocks)
        self.layers = self.layers or found
        if found != self.layers:
            missing = sorted(set(found) ^ set(self.layers))[:5]
            raise TraceError(f"{where}: the pass before has not the layers of the first one; they differ in {missing}")
        n, k = self._blocks[found[0]].shape
        experts = np.full((n, len(found), k), -1, np.int16)
        for place, layer in enumerate(found):
            ids = self._blocks[layer]
            if ids.shape == (n, k):
                experts[:, place] = ids
            elif self.short_last and layer == found[-1] and len(ids) < n and ids.shape[1] == k:
                self.rows.dropped[f"tokens of layer {layer}, which has fewer than the pass"] += len(ids)
            else:
                raise TraceError(f"{where}: layer {layer} has {list(ids.shape)} ids; its pass has {[n, k]}")
        more = {"logits": np.stack([self._logits[layer] for layer in found], axis=1)} if self.logits else {}
        if self._weights:
            more["weights"] = np.zeros(experts.shape, np.float32)
            for place, layer in enumerate(found):
                if len(self._weights[layer]) == n:
                    more["weights"][:, place] = self._weights[layer]
        self._append(experts, more)
        self._blocks, self._logits, self._weights = {}, {}, {}

    def _append(self, experts: Array, more: dict[str, Any]) -> None:
        """Give the pass's tokens their requests, positions and phases."""
        n = len(experts)
        together = self._together(n)
        sequence, position = self._places(n, together)
        self.rows.add(experts, sequence, position, self._prefill(position, together), **more)

    def _places(self, n: int, together: int) -> tuple[Array, Array]:
        """(sequence, position) of the next n tokens, which ran together."""
        rule, request = self.ask.asked("requests"), self._said[0]
        if self.ask.tokens_each:
            return self.ask.places(len(self.rows) + np.arange(n))
        if rule is None and request is not None:
            return self._of_named(request, n)
        if rule is None:
            raise TraceError(
                f"{self.path}: the file does not say which tokens are one request; "
                "required: --requests one|step|prompt or tokens each"
            )
        starts = self._request < 0 or rule == "step"
        if rule == "prompt":
            prompt = bool(self._prefill(np.zeros(1, np.int64), together)[0])
            starts = starts or (prompt and not self._prompt)
            self._prompt = prompt
        if starts:
            self._request, self._position = self._request + 1, self.ask.asked("prompt_start") or 0
        side = (self.ask.asked("interleave") or 1) if rule == "step" else 1  # sequences of a pass, token by token
        place, beside = np.divmod(np.arange(n), side)
        sequence, position = self._request + beside, self._position + place
        self._request, self._position = self._request + side - 1, self._position + n
        return sequence, position

    def _of_named(self, request: str, n: int) -> tuple[Array, Array]:
        """(sequence, position) of so many tokens more of a request that the log names."""
        number = self._named.setdefault(request, len(self._named))
        if number == len(self._following):
            self._following.append(self.ask.asked("prompt_start") or 0)
        self._following[number] += n
        return np.full(n, number), self._following[number] - n + np.arange(n)

    def _prefill(self, position: Array, together: int) -> Array:
        """bool [len(position)]: as the log says, else as the flags do."""
        said = self._said[1]
        return self.ask.prefill(self.path, position, together) if said is None else np.full(len(position), said == 1)

    def _together(self, n: int) -> int:
        """Tokens of a pass as a prompt's would be counted: 1 of one that verifies drafts."""
        most, first, self._first = self.ask.asked("verify"), self._first, False
        if self._said[1] is not None or first or not 1 < n <= (most or SMALL):
            return n
        self._small.append(n)
        return n if most is None else 1

    def _doubts(self) -> list[str]:
        """What the sizes of the passes leave open."""
        n, unknown = len(self._small), "which of their rows were rejected the file does not say"
        if self.ask.verify is not None:
            return [f"{n:,} passes verify drafts, their {sum(self._small):,} rows are generated ones; {unknown}"]
        if self.ask.phase != "by-batch" or n < 2:
            return []
        what = f"{n:,} passes of 2 to {max(self._small)} tokens are taken for prompts"
        return [f"{what}; if they verify drafts (speculative, MTP): --verify {max(self._small)}; {unknown}"]

    def trace(self, **meta: Any) -> RoutingTrace:
        """What was read. Raises TraceError for a file without a block and for an invalid trace."""
        if not self._blocks and not self.layers:
            raise TraceError(f"{self.path}: no routing in it; a trace needs at least one pass")
        if self._blocks:
            self.flush(f"{self.path}: at its end")
        layers = place_layers(self.path, self.layers, self.ask)
        self.rows.doubts += self._doubts()
        by = "its own names" if self.ask.requests is None else self.ask.said_requests
        return self.rows.trace(layers, requests_by=by, **meta)
