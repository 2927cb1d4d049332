"""A sweep's folder: whole rows in part files while it runs, one table when it is done.

    sweep.json        what the sweep is (its tables, the files it reads, the version), and how its last process went
    parts/*.parquet   finished rows, each file written under a temporary name and then renamed
    results.parquet   all rows in the order of the configurations; results.csv the same

A process that is killed loses the tasks under way and nothing else: the next one reads the ids in the part files and
runs the rest. Nothing in a row depends on when, where or in which order it was made.
"""

import csv
import fcntl
import io
import json
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sim.errors import SpecError
from sim.sweeps.rows import COLUMNS, Row, table
from traces.command import out_folder, replace, write_bytes

FORMAT = 1
MOST_PARTS = 256  # then they are joined to one
# of part files of a few rows: written and read in a third of the time
LOOSE = {"compression": "none", "use_dictionary": False, "write_statistics": False}
PACKED = {"compression": "zstd"}
NO_PYARROW = "sweeps keep their rows in Parquet files: pip install 'moe-offload-sim[parquet]'"


def require_pyarrow() -> None:
    """Raises SpecError where it is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise SpecError(NO_PYARROW) from None


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C takes effect afterwards (signals reach the main thread alone)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    usual = signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if asked:
        raise KeyboardInterrupt


class Store:
    """The folder of one sweep, held by one process at a time. Raises SpecError for a folder that is something else.

    done: the error, or None, of every row that is kept, by id.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.parts = self.folder / "parts"
        self.done: dict[str, str | None] = {}
        self._lock: IO[Any] | None = None
        self._next = self._loose = 0  # number of the next part file; how many are not joined yet

    def open(self, identity: Mapping[str, Any], ids: Sequence[str]) -> None:
        """Take the folder for the sweep that `identity` describes, new or gone on with.

        identity: version and core (of the simulator), files (digest by name), config (the tables). ids: of the
        configurations, in their order.
        """
        out_folder(self.folder)
        known = self._read_known()
        if known is not None:
            _refuse_another(self.folder, known, identity, set(ids))
        self.parts.mkdir(parents=True, exist_ok=True)
        self._take()
        try:
            self._sweep_up()
            if known is None or known["ids"] != list(ids):
                self.describe({**identity, "ids": list(ids)})
            self._look(set(ids))
        except BaseException:
            self.close()
            raise

    def _read_known(self) -> dict[str, Any] | None:
        """What sweep.json says; None for a folder that is new or empty."""
        path = self.folder / "sweep.json"
        if not path.exists():
            strange = [entry.name for entry in self.folder.iterdir()] if self.folder.exists() else []
            if set(strange) - {"parts", ".lock"} or (self.parts.is_dir() and any(self.parts.glob("*.parquet"))):
                raise SpecError(f"out: {self.folder}: holds {min(strange)} and is no sweep's folder; name a new one")
            return None
        try:
            known = json.loads(path.read_text())
            if known["format"] != FORMAT or not isinstance(known["ids"], list) or not isinstance(known["files"], dict):
                raise ValueError(f"format {known['format']}; must be {FORMAT}")
        except (ValueError, KeyError, TypeError) as error:
            raise SpecError(f"{path}: describes no sweep: {error}") from None
        return dict(known)

    def _take(self) -> None:
        """Two processes on one folder would run everything twice."""
        self._lock = open(self.folder / ".lock", "w")  # noqa: SIM115  held, and open, as long as the sweep
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise SpecError(f"out: {self.folder}: another process runs this sweep; wait for it, or end it") from None

    def _sweep_up(self) -> None:
        """What a killed process left under temporary names."""
        for draft in (*self.parts.glob(".part-*"), *self.folder.glob(".results.*"), *self.folder.glob(".sweep.json.*")):
            draft.unlink()

    def _look(self, ids: set[str]) -> None:
        """What the part files hold."""
        for path in self._files():
            part = _read(path)
            self._learn(part.select(["id", "error"]).to_pylist(), ids)
            self._next = int(path.stem.removeprefix("part-")) + 1

    def _learn(self, rows: Iterable[Row], ids: set[str] | None = None) -> None:
        self.done |= {row["id"]: row["error"] for row in rows if ids is None or row["id"] in ids}

    def _files(self) -> list[Path]:
        return sorted(self.parts.glob("part-*.parquet"), key=lambda path: int(path.stem.removeprefix("part-")))

    def add(self, rows: Sequence[Row]) -> None:
        """Keep finished rows: one new part file, whole or not at all; Ctrl-C waits until it is written and noted."""
        with _uninterrupted():
            self._write_part(table(rows), LOOSE)
            self._learn(rows)
            self._loose += 1
            if self._loose >= MOST_PARTS:
                self._join()

    def _write_part(self, part: Any, how: Mapping[str, Any] = PACKED) -> None:
        _write(part, self.parts / f"part-{self._next:06d}.parquet", how)
        self._next += 1

    def _join(self) -> None:
        """All part files in one. A process killed between the two steps leaves rows twice; they are read as once."""
        before = self._files()
        self._write_part(self._all(before))
        for path in before:
            path.unlink()
        self._loose = 0

    def _all(self, files: Sequence[Path], ids: Sequence[str] | None = None) -> Any:
        """The rows of the files; with `ids` those, in that order, of two of one id the later."""
        import pyarrow

        whole = pyarrow.concat_tables([_read(path) for path in files])
        at = {each: i for i, each in enumerate(whole["id"].to_pylist())}
        return whole.take(list(at.values()) if ids is None else [at[each] for each in ids]).combine_chunks()

    def finish(self, ids: Sequence[str]) -> Any:
        """Write the final table, a row for each id in the order given; gives it (pyarrow)."""
        whole = self._all(self._files(), ids)
        _write(whole, self.folder / "results.parquet")
        replace(self.folder / "results.csv", lambda file: _write_csv(whole, file))
        return whole

    def describe(self, about: Mapping[str, Any]) -> None:
        """Write sweep.json."""
        text = json.dumps({"format": FORMAT, **about}, indent=1)
        write_bytes(self.folder / "sweep.json", f"{text}\n".encode())

    def close(self) -> None:
        """Leave the folder to others."""
        if self._lock is not None:
            self._lock.close()


def _read(path: Path) -> Any:
    """A part file as a table of exactly COLUMNS. Raises SpecError where it is none."""
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            part = file.read(use_threads=False)  # a few rows: threads would take longer
    except (pyarrow.ArrowException, OSError) as error:
        raise SpecError(f"{path}: is no part of a sweep ({error}); without it its runs are run again") from None
    if part.column_names != list(COLUMNS):
        raise SpecError(f"{path}: has other columns than this version writes; name another --out")
    return part


def _write(rows: Any, path: Path, how: Mapping[str, Any] = PACKED) -> None:
    import pyarrow.parquet

    replace(path, lambda file: pyarrow.parquet.write_table(rows, file, **how))


def _write_csv(whole: Any, file: IO[bytes]) -> None:
    """No value is an empty field; true and false as in JSON; numbers as Python writes them, which loses nothing."""
    out = io.TextIOWrapper(file, "utf-8", newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for batch in whole.to_batches(max_chunksize=10_000):
        for row in batch.to_pylist():
            writer.writerow([json.dumps(value) if isinstance(value, bool) else value for value in row.values()])
    out.flush()
    out.detach()


def _refuse_another(folder: Path, known: Mapping[str, Any], identity: Mapping[str, Any], ids: set[str]) -> None:
    """The same sweep, or one that has more configurations, may go on here; files and version must be the same."""
    new = f"name another --out, or remove {folder}"
    for name in ("version", "core"):
        if known.get(name) != identity[name]:
            raise SpecError(f"out: {folder}: was begun by another version of the simulator; {new}")
    gone = [each for each in known["ids"] if each not in ids]
    if gone:
        raise SpecError(
            f"out: {folder}: holds another sweep: {len(gone)} of its configurations are not in this one; {new}"
        )
    for name, digest in known["files"].items():
        if identity["files"].get(name) != digest:
            raise SpecError(f"out: {folder}: {name} is not the file that its rows were made from (or is gone); {new}")
