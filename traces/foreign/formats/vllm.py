"""vLLM's returned routed experts: `.npy` arrays, and the JSON of its OpenAI-compatible server.

0.33: one array per completion, [tokens - 1 - start, layers, top_k] (uint8, or uint16 for more than 256 experts): prompt
and generated tokens together, the last sampled token never forwarded, *all* hidden layers with zeros for the dense
ones. In JSON: choices[i].routed_experts, base64 of the .npy bytes.
0.21: prompt_routed_experts [prompt tokens, MoE layers, top_k] in the response, shared by its completions, and
choices[i].routed_experts [generated, MoE layers, top_k]; nested lists; -1 where the prompt came from the prefix cache.
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
from traces.foreign.ask import Ask, Axis, pick_layers
from traces.foreign.format import PROMPTS, Reader, Writer
from traces.foreign.json_lines import first_object, from_base64, integer, member, objects
from traces.foreign.npy import head_of, npy_of, read_npy
from traces.foreign.spill import check_full
from traces.foreign.whole_rows import Rows
from traces.format.layout import Array, chunks, is_int
from traces.format.members import npy_head, refusing
from traces.format.trace import RoutingTrace

CHOICES, EXPERTS, PROMPT_EXPERTS = "choices", "routed_experts", "prompt_routed_experts"
USAGE, PROMPT_TOKENS, COMPLETION_TOKENS = "usage", "prompt_tokens", "completion_tokens"
PROMPT_IDS, IDS = "prompt_token_ids", "token_ids"
CACHED = "prompt tokens taken from the prefix cache (not routed in this run)"


def detect(path: Path) -> bool:
    """Whether it is an array of small unsigned ids [tokens, layers, top_k], a folder of them, or a response."""
    if path.is_dir():
        files = sorted(path.glob("*.npy"))
        return bool(files) and detect(files[0])
    head = head_of(path)
    if head is not None:
        return len(head[1]) == 3 and head[0] in (np.uint8, np.uint16)
    choices = first_object(path).get(CHOICES)
    return isinstance(choices, list) and any(isinstance(c, dict) and c.get(EXPERTS) is not None for c in choices)


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
        for where, response in objects(path):
            build.response(where, response)
    return build.trace()


class Layers:
    """Takes the MoE layers of [n, layers, K] arrays and refuses routing where there ought to be none."""

    def __init__(self, path: Path, ask: Ask) -> None:
        self.path, self.ask = path, ask
        self.axis = Axis([], [], [])
        self.shape: tuple[int, ...] = ()

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
            if array[:, layer].any():
                raise TraceError(f"{where}: layer {layer} has experts; {self.ask.model.name} has none there")
        return array[:, self.axis.take]


class _Build:
    def __init__(self, path: Path, ask: Ask) -> None:
        self.path, self.ask = path, ask
        self.layers = Layers(path, ask)
        self.rows = Rows(path, ask)
        self.sequence = 0
        self.layout = "0.33"

    def array(self, path: Path) -> None:
        """One request, of an array that knows no lengths: the flags say them."""
        whole, start = read_npy(path), self.ask.asked("prompt_start") or 0
        for lo, part in chunks(whole):
            block = self.layers.of(part, str(path))
            position = np.arange(start + lo, start + lo + len(block))
            self._add(block, position, self.ask.prefill(self.path, position))
        self.sequence += 1

    def response(self, where: str, response: dict[str, Any]) -> None:
        """All completions of one response, a request each."""
        choices = member(response, CHOICES, list, where)
        prompt = response.get(PROMPT_EXPERTS)
        for i, choice in enumerate(choices):
            here = f"{where}: {CHOICES}[{i}]"
            if not isinstance(choice, dict) or choice.get(EXPERTS) is None:
                raise TraceError(f"{here}: {EXPERTS} is missing; vLLM writes it with --enable-return-routed-experts")
            shared = None if prompt is None else self._rows(prompt, f"{where}: {PROMPT_EXPERTS}")
            found = self._rows(choice[EXPERTS], f"{here}.{EXPERTS}")
            if shared is not None:
                self._split(shared if i == 0 else shared[:0], found, len(shared), here)
            else:
                self._joined(found, _lengths(response, choice, len(choices), where), here, _token_ids(response, choice))
            self.sequence += 1

    def _rows(self, value: object, where: str) -> Array:
        return self.layers.of(_decoded(value, where), where)

    def _split(self, prompt: Array, generated: Array, prompt_tokens: int, here: str) -> None:
        """0.21: the prompt was run once, so its rows go to the first completion."""
        self.layout = "0.21"
        parts = [part for part in (prompt, generated) if len(part)]
        if not parts:
            return
        rows = np.concatenate(parts)
        position = prompt_tokens - len(prompt) + np.arange(len(rows))
        routed = (rows >= 0).any(axis=(1, 2))
        cached = int(np.argmax(routed)) if routed.any() else len(rows)
        if cached > len(prompt):
            late = cached - len(prompt)
            raise TraceError(f"{here}: generated token {late} has no expert; only cached prompt rows may")
        if cached:
            self.rows.dropped[CACHED] += cached
        self._add(rows[cached:], position[cached:], (position < prompt_tokens)[cached:])

    def _joined(self, rows: Array, lengths: tuple[int | None, int | None], here: str, ids: Array | None) -> None:
        """0.33: rows of a whole sequence from its start (or from where the request asked them to begin)."""
        prompt, generated = lengths
        said = prompt is not None and generated is not None
        start = (prompt or 0) + (generated or 0) - 1 - len(rows) if said else self.ask.asked("prompt_start")
        if start is None:
            wrong = f"{here}: the response does not say how many tokens this completion has"
            raise TraceError(f"{wrong}; required: --prompt-start N (0 if routed_experts_prompt_start was not set)")
        if start < 0 or (prompt is not None and generated is not None and start + len(rows) > prompt + generated):
            tokens = f"{prompt} prompt and {generated} generated tokens"
            raise TraceError(f"{here}: {len(rows)} rows for {tokens}; one row per token but the last is right")
        position = start + np.arange(len(rows))
        prefill = self.ask.prefill(self.path, position, prompt=prompt)
        self._add(rows, position, prefill, None if ids is None else ids[start : start + len(rows)])

    def _add(self, rows: Array, position: Array, prefill: Array, ids: Array | None = None) -> None:
        there = ids is not None and len(ids) == len(rows)
        wanted = "token_ids" in self.rows.spills if self.rows.spills else there
        if wanted and not there:
            raise TraceError(f"{self.path}: token ids are there for the first completion and not for all of them")
        more = {"token_ids": ids} if wanted and ids is not None else {}
        self.rows.add(rows, self.sequence, position, prefill, **more)

    def trace(self) -> RoutingTrace:
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


def _lengths(
    response: dict[str, Any], choice: dict[str, Any], choices: int, where: str
) -> tuple[int | None, int | None]:
    """(prompt tokens, generated tokens) of a completion, None where the response does not say: `usage` adds up
    what its completions generated, and, for several prompts in one request, the prompts."""
    prompt = next((p for p in (choice.get(PROMPT_IDS), response.get(PROMPT_IDS)) if isinstance(p, list)), None)
    ids, usage = choice.get(IDS), response.get(USAGE)
    known = usage if isinstance(usage, dict) else {}
    one_prompt = choices == 1 or response.get("object") == "chat.completion"
    in_prompt = len(prompt) if prompt is not None else None
    if in_prompt is None and one_prompt and PROMPT_TOKENS in known:
        in_prompt = integer(known[PROMPT_TOKENS], f"{USAGE}.{PROMPT_TOKENS}", where)
    generated = len(ids) if isinstance(ids, list) else None
    if generated is None and choices == 1 and COMPLETION_TOKENS in known:
        generated = integer(known[COMPLETION_TOKENS], f"{USAGE}.{COMPLETION_TOKENS}", where)
    return in_prompt, generated


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
