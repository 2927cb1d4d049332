"""What tests/fuzz_readers.py found, each made anew; a short run of it; and what reading large files must not do."""

import json
import struct
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.foreign import FIXTURES
from tests.fuzz_readers import run
from tests.test_format_contract import built, either, model_of, trace_for
from tests.test_readers import refused
from traces.__main__ import main
from traces.foreign import json_lines, torch_file
from traces.foreign.formats import counts
from traces.foreign.registry import READERS, detected
from traces.format import npz

JSON = [name for name, entry in FIXTURES.items() if entry[1].endswith(("json", "jsonl"))]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_short_run_finds_nothing(seed: int, tmp_path: Path) -> None:
    found, done = run(0, seed, list(FIXTURES), tmp_path, each=4)
    assert not found and set(done) == set(FIXTURES)


# --- found ---


def number_alone(path: Path) -> None:
    np.save(path, np.array(7))


def header_alone(path: Path) -> None:
    path.write_text("layer,expert\n1,2")


def one_name_less(path: Path) -> None:
    """The column of positions has lost its name, lines have as many fields as before."""
    path.write_text(path.read_text().replace(",token_pos", "", 1))


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("vllm-npy", number_alone, "int64 []; integers [tokens, layers, top_k] are required"),
        ("llamacpp-pairs", header_alone, "top-2 makes a multiple of 2"),
        ("csv-lists", one_name_less, "line 3 has 5 fields; line 2 has 4"),
    ],
)
def test_refused(name: str, make: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, command = built(name, tmp_path)
    make(path)
    assert message in refused(command, capsys)


def test_a_map_of_unsigned_bytes(tmp_path: Path) -> None:
    """-1 was put beside its numbers, which have no sign."""
    import torch

    path, command = built("sglang", tmp_path)
    assert main(command) == 0
    whole = (tmp_path / "out.npz").read_bytes()
    dump = torch.load(path, weights_only=True)
    dump["last_physical_to_logical_map"] = dump["last_physical_to_logical_map"].to(torch.uint8)
    torch.save(dump, path)
    assert main(command) == 0
    assert (tmp_path / "out.npz").read_bytes() == whole


@pytest.mark.parametrize("mode", [[1], "1", None, 2**70])
def test_modes_that_are_none(mode: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    path, command = built("sglang", tmp_path)
    dump = torch.load(path, weights_only=True)
    for record in dump["records"]:
        record["forward_mode"] = mode
    torch.save(dump, path)
    assert "no rows; a trace needs at least one" in refused(command, capsys)


@pytest.mark.parametrize("name", ["hf-logits", "hf-ids", "npz"])
def test_a_zip_of_a_version_to_come(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, command = built(name, tmp_path)
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02") + 6
    data[at : at + 2] = struct.pack("<H", 101)
    path.write_bytes(data)
    assert either(command, tmp_path, capsys) == 2
    assert either(["convert", *command[3:]], tmp_path, capsys) == 2


def test_a_nan_that_signals_is_no_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line on stderr, though numpy warns of it."""
    path, command = built("vllm-npy", tmp_path)
    np.save(path, np.full((4, 3, 2), 0x7FF0000000000001, np.int64).view(np.float64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert either(["convert", *command[3:]], tmp_path, capsys) == 2


@pytest.mark.parametrize("name", ["sglang-stat", "sglang-location", "eplb-pt", "hf-ids"])
def test_a_packed_pickle_that_is_damaged(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, command = built(name, tmp_path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", np.random.default_rng(0).bytes(500) + bytes(5000))
    data = bytearray(path.read_bytes())
    data[60:80] = b"\xff" * 20
    path.write_bytes(data)
    assert either(command, tmp_path, capsys) == 2
    assert either(["convert", *command[3:]], tmp_path, capsys) == 2


# --- large files ---


def test_a_cut_json_is_made_whole() -> None:
    value = [{"a": [1, 2, {"x": 'q"],[', "y": [[1, 2], [3]]}], "b": "\\{ [", "c": None, "d": 1.5}, {"e": [{"f": "A"}]}]
    text = json.dumps(value)
    for n in range(1, len(text) + 1):
        assert isinstance(json.loads(json_lines._closed(text[:n])), list)
    assert json.loads(json_lines._closed(text)) == value
    assert json.loads(json_lines._closed(text[: text.index('"A') + 2])) == [value[0], {"e": [{"f": ""}]}]


@pytest.mark.parametrize("name", JSON)
def test_the_begin_tells_the_format(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the whole value does, where it is longer than what detection looks at."""
    format_name, file, build = FIXTURES[name]
    trace = trace_for(name)
    build(tmp_path / file, trace)
    monkeypatch.setattr(json_lines, "LOOK_BYTES", 1000)
    assert detected(tmp_path / file, model_of(trace)) == format_name


@pytest.mark.parametrize("name", ["vllm-0.21", "nested-json", "expert-selection"])
def test_detection_parses_no_long_value(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = built(name, tmp_path)
    value = json.loads(path.read_text())
    many = (
        {"prompts": {f"p{i}": value["prompts"]["p0"] for i in range(4000)}} if isinstance(value, dict) else value * 4000
    )
    path.write_text(json.dumps(many, indent=None if name == "expert-selection" else 1))
    assert path.stat().st_size > 1_000_000
    for module in (json_lines, counts):
        monkeypatch.setattr(module, "LOOK_BYTES", 1 << 15)
    tracemalloc.start()
    try:
        found = [other for other, reader in READERS.items() if reader.detect(path)]
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == [FIXTURES[name][0]] and most < 6 << 20, (found, most)


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["vllm-0.21", "jsonl", "sglang-routed", "megatron"])
def test_a_long_list_is_read_piece_by_piece(
    name: str, indent: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it is read where it is short; cut short, it is refused."""
    path, command = built(name, tmp_path)
    text = path.read_text()
    found = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
    path.write_text(json.dumps(found, indent=indent))
    assert main(command) == 0
    whole = npz.read(tmp_path / "out.npz").experts.copy()
    monkeypatch.setattr(json_lines, "LOOK_BYTES", 300)  # over HEAD_BYTES
    assert main(command) == 0
    assert np.array_equal(npz.read(tmp_path / "out.npz").experts, whole)
    path.write_text(path.read_text()[:-40])
    assert "not JSON" in refused(command, capsys)


def test_pages_of_a_pt_are_given_back_whole(tmp_path: Path) -> None:
    """Of the file or not: what was given back is there again when it is asked for."""
    import torch

    torch.save([torch.arange(1 << 20), torch.arange(3)], tmp_path / "a.pt")
    large, little = torch_file.load(tmp_path / "a.pt")
    own = torch.arange(1 << 20)
    for each in (large, little, own):
        torch_file.give_back(each)
    assert torch.equal(large, own) and little.tolist() == [0, 1, 2]
