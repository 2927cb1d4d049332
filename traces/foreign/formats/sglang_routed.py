"""SGLang's returned routed experts: meta_info.routed_experts of a response, base64 of raw int32.

[tokens - 1 - start, hidden layers, top_k], dense layers zeros; how many layers and slots is not in it, so the model has
to say. The OpenAI-compatible routes put it under `sglext`. One response per line, one JSON object, or a list.
"""

from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import TraceError
from traces.foreign.ask import Ask
from traces.foreign.format import PROMPTS, Reader
from traces.foreign.formats.vllm import CHOICES, COMPLETION_TOKENS, EXPERTS, PROMPT_TOKENS, USAGE, Layers
from traces.foreign.json_lines import first_object, from_base64, integer, member, objects
from traces.foreign.whole_rows import Rows
from traces.format.layout import Array
from traces.format.trace import RoutingTrace

META, EXTENSION = "meta_info", "sglext"
ID = np.dtype("<i4")


def detect(path: Path) -> bool:
    """Whether the first object of the file is a response with routed experts."""
    return _found(first_object(path)) is not None


def _found(response: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """(its name, the object that has `routed_experts`)."""
    for key in (META, EXTENSION):
        part = response.get(key)
        if isinstance(part, dict) and part.get(EXPERTS) is not None:
            return key, part
    choices = response.get(CHOICES)
    if isinstance(choices, list) and len(choices) == 1 and isinstance(choices[0], dict):
        part = choices[0].get(EXTENSION)
        if isinstance(part, dict) and part.get(EXPERTS) is not None:
            return f"{CHOICES}[0].{EXTENSION}", part
    return None


def read(path: Path, ask: Ask) -> RoutingTrace:
    """A request per response. Raises TraceError where the bytes are not whole rows of the model."""
    width = ask.n_layers(path) * ask.top_k(path)
    layers, rows = Layers(path, ask), Rows(path, ask)
    for sequence, (where, response) in enumerate(objects(path)):
        found = _found(response)
        if found is None:
            flag = "the server writes it with --enable-return-routed-experts, for return_routed_experts: true"
            raise TraceError(f"{where}: no {META}.{EXPERTS}; {flag}")
        here = f"{where}: {found[0]}.{EXPERTS}"
        ids = _ids(member(found[1], EXPERTS, str, f"{where}: {found[0]}"), width, here)
        experts = layers.of(ids.reshape(-1, ask.n_layers(path), ask.top_k(path)), here)
        position, prompt = _positions(response, len(experts), where, ask)
        rows.add(experts, sequence, position, ask.prefill(path, position, prompt=prompt))
    kept = {"tool": "sglang", "layout": "routed_experts", "id_space": "logical", "slots_ordered_by_weight": False}
    return rows.trace(layers.axis.layers, "no responses in it", **kept)


def _ids(text: str, width: int, where: str) -> Array:
    data = from_base64(text, where)
    if len(data) % (width * ID.itemsize):
        row = f"{width} ids of {ID.itemsize} bytes"
        raise TraceError(f"{where}: {len(data)} bytes are not whole rows of {row} (all layers x top_k)")
    return np.frombuffer(data, ID)


def _positions(response: dict[str, Any], rows: int, where: str, ask: Ask) -> tuple[Array, int | None]:
    """(position of each row, prompt tokens or None). The rows end with the last token but one."""
    told = response.get(META) if isinstance(response.get(META), dict) else response.get(USAGE)
    lengths: dict[str, Any] = told if isinstance(told, dict) else {}
    prompt = integer(lengths[PROMPT_TOKENS], PROMPT_TOKENS, where) if PROMPT_TOKENS in lengths else None
    if prompt is not None and COMPLETION_TOKENS in lengths:
        start: int | None = prompt + integer(lengths[COMPLETION_TOKENS], COMPLETION_TOKENS, where) - 1 - rows
    else:
        start = ask.asked("prompt_start")
    if start is None:
        raise TraceError(
            f"{where}: no {PROMPT_TOKENS} and {COMPLETION_TOKENS}; required: --prompt-start N "
            "(routed_experts_start_len of the request, 0 by default)"
        )
    if start < 0:
        raise TraceError(f"{where}: {rows} rows; {rows + start} tokens are forwarded by the lengths that it gives")
    return start + np.arange(rows), prompt


READER = Reader("sglang-routed", read, detect, "SGLang responses with routed_experts (JSON)", PROMPTS)
