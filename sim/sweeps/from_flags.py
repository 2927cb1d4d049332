"""A sweep from flags: `--cache 2,3,4 --eviction lru,lfu --set decayed.decay=0.9,0.99`, the tables of a file.

A comma divides, but where the value is right as it stands: the name of a file that is there, `--requests 0,3,5`,
a parameter whose default holds commas itself (split.table). `-ot` is never divided. `default` is the field's default.
"""

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from sim.engines import KNOBS
from sim.errors import SpecError
from sim.flags import TYPES, given, metavar, settings
from sim.policies.policy import called
from sim.policies.registry import TABLES
from sim.spec import RunSpec, parse_requests
from sim.sweeps.axes import DEFAULT, flat
from traces.slips import no_number

Tables = dict[str, Any]
_RANGE = re.compile(r"(\d{1,6})(?:-|:|\.\.)(\d{1,6})", re.ASCII)
MOST_SPELT = 15  # values of a range that is spelt out


def tables_of(args: argparse.Namespace, argv: Sequence[str], config: Mapping[str, Any]) -> Tables:
    """The tables of a sweep: the file's as they are, or with the flags' axes in the place of its own. A field of the
    file keeps its place, a new one comes last, in the order of the command line."""
    fields = _in_order(_axes(args), argv)
    if not fields and args.repeats is None:
        return dict(config)
    out = flat(config)
    if "zip" in out:
        out["zip"] = [left for table in out["zip"] if (left := _without(table, fields))]
    if fields.keys() & {*KNOBS}:  # who is resident is said by one of them
        out = {name: value for name, value in out.items() if name not in KNOBS or name in fields}
    out |= fields | ({} if args.repeats is None else {"repeats": args.repeats})
    return {name: value for name, value in out.items() if name != "zip" or value}


def _without(table: Mapping[str, Any], fields: Mapping[str, Any]) -> Tables:
    return {name: values for name, values in table.items() if name not in fields}


def folder_of(config: str | None, tables: Mapping[str, Any], from_flags: bool) -> Path:
    """Where a sweep goes that names no --out: of a file alone NAME.sweep; of flags a name by content, so that the same
    ones find their folder again and others do not."""
    stem = Path(config or _first(tables.get("trace", "sweep"))).stem
    if not from_flags:
        return Path(f"{stem}.sweep")
    digest = sha256(json.dumps(tables, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return Path(f"{stem}-{digest}.sweep")


def _first(value: Any) -> str:
    return str(value[0] if isinstance(value, list) else value)


def _axes(args: argparse.Namespace) -> Tables:
    """Field -> its value, or the list of them."""
    out: Tables = {}
    for name, text in given(args, RunSpec.model_fields).items():
        if name == "set":
            out |= _parameters(text)
        else:
            out[name] = _one_or_list([_typed(name, word) for word in _words(name, text)])
    return out


def _in_order(fields: Tables, argv: Sequence[str]) -> Tables:
    """As they stand on the command line; parameters where --set first does."""
    words = [word.split("=")[0] for word in argv]

    def place(name: str) -> int:
        flag = "--set" if name.startswith("set.") else f"--{name.replace('_', '-')}"
        return words.index(flag) if flag in words else len(words)

    return {name: fields[name] for name in sorted(fields, key=place)}


def _words(name: str, text: Any) -> list[Any]:
    """The values that a flag's text stands for. Raises SpecError for a comma with nothing beside it."""
    if not isinstance(text, str) or "," not in text or name == "override_tensor" or os.path.isfile(text):
        return [text]
    if name == "requests" and _is_one(text):
        return [text]
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise SpecError(f"{name}: {text!r}: must be values with one comma between, such as 2,3,4")
    return words


def _is_one(requests: str) -> bool:
    try:
        parse_requests(requests)
    except ValueError:
        return False
    return True


def _typed(name: str, word: Any) -> Any:
    """A word of a flag as its field wants it. Raises SpecError."""
    kind = TYPES.get(metavar(name) or "")
    if kind is None or word == DEFAULT:
        return word
    try:
        return kind(word)
    except ValueError:
        raise SpecError(f"{name}: {no_number(word, kind is int)}{spelt_out({name: word})}") from None


def spelt_out(fields: Mapping[str, Any]) -> str:
    """Of fields that make no run, one that may have been meant as a range: its values with commas, as is read here."""
    found = next((at for value in fields.values() if (at := _RANGE.fullmatch(str(value)))), None)
    if found is None or not int(found[1]) < int(found[2]) <= int(found[1]) + MOST_SPELT:
        return ""
    return f"; did you mean {','.join(str(n) for n in range(int(found[1]), int(found[2]) + 1))}?"


def _parameters(pairs: Sequence[str]) -> Tables:
    out: Tables = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        words = [text] if _holds_commas(key) or not equals else _words(f"set.{key}", text)
        out[f"set.{key}"] = _one_or_list([value for word in words for value in settings([f"{key}={word}"]).values()])
    return out


def _holds_commas(key: str) -> bool:
    """Whether the parameter's own default does."""
    name, _, param = key.rpartition(".")
    every = (policy for table in TABLES.values() for policy in table.values())
    return any("," in str(each.parameters.get(param, "")) for each in every if called(each.name) == name.split(".")[-1])


def _one_or_list(values: list[Any]) -> Any:
    return values if len(values) > 1 else values[0]
