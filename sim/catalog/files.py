"""TOML files and names: reading, looking up, guessing what was meant. No pydantic here: listing names stays
cheap."""

import difflib
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sim.catalog.held import held
from sim.catalog.held import normal as normal  # of the files, too, for whoever asks here
from sim.errors import CatalogError

KINDS = {
    "model": "models.toml",
    "gpu": "gpus.toml",
    "link": "links.toml",
    "ssd": "ssds.toml",
    "host": "hosts.toml",
    "hardware": "hardware.toml",
    "machine": "machines.toml",
    "engine": "engines.toml",
    "precision": "precisions.toml",
}
FOLDER = Path(__file__).parent
TOLD = "fitted to published speeds: analysis/results/published.md"  # of what constants.toml has
FACTS = "model_facts"  # of a trace's meta (traces/capturing/facts.py)
FROM_META = "what the trace's meta says"  # of a model so described
MAX_BYTES = 1_000_000  # a description is a page of text; anything larger is some other file

NEAR, NEAR_ENGINE = 0.7, 0.78  # of difflib's ratio; ollama and exllama, two engines, are alike anyhow
Table = dict[str, Any]
HEAD = re.compile(r"^(?=\[)", re.MULTILINE)  # where the next table of a file begins
NAME = re.compile(r'\[(?:"([^"]+)"|([\w-]+))')  # of the entry that it is of


def did_you_mean(word: str, known: list[str], near_by: float = NEAR) -> str:
    """`; did you mean X?`, or nothing when no known word is near."""
    near = difflib.get_close_matches(normal(word), [normal(k) for k in known], n=1, cutoff=near_by)
    near = near or [normal(k) for k in known if len(word) > 2 and normal(k).startswith(normal(word))]
    return f"; did you mean {next(k for k in known if normal(k) == near[0])}?" if near else ""


def read_toml(path: str | Path) -> Table:
    """The tables of a TOML file. Raises CatalogError when it cannot be read, is too large, or is not TOML."""
    return _parsed(path, _text(path))


def _text(path: str | Path) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CatalogError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None
    if len(data) > MAX_BYTES:
        raise CatalogError(f"{path}: more than {MAX_BYTES} bytes; a description in TOML is far smaller")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CatalogError(f"{path}: not a TOML file: {' '.join(str(error).split())}") from None


def _parsed(path: str | Path, text: str) -> Table:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise CatalogError(f"{path}: not a TOML file: {' '.join(str(error).split())}") from None


class Written(Mapping[str, Any]):
    """The entries of a file of ours by name, each parsed when it is asked for: a run names four of hundreds.

    Every line that begins with a bracket begins a table (a test holds each file against all of it parsed at once).
    """

    def __init__(self, path: Path) -> None:
        before, *tables = HEAD.split(_text(path))
        self._path, self._known, self._texts = path, _parsed(path, before), dict[str, str]()
        for table in tables:
            name = NAME.match(table)
            key = "" if name is None else name[1] or name[2]
            self._texts[key] = self._texts.get(key, "") + table
        self._names = tuple(dict.fromkeys((*self._known, *self._texts)))  # in the order of the file

    def __getitem__(self, name: str) -> Any:
        if name not in self._known:
            self._known |= _parsed(self._path, self._texts[name])
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@cache
def shipped(kind: str) -> Table:
    """All entries of one kind, as in its file, but for those with a fault that no description shows; not to be written
    to."""
    return {name: entry(kind, name) for name in written(kind) if name not in _faults(kind)}


@cache
def entry(kind: str, name: str) -> Table:
    """One entry, by the catalog's spelling of its name. Raises CatalogError for a fault that no description shows."""
    found, more = _over(written(kind), name), told(kind, name)
    return over_sourced(found, more) if more else found


@cache
def _faults(kind: str) -> dict[str, str]:
    """By name what is wrong with the entries that are left out."""
    faults = {}
    for name in written(kind):
        try:
            entry(kind, name)
        except CatalogError as error:
            faults[name] = str(error)
    return faults


CONSTANTS = "constants.toml"


@cache
def _constants() -> Table:
    return read_toml(FOLDER / CONSTANTS) if (FOLDER / CONSTANTS).is_file() else {}


def told(kind: str, name: str) -> Table:
    """What published speeds tell of an entry (constants.toml), with their source; nothing of most."""
    fields = _constants().get(kind, {}).get(name, {})
    return {**fields, "sources": dict.fromkeys(fields, TOLD)} if fields else {}


@cache
def written(kind: str) -> Mapping[str, Any]:
    """All entries of one kind as they are written, with their `like`."""
    if kind not in KINDS:
        raise CatalogError(f"kind {kind!r}: not one of {', '.join(KINDS)}")
    return Written(FOLDER / KINDS[kind])


def _over(table: Mapping[str, Any], name: str, *above: str) -> Table:
    """An entry over the one that it is `like`: its keys, and those of its tables, in the place of that one's."""
    if not isinstance(table[name], dict):
        raise CatalogError(f"{name} = {table[name]!r}: must be a table")
    entry = dict(table[name])
    aliases = entry.get("aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(word, str) for word in aliases):
        raise CatalogError(f"aliases = {aliases!r}: must be a list of names")
    like = entry.pop("like", None)
    if like is None:
        return entry
    if not isinstance(like, str) or like not in table or like in (name, *above):
        raise CatalogError(f"like = {like!r}: must be another entry of the same file")
    return over_sourced(_over(table, like, name, *above), entry)


def over_sourced(base: Table, entry: Table) -> Table:
    """`base` with the keys of `entry`, whose `sets` need sources of their own."""
    gone = entry.get("sets", {}) if isinstance(entry.get("sets"), dict) else {}
    sources = {key: text for key, text in base.get("sources", {}).items() if key not in gone}
    return over({**base, "sources": sources}, entry)


def over(base: Table, entry: Table) -> Table:
    """`base` with the keys of `entry`; of a table of both, one so made; `set`, and what is no table, is replaced."""
    both = {
        key: over(base[key], value)
        if isinstance(value, dict) and isinstance(base.get(key), dict) and key != "set"
        else value
        for key, value in entry.items()
    }
    return {**base, **both}


@cache
def _own_names(kind: str) -> dict[str, str]:
    return {normal(name): name for name in written(kind)}


@cache
def _index(kind: str) -> dict[str, str]:
    index = {}
    for name, entry in shipped(kind).items():
        for word in (name, *entry.get("aliases", ())):
            index[normal(word)] = name
    return index


def find(kind: str, name: str) -> str:
    """The catalog's spelling of `name`, an organisation in front (`org/name`) ignored; CatalogError if
    unknown."""
    own = _own_names(kind).get(normal(name))  # no two entries have a name or an alias in common
    if own is not None and _is_sound(kind, own):
        return own
    index = _index(kind)
    for word in (name, name.rsplit("/", 1)[-1]):
        if normal(word) in index:
            return index[normal(word)]
    for faulty, fault in _faults(kind).items():
        if normal(faulty) == normal(name):
            raise CatalogError(f"{kind} {faulty}: {fault}")
    known = [*shipped(kind), *(a for e in shipped(kind).values() for a in e.get("aliases", ()))]
    guess = (
        did_you_mean(name, known, NEAR_ENGINE if kind == "engine" else NEAR) or f"; known: {', '.join(shipped(kind))}"
    )
    if kind == "model" and name.endswith((".gguf", ".safetensors")):
        raise CatalogError(
            f"model {name[-60:]!r}: is of weights; give a name, or what python -m sim.model makes of a config.json"
        )
    raise CatalogError(f"{kind} {name[:60]!r}: not in the catalog{guess}")


def _is_sound(kind: str, name: str) -> bool:
    try:
        entry(kind, name)
    except CatalogError:
        return False
    return True


def precision_bits(precision: str) -> float:
    """Bits per weight, scales counted, of a named precision (`precisions.toml`); CatalogError if unknown."""
    return float(entry("precision", find("precision", precision))["bits"])


def cpu_gops_per_core(precision: str) -> float:
    """Operations of one core on weights of a named precision, 1e9 a second at `single_thread` 1."""
    return float(entry("precision", find("precision", precision)).get("cpu_gops_per_core", 30.0))


def weight_bytes(params: int, precision: str) -> int:
    """Bytes that `params` weights take at `precision`, rounded up."""
    return math.ceil(params * precision_bits(precision) / 8)


def entry_or_file(kind: str, name: str) -> tuple[str, str, Table]:
    """What `name` stands for, as (label for messages, name, table): an entry, or a TOML file of the same
    keys.

    A name that ends in .toml is a file; any other is looked up first, then among what is in memory and what plug-ins
    bring, and taken as a file when there is one.
    """
    if (
        kind == "hardware" and name in written("machine") and _is_sound("machine", name)
    ):  # of the evidence, to the letter
        return f"machine {name}", name, dict(entry("machine", name))
    if not name.lower().endswith(".toml"):
        try:
            canonical = find(kind, name)
            return f"{kind} {canonical}", canonical, dict(entry(kind, canonical))
        except CatalogError:
            if (found := held(kind, name)) is not None:
                label, table = found
                return label, name, read_toml(table) if isinstance(table, Path) else dict(table)
            if not Path(name).is_file():
                raise
    return name, Path(name).stem, read_toml(name)


def lineage(kind: str, name: str) -> tuple[str, ...]:
    """What `name` stands for (a file: as it is given), the entry that it is `like`, and so on; CatalogError if
    unknown."""
    label, canonical, table = entry_or_file(kind, name)
    is_entry, entries = label == f"{kind} {canonical}" and canonical in written(kind), written(kind)
    out, at = ([], canonical) if is_entry else ([name], table.get("like"))
    while at:
        out.append(find(kind, at))
        at = entries[out[-1]].get("like")
    return tuple(out)
