"""TOML files and names: reading, looking up, guessing what was meant. No pydantic here: listing names stays
cheap."""

import difflib
import math
import tomllib
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


def did_you_mean(word: str, known: list[str], near_by: float = NEAR) -> str:
    """`; did you mean X?`, or nothing when no known word is near."""
    near = difflib.get_close_matches(normal(word), [normal(k) for k in known], n=1, cutoff=near_by)
    near = near or [normal(k) for k in known if len(word) > 2 and normal(k).startswith(normal(word))]
    return f"; did you mean {next(k for k in known if normal(k) == near[0])}?" if near else ""


def read_toml(path: str | Path) -> Table:
    """The tables of a TOML file. Raises CatalogError when it cannot be read, is too large, or is not TOML."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CatalogError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None
    if len(data) > MAX_BYTES:
        raise CatalogError(f"{path}: more than {MAX_BYTES} bytes; a description in TOML is far smaller")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CatalogError(f"{path}: not a TOML file: {' '.join(str(error).split())}") from None


@cache
def shipped(kind: str) -> Table:
    """All entries of one kind, as in its file, but for those with a fault that no description shows; not to be written
    to."""
    return _sound(kind)[0]


@cache
def _sound(kind: str) -> tuple[Table, dict[str, str]]:
    """(entries, by name what is wrong with the others)."""
    if kind not in KINDS:
        raise CatalogError(f"kind {kind!r}: not one of {', '.join(KINDS)}")
    table, sound, faults = written(kind), {}, {}
    for name in table:
        try:
            entry, more = _over(table, name), told(kind, name)
            sound[name] = over_sourced(entry, more) if more else entry
        except CatalogError as error:
            faults[name] = str(error)
    return sound, faults


CONSTANTS = "constants.toml"


@cache
def _constants() -> Table:
    return read_toml(FOLDER / CONSTANTS) if (FOLDER / CONSTANTS).is_file() else {}


def told(kind: str, name: str) -> Table:
    """What published speeds tell of an entry (constants.toml), with their source; nothing of most."""
    fields = _constants().get(kind, {}).get(name, {})
    return {**fields, "sources": dict.fromkeys(fields, TOLD)} if fields else {}


@cache
def written(kind: str) -> Table:
    """All entries of one kind as they are written, with their `like`."""
    return read_toml(FOLDER / KINDS[kind])


def _over(table: Table, name: str, *above: str) -> Table:
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
def _index(kind: str) -> dict[str, str]:
    index = {}
    for name, entry in shipped(kind).items():
        for word in (name, *entry.get("aliases", ())):
            index[normal(word)] = name
    return index


def find(kind: str, name: str) -> str:
    """The catalog's spelling of `name`, an organisation in front (`org/name`) ignored; CatalogError if
    unknown."""
    index = _index(kind)
    for word in (name, name.rsplit("/", 1)[-1]):
        if normal(word) in index:
            return index[normal(word)]
    for faulty, fault in _sound(kind)[1].items():
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


def precision_bits(precision: str) -> float:
    """Bits per weight, scales counted, of a named precision (`precisions.toml`); CatalogError if unknown."""
    return float(shipped("precision")[find("precision", precision)]["bits"])


def cpu_gops_per_core(precision: str) -> float:
    """Operations of one core on weights of a named precision, 1e9 a second at `single_thread` 1."""
    return float(shipped("precision")[find("precision", precision)].get("cpu_gops_per_core", 30.0))


def weight_bytes(params: int, precision: str) -> int:
    """Bytes that `params` weights take at `precision`, rounded up."""
    return math.ceil(params * precision_bits(precision) / 8)


def entry_or_file(kind: str, name: str) -> tuple[str, str, Table]:
    """What `name` stands for, as (label for messages, name, table): an entry, or a TOML file of the same
    keys.

    A name that ends in .toml is a file; any other is looked up first, then among what is in memory and what plug-ins
    bring, and taken as a file when there is one.
    """
    if kind == "hardware" and name in shipped("machine"):  # one of the evidence, by its exact name
        return f"machine {name}", name, dict(shipped("machine")[name])
    if not name.lower().endswith(".toml"):
        try:
            canonical = find(kind, name)
            return f"{kind} {canonical}", canonical, dict(shipped(kind)[canonical])
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
