"""What every foreign format must do, over the registry: a new one is tested by being registered, with a fixture.

A fixture is a builder in tests/foreign.py; a writer's is a line in WRITTEN there.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.foreign import COUNTED, FIXTURES, PER_TOKEN, WRITTEN, counts_of, prompt_flags, shape_flags
from tests.gen import random_trace
from tests.test_readers import ids_agree, refused, small, without
from traces.__main__ import main
from traces.foreign.models import Model
from traces.foreign.registry import READERS, WRITERS, detected
from traces.format import npz, profile
from traces.format.check import validate
from traces.format.trace import RoutingTrace

ALSO = {("csv", "llamacpp")}  # one layout that two names read: forks of llama.cpp write the long CSV
SHAPE = ("--model", "--n-experts", "--top-k", "--n-layers", "--moe-layers")
GUESSES = {"phase": ("--phase", "decode"), "requests": ("--requests", "one")}  # what a file of another format is told


def test_every_format_has_a_fixture() -> None:
    assert {format_name for format_name, _, _ in FIXTURES.values()} == set(READERS)
    assert set(WRITTEN) == set(WRITERS)


def trace_for(name: str) -> RoutingTrace:
    return small(name) if name in PER_TOKEN else small("csv", dense_layers=1)


def built(name: str, folder: Path) -> tuple[Path, list[str]]:
    """(path, whole command line) of a good fixture; the format is named, whatever detection thinks of the damage."""
    format_name, file, build = FIXTURES[name]
    flags = without(build(folder / file, trace_for(name)), "--from")
    return folder / file, [
        "convert",
        "--from",
        format_name,
        str(folder / file),
        str(folder / "out.npz"),
        *flags,
        "--force",
    ]


def parts(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def held(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def either(command: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> int:
    """Converted, or refused with one line that names the file, and nothing written; never anything else."""
    before = held(folder)
    capsys.readouterr()
    status = main(command)
    out, err = capsys.readouterr()
    if status == 0:
        (folder / "out.npz").unlink()
    else:
        assert status == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1, (out, err)
        assert str(folder) in err, err
    assert held(folder) == before
    return status


def model_of(trace: RoutingTrace) -> Model:
    return Model("m", trace.n_experts, trace.top_k, trace.n_layers, tuple(trace.meta["moe_layers"]))


@pytest.mark.parametrize("name", FIXTURES)
def test_it_alone_is_told_by_its_content(name: str, tmp_path: Path) -> None:
    """Of a model that is known; numbers that could be ids or counts of another model are told by no content."""
    format_name, file, build = FIXTURES[name]
    trace = trace_for(name)
    flags = build(tmp_path / file, trace)
    looks = [other for other, reader in READERS.items() if reader.detect(tmp_path / file)]
    assert (format_name in looks) == ("--from" not in flags)  # a layout without a mark has to be named
    assert not looks or detected(tmp_path / file, model_of(trace)) == format_name


@pytest.mark.parametrize("name", FIXTURES)
def test_what_is_read_is_valid_and_the_same_again(name: str, tmp_path: Path) -> None:
    _, command = built(name, tmp_path)
    assert main(command) == 0
    first, trace = (tmp_path / "out.npz").read_bytes(), trace_for(name)
    if name in COUNTED:
        counted = profile.read(tmp_path / "out.npz")
        profile.validate(counted, "read")
        assert np.array_equal(counted.counts, counts_of(trace))
    else:
        read = npz.read(tmp_path / "out.npz")
        validate(read)
        assert (read.n_tokens, read.n_moe_layers, read.top_k) == trace.experts.shape
    assert main(command) == 0
    assert (tmp_path / "out.npz").read_bytes() == first


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_written_is_read_back(name: str, seed: int, tmp_path: Path) -> None:
    """By the reader of that layout, if there is one: the trace, or its counts; the same bytes each time."""
    for file, format_name in WRITTEN[name].items():
        trace = random_trace(np.random.default_rng(seed), 18, requests=1, dense_layers=1, prompt=0.5)
        npz.write(tmp_path / "in.npz", trace)
        outs = [tmp_path / str(turn) / file for turn in range(2)]
        for out in outs:
            out.parent.mkdir(exist_ok=True)
            assert main(["convert", "--force", "--to", name, str(tmp_path / "in.npz"), str(out)]) == 0
        assert [p.read_bytes() for p in parts(outs[0])] == [p.read_bytes() for p in parts(outs[1])]
        if format_name is None:
            continue
        assert detected(outs[0], model_of(trace)) == format_name
        told = [*prompt_flags(trace), "--requests", "one"]
        pairs = zip(told[::2], told[1::2], strict=True)
        flags = [w for pair in pairs if pair[0][2:].replace("-", "_") in READERS[format_name].flags for w in pair]
        if file.endswith(".jsonl"):  # responses say their lengths
            flags = []
        assert main(["convert", "--force", str(outs[0]), str(tmp_path / "out.npz"), *shape_flags(trace), *flags]) == 0
        if profile.is_profile(tmp_path / "out.npz"):
            assert np.array_equal(profile.read(tmp_path / "out.npz").counts, counts_of(trace))
        else:
            ids_agree(npz.read(tmp_path / "out.npz"), trace)


@pytest.mark.parametrize("name", FIXTURES)
def test_every_other_format_is_refused_where_it_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Read as each of the other formats, with whatever flags that one could want."""
    _, command = built(name, tmp_path)
    shape = [word for pair in zip(command[5:-1:2], command[6:-1:2], strict=True) for word in pair if pair[0] in SHAPE]
    for other, reader in READERS.items():
        if other == FIXTURES[name][0]:
            continue
        guesses = [word for flag, guess in GUESSES.items() if flag in reader.flags for word in guess]
        flags = shape if (name, other) in ALSO else [*shape, *guesses]
        forced = ["convert", "--from", other, *command[3:5], *flags, "--force"]
        assert either(forced, tmp_path, capsys) == (0 if (name, other) in ALSO else 2), (name, other)


@pytest.mark.parametrize("name", FIXTURES)
def test_cut_short(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whole, each fixture is read; cut to half, nine tenths, or one byte less, it never ends in anything but a refusal
    or (where what is left is itself whole, as of a text by lines) a shorter trace."""
    path, command = built(name, tmp_path)
    assert either(command, tmp_path, capsys) == 0
    for part in parts(path):
        whole, refusals = part.read_bytes(), []
        for keep in (0, 1, len(whole) // 2, len(whole) * 9 // 10, len(whole) - 1):
            part.write_bytes(whole[:keep])
            refusals.append(either(command, tmp_path, capsys) == 2)
        assert any(refusals), part
        part.write_bytes(whole)


@pytest.mark.parametrize("name", FIXTURES)
def test_bytes_changed(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, command = built(name, tmp_path)
    for part in parts(path):
        whole = part.read_bytes()
        for seed in range(12):
            rng = np.random.default_rng(seed)
            damaged = bytearray(whole)
            near = len(whole) if seed % 2 else min(len(whole), 200)  # headers, and anywhere
            for at in rng.integers(0, near, 1 + seed % 4):
                damaged[at] = rng.integers(0, 256)
            part.write_bytes(damaged)
            either(command, tmp_path, capsys)
        part.write_bytes(whole)


@pytest.mark.parametrize("name", FIXTURES)
def test_other_things_in_its_place(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, command = built(name, tmp_path)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "No such file" in refused(command, capsys)
    path.mkdir()
    assert either(command, tmp_path, capsys) == 2  # an empty folder
    path.rmdir()
    for content in (b"", b"\x00" * 64, b"[" * 100_000, b"{" + b'"a":{' * 50_000, b"9" * 5000, b"\xff\xfe" * 50):
        path.write_bytes(content)
        assert either(command, tmp_path, capsys) == 2, content[:8]
