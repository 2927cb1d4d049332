"""vLLM's returned routed experts: `.npy` arrays, and the JSON of its OpenAI-compatible server.

0.33: one array per completion, [tokens - 1 - start, layers, top_k] (uint8, or uint16 for more than 256 experts): prompt
and generated tokens together, the last sampled token never forwarded, *all* hidden layers with zeros for the dense
ones. In JSON: choices[i].routed_experts, base64 of the .npy bytes. Rows of prompt tokens that the prefix cache held are
there as well; usage.prompt_tokens_details.cached_tokens says how many (server flag --enable-prompt-tokens-details).
0.21: prompt_routed_experts [prompt tokens, MoE layers, top_k] in the response, shared by its completions, and
choices[i].routed_experts [generated, MoE layers, top_k]; nested lists, int16; -1 where the prompt came from the prefix
cache. Only /inference/v1/generate streams routed experts, in the chunk that ends a completion.
What is written is 0.33's: uint8 or uint16, and zeros for the dense layers.
Ids are logical (taken before the expert-parallel map), in the order in which the router's kernel wrote them.
"""

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np

from traces.command import replace
from traces.errors import TraceError
from traces.foreign.ask import Ask
from traces.foreign.completions import (
    CACHED,
    COMPLETION_TOKENS,
    PROMPT_IDS,
    PROMPT_TOKENS,
    UNSHARED,
    Layers,
    Lengths,
    by_index,
    lengths,
    shared_out,
    unshared,
    whole,
)
from traces.foreign.format import PROMPTS, Reader, Writer
from traces.foreign.json_lines import from_base64, member
from traces.foreign.npy import head_of, npy_of, numbers, read_npy
from traces.foreign.responses import CHOICES, EXPERTS, IDS, PROMPT_EXPERTS, USAGE, Parts, Responses, looks
from traces.foreign.spill import check_full
from traces.foreign.whole_rows import Rows
from traces.format.layout import MAX_EXPERTS, Array, chunks, is_int
from traces.format.members import npy_head, refusing
from traces.format.trace import RoutingTrace

MISSING = f"{EXPERTS} is missing; vLLM writes it with --enable-return-routed-experts"


def detect(path: Path) -> bool:
    """Whether it is an array that can be ids [tokens, layers, top_k], a folder of them, or a response with them."""
    if path.is_dir():
        files = sorted(path.glob("*.npy"))
        return bool(files) and detect(files[0])
    head = head_of(path)
    if head is not None:
        small = head[0] in (np.uint8, np.uint16)  # what vLLM itself writes; others write counts in the wider ones
        return len(head[1]) == 3 and head[0].kind in "iu" and (small or _can_be_ids(path))
    return looks(path, lambda response: any(c.get(EXPERTS) is not None for c in _choices(response)))


def _can_be_ids(path: Path) -> bool:
    """Whether the first rows of an array of integers hold what a token's slots can: different ids, or one and the same
    where nothing was recorded."""
    try:
        _, rows = next(chunks(read_npy(path)))
    except TraceError:
        return False
    slots = np.sort(rows.reshape(-1, rows.shape[-1]), axis=1)
    different = (slots[:, 1:] != slots[:, :-1]).all(axis=1) | (slots[:, 0] == slots[:, -1])
    return bool(different.all()) and int(slots.min()) >= -1 and int(slots.max()) < MAX_EXPERTS


def _choices(response: dict[str, Any]) -> list[dict[str, Any]]:
    choices = response.get(CHOICES)
    return by_index(choices) if isinstance(choices, list) else []


def read(path: Path, ask: Ask) -> RoutingTrace:
    """The trace of one `.npy` (one request), a folder of them (one each, by name), or of responses in JSON."""
    build = _Build(path, ask)
    if path.is_dir():
        files = sorted(path.glob("*.npy"))
        if not files:
            raise TraceError(f"{path}: no .npy files in the folder")
        for file in files:
            build.array(file)
    elif head_of(path) is not None or path.suffix == ".npy":
        build.array(path)
    else:
        for where, response, _ in build.log:
            build.response(where, response)
    return build.trace()


class _Build:
    def __init__(self, path: Path, ask: Ask) -> None:
        self.path, self.ask = path, ask
        self.layers = Layers(path, ask)
        self.rows = Rows(path, ask)
        self.log = Responses(path)
        self.sequence = 0
        self.layout = "0.33"

    def array(self, path: Path) -> None:
        """One request, of an array that knows no lengths: the flags say them."""
        array, start = numbers(path, 3, "integers [tokens, layers, top_k]"), self.ask.asked("prompt_start") or 0
        for lo, part in chunks(array):
            block = self.layers.recorded(self.layers.of(part, str(path)), str(path), lo)
            position = np.arange(start + lo, start + lo + len(block))
            self._add(block, position, self.ask.prefill(self.path, position))
        self.sequence += 1

    def response(self, where: str, response: dict[str, Any]) -> None:
        """All completions of one response, a request each."""
        if response.get(CHOICES) is None:
            self.log.fail(where, f"{CHOICES} is missing")
            return
        choices = by_index(member(response, CHOICES, list, where))
        prompt = response.get(PROMPT_EXPERTS)
        named = [(f"{where}: {CHOICES}[{i}]", choice) for i, choice in enumerate(choices)]
        there = [prompt is not None or choice.get(EXPERTS) not in (None, [], "") for choice in choices]
        have = [each for each, is_there in zip(named, there, strict=True) if is_there]
        if len(have) < len(choices) or not choices:
            self.log.fail(where, MISSING)
        if not have:
            return
        self.log.take(where, response)
        if unshared(response, choices, where):
            self.log.note(where, UNSHARED)
        told = [lengths(response, choices, choice, where) for _, choice in have]
        if prompt is not None:
            shared = self._rows(prompt, (told[0].prompt,), f"{where}: {PROMPT_EXPERTS}")
            for i, (here, choice) in enumerate(have):
                self._split(shared if i == 0 else shared[:0], choice, told[i], len(shared), here)
            return
        found = [
            self._rows(choice[EXPERTS], (length.forwarded,), f"{here}.{EXPERTS}")
            for (here, choice), length in zip(have, told, strict=True)
        ]
        if len(have) == len(choices):
            told = shared_out(response, told, [len(rows) for rows in found])
        for (here, choice), rows, length in zip(have, found, told, strict=True):
            self._joined(rows, length, here, _token_ids(response, choice))

    def _rows(self, value: object, forwarded: tuple[int | None, ...], where: str) -> Array:
        parts = value if isinstance(value, Parts) else [value]
        return whole([self.layers.of(_decoded(part, where), where) for part in parts], forwarded, where)

    def _split(self, prompt: Array, choice: dict[str, Any], length: Lengths, prompt_tokens: int, here: str) -> None:
        """0.21: the prompt was run once, so its rows go to the first completion."""
        self.layout = "0.21"
        if length.prompt not in (None, prompt_tokens):
            raise TraceError(f"{here}: {prompt_tokens} rows of {PROMPT_EXPERTS}; its prompt has {length.prompt} tokens")
        most = length.generated
        generated = self._rows(choice.get(EXPERTS) or [], (most, most and most - 1), f"{here}.{EXPERTS}")
        rows = np.concatenate([part for part in (prompt, generated) if len(part)] or [prompt])
        position = prompt_tokens - len(prompt) + np.arange(len(rows))
        routed = (rows >= 0).any(axis=(1, 2)) if rows.size else np.zeros(len(rows), bool)
        cached = int(np.argmax(routed)) if routed.any() else len(rows)
        if cached > len(prompt):
            late = cached - len(prompt)
            raise TraceError(f"{here}: generated token {late} has no expert; only cached prompt rows may")
        told = min(len(prompt), length.cached)
        self._computed(rows, position, position < prompt_tokens, max(cached, told), here)

    def _joined(self, rows: Array, length: Lengths, here: str, ids: Array | None) -> None:
        """0.33: rows of a whole sequence from its start (or from where the request asked them to begin)."""
        forwarded = length.forwarded
        start = self.ask.asked("prompt_start") if forwarded is None else forwarded - len(rows)
        if start is None:
            wrong = f"{here}: the response does not say how many tokens this completion has"
            raise TraceError(f"{wrong}; required: --prompt-start N (0 if routed_experts_prompt_start was not set)")
        if start < 0:
            tokens = f"{length.prompt} prompt and {length.generated} generated tokens"
            raise TraceError(f"{here}: {len(rows)} rows for {tokens}; one row per token but the last is right")
        position = start + np.arange(len(rows))
        prefill = self.ask.prefill(self.path, position, prompt=length.prompt)
        there = None if ids is None else ids[start : start + len(rows)]
        self._computed(rows, position, prefill, max(0, length.cached - start), here, there)

    def _computed(
        self, rows: Array, position: Array, prefill: Array, cached: int, here: str, ids: Array | None = None
    ) -> None:
        """One request, without the first `cached` rows, which were not computed for it."""
        cached = min(cached, len(rows))
        if cached:
            self.rows.dropped[CACHED] += cached
        rows = self.layers.recorded(rows[cached:], here, cached)
        self._add(rows, position[cached:], prefill[cached:], None if ids is None else ids[cached:])
        self.sequence += 1

    def _add(self, rows: Array, position: Array, prefill: Array, ids: Array | None = None) -> None:
        there = ids is not None and len(ids) == len(rows)
        wanted = "token_ids" in self.rows.spills if self.rows.spills else there
        if wanted and not there:
            raise TraceError(f"{self.path}: token ids are there for the first completion and not for all of them")
        more = {"token_ids": ids} if wanted and ids is not None else {}
        self.rows.add(rows, self.sequence, position, prefill, **more)

    def trace(self) -> RoutingTrace:
        self.log.tell(self.rows)
        self.layers.tell(self.rows)
        kept = {"tool": "vllm", "layout": self.layout, "id_space": "logical", "slots_ordered_by_weight": False}
        return self.rows.trace(self.layers.axis.layers, "no completions in it", **kept)


def _decoded(value: object, where: str) -> Array:
    """An integer array from base64 of a .npy, or from nested lists, none ragged."""
    if isinstance(value, str):
        return npy_of(from_base64(value, where), where)
    if not isinstance(value, list):
        raise TraceError(f"{where}: a {type(value).__name__}; base64 of a .npy, or nested lists, is required")
    if not value:
        return np.zeros((0, 0, 0), np.int64)
    with refusing(f"{where}: not an array"):
        array = np.array(value)
    if array.dtype.kind not in "iu" or array.ndim != 3:
        found = f"{array.dtype.name} {list(array.shape)}"
        raise TraceError(f"{where}: {found}; integers [tokens, layers, top_k] are needed")
    return array.astype(np.int64)


def _token_ids(response: dict[str, Any], choice: dict[str, Any]) -> Array | None:
    """All token ids of a completion, prompt first; None where the response does not hold both parts."""
    prompt = choice.get(PROMPT_IDS) or response.get(PROMPT_IDS)
    parts = (prompt, choice.get(IDS))
    if not all(isinstance(part, list) for part in parts):
        return None
    flat = [token for part in parts for token in part or ()]
    if not all(is_int(token) and 0 <= token < 2**31 for token in flat):
        return None
    return np.array(flat, np.int64)


# --- written ---


def write(source: RoutingTrace, out: Path) -> str:
    """`.npy`: the array of the one request; `.jsonl`: a chat completion per request. Returns what was written.

    vLLM has no row for the last sampled token, so a request is said to have one token more than it has rows.
    """
    starts, _ = source.requests()
    if out.suffix == ".npy":
        if len(starts) > 1:
            raise TraceError(f"{out}: a .npy holds one request; the trace has {len(starts)}: a .jsonl holds them all")
        replace(out, lambda file: _write_npy(source, 0, source.n_tokens, file))
    elif out.suffix == ".jsonl":
        replace(out, lambda file: _write_responses(source, file))
    else:
        raise TraceError(f"{out}: routed experts of one request are a .npy, responses of several a .jsonl")
    return f"{source.n_tokens:,} rows of {len(starts):,} requests, {source.n_layers} layers x top-{source.top_k}"


def _write_npy(trace: RoutingTrace, lo: int, hi: int, file: IO[bytes]) -> None:
    """The rows lo to hi - 1 as a `.npy`, uint8 or uint16 [n, layers, K]. Raises TraceError for a slot without an
    expert."""
    dtype = np.dtype(np.uint8 if trace.n_experts <= 256 else np.uint16)
    file.write(npy_head(dtype, (hi - lo, trace.n_layers, trace.top_k)))
    for at, ids in chunks(trace.experts[lo:hi]):
        check_full(ids, lo + at, "vLLM's layout")
        rows = np.zeros((len(ids), trace.n_layers, trace.top_k), dtype)
        rows[:, trace.meta["moe_layers"]] = ids
        file.write(rows.tobytes())


def _write_responses(trace: RoutingTrace, file: IO[bytes]) -> None:
    starts, ends = trace.requests()
    for lo, hi in zip(starts.tolist(), ends.tolist(), strict=True):
        prompt = int(trace.prefill[lo:hi].sum())
        first = int(trace.position[lo])
        array = BytesIO()
        _write_npy(trace, lo, hi, array)
        choice = {"index": 0, EXPERTS: base64.b64encode(array.getvalue()).decode()}
        usage = {PROMPT_TOKENS: first + prompt, COMPLETION_TOKENS: hi - lo - prompt + 1}
        response = {"object": "chat.completion", "model": trace.model, CHOICES: [choice], USAGE: usage}
        if trace.token_ids is not None and first == 0:
            response[PROMPT_IDS] = trace.token_ids[lo : lo + prompt].tolist()
            choice[IDS] = [*trace.token_ids[lo + prompt : hi].tolist(), 0]  # the last one has no row
        file.write(json.dumps(response).encode() + b"\n")


READER = Reader(
    "vllm", read, detect, "vLLM's routed_experts: .npy, a folder of them, or JSON responses (0.21 and 0.33)", PROMPTS
)
WRITER = Writer("vllm", write, "vLLM's routed_experts: .npy of one request, .jsonl of responses")
