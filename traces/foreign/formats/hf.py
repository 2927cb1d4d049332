"""Router outputs of Hugging Face models as people save them: `outputs.router_logits`, or the ids of the top-k.

transformers (read in 5.23.0, and 4.57 of gpt-oss) gives router_logits as a tuple with one tensor per MoE layer, mostly
[batch * positions, experts], row by row of the batch; some models [batch, positions, experts]. They are what the router
computed, before softmax; up to 4.57 gpt-oss gave the weights of the chosen experts among zeros instead, and files of
people hold softmaxed numbers, so which of the two they are is told by the numbers or asked for. What is read:

    .pt    such a tuple or list; {"router_logits": it, "input_ids", "attention_mask"}; a list of such dicts, one each
           prompt; {layer's name: tensor}; a tuple of tuples, one of each forward pass of a generation, the prompt first
    .npz   the same names; layer_0, layer_1 ...; np.savez of a list
    both   one tensor [layers, tokens, experts] or [tokens, layers, experts]; ids [.., .., top_k] likewise
    .npy   one such array of floats

Which of two axes is layers the model's number of layers says.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import TraceError
from traces.foreign import torch_file
from traces.foreign.ask import Ask
from traces.foreign.columns import OF_A_ROW, normal
from traces.foreign.format import PASSES, Reader
from traces.foreign.npy import head_of, mapped, no_counts, read_npy
from traces.foreign.router_outputs import Finder, Part, Recording, looks, one_by_one
from traces.foreign.scores import LOGITS, PROBABILITIES, chosen, kind_of, weights_of
from traces.foreign.whole_rows import Rows
from traces.format.layout import CHUNK_ELEMENTS, MAX_EXPERTS, Array, give_back
from traces.format.members import find_members, open_zip
from traces.format.trace import RoutingTrace

PADDING = "rows of padding (attention_mask is 0)"


def detect(path: Path) -> bool:
    """Whether it is a `.pt` or `.npz` of router logits or top-k ids, or a `.npy` of numbers that are no counts."""
    head = head_of(path)
    if head is not None:
        return len(head[1]) == 3 and head[0].kind == "f" and no_counts(path)
    value = torch_file.look(path)
    if value is not None:
        return looks(value)
    try:
        with open_zip(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            rows = any(normal(name) in OF_A_ROW for name in names)  # a log's: formats.arrays
            members = find_members(archive, path, tuple(names)) if names and "meta" not in names and not rows else {}
    except (OSError, TraceError):
        return False
    return looks({name: np.broadcast_to(np.zeros((), m.dtype), m.shape) for name, m in members.items()})


def read(path: Path, ask: Ask) -> RoutingTrace:
    """The trace of a file. Raises TraceError, one line."""
    if path.is_dir():
        raise TraceError(f"{path}: a folder; a .pt, .npz or .npy is required")
    value = _contents(path, ask)
    finder = Finder(path, ask)
    found = [finder.recording(each, where) for each, where in one_by_one(value, path)]
    return _Build(path, ask, finder, found).trace()


def _contents(path: Path, ask: Ask) -> Any:
    """The object of a `.pt`, the arrays of a `.npz` by name, the array of a `.npy`: mapped, none of them read."""
    if head_of(path) is not None or path.suffix == ".npy":
        array = read_npy(path)
        if array.dtype.kind != "f":
            raise TraceError(f"{path}: {array.dtype.name} in a .npy; routed ids of such a file: --from vllm")
        return array
    if torch_file.words(path):
        return torch_file.load(path)
    with open_zip(path) as archive:
        names = tuple(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))
        if "meta" in names or not names:
            raise TraceError(f"{path}: {'has meta: a file of this project' if names else 'no .pt, and no .npy in it'}")
        members = find_members(archive, path, names)
        return {name: mapped(archive, path, name, member, ask.scratch) for name, member in members.items()}


class _Build:
    """Rows of all recordings, made into a trace."""

    def __init__(self, path: Path, ask: Ask, finder: Finder, found: list[Recording]) -> None:
        self.path, self.found, self.layers = path, found, finder.layers
        if len({tuple(each.arrays) for each in found}) > 1:
            raise TraceError(f"{path}: not every element has the same of logits, experts and weights")
        self.ask = self._facts(ask, finder.width)
        self.rows = Rows(path, self.ask)
        self.kind = self._kind() if "logits" in finder.width else None
        self.k = finder.width.get("experts") or self.ask.top_k(path)
        self.with_ids = all(
            r.ids is not None and r.batch and r.ids.shape[1] * r.batch >= sum(r.rows()) and r.ids.min() >= 0
            for r in found
        )
        self.tied = self.sequence = 0

    def _facts(self, ask: Ask, width: dict[str, int]) -> Ask:
        """The flags, and what the shapes say of the model. Raises TraceError where the two differ."""
        for key, fact, flag in (("logits", "n_experts", "--n-experts"), ("experts", "top_k", "--top-k")):
            known, have = getattr(ask.model, fact), width.get(key)
            if have is not None and known not in (None, have):
                wrong = f"{have} experts a {'layer' if key == 'logits' else 'token'}; {ask.model.name} has {known}"
                raise TraceError(f"{self.path}: {wrong}; required: --model NAME, or {flag} {have}")
        if width.get("weights", width.get("experts")) != width.get("experts"):
            raise TraceError(f"{self.path}: {width['weights']} weights for {width.get('experts', 0)} experts a token")
        if not 0 < width.get("logits", 0) <= MAX_EXPERTS:
            return ask
        return replace(ask, model=replace(ask.model, n_experts=width["logits"]))

    def _kind(self) -> str:
        """What the numbers are. Raises TraceError where they do not say it, nor a flag."""
        kind = kind_of(block["logits"] for each in self.found for _, _, block in self._blocks(each, ("logits",)))
        if kind is not None:
            return kind
        said = self.ask.asked("values")
        if said is None:
            wrong = "no number is negative and not all tokens' add up to 1: logits, or scores in [0, 1]?"
            raise TraceError(f"{self.path}: {wrong}; required: --values {LOGITS}|{PROBABILITIES}")
        return str(said)

    def _blocks(self, each: Recording, names: Sequence[str]) -> Iterator[tuple[int, int, dict[str, Array]]]:
        """(pass, first row, arrays [n, L, X] by name), a bounded number of rows at a time."""
        for number, n in enumerate(each.rows()):
            passes = {name: each.arrays[name][number] for name in names}
            step = max(1, CHUNK_ELEMENTS // sum(len(parts) * parts[0].shape[-1] for parts in passes.values()))
            for lo in range(0, n, step):
                yield (
                    number,
                    lo,
                    {
                        name: np.stack([_numbers(part[lo : lo + step], name) for part in parts], axis=1)
                        for name, parts in passes.items()
                    },
                )
                for part in (part for parts in passes.values() for part in parts):
                    torch_file.give_back(part) if torch_file.is_tensor(part) else give_back(part)

    def trace(self) -> RoutingTrace:
        """What was read."""
        for each in self.found:
            self._add(each)
        self._doubts()
        model, scores = self.ask.model, self.kind is not None
        kept: dict[str, Any] = {"tool": "transformers", "layout": "router " + (self.kind or "top-k ids")}
        if self.kind == LOGITS and model.score_function is not None:
            kept |= {"score_function": model.score_function}
            kept |= {} if model.norm_topk is None else {"norm_topk": model.norm_topk}
        by = "the batch" if all(each.batch for each in self.found) else self.ask.said_requests
        ordered = scores and "experts" not in self.found[0].arrays
        return self.rows.trace(self.layers, id_space="logical", slots_ordered_by_weight=ordered, requests_by=by, **kept)

    def _add(self, each: Recording) -> None:
        place = _Places(self.path, self.ask, each)
        for number, lo, block in self._blocks(each, tuple(each.arrays)):
            n = len(next(iter(block.values())))
            sequence, position, prefill, kept, column = place(number, lo, n)
            place.last = max(place.last, int(sequence[-1]))
            arrays = self._routed(block)
            if self.with_ids and each.ids is not None:
                arrays["token_ids"] = each.ids[sequence, column]
            if kept is not None:
                arrays = {name: values[kept] for name, values in arrays.items()}
                self.rows.dropped[PADDING] += int(n - kept.sum())
                sequence, position, prefill = sequence[kept], position[kept], prefill[kept]
            self.rows.add(arrays.pop("experts"), self.sequence + sequence, position, prefill, **arrays)
        self.sequence += place.last + 1

    def _routed(self, block: dict[str, Array]) -> dict[str, Array]:
        """experts, and whatever of weights and logits there is, of some rows."""
        scores, out = block.get("logits"), dict(block)
        if scores is None or self.kind is None:
            return out
        self._check(scores)
        if "experts" not in out:
            out["experts"], tied = chosen(scores, self.k, self.kind)
            self.tied += tied
        if "weights" not in out:
            certain = "experts" in block or self.ask.model.chooses_by_score
            weights = weights_of(scores, out["experts"], self.kind, self.ask.model) if certain else None
            out |= {} if weights is None else {"weights": weights}
        if self.kind == PROBABILITIES:
            del out["logits"]
        return out

    def _check(self, scores: Array) -> None:
        """Refuse numbers that no router gives."""
        good = (scores >= 0) & (scores <= 1) if self.kind == PROBABILITIES else scores < np.inf
        if not good.all():
            row, layer, expert = (int(i) for i in np.argwhere(~good)[0])
            where = f"row {len(self.rows) + row}, layer {self.layers[layer]}, expert {expert}"
            right = "probabilities lie in [0, 1]" if self.kind == PROBABILITIES else "a number is required"
            raise TraceError(f"{self.path}: {where}: {scores[row, layer, expert]}; {right}")

    def _doubts(self) -> None:
        model = self.ask.model
        if self.kind is not None and "experts" not in self.found[0].arrays and not model.chooses_by_score:
            wrong = f"{model.name} chooses by more than its router logits ({model.router})"
            self.rows.doubts.append(f"{wrong}, which the file does not hold: the highest were taken")
        if self.tied:
            total = len(self.rows) * len(self.layers)
            wrong = f"{self.tied:,} of {total:,} tokens and layers have equal scores at the last slot"
            self.rows.doubts.append(f"{wrong}: the lower id was taken")
        together = max((each.batch or 1 for each in self.found if each.generated), default=1)
        if together > 1:
            self.rows.doubts.append(
                f"{together} requests were generated together: what ended before the others goes on with padding"
            )


def _numbers(part: Part, name: str) -> Array:
    """Some rows of a part: int64 ids, float32 of everything else."""
    array = torch_file.numbers(part) if torch_file.is_tensor(part) else np.asarray(part)
    with np.errstate(over="ignore"):
        return np.asarray(array, np.int64 if name == "experts" else np.float32)


class _Places:
    """Where the rows of a recording belong. last: the highest request that had one."""

    def __init__(self, path: Path, ask: Ask, of: Recording) -> None:
        self.path, self.ask, self.of, self.last = path, ask, of, 0
        per_pass = [n // (of.batch or 1) for n in of.rows()]
        self.first = np.concatenate([[0], np.cumsum(per_pass)])  # column of each pass's first token
        self.before = None if of.mask is None else np.pad(np.cumsum(of.mask != 0, axis=1), ((0, 0), (1, 0)))

    def __call__(self, number: int, lo: int, n: int) -> tuple[Array, Array, Array, Array | None, Array]:
        """(request, position, prefill, which are kept, column) of n rows of a pass, each [n]; kept: None for all."""
        row, kept = np.arange(lo, lo + n), None
        if self.of.batch is None:
            request, position = self._asked(row)
            return request, position, self.ask.prefill(self.path, position), None, position
        request, column = np.divmod(row, self.first[number + 1] - self.first[number])
        position = column = column + self.first[number]
        if self.before is not None:
            width = self.before.shape[1] - 1
            inside = np.minimum(column, width)
            position = self.before[request, inside] + column - inside
            kept = (column >= width) | (self.before[request, np.minimum(column + 1, width)] > position)
        if self.of.generated:
            return request, position, np.full(n, number == 0), kept, column
        return request, position, self.ask.prefill(self.path, position), kept, column

    def _asked(self, row: Array) -> tuple[Array, Array]:
        """(request, position) of rows that the file does not say it of."""
        if self.ask.asked("requests") == "one":
            return np.zeros(len(row), np.int64), row + (self.ask.asked("prompt_start") or 0)
        if not self.ask.tokens_each:
            wrong = "the file does not say which tokens are one request"
            raise TraceError(f"{self.path}: {wrong}; required: --requests one, or tokens each (a batch's length)")
        return self.ask.places(row)


READER = Reader(
    "hf",
    read,
    detect,
    "router logits or top-k ids of Hugging Face models (.pt, .npz, .npy)",
    (*PASSES, "values", "columns"),
)
