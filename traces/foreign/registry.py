"""The formats that are read, in one place: a new one is a module of this room and a line here."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from traces.command import one_of
from traces.errors import TraceError
from traces.foreign.ask import Ask
from traces.foreign.formats import (
    csv,
    eplb,
    flame,
    imatrix,
    jsonl,
    llamacpp,
    megatron,
    moe_infinity,
    sglang_recorder,
    sglang_routed,
    sglang_stat,
    trtllm,
    vllm,
)
from traces.format.profile import Profile
from traces.format.trace import RoutingTrace

_SHAPE = ("n_experts", "top_k", "n_layers", "moe_layers")
_PASSES = (*_SHAPE, "phase", "prompt_tokens", "prompt_start", "requests")


@dataclass(frozen=True)
class Format:
    """read: path and flags to a trace or a profile. detect: whether a path looks like it, without trusting it.
    flags: which of the format's flags it takes (see traces.foreign.ask). counts: it makes a profile, no trace."""

    read: Callable[[Path, Ask], RoutingTrace | Profile]
    detect: Callable[[Path], bool]
    doc: str
    flags: tuple[str, ...]
    counts: bool = False


FORMATS = {
    "csv": Format(csv.read, csv.detect, "phase,token,layer,rank,expert[,weight][,sequence]: one line per slot", _SHAPE),
    "jsonl": Format(
        jsonl.read, jsonl.detect, "one JSON object per token and layer", (*_SHAPE, "phase", "prompt_tokens")
    ),
    "llamacpp": Format(llamacpp.read, llamacpp.detect, "llama.cpp logs: four CSV and binary layouts", _PASSES),
    "vllm": Format(
        vllm.read,
        vllm.detect,
        "vLLM's routed_experts: .npy, a folder of them, or JSON responses (0.21 and 0.33)",
        (*_SHAPE, "phase", "prompt_tokens", "prompt_start"),
    ),
    "sglang": Format(
        sglang_recorder.read,
        sglang_recorder.detect,
        "SGLang's expert distribution recorder, per_token .pt",
        _SHAPE,
    ),
    "sglang-routed": Format(
        sglang_routed.read,
        sglang_routed.detect,
        "SGLang responses with routed_experts (JSON)",
        (*_SHAPE, "phase", "prompt_tokens", "prompt_start"),
    ),
    "megatron": Format(megatron.read, megatron.detect, "Megatron-LM's router trace (JSONL, logits beside it)", _PASSES),
    "flame": Format(
        flame.read,
        flame.detect,
        "FLAME-MoE-Traces, a folder of Parquet",
        (*_SHAPE, "phase", "prompt_tokens", "prompt_start", "requests", "iteration"),
    ),
    "trtllm-raw": Format(
        trtllm.read_raw, trtllm.detect_raw, "TensorRT-LLM expert statistics, ids per token", _PASSES
    ),
    "trtllm": Format(trtllm.read, trtllm.detect, "TensorRT-LLM expert statistics, counts", _SHAPE, True),
    "imatrix": Format(imatrix.read, imatrix.detect, "llama.cpp importance matrix (GGUF)", _SHAPE, True),
    "sglang-stat": Format(
        sglang_stat.read, sglang_stat.detect, "SGLang recorder stat and per_pass, initial expert location", _SHAPE, True
    ),
    "moe-infinity": Format(moe_infinity.read, moe_infinity.detect, "MoE-Infinity activation matrices", _SHAPE, True),
    "eplb": Format(eplb.read, eplb.detect, "DeepSeek EPLB weight tensor, .pt or .npy", _SHAPE, True),
}  # fmt: skip
EVERY_FLAG = tuple(sorted({flag for entry in FORMATS.values() for flag in entry.flags}))


def find(name: str) -> Format:
    """The format of that name. Raises UserError that lists them, with the nearest."""
    return FORMATS[one_of("format", name, list(FORMATS))]


def detected(path: Path) -> str:
    """The name of the one format that a path looks like. Raises TraceError where that is none, or several."""
    if not path.exists():
        raise TraceError(f"{path}: No such file or directory")
    found = [name for name, entry in FORMATS.items() if entry.detect(path)]
    if len(found) == 1:
        return found[0]
    which = f"looks like {' and like '.join(found)}" if found else "is in no format that can be told by its content"
    raise TraceError(f"{path}: {which}; required: --from, one of {', '.join(FORMATS)}")
