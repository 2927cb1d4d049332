"""RunSpec on a command line: its flags, its TOML file, and the spec that the two come to.

What a flag takes and says stands with its field (`sim.spec`); here is how they are grouped.
"""

import argparse
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sim.engines import KNOBS, same_parameter
from sim.errors import SpecError
from sim.spec import CHANGES, NUMBER, VERSION, WHOLE, RunSpec
from traces.command import Parser

OF_THE_HARDWARE = (*CHANGES, "ram")  # in the place of what --hardware says
GROUPS: dict[str, tuple[str, ...]] = {
    "what runs": (
        "trace", "model", "hardware", *OF_THE_HARDWARE, "engine", "engine_as_costs", "precision", "kv_precision",
        "vram", "context",
    ),
    "cache and policies": (
        "cache", "cache_scope", "cache_spread", "eviction", "prefetch", "prefetch_budget", "miss", "rerank",
        "placement", "transfer_order", "transfer_chunk", "expert_group", "set", "calibration",
    ),
    "on a miss": (
        "bulk", "bulk_rows", "bulk_touch", "stages", "serial", "merge", "whole_layer", "ahead", "beside", "defer",
        "link_share", "cpu_visit_us", "n_cpu_moe", "override_tensor", "dense_on_host",
    ),
    "how it runs": (
        "requests", "reset", "batch", "prefill_chunk", "as_decode", "skip_prompts", "speculate", "accept", "draft_ns",
        "context_offset", "warmup_steps", "warmup_share", "max_steps", "seed", "machine",
    ),
    "cost and energy": ("price_per_hour", "watts", "idle_watts"),
}  # fmt: skip
TYPES = {WHOLE: int, NUMBER: float}  # of a flag's value, by its metavar; text without one
REPEATED = ("set", "override_tensor")
SHORT = {"override_tensor": ("-ot",)}  # llama.cpp's


def metavar(name: str) -> str | None:
    """The word for a field's value; None where its flag takes none."""
    shown = RunSpec.model_fields[name].json_schema_extra
    return str(word) if isinstance(shown, dict) and (word := shown["metavar"]) is not None else None


def add_flags(group: Any, names: Iterable[str], defaults: bool = False, lists: bool = False) -> None:
    """The flags of these fields to a parser or a group of one; None is what was not given. defaults: say them. lists:
    values are text, with commas between."""
    for name in names:
        field, word = RunSpec.model_fields[name], metavar(name)
        said = f" (default: {field.default})"
        told = "default" in str(field.description) or name in ("trace", "set") or field.default is None
        takes: dict[str, Any] = {"action": "store_true"} if word is None else {"metavar": word}
        takes |= (
            {"type": TYPES[word]} if word in TYPES and not lists else {"action": "append"} if name in REPEATED else {}
        )
        text = f"{field.description}{said if defaults and not told else ''}"
        group.add_argument(f"--{name.replace('_', '-')}", *SHORT.get(name, ()), default=None, help=text, **takes)


def add_groups(out: Parser, leave_out: Sequence[str] = (), lists: bool = False) -> None:
    """All fields' flags, in their groups; those that another command has no use for are None instead. lists: see
    `add_flags`."""
    out.set_defaults(**dict.fromkeys(leave_out))
    for title, names in GROUPS.items():
        mine = [name for name in names if name not in leave_out]
        add_flags(out.add_argument_group(title), mine, defaults=True, lists=lists)


def add_hardware(group: Any, default: str) -> None:
    """--hardware and what may be asked for in the place of what it says, for a command that makes its runs itself."""
    add_flags(group, ("hardware", *OF_THE_HARDWARE))
    group.set_defaults(hardware=default)


def hardware_fields(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_hardware` has asked, as fields of a run. Raises SpecError."""
    names = ("hardware", *OF_THE_HARDWARE)
    spec = RunSpec.of({"trace": "", **given(args, names)})
    return {name: value for name in names if (value := getattr(spec, name)) is not None}


def settings(pairs: Sequence[str]) -> dict[str, Any]:
    """--set POLICY.PARAM=VALUE: numbers, true and false as such, anything else as text. Raises SpecError."""
    out: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise SpecError(f"set: {pair}: must be POLICY.PARAM=VALUE")
        try:
            out[key] = json.loads(text.lower() if text.lower() in ("true", "false") else text)
        except (ValueError, RecursionError):  # no JSON, or more digits or brackets than Python reads
            out[key] = text
    return out


def flag_words(fields: Mapping[str, Any]) -> list[str]:
    """The command line's words that give these fields; a parameter as part of `set`, or as `set.POLICY.PARAM`."""
    out = []
    for name, value in fields.items():
        if name == "set":
            out += flag_words({f"set.{key}": given for key, given in value.items()})
        elif name.startswith("set."):
            out += ["--set", f"{name.removeprefix('set.')}={value}"]
        else:
            said = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
            out += [f"--{name.replace('_', '-')}", *([said] if metavar(name) is not None else [])]
    return out


def config(path: str | None) -> dict[str, Any]:
    """The fields that a TOML file gives; none without one. Of a saved spec, which says its `version`, those that were
    asked for: what its engine set gives way with it. Raises SpecError."""
    if path is None:
        return {}
    return asked_of({key.replace("-", "_"): value for key, value in read_toml(path).items()}, f"config: {path}: ")


def asked_of(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields themselves; of a saved spec, which says its `version`, those that were asked for. Raises SpecError,
    one line that begins with `where`."""
    version, fields = fields.get("version"), {name: value for name, value in fields.items() if name != "version"}
    if version not in (None, VERSION):
        raise SpecError(f"{where}version: must be {VERSION}; what the fields of another mean may differ")
    fields |= {"set": _flat(fields["set"])} if isinstance(fields.get("set"), Mapping) else {}
    spec = RunSpec.of({"trace": "", **fields}, where)
    return fields if version is None else spec.asked()


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of --config. Raises SpecError, one line, where it cannot be read or is no TOML."""
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise SpecError(f"config: {path}: {(error.strerror or 'cannot be read').lower()}") from None
    except (ValueError, RecursionError) as error:
        right = (
            "; write it as TOML: one `field = value` a line" if str(path).endswith((".json", ".yaml", ".yml")) else ""
        )
        raise SpecError(f"config: {path}: is no TOML: {error}{right}") from None


def _flat(table: Mapping[str, Any], front: str = "") -> dict[str, Any]:
    """Parameters by their whole names; in TOML `random.late = 1` is a table of a table."""
    out: dict[str, Any] = {}
    for key, value in table.items():
        out |= _flat(value, f"{front}{key}.") if isinstance(value, Mapping) else {f"{front}{key}": value}
    return out


def given(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """What the command line gives of these fields. Several -ot are one text, as llama.cpp takes it."""
    every = {name: getattr(args, name) for name in names}
    if every.get("override_tensor"):
        every["override_tensor"] = ",".join(every["override_tensor"])
    return {name: value for name, value in every.items() if value is not None and value is not False}


def spec_of(args: argparse.Namespace, example: str = "--trace mixtral.npz") -> RunSpec:
    """The spec from the config file and the flags, which win. example: what would be enough. Raises SpecError."""
    fields, flags = config(args.config), given(args, RunSpec.model_fields)
    if flags.keys() & {*KNOBS}:  # who is resident is said by one of them
        fields = {name: value for name, value in fields.items() if name not in KNOBS}
    parameters = settings(args.set or [])
    kept = {
        key: old
        for key, old in fields.get("set", {}).items()
        if not any(same_parameter(key, new) for new in parameters)
    }
    fields |= flags | {"set": kept | parameters}
    if not fields.get("trace"):
        raise SpecError(f"trace: missing; give --trace FILE, or the name of a shipped sample, such as: {example}")
    return RunSpec.of(fields)
