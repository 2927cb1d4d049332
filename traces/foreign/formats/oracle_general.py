"""libCacheSim's oracleGeneral: one packed record of 24 bytes per request, little endian.

    uint32 clock_time, uint64 obj_id, uint32 obj_size, int64 next_access_vtime (-1 = never again)

A request is one slot of one token in one layer, in the order of the file: token by token, layer by layer, slot by slot
(batch 1, no prefetch); slots without an expert are left out. obj_id = MoE layer * experts + expert, so all layers share
one cache there; obj_size is 1, clock_time the row. next_access_vtime counts requests from 0.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np

from traces.command import replace
from traces.foreign.format import Writer
from traces.format.layout import Array
from traces.format.trace import RoutingTrace

RECORD = np.dtype([("clock_time", "<u4"), ("obj_id", "<u8"), ("obj_size", "<u4"), ("next_access_vtime", "<i8")])
BLOCK_SLOTS = 1 << 19


def write(source: RoutingTrace, out: Path) -> str:
    """Written from the last block of tokens to the first, which is how a request learns of the next one for its expert;
    what is in memory does not grow with the trace. Returns what was written."""
    step = max(1, BLOCK_SLOTS // (source.n_moe_layers * source.top_k))
    blocks = range(0, source.n_tokens, step)
    with tempfile.TemporaryFile(dir=out.resolve().parent) as draft:
        total = sum(int((source.experts[lo : lo + step] >= 0).sum()) for lo in blocks)
        following = np.full(source.n_moe_layers * source.n_experts, -1, np.int64)
        end = total
        for lo in reversed(blocks):
            records = _records(source, lo, step, end, following)
            end -= len(records)
            draft.seek(end * RECORD.itemsize)
            draft.write(records.tobytes())
        draft.seek(0)
        replace(out, lambda file: shutil.copyfileobj(draft, file))
    return f"{total:,} requests for {source.n_moe_layers * source.n_experts:,} objects of size 1"


def _records(trace: RoutingTrace, lo: int, step: int, end: int, following: Array) -> Array:
    """The records of a block of tokens that ends before request `end`. following [L * E]: the next request of each
    object after the block, and, on return, from its begin on."""
    ids = trace.experts[lo : lo + step].astype(np.int64)
    objects = ids + (np.arange(trace.n_moe_layers) * trace.n_experts)[None, :, None]
    kept = ids >= 0
    records = np.zeros(int(kept.sum()), RECORD)
    place = end - len(records) + np.arange(len(records))
    wanted = objects[kept]
    order = np.argsort(wanted, kind="stable")
    ahead = np.empty(len(records), np.int64)
    last = np.append(wanted[order][1:] != wanted[order][:-1], True) if len(records) else np.zeros(0, np.bool_)
    ahead[order[~last]] = place[order[1:][~last[:-1]]] if len(records) else 0
    ahead[order[last]] = following[wanted[order[last]]]
    first = np.append(True, last[:-1]) if len(records) else last
    following[wanted[order[first]]] = place[order[first]]
    records["clock_time"] = lo + np.nonzero(kept)[0]
    records["obj_id"], records["obj_size"], records["next_access_vtime"] = wanted, 1, ahead
    return records


WRITER = Writer("oracle-general", write, "libCacheSim's oracleGeneral: a binary file")
