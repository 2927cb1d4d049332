"""TensorRT-LLM's expert statistics: a folder with `meta_info.json` and safetensors per rank.

    meta_info.json             {"num_experts", "num_experts_per_token", ...}
    rank{r}.safetensors        "{iteration}_{layer}" -> int64 counts [num_experts]: a frequency profile
    rank{r}_raw.safetensors    the same keys -> token_selected_experts [tokens, k]: a trace

Written where EXPERT_STATISTIC_ITER_RANGE and EXPERT_STATISTIC_PATH are set; what writes the raw files was not seen,
only what reads them. Ids are logical unless the run balanced experts over slots (EPLB). Which tokens are one request
is in neither.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import TraceError
from traces.extras import needed
from traces.foreign.ask import Ask
from traces.foreign.counting import of_layers
from traces.foreign.format import PASSES, Reader
from traces.foreign.json_lines import integer, small_json
from traces.foreign.passes import Passes
from traces.format.layout import MAX_EXPERTS, Array
from traces.format.limits import MOST_FACTS_BYTES
from traces.format.members import refusing
from traces.format.profile import Profile
from traces.format.trace import RoutingTrace

META, EXPERTS, TOP_K = "meta_info.json", "num_experts", "num_experts_per_token"
COUNTED, RAW = re.compile(r"rank([0-9]{1,6})\.safetensors"), re.compile(r"rank([0-9]{1,6})_raw\.safetensors")
KEY = re.compile(r"([0-9]{1,9})_([0-9]{1,4})", re.ASCII)
KEPT = {"tool": "tensorrt-llm", "id_space": "logical"}


def detect(path: Path) -> bool:
    """Whether it is a folder of counts (and of nothing per token)."""
    return path.is_dir() and (path / META).is_file() and bool(_files(path, COUNTED)) and not _files(path, RAW)


def detect_raw(path: Path) -> bool:
    """Whether it is a folder with ids per token."""
    return path.is_dir() and (path / META).is_file() and bool(_files(path, RAW))


def read(path: Path, ask: Ask) -> Profile:
    """The profile over all iterations and ranks. Raises TraceError, one line."""
    experts = _meta(path)[EXPERTS]
    total: dict[int, Array] = {}
    for where, _, layer, tensor in _tensors(path, COUNTED):
        if tensor.shape != (experts,) or tensor.dtype.kind not in "iu" or int(tensor.min()) < 0:
            raise TraceError(f"{where}: {tensor.dtype.name} {list(tensor.shape)}; {experts} counts >= 0 are required")
        total[layer] = total.get(layer, np.zeros(experts, np.float64)) + tensor
    return of_layers(path, total, ask, **{"layout": "expert statistic", "top_k": _meta(path)[TOP_K]} | KEPT)


def read_raw(path: Path, ask: Ask) -> RoutingTrace:
    """The trace of the raw files: iteration by iteration, rank by rank. Raises TraceError, one line."""
    meta = _meta(path)
    if ask.n_experts(path) != meta[EXPERTS]:
        raise TraceError(f"{path}: {META} says {meta[EXPERTS]} experts; {ask.model.name} has {ask.n_experts(path)}")
    passes = Passes(path, ask)
    for where, step, layer, tensor in _tensors(path, RAW):
        if tensor.ndim != 2 or tensor.dtype.kind not in "iu" or tensor.shape[1] != meta[TOP_K]:
            found = f"{tensor.dtype.name} {list(tensor.shape)}"
            raise TraceError(f"{where}: {found}; integers [tokens, {meta[TOP_K]}] are required")
        passes.add(layer, tensor, where, step)
    return passes.trace(layout="expert statistic, raw", slots_ordered_by_weight=False, **KEPT)


def _files(path: Path, name: re.Pattern[str]) -> list[Path]:
    """The files of every rank, by rank."""
    found = {int(m[1]): p for p in path.glob("*.safetensors") if (m := name.fullmatch(p.name))}
    return [found[rank] for rank in sorted(found)]


def _meta(path: Path) -> dict[str, int]:
    file = path / META
    if not path.is_dir():
        raise TraceError(f"{path}: not a folder; one with {META} and a rank's .safetensors is required")
    value = small_json(file, MOST_FACTS_BYTES)
    if not isinstance(value, dict):
        raise TraceError(f"{file}: a JSON object is required")
    return {key: integer(value.get(key), key, str(file), 1, MAX_EXPERTS) for key in (EXPERTS, TOP_K)}


def _tensors(path: Path, name: re.Pattern[str]) -> Iterator[tuple[str, int, int, Array]]:
    """(where, iteration, layer, tensor) of every rank's file, by iteration and layer. safetensors compares what the
    header declares with the file, and loads one tensor at a time."""
    library = needed("safetensors", "an expert statistic")
    files = _files(path, name)
    if not files:
        raise TraceError(f"{path}: no {name.pattern.replace('([0-9]{1,6})', 'R').replace(chr(92), '')} in it")
    for file in files:
        with refusing(f"{file}: not a complete safetensors file"):
            opened: Any = library.safe_open(file, framework="np")
            keys = [(key, KEY.fullmatch(key)) for key in opened.keys()]  # noqa: SIM118 - no mapping
        odd = next((key for key, match in keys if match is None), None)
        if odd is not None:
            raise TraceError(f"{file}: key {ascii(odd)[:40]}; ITERATION_LAYER is required")
        for step, layer, key in sorted((int(m[1]), int(m[2]), key) for key, m in keys if m is not None):
            with refusing(f"{file}: {key}"):
                tensor = opened.get_tensor(key)
            yield f"{file}: {key}", step, layer, tensor


READER = Reader("trtllm", read, detect, "TensorRT-LLM expert statistics, counts")
READER_RAW = Reader("trtllm-raw", read_raw, detect_raw, "TensorRT-LLM expert statistics, ids per token", PASSES)
