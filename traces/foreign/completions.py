"""What responses of serving stacks have in common: which rows of a completion there are, and which were computed.

A completion of P prompt and G generated tokens has run P + G - 1 tokens through the model: the last one sampled is
never forwarded. Its rows are the last of those; where a request asks for rows from a later start, the first are not
there. Rows of prompt tokens that a prefix cache held are there too, though they were computed by an earlier request.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from traces.errors import TraceError
from traces.foreign.ask import Ask, Axis, pick_layers
from traces.foreign.json_lines import integer
from traces.foreign.responses import EXTENSIONS, IDS, META, USAGE
from traces.foreign.whole_rows import Rows
from traces.format.layout import Array, is_int

PROMPT_TOKENS, COMPLETION_TOKENS, PROMPT_IDS = "prompt_tokens", "completion_tokens", "prompt_token_ids"
UNSHARED = "responses have several prompts and do not say whose tokens the prefix cache held; all rows are kept"
CACHED = "prompt tokens taken from the prefix cache (not routed in this run)"


class Lengths(NamedTuple):
    """Tokens of a completion; None: not said. cached: of the prompt's, those that a prefix cache held (0: not said)."""

    prompt: int | None
    generated: int | None
    cached: int = 0

    @property
    def forwarded(self) -> int | None:
        """Tokens that ran through the model."""
        return None if self.prompt is None or self.generated is None else self.prompt + self.generated - 1


class Layers:
    """Takes the MoE layers of [n, layers, K] arrays and refuses routing where there ought to be none."""

    def __init__(self, path: Path, ask: Ask) -> None:
        self.path, self.ask = path, ask
        self.axis = Axis([], [], [])
        self.shape: tuple[int, ...] = ()
        self._zeros, self._first_zero = 0, ""

    def of(self, array: Array, where: str) -> Array:
        """[n, MoE layers, K] of an integer array whose shape is that of the first one; a list without rows has none."""
        if array.size == 0:
            return np.zeros((0, len(self.axis.layers), self.shape[1]), np.int64) if self.shape else array
        if array.ndim != 3 or array.dtype.kind not in "iu":
            found = f"{array.dtype.name} {list(array.shape)}"
            raise TraceError(f"{where}: {found}; integers [tokens, layers, top_k] needed")
        if not self.shape:
            self.shape = array.shape[1:]
            self.axis = pick_layers(self.path, self.shape[0], self.ask, "the array")
            if self.ask.model.top_k not in (None, self.shape[1]):
                name, k = self.ask.model.name, self.ask.model.top_k
                raise TraceError(f"{where}: {self.shape[1]} experts a token; {name} has {k}")
        if array.shape[1:] != self.shape:
            raise TraceError(f"{where}: shape {list(array.shape)}; the arrays before have {list(self.shape)} per token")
        for layer in self.axis.dense:
            if (array[:, layer] > 0).any():  # -1: not recorded
                raise TraceError(f"{where}: layer {layer} has experts; {self.ask.model.name} has none there")
        return array[:, self.axis.take]

    def recorded(self, rows: Array, where: str, first: int = 0) -> Array:
        """Rows [n, L, K] with -1 for those that are zero throughout: buffers begin as zeros, and a token whose experts
        are all expert 0 there cannot be where it has two or more. first: number of the first of them, for messages."""
        zero = ~rows.any(axis=(1, 2)) if rows.size else np.zeros(len(rows), bool)
        if not zero.any():
            return rows
        self._zeros += int(zero.sum())
        self._first_zero = self._first_zero or f"{where}, row {first + int(zero.argmax())}"
        if rows.shape[2] < 2:
            return rows
        rows = rows.astype(np.promote_types(rows.dtype, np.int16))
        rows[zero] = -1
        return rows

    def tell(self, rows: Rows) -> None:
        """Say what `recorded` met. Of one layer and one expert a token, zero is as likely as any other."""
        if not self._zeros or self.shape[1] == 1 == len(self.axis.layers):
            return
        first = self._first_zero.removeprefix(f"{self.path}: ")
        what = "tokens have expert 0 alone in every layer"
        if self.shape[1] >= 2:
            said = "rows that were not recorded; they are left out"
        else:
            said = "which may be rows that were not recorded; they are kept"
        rows.doubts.append(f"{self._zeros} {what}: {said} (the first: {first})")


def cached_tokens(where: str, prompt: int | None, *holders: object) -> int:
    """How many tokens of a prompt of so many came from a prefix cache, by the first of these objects that says it; 0
    where none does. Raises TraceError where they are more than there are."""
    cached = _said_cached(where, holders)
    if prompt is not None and cached > prompt:
        raise TraceError(f"{where}: {cached} cached tokens of a prompt of {prompt}; at most all are right")
    return cached


def _said_cached(where: str, holders: tuple[object, ...]) -> int:
    for holder in (one for one in holders if isinstance(one, dict)):
        details = holder.get("prompt_tokens_details")
        for said in (holder, details if isinstance(details, dict) else {}):
            for key in ("cached_tokens", "num_cached_tokens"):
                if said.get(key) is not None:
                    return integer(said[key], key, where)
        parts = holder.get("cached_tokens_details")  # SGLang: of the device, the host and the storage
        if isinstance(parts, dict):
            return sum(integer(n, f"cached_tokens_details.{key}", where) for key, n in parts.items() if is_int(n))
    return 0


def one_prompt(response: dict[str, Any], choices: list[dict[str, Any]]) -> bool:
    """Whether all completions of a response are of one prompt; `/v1/completions` takes several."""
    prompts = [choice.get(PROMPT_IDS) for choice in choices]
    same = isinstance(prompts[0], list) and all(prompt == prompts[0] for prompt in prompts)
    return len(choices) == 1 or same or response.get("object") == "chat.completion"


def unshared(response: dict[str, Any], choices: list[dict[str, Any]], where: str) -> bool:
    """Whether a response of several prompts says for all of them together that some came from a prefix cache."""
    usage = response.get(USAGE)
    return not one_prompt(response, choices) and cached_tokens(where, None, response, usage) > 0


def lengths(response: dict[str, Any], choices: list[dict[str, Any]], choice: dict[str, Any], where: str) -> Lengths:
    """What a response says of a completion, which is one of its choices.

    `usage` adds up what the completions generated, and the prompts.
    """
    prompt = next((p for p in (choice.get(PROMPT_IDS), response.get(PROMPT_IDS)) if isinstance(p, list)), None)
    alone, one, ids = len(choices) == 1, one_prompt(response, choices), choice.get(IDS)
    usage = response[USAGE] if isinstance(response.get(USAGE), dict) else {}
    in_prompt = len(prompt) if prompt is not None else None
    if in_prompt is None and one and usage.get(PROMPT_TOKENS) is not None:
        in_prompt = integer(usage[PROMPT_TOKENS], f"{USAGE}.{PROMPT_TOKENS}", where)
    generated = len(ids) if isinstance(ids, list) else None
    if generated is None and alone and usage.get(COMPLETION_TOKENS) is not None:
        generated = integer(usage[COMPLETION_TOKENS], f"{USAGE}.{COMPLETION_TOKENS}", where)
    extensions = [choice.get(key) or response.get(key) for key in EXTENSIONS] if alone else [choice.get(META)]
    cached = cached_tokens(where, in_prompt, choice, *([response, usage] if one else []), *extensions)
    return Lengths(in_prompt, generated, cached)


def shared_out(response: dict[str, Any], told: list[Lengths], rows: list[int]) -> list[Lengths]:
    """Lengths of all completions of one chat response, which says what they generated together: their rows begin at
    the same start, so it can be told. As they were where it cannot."""
    usage = response[USAGE] if isinstance(response.get(USAGE), dict) else {}
    total, prompt = usage.get(COMPLETION_TOKENS), told[0].prompt
    if response.get("object") != "chat.completion" or prompt is None or not is_int(total):
        return told
    start, rest = divmod(len(rows) * (prompt - 1) + total - sum(rows), len(rows))
    generated = [n + start + 1 - prompt for n in rows]
    if rest or start < 0 or min(generated) < 0 or any(one.generated is not None for one in told):
        return told
    return [Lengths(prompt, n, one.cached) for n, one in zip(generated, told, strict=True)]


def by_index(choices: list[Any]) -> list[dict[str, Any]]:
    """The completions in order of their index; what is no object has no rows."""
    found = [choice if isinstance(choice, dict) else {} for choice in choices]
    told = all(is_int(choice.get("index")) for choice in found)
    return sorted(found, key=lambda choice: int(choice["index"])) if told else found


def whole(pieces: list[Array], forwarded: tuple[int | None, ...], where: str) -> Array:
    """The rows of a completion that a stream told in pieces: each from the begin, or each following the one before.

    forwarded: how many rows there can be. Raises TraceError where it is neither.
    """
    pieces = [piece for piece in pieces if len(piece)] or pieces[:1]
    found = pieces[:1]
    for piece in pieces[1:]:
        last = found[-1]
        begun = piece.shape[1:] == last.shape[1:] and np.array_equal(piece[: len(last)], last)
        found = [*found[:-1], piece] if begun else [*found, piece]
    rows = [len(piece) for piece in found]
    if len(found) == 1 or (rows == sorted(rows) and rows[-1] in forwarded):
        return found[-1]
    if sum(rows) in forwarded and len({piece.shape[1:] for piece in found}) == 1:
        return np.concatenate(found)
    wanted = " or ".join(str(n) for n in forwarded if n is not None) or "an unknown number of"
    raise TraceError(f"{where}: chunks of {rows[:8]} rows, neither each from the begin nor together {wanted} rows")
