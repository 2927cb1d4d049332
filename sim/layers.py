"""Numbers of a run that are each MoE layer's own: `layers:N`, files, llama.cpp's --n-cpu-moe and --override-tensor.

llama.cpp names tensors `blk.N.*`, N counting every layer, and puts those that a pattern finds into the memory that it
names; the first pattern that finds one decides (src/llama-model-loader.cpp). Its --n-cpu-moe N is such patterns, for
the experts of the first N layers. Here N counts MoE layers: a dense layer in front has no expert tensors to find.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sim.errors import SpecError
from sim.spec import parse_layers

Int = npt.NDArray[np.int64]

LARGEST_FILE = 1_000_000  # bytes: a number per layer is far smaller
ON_HOST, ON_GPU = "CPU", "CUDA0"
EXPERTS = tuple(f"ffn_{part}_exps.weight" for part in ("up", "down", "gate"))
OTHERS = (  # tensors of a layer that are not its experts
    "attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight", "ffn_norm.weight",
    "ffn_gate_inp.weight", "ffn_up.weight", "ffn_down.weight", "ffn_gate.weight", "ffn_up_shexp.weight",
    "ffn_down_shexp.weight", "ffn_gate_shexp.weight",
)  # fmt: skip
WHOLE_MODEL = ("token_embd.weight", "output_norm.weight", "output.weight")
UNDERSTOOD = f"only a layer's {', '.join(EXPERTS)} together can lie on the {ON_HOST} (dense_on_host: its dense part)"


def layer_numbers(field: str, text: str, layers: int, most: int) -> Int:
    """int64 [layers] of 0 .. most: `layers:N` (`layers:first:N`) is `most` in the last (first) N and 0 elsewhere; any
    other text names a file of one number per MoE layer, a list in JSON or numbers between blanks or commas. Raises
    SpecError that begins with `field`."""
    parsed = parse_layers(text)
    if parsed is None:
        return _from_file(field, text, layers, most)
    first, n = parsed
    if n > layers:
        raise SpecError(f"{field}: {text}: the trace has {layers} MoE layers; must be at most as many")
    at = np.arange(layers)
    return np.where(at < n if first else at >= layers - n, most, 0).astype(np.int64)


def _from_file(field: str, name: str, layers: int, most: int) -> Int:
    numbers = _read(field, name)
    if len(numbers) != layers:
        raise SpecError(f"{field}: {name}: {len(numbers)} numbers; the trace has {layers} MoE layers, one number each")
    for layer, number in enumerate(numbers):
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= most:
            raise SpecError(f"{field}: {name}: {_short(number)} for MoE layer {layer}; must be whole, from 0 to {most}")
    return np.array(numbers, np.int64)


def _read(field: str, name: str) -> list[object]:
    """What a file lists. Words that are no numbers stay words."""
    try:
        with open(name, "rb") as file:
            text = file.read(LARGEST_FILE + 1).decode()
        found = json.loads(text) if Path(name).suffix.lower() == ".json" else None
    except OSError as error:
        wrong = (error.strerror or "cannot be read").lower()
        raise SpecError(f"{field}: {name}: {wrong}; must be layers:N, layers:first:N or a file") from None
    except (ValueError, RecursionError):
        raise SpecError(f"{field}: {name}: is no text, or no JSON; must be one number per MoE layer") from None
    if found is not None and not isinstance(found, list):
        raise SpecError(f"{field}: {name}: must be a list of one number per MoE layer")
    return [_number(word) for word in re.split(r"[\s,]+", text.strip()) if word] if found is None else found


def _number(word: str) -> object:
    return int(word) if re.fullmatch(r"-?\d{1,18}", word, re.ASCII) else word


def _short(value: object) -> str:
    return repr(value)[:40]


def without_slots(n: int, layers: int, most: int, last: bool = False) -> Int:
    """int64 [layers]: no slots in the first (or the last) n, `most` in the others; 99 is a usual word for all."""
    at = np.arange(layers)
    return np.where(at >= layers - n if last else at < n, 0, most).astype(np.int64)


def overridden(text: str, moe_layers: Sequence[int], n_layers: int, most: int) -> Int:
    """int64 [MoE layers]: 0 slots where `REGEX=CPU,REGEX=CUDA0,...` puts a layer's experts on the host, else `most`.
    moe_layers: their indices among all. Raises SpecError for a pattern that is none or finds nothing, another memory,
    other tensors than a layer's three of experts, or not all of these."""
    overrides = [_override(pair) for pair in re.split(f"(?<=={ON_HOST}),|(?<=={ON_GPU}),", text)]  # {1,2} is of a regex
    found = {name: _memory(overrides, name) for name in _tensors(moe_layers, n_layers)}
    for pattern, memory in overrides:
        if not any(pattern.search(name) for name in found):
            example = f"blk.{moe_layers[0]}.{EXPERTS[0]}"
            raise SpecError(f"override_tensor: {pattern.pattern}={memory}: finds no tensor; names are as {example}")
    for name, memory in found.items():
        if memory == ON_HOST and not name.endswith(EXPERTS):
            raise SpecError(f"override_tensor: {text}: puts {name} on the {ON_HOST}; {UNDERSTOOD}")
    return np.array([0 if _on_host(text, found, layer) else most for layer in moe_layers], np.int64)


def _override(pair: str) -> tuple[re.Pattern[str], str]:
    regex, equals, memory = pair.partition("=")
    if not equals or not regex or memory not in (ON_HOST, ON_GPU):
        wrong = f"must be REGEX={ON_HOST}, or REGEX={ON_GPU} for what stays on the GPU; several with commas between"
        raise SpecError(f"override_tensor: {pair}: {wrong}")
    try:
        return re.compile(regex), memory
    except (re.error, RecursionError, OverflowError) as error:
        raise SpecError(f"override_tensor: {pair}: {regex} is no regular expression: {error}") from None


def _tensors(moe_layers: Sequence[int], n_layers: int) -> Iterator[str]:
    """The tensors that patterns are held against; not every one that a file may have beside the experts."""
    yield from WHOLE_MODEL
    moe = set(moe_layers)
    for layer in range(n_layers):
        yield from (f"blk.{layer}.{name}" for name in (*OTHERS, *(EXPERTS if layer in moe else ())))


def _memory(overrides: Sequence[tuple[re.Pattern[str], str]], name: str) -> str:
    return next((memory for pattern, memory in overrides if pattern.search(name)), ON_GPU)


def _on_host(text: str, found: dict[str, str], layer: int) -> bool:
    """Whether a layer's experts lie on the host."""
    where = {found[f"blk.{layer}.{name}"] for name in EXPERTS}
    if len(where) > 1:
        raise SpecError(f"override_tensor: {text}: puts some of blk.{layer}'s experts on the {ON_HOST}; {UNDERSTOOD}")
    return where == {ON_HOST}
