"""FLAME-MoE-Traces' layout: a folder with actives/iter_0000/layer_LL.parquet and samples/000.parquet (see the reader).

It has no requests and no phases; scores are float16.
"""

import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import TraceError
from traces.foreign.extras import needed
from traces.foreign.formats.flame import ACTIVES, INDICES, SAMPLES, SCORES, TOKEN_ID, layer_file
from traces.foreign.spill import BLOCK_ROWS
from traces.format.trace import RoutingTrace

CHECKPOINT = "iter_0000"


def write(source: RoutingTrace, out: Path) -> str:
    """A new folder, whole or not at all. Needs weights. Returns what was written."""
    if source.weights is None:
        raise TraceError("flame: needs `weights`, which the trace does not have: the layout's scores")
    if out.exists():
        raise TraceError(f"{out}: is there already; a new folder is required")
    draft = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        _layers(source, draft / ACTIVES / CHECKPOINT)
        if source.token_ids is not None:
            _samples(source, draft / SAMPLES / "000.parquet")
        os.chmod(draft, 0o755)
        os.rename(draft, out)
    except BaseException:
        shutil.rmtree(draft)
        raise
    return f"{source.n_moe_layers} layers of {source.n_tokens:,} tokens"


def _layers(trace: RoutingTrace, folder: Path) -> None:
    arrow, parquet = needed("pyarrow", "a Parquet file"), needed("pyarrow.parquet", "a Parquet file")
    folder.mkdir(parents=True)
    schema = arrow.schema([(INDICES, arrow.list_(arrow.int16())), (SCORES, arrow.list_(arrow.float16()))])
    with ExitStack() as stack:
        files = [folder / layer_file(layer) for layer in trace.meta["moe_layers"]]
        writers = [stack.enter_context(parquet.ParquetWriter(file, schema)) for file in files]
        for lo in range(0, trace.n_tokens, BLOCK_ROWS):
            for layer, writer in enumerate(writers):
                writer.write_table(_table(trace, lo, layer, schema, arrow))


def _table(trace: RoutingTrace, lo: int, layer: int, schema: Any, arrow: Any) -> Any:
    """Some rows of one layer."""
    assert trace.weights is not None
    ids = np.asarray(trace.experts[lo : lo + BLOCK_ROWS, layer])
    if (ids < 0).any():
        row = lo + int(np.argwhere(ids < 0)[0][0])
        raise TraceError(f"experts[{row}] has a slot without an expert (-1), which the layout cannot say")
    scores = np.asarray(trace.weights[lo : lo + BLOCK_ROWS, layer], np.float16)
    ends = np.arange(len(ids) + 1, dtype=np.int32) * trace.top_k
    columns = [(ids.astype(np.int16), arrow.int16()), (scores, arrow.float16())]
    lists = [
        arrow.ListArray.from_arrays(ends, arrow.array(np.ascontiguousarray(flat).reshape(-1), kind))
        for flat, kind in columns
    ]
    return arrow.Table.from_arrays(lists, schema=schema)


def _samples(trace: RoutingTrace, file: Path) -> None:
    arrow, parquet = needed("pyarrow", "a Parquet file"), needed("pyarrow.parquet", "a Parquet file")
    file.parent.mkdir()
    schema = arrow.schema([(TOKEN_ID, arrow.int32())])
    assert trace.token_ids is not None
    with parquet.ParquetWriter(file, schema) as writer:
        for lo in range(0, trace.n_tokens, BLOCK_ROWS):
            ids = np.array(trace.token_ids[lo : lo + BLOCK_ROWS], np.int32)
            writer.write_table(arrow.Table.from_arrays([arrow.array(ids)], schema=schema))
