"""What a digest sees and what it leaves out, and that every door, policy and format has a command that is digested."""

import gzip
import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sim.policies import registry
from tests import digests, foreign
from traces.__main__ import main as traces_command

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("sim", "traces", "runtime", "analysis")
NOT_RUN = {
    "runtime.gpu.parts": "parts of a GPU day: they say how long a device took and what it is",
    "analysis.notebooks": "tests/test_notebooks.py runs them",
}
COMMANDS = digests.commands()
ALL = "\n".join(COMMANDS.values())


def packed(members: dict[str, bytes], how: int = zipfile.ZIP_STORED, year: int = 2000) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, (year, 1, 1, 0, 0, 0)), data, how)
    return file.getvalue()


def lined(folder: Path, status: int = 0, out: bytes = b"out", err: bytes = b"stderr: x", **files: bytes) -> str:
    """The digest of a command that wrote `files` (two underscores stand for a dot) into a folder of that name."""
    folder.mkdir()
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data)
    return digests.digest(folder, status, out, err, digests.replacing({"WORK": folder.parent}))


MEMBERS = {"a.npy": b"one", "b.npy": b"two"}
BASE: dict[str, Any] = {
    "t__npz": packed(MEMBERS),
    "r__json": b'{"time_ns": 3}',
    "l__gz": gzip.compress(b"log", mtime=1),
}
SEEN: dict[str, dict[str, Any]] = {
    "the exit status": {"status": 1},
    "a byte on stdout": {"out": b"ouT"},
    "a byte on stderr": {"err": b"stderr: y"},
    "what one of them ends with and the other begins with": {"out": b"outstderr", "err": b": x"},
    "a byte of a file": {"r__json": b'{"time_ns": 4}'},
    "a simulated time": {"out": b"time  2.778 s"},
    "a new file": {"more": b""},
    "a member's content": {"t__npz": packed(MEMBERS | {"b.npy": b"twO"})},
    "a member's name": {"t__npz": packed({"a.npy": b"one", "c.npy": b"two"})},
    "a new member": {"t__npz": packed(MEMBERS | {"c.npy": b""})},
    "what a compressed file holds": {"l__gz": gzip.compress(b"loG", mtime=1)},
}
LEFT_OUT: dict[str, dict[str, Any]] = {
    "nothing": {},
    "how an archive is packed": {"t__npz": packed(dict(reversed(MEMBERS.items())), zipfile.ZIP_DEFLATED, 2020)},
    "when a file was compressed": {"l__gz": gzip.compress(b"log", 1, mtime=2)},
}


@pytest.mark.parametrize("change", SEEN.values(), ids=SEEN)
def test_a_change_of_what_a_command_gives_out_changes_its_digest(change: dict[str, Any], tmp_path: Path) -> None:
    assert lined(tmp_path / "a", **BASE) != lined(tmp_path / "b", **BASE | change)


@pytest.mark.parametrize("change", LEFT_OUT.values(), ids=LEFT_OUT)
def test_what_is_no_content_leaves_the_digest(change: dict[str, Any], tmp_path: Path) -> None:
    assert lined(tmp_path / "a", **BASE) == lined(tmp_path / "b", **BASE | change)


def test_a_folder_counts_by_its_name_and_a_file_by_its_place(tmp_path: Path) -> None:
    found = []
    for place in ("", "x", "y"):
        folder = tmp_path / f"at-{place}" / "c"
        (folder / place).mkdir(parents=True)
        (folder / place / "f").write_bytes(b"same")
        found.append(digests.digest(folder, 0, b"", b"", bytes))
    assert len(set(found)) == 3


def test_the_parts_of_a_sweep_are_left_out_and_nothing_like_them(tmp_path: Path) -> None:
    found = []
    for i, name in enumerate(("parts/part-000001.parquet", "parts/part-000002.parquet", "parts/x-000001.parquet")):
        file = tmp_path / str(i) / "c/s" / name
        file.parent.mkdir(parents=True)
        file.write_bytes(b"%d" % i)
        found.append(digests.digest(tmp_path / str(i) / "c", 0, b"", b"", bytes))
    assert found[0] == found[1] != found[2]


REPLACED: dict[str, tuple[Callable[[Path], str], ...]] = {
    "folders": (lambda folder: f"error: {folder}/t.npz: no such file",),
    "a sweep's speed": (
        lambda _: "24 runs in 7.5 s on 2 workers: 3.2 runs/s; overhead 65% of the time (preparing 7%)\n3 of 4 failed",
        lambda _: "24 runs in 9.1 s on 2 workers: 2.9 runs/s; overhead 9% of the time (preparing 1%)\n3 of 4 failed",
    ),
    "sweep.json's speed and sources": (
        lambda _: '{\n "core": "core-1",\n "last": {\n  "engine": "local",\n  "loop_s": 5.2\n }\n}',
        lambda _: '{\n "core": "core-2",\n "last": {\n  "engine": "local",\n  "loop_s": 5.3\n }\n}',
    ),
    "a progress bar": (
        lambda _: "Loading weights:   0%|     | 0/30 [00:00<?, ?it/s]\rLoading weights: 100%|###| 30/30\nerror: x",
        lambda _: "Loading weights: 100%|###| 30/30 [00:01]\nerror: x",
    ),
}


@pytest.mark.parametrize("texts", REPLACED.values(), ids=REPLACED)
def test_text_that_hangs_on_the_machine_is_replaced(texts: tuple[Callable[[Path], str], ...], tmp_path: Path) -> None:
    """The same of two runs, each in a folder of its own; and what stands beside it is still seen."""

    def found(text: Callable[[Path], str], where: str, beside: str = "") -> str:
        (tmp_path / where).mkdir()
        written = (text(tmp_path / where) + "\n" + beside).encode()
        return lined(tmp_path / where / "c", err=written, file=written)

    assert found(texts[0], "first") == found(texts[-1], "second") != found(texts[-1], "third", "beside")


def test_a_command_is_run_in_its_folder_and_told_in_one_line(tmp_path: Path) -> None:
    line = digests.run("name", "cat ../files/x && echo b > b && echo c >&2 && exit 3", tmp_path, ROOT)
    (tmp_path / "files").mkdir()
    (tmp_path / "files/x").write_text("a\n")
    again = digests.run("other", "cat ../files/x && echo b > b && echo c >&2 && exit 3", tmp_path, ROOT)
    assert line.split(" ", 2)[1:] == ["1", "name: cat ../files/x && echo b > b && echo c >&2 && exit 3"]
    assert again.split(" ", 2)[1] == "3" and again[:12] != line[:12]
    assert again[:12] == lined(tmp_path / "by-hand", 3, b"a\n", b"c\n", b=b"b\n")


def test_what_a_command_needs_runs_before_it_and_what_is_absent_leaves_it_out() -> None:
    every = {"third": "x ../second ../files/f", "second": "x ../first", "first": "x ../captures/t", "other": "x third"}
    assert digests.in_order(every, ["third"]) == ["first", "second", "third"]
    assert digests.chosen(every, "third") == ["third", "other"]
    assert digests.chosen(every, absent=frozenset({"captures"})) == ["other"]


def test_every_command_needs_what_there_is() -> None:
    assert len(digests.in_order(COMMANDS, list(COMMANDS))) == len(COMMANDS) > 80
    places = {"files", "foreign", *digests.CAPTURES}
    for name, command in COMMANDS.items():
        assert digests.needs(command) <= COMMANDS.keys() | places, name
        for file in re.findall(r"\.\./files/([\w.-]+)", command):
            assert (digests.FILES / file).is_file(), (name, file)


# --- nothing is without a command ---


def doors() -> list[str]:
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    found = [path.relative_to(ROOT) for path in files if '\nif __name__ == "__main__":' in path.read_text()]
    return sorted(".".join(path.with_suffix("").parts).removesuffix(".__main__") for path in found)


@pytest.mark.parametrize("door", doors())
def test_every_door_has_a_command_that_is_digested(door: str) -> None:
    run = re.search(rf"python -m {re.escape(door)}( |$)", ALL, re.MULTILINE)
    assert run or any(door.startswith(f"{package}.") for package in NOT_RUN), door


@pytest.mark.parametrize("kind", registry.TABLES)
def test_every_policy_has_a_command_that_is_digested(kind: str) -> None:
    missing = [name for name in registry.TABLES[kind] if not re.search(rf"--{kind} {re.escape(name)}( |$)", ALL, re.M)]
    assert not missing


def test_every_layout_that_is_read_and_every_format_that_is_written_has_a_command(capsys: Any) -> None:
    for name, (_, file, *_) in (foreign.PER_TOKEN | foreign.COUNTED).items():
        assert f"../foreign/{name}/{file} " in ALL, name
    assert traces_command(["convert", "--to", "none", "mixtral.npz", "t"]) == 2
    written = capsys.readouterr().err.split("one of ")[1].split(" is required")[0].split(", ")
    assert len(written) > 3 and all(f"--to {name} " in ALL for name in written)
