"""python -m sim.run: simulate one run and print what it comes to.

Exit status 0 done, 2 bad input (one line on stderr), 1 a failure of ours.
"""

import argparse
import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sim.errors import SpecError
from sim.policies.registry import TABLES
from sim.spec import RunSpec
from traces.command import Parser, guarded, out_folder, write_bytes
from traces.errors import UserError

GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "what runs": {
        "trace": {"metavar": "FILE|SAMPLE", "help": "routing trace; a name that is no file is a shipped sample"},
        "model": {"metavar": "NAME|FILE", "help": "model whose sizes are charged (default: the trace's)"},
        "hardware": {"metavar": "NAME|FILE", "help": "GPU, link and host, or fixed durations"},
        "engine": {"metavar": "NAME|FILE", "help": "what the inference engine itself costs"},
        "precision": {"metavar": "NAME", "help": "precision of the experts: bf16, q8, q4, mxfp4, ..."},
    },
    "cache and policies": {
        "cache": {"metavar": "0.5|24|20GB", "help": "share of the experts, slots per layer (of the pool), or bytes"},
        "cache_scope": {"metavar": "layer|global", "help": "slots of each layer's own, or one pool"},
        "cache_spread": {
            "metavar": "even|marginal",
            "help": "slots of the layers alike, or where the calibration hits more",
        },
        "eviction": {"metavar": "NAME|FILE.py:F", "help": "which resident makes room"},
        "prefetch": {"metavar": "NAME|FILE.py:F", "help": "what is fetched before it is wanted"},
        "prefetch_budget": {"type": int, "metavar": "N", "help": "prefetches that may join per visit (default: all)"},
        "miss": {"metavar": "NAME|FILE.py:F", "help": "what happens when a wanted expert is not there"},
        "rerank": {"metavar": "NAME|FILE.py:F", "help": "re-ranking of the routed experts"},
        "placement": {"metavar": "NAME", "help": "first residents"},
        "transfer_order": {"metavar": "NAME", "help": "fifo, nearest-layer or probability, among prefetches"},
        "expert_group": {"metavar": "one|ready|all", "help": "how the GPU takes experts (default: the engine's)"},
        "set": {
            "action": "append",
            "metavar": "[KIND.]POLICY.PARAM=VALUE",
            "help": "a parameter of a chosen policy (KIND where two policies have one name)",
        },
        "calibration": {"metavar": "FILE|FRACTION", "help": "what policies are fitted on; never judged"},
    },
    "how it runs": {
        "batch": {"type": int, "metavar": "N", "help": "requests that decode together"},
        "prefill_chunk": {"type": int, "metavar": "N", "help": "tokens of a prefill step"},
        "as_decode": {"action": "store_true", "help": "run prompt rows as decode steps"},
        "context_offset": {"type": int, "metavar": "N", "help": "added to every position"},
        "warmup_steps": {"type": int, "metavar": "N", "help": "first steps that no figure counts"},
        "max_steps": {"type": int, "metavar": "N", "help": "stop after so many steps"},
        "seed": {"type": int, "metavar": "N", "help": "of everything random"},
        "machine": {"metavar": "compiled|simpy", "help": "which machine; they agree to the nanosecond"},
    },
}
LISTS = ("policies", "models", "hardware", "engines")


def parser() -> Parser:
    """One flag per field of RunSpec, in groups, and the flags of the command itself."""
    out = Parser(prog="python -m sim.run", description="Simulate one run.")
    add_flags(out)
    group = out.add_argument_group("input and output")
    group.add_argument("--config", metavar="FILE", help="TOML with any of the fields above; flags win")
    group.add_argument("--out", metavar="DIR", help="write summary.json and record.npz there")
    group.add_argument("--force", action="store_true", help="replace a run that is in DIR already")
    group.add_argument("--record", choices=("none", "summary", "full"), help="what record.npz holds (default: summary)")
    group.add_argument("--json", action="store_true", help="print exactly one JSON object")
    for what in LISTS:
        group.add_argument(f"--list-{what}", action="store_true", help=f"print the {what} and their sources")
    return out


def add_flags(out: Parser, leave_out: Sequence[str] = ()) -> None:
    """The flags of RunSpec's fields, in their groups; those that another command has no use for are None instead."""
    out.set_defaults(**dict.fromkeys(leave_out))
    for title, flags in GROUPS.items():
        group = out.add_argument_group(title)
        for name, options in flags.items():
            if name in leave_out:
                continue
            default = RunSpec.model_fields[name].default
            if name != "set" and "default" not in options["help"] and default is not None and name != "trace":
                options = {**options, "help": f"{options['help']} (default: {default})"}
            group.add_argument("--" + name.replace("_", "-"), **{"default": None, **options})


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    """--set POLICY.PARAM=VALUE: numbers, true and false as such, anything else as text."""
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


def _config(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        with open(path, "rb") as file:
            fields = {key.replace("-", "_"): value for key, value in tomllib.load(file).items()}
    except OSError as error:
        raise SpecError(f"config: {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise SpecError(f"config: {path}: is no TOML: {error}") from None
    return fields | ({"set": _flat(fields["set"])} if isinstance(fields.get("set"), Mapping) else {})


def _flat(table: Mapping[str, Any], front: str = "") -> dict[str, Any]:
    """Parameters by their whole names; in TOML `random.late = 1` is a table of a table."""
    out: dict[str, Any] = {}
    for key, value in table.items():
        out |= _flat(value, f"{front}{key}.") if isinstance(value, Mapping) else {f"{front}{key}": value}
    return out


def _same(key: str, other: str) -> bool:
    """Whether two names are one parameter's, with and without the kind in front."""
    return key == other or key.endswith(f".{other}") or other.endswith(f".{key}")


def spec_of(args: argparse.Namespace) -> RunSpec:
    """The spec from the config file and the flags, which win. Raises SpecError."""
    fields = _config(args.config)
    RunSpec.of({"trace": "", **fields}, f"config: {args.config}: ")
    for name in RunSpec.model_fields:
        value = getattr(args, name)
        if name == "set":
            given = _settings(value or [])
            kept = {key: old for key, old in fields.get("set", {}).items() if not any(_same(key, new) for new in given)}
            fields["set"] = kept | given
        elif value is not None and value is not False:
            fields[name] = value
    if not fields.get("trace"):
        raise SpecError("trace: missing; give --trace FILE, or the name of a shipped sample such as mixtral.npz")
    return RunSpec.of(fields)


def _list(what: str) -> str:
    from sim import catalog

    if what == "policies":
        return _list_policies()
    kind = {"models": "model", "hardware": "hardware", "engines": "engine"}[what]
    return "\n".join(f"{name:<24} {entry.get('source', '')}" for name, entry in catalog.entries(kind).items())


def _list_policies() -> str:
    lines = []
    for kind, policies in TABLES.items():
        lines.append(f"{kind}:")
        for name, policy in policies.items():
            marks = [word for word in ("oracle", "fitted", "lossy") if getattr(policy, word)]
            needs = [f"needs {array}" for array in policy.needs]
            tail = "; ".join([*marks, *needs, *(f"{key}={_short(value)}" for key, value in policy.parameters.items())])
            lines.append(f"  {name:<18} {policy.doc} [{policy.source}]" + (f" ({tail})" if tail else ""))
    return "\n".join(lines)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def simulate(spec: RunSpec, full: bool = False) -> tuple[dict[str, Any], Any]:
    """(summary object, record) of one spec. Raises SpecError, TraceError or CatalogError for what is wrong with it."""
    from sim.outcome.report import result
    from sim.prepare import prepare

    setting = prepare(spec)
    announce_compiling()
    if spec.machine == "simpy":
        from sim.machines.discrete import run
    else:
        from sim.machines.compiled import run
    record = run(setting.plan, full)
    return result(setting, record), record


def announce_compiling() -> None:
    """The first run ever compiles the machine: say so, or it looks as if it hung."""
    from sim.core.jit import CACHE_DIR, compiles

    if compiles() and not any(CACHE_DIR.rglob("*.nbi")):
        message = "compiling the machine for the first time, about half a minute; later runs start at once"
        print(message, file=sys.stderr)


FILES = ("summary.json", "record.npz")  # of a run's folder


def check_out(args: argparse.Namespace) -> None:
    """Before anything runs: where it goes, and that it takes nobody's place. Raises UserError."""
    if args.out is None:
        if args.record not in (None, "none"):
            raise UserError(f"record: {args.record}: nothing keeps it; give --out DIR too")
        return
    out_folder(args.out, () if args.force else FILES)


def write(folder: Path, summary: dict[str, Any], record: Any, kind: str) -> None:
    """`summary.json` and, unless kind is `none`, `record.npz` in a folder that is made, each whole or not at all."""
    from sim.machines.record import save

    folder.mkdir(parents=True, exist_ok=True)
    if kind != "none":
        save(record, folder / "record.npz", {name: summary[name] for name in ("spec", "machine", "trace")})
    text = json.dumps(summary, indent=1) + "\n"
    write_bytes(folder / "summary.json", text.encode())
    if kind == "none":  # a record that lies there is of the run whose place this one takes
        (folder / "record.npz").unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    for what in LISTS:
        if getattr(args, f"list_{what}"):
            print(_list(what))
            return
    spec = spec_of(args)
    check_out(args)
    summary, record = simulate(spec, args.record == "full")
    if args.out is not None:
        write(Path(args.out), summary, record, args.record or "summary")
    if args.json:
        print(json.dumps(summary))
    else:
        from sim.outcome.report import table

        print(table(summary))


if __name__ == "__main__":
    sys.exit(main())
