"""The catalog for people who choose from it: a table of each kind, and every figure of an entry with its source."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sim.catalog.engine_spec import Engine
from sim.catalog.files import entry_or_file, find, normal, shipped
from sim.catalog.hardware_spec import Hardware, Host
from sim.catalog.held import names as plugged
from sim.catalog.held import origin
from sim.catalog.link_spec import Link
from sim.catalog.load import load_engine, load_hardware, load_host, load_link, load_model
from sim.catalog.model_spec import ModelSpec
from sim.catalog.parts import Entry
from sim.errors import CatalogError

WIDTH = 120  # of a table; the words at the end of a line are cut to it
PRECISIONS = ("bf16", "q8", "q4-k-m")  # in which sizes of models are shown
LARGE = 1e9  # bytes of the copy at whose rate a link is shown
Cells = dict[str, float | str | None]


@dataclass(frozen=True)
class Kind:
    """How entries of a kind are listed. load: by name or file; cells: what a user chooses by, column -> value (None:
    not known); words: at the end of the line; legend: above the table; sorted: by name, else as in the file."""

    load: Callable[[str], Any]
    cells: Callable[[Any], Cells]
    words: Callable[[Any], str]
    legend: str = ""
    sorted: bool = True


def _model(m: ModelSpec) -> Cells:
    shape: Cells = {"layers": m.n_layers, "MoE": m.n_moe_layers, "experts": m.n_experts, "top-k": m.top_k}
    whole = {f"{p} GB": (m.dense_bytes(p) + m.n_routed * m.expert_bytes(p)) / 1e9 for p in PRECISIONS}
    return shape | whole | {f"{p} MB": m.expert_bytes(p) / 1e6 for p in PRECISIONS}


def _hardware(h: Hardware) -> Cells:
    links, host = {"link GB/s": h.link, "pageable GB/s": h.pageable_link}, h.host
    held = None if h.gpu is None else h.gpu.mem_mib or (h.gpu.mem_gb or 0) * 1e9 / 2**20
    return {
        "VRAM GiB": None if held is None else held / 2**10,
        "usable GiB": None if h.mem_bytes is None else h.mem_bytes / 2**30,
        "GPU GB/s": None if h.gpu is None else h.gpu.hbm_gb_per_s,
        **{name: None if link is None else link.rate(LARGE) for name, link in links.items()},
        "host GB/s": None if host is None else host.read_rate(),
        "RAM GB": None if host is None else host.ram_gb,
    }


def _of_what(h: Hardware) -> str:
    named = [part.name or "its own" for part in (h.gpu, h.host) if part is not None]
    return ", ".join(name for name in named if normal(name) != normal(h.name)) if named else "durations outright"


def _host(h: Host) -> Cells:
    return {"GB/s": h.read_rate(), "RAM GB": h.ram_gb, "sockets": h.sockets, "cores": h.cores}


def _link(link: Link) -> Cells:
    return {"memory": link.memory, "GB/s": link.rate(LARGE), "set-up us": link.setup_ns / 1e3}


def _engine(engine: Engine) -> str:
    return engine.does or engine.source


KINDS = {
    "model": Kind(load_model, _model, lambda m: "", "GB: all weights at a precision; MB: one expert"),
    "hardware": Kind(
        load_hardware,
        _hardware,
        _of_what,
        "VRAM: as the driver reports it, usable by a run; link: to the GPU, page-locked, pageable; GB/s: 1e9 bytes/s",
    ),
    "host": Kind(load_host, _host, lambda host: str(host.note), "GB/s: 1e9 bytes/s, weights read by all threads"),
    "link": Kind(load_link, _link, lambda link: str(link.note), "GB/s: 1e9 bytes/s, one copy of 1 GB to the GPU"),
    "engine": Kind(load_engine, lambda engine: {}, _engine, sorted=False),
}


def table(kind: str) -> str:
    """Every entry of a kind of KINDS, a line each, aligned, at most WIDTH columns; of one that is wrong what is."""
    rows = {name: _row(KINDS[kind], name) for name in names(kind)}
    columns = list(dict.fromkeys(column for cells, _ in rows.values() for column in cells))
    texts = {name: [_text(cells.get(column)) for column in columns] for name, (cells, _) in rows.items()}
    heads = [[column.partition(" ")[part] for column in columns] for part in (0, 2)]  # what, and its unit
    wide = [max(len(text) for text in column) for column in zip(*heads, *texts.values(), strict=True)]
    first = max(map(len, rows))
    lines = [KINDS[kind].legend, *(_line("", first, head, wide, "") for head in heads)] if columns else []
    lines += [_line(name, first, texts[name], wide, rows[name][1]) for name in rows]
    unused = [name for name in plugged(kind) if _is_ours(kind, name)]
    return "\n".join(
        [*lines, *(f"{name.ljust(first)}  built in; the plug-in of {origin(name)} is not used" for name in unused)]
    )


def names(kind: str) -> list[str]:
    """Of all entries, in the order in which they are listed; plug-ins last, of use or not."""
    more = [name for name in plugged(kind) if not _is_ours(kind, name)]
    return [*(sorted(shipped(kind)) if KINDS[kind].sorted else shipped(kind)), *more]


def _is_ours(kind: str, name: str) -> bool:
    """Whether the catalog has an entry of that name, or alias."""
    try:
        return bool(find(kind, name))
    except CatalogError:
        return False


def _row(kind: Kind, name: str) -> tuple[Cells, str]:
    try:
        entry = kind.load(name)
    except CatalogError as error:
        return {}, f"BROKEN: {error}"
    also = f"also {', '.join(sorted(entry.aliases, key=len))}" if entry.aliases and kind.sorted else ""
    return kind.cells(entry), "; ".join(part for part in (kind.words(entry), also) if part)


def _line(name: str, first: int, texts: list[str], wide: list[int], words: str) -> str:
    cells = [text.rjust(width) for text, width in zip(texts, wide, strict=True)]
    line = "  ".join([name.ljust(first), *cells, words]).rstrip()
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 3].rpartition(' ')[0]} ..."


def _text(value: float | str | None) -> str:
    if isinstance(value, float):
        return f"{value:,.{0 if value >= 1000 else 1 if value >= 10 else 2}f}"
    return "-" if value is None else str(value)


def told(kind: str, name: str = "") -> dict[str, dict[str, Any]]:
    """Every entry of a kind of KINDS, or one by name or file, as an object for JSON: `aliases`, `note`, `listed` (its
    cells) and `figures` (key -> `value` and `source`); of one that is wrong `broken`, one line.
    Raises CatalogError for a name that is unknown, or an entry asked for by name that is wrong."""
    if name:
        return {entry_or_file(kind, name)[1]: _object(KINDS[kind], name)}
    out = {}
    for each in names(kind):
        try:
            out[each] = _object(KINDS[kind], each)
        except CatalogError as error:
            out[each] = {"broken": str(error)}
    return out


def _object(kind: Kind, name: str) -> dict[str, Any]:
    entry = kind.load(name)
    known = {column: value for column, value in kind.cells(entry).items() if value is not None}
    return {"aliases": [*entry.aliases], "note": entry.note, "listed": known, "figures": figures(entry)}


def figures(entry: Entry, front: str = "") -> dict[str, dict[str, Any]]:
    """Every figure of an entry and of its parts by its key (`gpu.tflops.bf16`): `value`, and `source`."""
    out: dict[str, dict[str, Any]] = {}
    for key in type(entry).model_fields:
        value = getattr(entry, key)
        if key in Entry.model_fields or value is None or value in ("", {}):
            continue
        if isinstance(value, Entry):
            out |= figures(value, f"{front}{key}.")
            continue
        for part, figure in (value if isinstance(value, Mapping) else {"": value}).items():
            source = entry.sources.get(part) or entry.sources.get(key) or _source(entry, key)
            out[f"{front}{key}{f'.{part}' if part else ''}"] = {"value": figure, "source": source}
    return out


def _source(entry: Entry, key: str) -> str:
    """Of a figure that has none of its own."""
    if key in entry.model_fields_set:
        return entry.source
    where = type(entry).__module__.replace(".", "/")
    return f"the default: {where}.py, class {type(entry).__name__}"


def told_text(found: Mapping[str, Mapping[str, Any]]) -> str:
    """What `told` gives of entries that are right, a line for each figure; its source by a number, below them."""
    lines: list[str] = []
    for name, entry in found.items():
        also = f" (also {', '.join(entry['aliases'])})" if entry["aliases"] else ""
        lines.append(name + also + f": {entry['note']}" * bool(entry["note"]))
        lines += [f"  {column}: {_text(value)}" for column, value in entry["listed"].items()]
        every = entry["figures"]
        different = dict.fromkeys(figure["source"] for figure in every.values())
        sources = {source: number for number, source in enumerate(different, 1)}
        lines += [f"  {key} = {figure['value']} [{sources[figure['source']]}]" for key, figure in every.items()]
        lines += [f"[{number}] {source}" for source, number in sources.items()]
    return "\n".join(lines)
