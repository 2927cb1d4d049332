"""Megatron-LM's router trace (--moe-routing-trace-path): `router_trace_rank{r}.jsonl` and, optionally, its logits.

One object per line: {step, stage, block: "decoder" | "mtp", layer, rank, num_tokens, topk, top_indices [tokens][topk]},
in the order in which layers ran; logit_offset, logit_bytes and logit_shape [tokens, experts] point into
`logits_rank{r}.bin` beside it, raw bf16. On the path that routes by a boolean map the ids of a token are sorted by
*id*, so slots stand in no order of weight, unless logits are there: then they are put into descending order of logit.
Router weights are not recorded, nor is which tokens are a prompt or a request: rows are training tokens. Megatron holds
them as [position, sequence of the micro-batch], so a micro-batch of several lies row by row side by side: --interleave.
Lines of block `mtp` (heads that predict further tokens, no layers of the model) are left out and counted.
"""

from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import TraceError
from traces.foreign.ask import Ask
from traces.foreign.format import PASSES, Reader
from traces.foreign.json_lines import first_object, integer, member, objects
from traces.foreign.passes import Passes
from traces.format.layout import Array
from traces.format.limits import MOST_LAYERS
from traces.format.members import refusing
from traces.format.trace import RoutingTrace

INDICES, OFFSET, BYTES, SHAPE = "top_indices", "logit_offset", "logit_bytes", "logit_shape"
DECODER, MTP = "decoder", "mtp"


def detect(path: Path) -> bool:
    """Whether its first object has a step and top_indices."""
    first = first_object(path)
    return INDICES in first and "step" in first


def read(path: Path, ask: Ask) -> RoutingTrace:
    """The trace of one rank's file. Raises TraceError, one line that names the line at fault."""
    passes: Passes | None = None
    for where, line in objects(path):
        with_logits = OFFSET in line
        if passes is None:
            passes = Passes(path, ask, logits=with_logits)
        if line.get("block", DECODER) != DECODER:
            if line["block"] != MTP:
                raise TraceError(f"{where}: block = {ascii(line['block'])[:40]}; {DECODER} or {MTP} is known")
            passes.rows.dropped["lines of block mtp"] += 1
            continue
        if with_logits != passes.logits:
            raise TraceError(f"{where}: {OFFSET} is {'there' if with_logits else 'missing'}, unlike in lines before")
        layer = integer(line.get("layer"), "layer", where, 0, MOST_LAYERS - 1)
        step = integer(line.get("step"), "step", where)
        ids = _ids(line, where)
        logits = _logits(path, line, len(ids), where) if with_logits else None
        if logits is not None:
            ids = _by_logit(ids, logits, where)
        passes.add(layer, ids, where, step, logits)
    if passes is None:
        raise TraceError(f"{path}: no lines in it")
    kept = {"tool": "megatron-lm", "layout": "router_trace", "id_space": "logical"}
    return passes.trace(slots_ordered_by_weight=passes.logits, **kept)


def _ids(line: dict[str, Any], where: str) -> Array:
    """int64 [tokens, topk]."""
    tokens, k = (integer(line.get(key), key, where, 1) for key in ("num_tokens", "topk"))
    with refusing(f"{where}: {INDICES}"):
        ids = np.array(member(line, INDICES, list, where))
    if ids.dtype.kind not in "iu" or ids.shape != (tokens, k):
        found = f"{ids.dtype.name} {list(ids.shape)}"
        raise TraceError(f"{where}: {INDICES} is {found}; integers [num_tokens, topk] = {[tokens, k]} are required")
    return ids.astype(np.int64)


def _logits(path: Path, line: dict[str, Any], tokens: int, where: str) -> Array:
    """float32 [tokens, E] from the file beside the trace; nothing is read before its size is known to be there."""
    file = path.with_name(f"logits_rank{integer(line.get('rank'), 'rank', where)}.bin")
    offset, size = integer(line[OFFSET], OFFSET, where, 0, 2**62), integer(line.get(BYTES), BYTES, where, 0, 2**62)
    shape = line.get(SHAPE)
    if not isinstance(shape, list) or len(shape) != 2 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise TraceError(f"{where}: {SHAPE} is {ascii(shape)[:40]}; [tokens, experts] is required")
    if shape[0] != tokens or shape[0] * shape[1] * 2 != size:
        raise TraceError(f"{where}: {SHAPE} {shape} for {tokens} tokens and {size} bytes of bf16")
    with refusing(f"{file}: needed by {path.name}"):
        held = file.stat().st_size
        if offset + size > held:
            raise TraceError(f"{file}: {held} bytes; {where} points to {offset + size}")
        raw = np.fromfile(file, "<u2", shape[0] * shape[1], offset=offset)
    return (raw.astype(np.uint32) << 16).view(np.float32).reshape(shape)


def _by_logit(ids: Array, logits: Array, where: str) -> Array:
    """A token's ids in descending order of their logits, ties by id."""
    if int(ids.min()) < -1 or int(ids.max()) >= logits.shape[1]:
        raise TraceError(f"{where}: expert {ids.max()}; the logits are of {logits.shape[1]}")
    own = np.where(ids < 0, -np.inf, np.take_along_axis(logits, np.maximum(ids, 0), axis=1))
    order = np.lexsort((ids, -own), axis=1)
    return np.take_along_axis(ids, order, axis=1)


READER = Reader(
    "megatron", read, detect, "Megatron-LM's router trace (JSONL, logits beside it)", (*PASSES, "interleave")
)
