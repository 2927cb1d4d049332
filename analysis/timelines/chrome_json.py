"""Chrome trace JSON as Kineto (torch.profiler) writes it, for Perfetto, chrome://tracing and the tools made for those.

Format: "Trace Event Format" (Google, docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU) and
pytorch/kineto's output_json.cpp: complete slices (`X`), flow arrows (`s`, `f` with `bp` "e"), instants (`i`), counters
(`C`), names (`M`). Times are microseconds with three decimals, written from whole nanoseconds and never through a
float, so that they are exact. Lines are made by one `%` per event: a million slices take seconds.
"""

import gzip
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from traces.command import replace

Column = npt.NDArray[Any]
PIECE = 20_000  # lines joined at a time
LEVEL = 4  # of gzip: half the time of level 6, a sixth more bytes


def _microseconds(ns: Column) -> tuple[Column, Column]:
    return ns // 1000, ns % 1000


def _rows(template: str, columns: Iterable[Column]) -> Iterator[str]:
    return map(template.__mod__, zip(*(np.asarray(column).tolist() for column in columns), strict=True))


def slices(
    place: tuple[int, int],
    category: str,
    name: tuple[str, tuple[Column, ...]],
    begin: Column,
    end: Column,
    args: dict[str, tuple[str, Column]],
    colour: str = "",
) -> Iterator[str]:
    """One line per slice. place: process and thread; name: a % template and its columns; args: name -> (% template of a
    JSON value, column); begin, end: int64 [n] ns; colour: a reserved colour name of chrome://tracing."""
    pid, tid = place
    given = ",".join(f'"{key}":{template}' for key, (template, _) in args.items())
    cname = f',"cname":"{colour}"' if colour else ""
    text = f'{{"ph":"X","cat":"{category}","name":"{name[0]}","pid":{pid},"tid":{tid}'
    text += f',"ts":%d.%03d,"dur":%d.%03d{cname},"args":{{{given}}}}}'
    values = (column for _, column in args.values())
    return _rows(text, (*name[1], *_microseconds(begin), *_microseconds(end - begin), *values))


def arrows(
    source: tuple[int, int], target: tuple[int, int], number: Column, leaves: Column, arrives: Column
) -> Iterator[str]:
    """Two lines per arrow, from the slice of `source` that begins at `leaves` to that of `target` that begins at
    `arrives`; number: int64 [n], all different."""
    for kind, (pid, tid), at in (('"s"', source, leaves), ('"f","bp":"e"', target, arrives)):
        text = f'{{"ph":{kind},"id":%d,"cat":"ac2g","name":"ac2g","pid":{pid},"tid":{tid},"ts":%d.%03d}}'
        yield from _rows(text, (number, *_microseconds(at)))


def instants(
    place: tuple[int, int],
    category: str,
    name: tuple[str, tuple[Column, ...]],
    at: Column,
    args: dict[str, tuple[str, Column]],
) -> Iterator[str]:
    """One line per mark on a thread; arguments as `slices` takes them, at: int64 [n] ns."""
    pid, tid = place
    given = ",".join(f'"{key}":{template}' for key, (template, _) in args.items())
    text = f'{{"ph":"i","s":"t","cat":"{category}","name":"{name[0]}","pid":{pid},"tid":{tid}'
    text += f',"ts":%d.%03d,"args":{{{given}}}}}'
    return _rows(text, (*name[1], *_microseconds(at), *(column for _, column in args.values())))


def counts(pid: int, name: str, at: Column, values: dict[str, Column]) -> Iterator[str]:
    """One line per value of a counter (several series are stacked)."""
    given = ",".join(f'"{series.replace("%", "%%")}":%s' for series in values)
    text = f'{{"ph":"C","name":"{name.replace("%", "%%")}","pid":{pid},"ts":%d.%03d,"args":{{{given}}}}}'
    return _rows(text, (*_microseconds(at), *values.values()))


def names(processes: dict[int, str], threads: dict[tuple[int, int], str]) -> Iterator[str]:
    """What processes and threads are called, in the order in which they shall stand."""
    for pid, text in processes.items():
        yield _about("process_name", {"name": text}, pid, 0)
        yield _about("process_sort_index", {"sort_index": pid}, pid, 0)
    for place, ((pid, tid), text) in enumerate(threads.items()):
        yield _about("thread_name", {"name": text}, pid, tid)
        yield _about("thread_sort_index", {"sort_index": place}, pid, tid)


def _about(what: str, args: dict[str, Any], pid: int, tid: int) -> str:
    return json.dumps({"ph": "M", "name": what, "pid": pid, "tid": tid, "ts": 0, "args": args})


def write(path: Path, head: dict[str, Any], events: Iterable[str]) -> int:
    """Write the file, gzipped, whole or not at all; equal input gives equal bytes. Returns the number of events."""
    written = 0

    def fill(file: IO[bytes]) -> None:
        nonlocal written
        with gzip.GzipFile("", "wb", LEVEL, file, mtime=0) as out:
            text = json.dumps(head)[:-1] + ',"traceEvents":[\n'
            lines = iter(events)
            while piece := list(islice(lines, PIECE)):
                out.write((text if not written else ",\n").encode() + ",\n".join(piece).encode())
                written += len(piece)
            out.write((b"" if written else text.encode()) + b"\n]}\n")

    replace(path, fill)
    return written
