"""Hostile files of each format: exit 2, one line, nothing written, nothing executed, nothing allocated.

Damage that every format must bear is in tests/test_format_contract.py.
"""

import base64
import io
import json
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import foreign
from tests.foreign import FIXTURES, PER_TOKEN
from tests.test_format_contract import built
from tests.test_readers import refused, small
from traces.format.trace import RoutingTrace

# --- nothing is executed ---


class Touch:
    """Unpickled by a reader that trusts its file, this makes a file of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", [name for name, entry in FIXTURES.items() if entry[1].endswith(".pt")])
def test_a_pickle_is_not_executed(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    path, command = built(name, tmp_path)
    mark = tmp_path / "executed"
    payload = {"records": [Touch(mark)], "logical_count": Touch(mark), "topk_ids_of_layer": 0}
    torch.save(payload, path)
    assert "weights_only" in refused(command, capsys)
    path.write_bytes(pickle.dumps(payload))  # a pickle without torch's zip
    assert "zip" in refused(command, capsys)
    assert not mark.exists()
    torch.load  # noqa: B018 - the payload does work where it is trusted:
    pickle.loads(pickle.dumps(Touch(mark)))
    assert mark.exists()


@pytest.mark.parametrize("name", ["vllm-npy", "moe-infinity", "eplb-npy"])
def test_object_arrays_are_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, command = built(name, tmp_path)
    mark = tmp_path / "executed"
    np.save(path, np.array([[[Touch(mark)]]], dtype=object), allow_pickle=True)
    assert "never unpickled" in refused(command, capsys)
    assert not mark.exists()


def test_object_arrays_inside_json_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, command = built("vllm", tmp_path)
    mark, file = tmp_path / "executed", io.BytesIO()
    np.save(file, np.array([[[Touch(mark)]]], dtype=object), allow_pickle=True)
    text = base64.b64encode(file.getvalue()).decode()
    path.write_text(json.dumps({"choices": [{"routed_experts": text}]}))
    assert "never unpickled" in refused(command, capsys)
    assert not mark.exists()


# --- nothing is allocated on a file's word ---


def npy_header(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


def peak(command: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[str, int]:
    """(the refusal, most bytes that Python and numpy held)."""
    tracemalloc.start()
    try:
        message = refused(command, capsys)
        return message, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


HUGE = 10**12


def huge_npy(path: Path) -> None:
    path.write_bytes(npy_header((HUGE, 4, 2)) + b"\0" * 64)


def huge_counts(path: Path) -> None:
    path.write_bytes(npy_header((4, HUGE), "<f8") + b"\0" * 64)


def huge_base64(path: Path) -> None:
    text = base64.b64encode(npy_header((HUGE, 4, 2)) + b"\0" * 64).decode()
    path.write_text(json.dumps({"choices": [{"routed_experts": text}]}))


def huge_record(path: Path) -> None:
    path.write_bytes(struct.pack("<5i", 0, 2**31 - 1, 2**31 - 1, 0, 1))


def huge_logits(path: Path) -> None:
    line = json.loads(path.read_text().splitlines()[0])
    n = line["num_tokens"]
    line |= {"logit_offset": 0, "logit_bytes": 2 * n * HUGE, "logit_shape": [n, HUGE]}
    path.write_text(json.dumps(line))
    path.with_name("logits_rank0.bin").write_bytes(bytes(16))


def huge_view(path: Path) -> None:
    """A tensor of one number that claims to be 10^12, by a stride of 0."""
    import torch

    torch.save(torch.zeros(1, dtype=torch.int64).expand(10**6, 10**6), path)


def huge_ids(path: Path) -> None:
    import torch

    ids = torch.zeros(1, dtype=torch.int32).expand(4, 10**9, 8)
    record = {"forward_mode": 2, "positions": [0], "input_ids": [0], "topk_ids_of_layer": ids}
    torch.save({"records": [record], "last_physical_to_logical_map": torch.arange(8).expand(4, 8)}, path)


def huge_gguf(path: Path) -> None:
    """A key whose value is an array of 10^18 bytes, which gguf's own reader would count through."""
    key = b"x" * 4
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(key)) + key
    path.write_bytes(head + struct.pack("<IIQ", 9, 0, 10**18) + b"\0" * 64)


def huge_gguf_tensors(path: Path) -> None:
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 10**15, 0) + b"\0" * 64)


def huge_safetensors(path: Path) -> None:
    head = json.dumps({"100_1": {"dtype": "I64", "shape": [HUGE], "data_offsets": [0, 8 * HUGE]}}).encode()
    (path / "rank0.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + b"\0" * 64)


def huge_safetensors_header(path: Path) -> None:
    (path / "rank0.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")


def huge_parquet(path: Path) -> None:
    """Four million empty rows, which run-length coding keeps in a few bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("indices", pa.list_(pa.int16())), ("scores", pa.list_(pa.float16()))])
    for file in path.rglob("layer_*.parquet"):
        with pq.ParquetWriter(file, schema, use_dictionary=True, compression="zstd") as writer:
            for _ in range(4):
                ends = pa.array(np.zeros(1_000_001, np.int32))
                lists = [pa.ListArray.from_arrays(ends, pa.array([], field.type.value_type)) for field in schema]
                writer.write_table(pa.Table.from_arrays(lists, schema=schema))


def sparse_cells(path: Path) -> None:
    path.write_text('{"token": 0, "layer": 0, "experts": [1]}\n{"token": 999999999, "layer": 0, "experts": [1]}\n')


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("vllm-npy", huge_npy, "declares 8000000000000 bytes"),
        ("eplb-npy", huge_counts, "declares 32000000000000 bytes"),
        ("moe-infinity", huge_npy, "declares 8000000000000 bytes"),
        ("vllm", huge_base64, "declares 8000000000000 bytes"),
        ("llamacpp-records", huge_record, "2147483647 tokens, k 2147483647"),
        ("megatron", huge_logits, "16 bytes; "),
        ("eplb-pt", huge_view, "2 dimensions are required, and the file has"),
        ("sglang", huge_ids, "3 dimensions are required, and the file has"),
        ("imatrix", huge_gguf, "1000000000000000000 bytes declared"),
        ("imatrix", huge_gguf_tensors, "entries declared"),
        ("trtllm", huge_safetensors, "not a complete safetensors file"),
        ("trtllm", huge_safetensors_header, "not a complete safetensors file"),
        ("flame", huge_parquet, "rows in"),
        ("jsonl", sparse_cells, "tokens are numbered without gaps"),
    ],
)
def test_declared_sizes_are_not_believed(
    name: str, make: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, command = built(name, tmp_path)
    make(path)
    found, most = peak(command, capsys)
    assert message in found
    assert most < 32 << 20, most


def test_a_compressed_pt_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, command = built("eplb-pt", tmp_path)
    with zipfile.ZipFile(path) as source:
        members = {info.filename: source.read(info) for info in source.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data + bytes(1 << 20))
    assert "is compressed; torch.save stores its members" in refused(command, capsys)


# --- what is wrong inside a whole file ---


def bad_trace(**changes: Any) -> RoutingTrace:
    """A trace of one request with something wrong at row 5."""
    trace = small("vllm-npy")
    arrays = {name: np.array(array) for name, array in trace.arrays().items()}
    for name, value in changes.items():
        arrays[name][5, 0] = value
    return RoutingTrace(meta=trace.meta, **arrays)


@pytest.mark.parametrize("name", [name for name in PER_TOKEN if name not in ("sglang", "csv", "hf-logits")])
def test_ids_out_of_range_and_twice(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, file, build, _ = PER_TOKEN[name]
    for experts, message in (([1, 8], "8"), ([3, 3], "already in slot 0")):
        folder = tmp_path / str(experts[1])
        folder.mkdir()
        flags = build(folder / file, bad_trace(experts=experts))
        assert message in refused(["convert", "--force", str(folder / file), str(folder / "out.npz"), *flags], capsys)
        assert not (folder / "out.npz").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("name", ["jsonl", "flame"])
def test_weights_that_are_none(name: str, value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, file, build, _ = PER_TOKEN[name]
    flags = build(tmp_path / file, bad_trace(weights=value))
    message = refused(["convert", "--force", str(tmp_path / file), str(tmp_path / "out.npz"), *flags], capsys)
    assert "not a JSON number" in message or "finite" in message


def ragged_jsonl(path: Path) -> None:
    path.write_text('{"token": 0, "layer": 0, "experts": [1, 2]}\n{"token": 1, "layer": 0, "experts": [1, 2, 3]}\n')


def ragged_lists(path: Path) -> None:
    path.write_text(json.dumps({"choices": [{"routed_experts": [[[1, 2], [1]]]}]}))


def ragged_indices(path: Path) -> None:
    line = json.loads(path.read_text().splitlines()[0])
    line["top_indices"][0] = [1]
    path.write_text(json.dumps(line))


def ragged_bytes(path: Path) -> None:
    response = json.loads(path.read_text().splitlines()[0])
    response["meta_info"]["routed_experts"] = base64.b64encode(bytes(28)).decode()
    path.write_text(json.dumps(response))


def ragged_positions(path: Path) -> None:
    path.write_text("pos,layer,e0,e1\n-1,0,1,2\n-1,0,1\n")


def ragged_parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    scores = pa.array([[0.5, 0.5], [1.0]], pa.list_(pa.float16()))
    for file in path.rglob("layer_*.parquet"):
        pq.write_table(pa.table({"indices": pa.array([[1, 2], [3]], pa.list_(pa.int16())), "scores": scores}), file)


def ragged_layers(path: Path) -> None:
    import pyarrow.parquet as pq

    file = sorted(path.rglob("layer_*.parquet"))[1]
    pq.write_table(pq.read_table(file).slice(0, 5), file)


def ragged_passes(path: Path) -> None:
    path.write_bytes(
        struct.pack("<5i", 1, 2, 1, 0, 1) + struct.pack("<4i", 2, 1, 1, 0) + struct.pack("<4i", 3, 1, 1, 0)
    )


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("jsonl", ragged_jsonl, "line 2: experts has 3 slots; with --top-k 2 there are at most 2"),
        ("vllm", ragged_lists, "inhomogeneous"),
        ("megatron", ragged_indices, "inhomogeneous"),
        ("sglang-routed", ragged_bytes, "28 bytes are not whole rows of 8 ids of 4 bytes"),
        ("llamacpp-positions", ragged_positions, "line 3 is '-1,0,1'; 4 integers"),
        ("flame", ragged_parquet, "rows of different lengths"),
        ("flame", ragged_layers, "another number of rows than layer_02.parquet"),
        ("llamacpp-records", ragged_passes, "layer 2 has [1, 1] ids; its pass has [2, 1]"),
    ],
)
def test_ragged_rows(name: str, make: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, command = built(name, tmp_path)
    make(path)
    assert message in refused(command, capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forward_mode": 1, "extend_seq_lens": None}, "a list of lengths is required"),
        ({"forward_mode": 1, "extend_seq_lens": [99]}, "add up to 99; the pass has"),
        ({"positions": [0] * 99}, "positions has 99 entries; a list of"),
        ({"positions": "text"}, "positions is a str"),
        ({"input_ids": [2.5] * 9}, "something else than integers"),
        ({"topk_ids_of_layer": [1]}, "a tensor is required"),
    ],
)
def test_bad_records(change: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    path, command = built("sglang", tmp_path)
    dump = torch.load(path, weights_only=True)
    record = dump["records"][0]
    record |= change
    if "input_ids" in change:
        record["input_ids"] = [2.5] * len(record["positions"])
    torch.save(dump, path)
    assert message in refused(command, capsys)


def test_per_pass_dumps_are_no_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = small("csv")
    flags = foreign.sglang_per_pass(tmp_path / "d.pt", trace)
    command = ["convert", "--force", "--from", "sglang", str(tmp_path / "d.pt"), str(tmp_path / "o.npz"), *flags]
    assert "a trace needs recorder mode per_token (this is per_pass)" in refused(command, capsys)
