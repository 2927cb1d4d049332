"""A GPU day while it runs: parts in their boxes, each result kept the moment it ends, what is kept not run again.

Under the day's folder: `parts/NAME` is what part NAME found (its files, `NAME.log`, `result.json`), put there in one
step when it has ended; `work/NAME` is where it runs until then. So a day that is killed at any moment has whole parts
and no half ones, and one that is started again with the same versions on the same device runs the rest.
"""

import json
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from pathlib import Path
from threading import Lock
from typing import Any

from runtime.device.host_memory import available_bytes
from runtime.gpu import archive, box
from runtime.gpu.page import page
from runtime.gpu.parts import NOT_HERE
from runtime.gpu.project import project
from runtime.gpu.table import Part, filled
from traces.command import write_bytes
from traces.progress import doing

DONE, FAILED, TIMED_OUT, SKIPPED, INTERRUPTED = STATUSES = ("done", "failed", "timed out", "skipped", "interrupted")
VERDICTS = {0: "within", 1: "outside", 3: "inconclusive"}  # of runtime.validate, by exit status
LEAST_S = 10.0  # less time shows nothing: python alone takes some of it
MARGIN_S = 8.0  # between a command's own deadline and the end of its box: what it prints and writes last
PAGE, LOG = "page.md", "day.log"
SCRATCH = "scratch"  # folder of a part for what its own commands alone read; gone when it ends


@dataclass(frozen=True)
class Result:
    """What became of a part. commands: each with its exit status (None: killed) and seconds; verdict: of a validation;
    why: the last line of the log of a part that is not done; made_with: device and versions, made_by: version and
    sources of this project when the part began, which is said and decides nothing."""

    part: str
    status: str
    seconds: float = 0.0
    box_s: float = 0.0
    commands: list[dict[str, Any]] = field(default_factory=list)
    verdict: str | None = None
    why: str = ""
    made_with: dict[str, str] = field(default_factory=dict)
    made_by: dict[str, str] = field(default_factory=dict)


class Day:
    """made_with: device and versions, by which kept results are told to be of this machine; seconds: of everything;
    memory: host memory, stated (None: what could be touched, where the system says less); environment: of the parts."""

    def __init__(
        self,
        out: Path,
        parts: Sequence[Part],
        made_with: dict[str, str],
        seconds: float,
        environment: Mapping[str, str],
        memory: str | None = None,
    ) -> None:
        self.out, self.parts, self.made_with, self.memory = out, parts, made_with, memory
        self.environment = {**environment, box.MARK: str(out)}
        self.end = time.monotonic() + seconds
        self.stopped = False
        self.moving = Lock()  # nothing is packed while a part in the background is put in its place

    def say(self, text: str) -> None:
        """To whoever looks, who may be gone, and into the day's log."""
        with (self.out / LOG).open("a", encoding="utf-8") as log:
            log.write(f"{text}\n")
        with suppress(OSError, UnicodeError):
            print(text, flush=True)

    def stop(self, *_: object) -> None:
        """End the parts that run, keep what there is, start no other one. A handler for signals."""
        self.stopped = True

    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    # --- the day ---

    def run(self, chosen: Sequence[str], again: bool = False) -> list[Result]:
        """Run the chosen parts (names) that are not done yet, or with `again` all of them; the results of the chosen,
        in the order of the table."""
        todo = self.todo(chosen, again)
        if kept := [part.name for part in self.parts if part.name in chosen and part not in todo]:
            self.say(f"kept: {', '.join(kept)}")
        with ThreadPoolExecutor(1) as beside, self._whole():
            waiting: list[tuple[Part, Future[Result]]] = []
            for part in todo:
                while waiting and not part.early:
                    self._ended(waiting[0][0], waiting.pop(0)[1].result())
                doing(f"part {part.name}", at_once=False)
                self.say(f"--- {part.name}: {part.shows} (at most {part.box_s:.0f} s; {self.left():.0f} s left)")
                if part.beside:
                    waiting.append((part, beside.submit(self.run_part, part)))
                else:
                    self._ended(part, self.run_part(part))
            for part, future in waiting:
                self._ended(part, future.result())
        return [result for part, result in self.kept() if part.name in chosen]

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Where the day cannot go on, what runs in the background ends, too."""
        try:
            yield
        except BaseException:
            self.stop()
            raise

    def todo(self, chosen: Sequence[str], again: bool) -> list[Part]:
        """What is to be run: what is not done, and what must be made anew for it."""
        done = [] if again else [part.name for part, result in self.kept() if result.status == DONE]
        missing = [part.name for part in self.parts if part.name in chosen and part.name not in done]
        late = any(part.name in missing and not part.early for part in self.parts)
        return [p for p in self.parts if p.name in missing or (p.fresh and late and p.name in chosen)]

    def _ended(self, part: Part, result: Result) -> None:
        """Tell of it and pack what there is."""
        if result.commands:
            log = lines_of(self.out / "parts" / part.name / f"{part.name}.log")
            self.say("\n".join(f"    {line[:200]}" for line in log[-part.shown :]))
        verdict = "" if result.verdict is None else f", {result.verdict}"
        self.say(f"=== {part.name}: {result.status}{verdict} after {result.seconds:.0f} s {result.why[:200]}".rstrip())
        self.pack()

    def pack(self) -> list[str]:
        """Write the page and the archive of what is kept; the files that were too large for it."""
        with self.moving:
            return self._pack()

    def _pack(self) -> list[str]:
        kept = self.kept()
        text = page([(part, asdict(result)) for part, result in kept], self.out / "parts", project())
        write_bytes(self.out / PAGE, text.encode(errors="replace"))  # a record may hold half a character
        folders = [self.out / "parts" / part.name for part, _ in kept]
        plain = {to: self.out / "parts" / part.name / name for part, _ in kept for name, to in part.keeps.items()}
        return archive.pack(self.out, folders, {**{name: self.out / name for name in (PAGE, LOG)}, **plain})

    # --- one part ---

    def run_part(self, part: Part) -> Result:
        """Its commands, one after the other in its box or in what is left of the day; keeps and returns the result."""
        box_s = min(part.box_s, self.left())
        if self.stopped or box_s < LEAST_S:
            return self._skipped(part)
        work, made_by = self._emptied(part), project()
        began, ended = time.monotonic(), []
        for command in part.commands:
            ended.append(self._command(part, command, work, began + box_s - time.monotonic()))
            if ended[-1].exit in (None, NOT_HERE):
                break
        result = self._result(part, work, ended, time.monotonic() - began, box_s)
        return self._keep(work, replace(result, made_by=made_by))

    def _command(self, part: Part, command: str, work: Path, seconds: float) -> box.Ended:
        memory = self.memory or touched(self.out)
        stated = {
            "seconds": f"{max(LEAST_S, seconds - MARGIN_S):.0f}",
            "memory": "" if memory is None else f"--host-memory {memory}",
        }
        words = shlex.split(filled(command, stated))
        log = work / f"{part.name}.log"
        with log.open("a") as file:
            file.write(f"$ python -m {shlex.join(words)}\n")
        environment = {**self.environment, "TMPDIR": str(work / SCRATCH)}
        return box.run([sys.executable, "-m", *words], work, log, seconds, environment, lambda: self.stopped)

    def _result(self, part: Part, work: Path, ended: Sequence[box.Ended], seconds: float, box_s: float) -> Result:
        verdict = _verdict(part, work, ended[-1].exit)
        exits = [e.exit for e in ended[:-1]] + [0 if verdict else ended[-1].exit]
        if NOT_HERE in exits:
            status = SKIPPED
        elif None in exits:
            status = TIMED_OUT if ended[-1].timed_out else INTERRUPTED
        else:
            status = FAILED if any(exits) else DONE
        commands = [
            {"command": command, "exit": e.exit, "seconds": round(e.seconds, 1)}
            for command, e in zip(part.commands, ended, strict=False)
        ]
        why = "" if status == DONE else lines_of(work / f"{part.name}.log")[-1].strip()
        return Result(part.name, status, round(seconds, 1), box_s, commands, verdict, why, self.made_with)

    def _skipped(self, part: Part) -> Result:
        """No time is left: what is known of it stays; where nothing is, that is kept."""
        known = dict((part.name, result) for part, result in self.kept()).get(part.name)
        if known is not None:
            return known
        why = "interrupted before it" if self.stopped else f"{max(0.0, self.left()):.0f} s left"
        return self._keep(self._emptied(part), Result(part.name, SKIPPED, why=why, made_with=self.made_with))

    def _emptied(self, part: Part) -> Path:
        """Where the part runs; nothing of an earlier run is there."""
        work = self.out / "work" / part.name
        shutil.rmtree(work, ignore_errors=True)
        (work / SCRATCH).mkdir(parents=True)
        return work

    # --- what is kept ---

    def _keep(self, work: Path, result: Result) -> Result:
        shutil.rmtree(work / SCRATCH, ignore_errors=True)
        write_bytes(work / "result.json", (json.dumps(asdict(result), indent=1) + "\n").encode())
        place, old = self.out / "parts" / work.name, work.with_name(f"{work.name}.old")
        place.parent.mkdir(exist_ok=True)
        shutil.rmtree(old, ignore_errors=True)
        with self.moving:
            if place.exists():
                place.rename(old)
            work.rename(place)
        shutil.rmtree(old, ignore_errors=True)
        return result

    def kept(self) -> list[tuple[Part, Result]]:
        """Parts that have a result, whatever it is, made on this device with these versions."""
        out = []
        for part in self.parts:
            with suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):  # none, or not one of ours
                result = Result(**json.loads((self.out / "parts" / part.name / "result.json").read_text()))
                if result.made_with == self.made_with and is_ours(result):
                    out.append((part, result))
        return out


def is_ours(result: Result) -> bool:
    """Whether every field is of its type; one that is read from a file may hold anything."""
    texts = (result.part, result.why, *result.made_by.values())
    numbers = all(isinstance(n, (int, float)) and isfinite(n) for n in (result.seconds, result.box_s))
    known = result.status in STATUSES and (result.verdict is None or result.verdict in VERDICTS.values())
    return numbers and known and all(isinstance(text, str) for text in texts) and isinstance(result.commands, list)


def _verdict(part: Part, work: Path, status: int | None) -> str | None:
    """What a validation says, if it came to a verdict: the record is written, and says the same as the exit status."""
    if part.record is None:
        return None
    with suppress(Exception):  # whatever the record holds
        if json.loads((work / part.record).read_text())["exit"] == status:
            return VERDICTS.get(int(status or 0))
    return None


def lines_of(log: Path) -> list[str]:
    """The lines of a log that say anything, whatever bytes are in it."""
    return [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]


def touched(out: Path) -> str | None:
    """Host memory that the part `versions` could touch, where the system says that less is available: a machine whose
    memory grows as it is used says too little."""
    try:
        found = int(json.loads((out / "parts" / "versions" / "versions.json").read_text())["touched_bytes"])
    except Exception:  # whatever the record holds
        return None
    available = available_bytes()
    return f"{found // 10**9}GB" if available is not None and available < found else None


def status(results: Sequence[Result], stopped: bool = False) -> int:
    """The day's exit status: 0 all done and no verdict outside, 1 something failed or is outside, 3 something was
    skipped or is inconclusive, 130 interrupted. What a dry run says of validations decides nothing."""
    if stopped:
        return 130
    verdicts = {r.verdict for r in results if r.made_with.get("device") == "cuda"}
    if "outside" in verdicts or any(r.status in (FAILED, TIMED_OUT, INTERRUPTED) for r in results):
        return 1
    return 3 if "inconclusive" in verdicts or any(r.status == SKIPPED for r in results) else 0


def listed(results: Sequence[Result]) -> str:
    """The parts as a table for people."""
    rows = [("part", "status", "seconds", "of", "")]
    for r in results:
        said = r.status if r.verdict is None else f"{r.status}, {r.verdict}"
        rows.append((r.part, said, f"{r.seconds:.0f}", f"{r.box_s:.0f}", r.why[:100]))
    return "\n".join(f"{a:<10} {b:<20} {c:>7} {d:>4}  {e}".rstrip() for a, b, c, d, e in rows)
