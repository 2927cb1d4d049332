"""`python -m traces convert`: other tools' files to traces and frequency profiles (--from), and back (--to)."""

import argparse
from pathlib import Path
from typing import Any

from traces.command import add_force, one_of, out_file
from traces.errors import TraceError
from traces.foreign.ask import ASKED, Ask, parse_columns
from traces.foreign.format import Writer
from traces.foreign.models import model, parse_layers
from traces.foreign.recorded import recorded
from traces.foreign.registry import FLAGS, READERS, WRITERS, detected, names, reader_of
from traces.format import npz, placement, profile
from traces.format.placement import Placement
from traces.format.profile import Profile
from traces.format.trace import RoutingTrace
from traces.statistics.describe import LOUD, plain, size
from traces.statistics.doubts import lost_cells, lost_words


def add_arguments(command: argparse.ArgumentParser, helps: bool = False) -> None:
    """What `convert` takes; helps: its help is asked for, which lists plug-ins, too."""
    known = ", ".join(names() if helps else READERS)
    command.add_argument("--from", dest="format", metavar="FORMAT", help=f"told by content; {known}")
    command.add_argument("--to", metavar="FORMAT", help=f"write instead: {', '.join(WRITERS)}")
    command.add_argument("file", metavar="IN")
    command.add_argument("out", metavar="OUT", nargs="?", help="a .npz (default: IN's name); with --to, what it says")
    add_force(command)
    command.add_argument(
        "--model",
        help="name of the model, looked up in the catalog; goes into the trace (default: the file's, if it has one)",
    )
    asked = command.add_argument_group("what a source does not say")
    asked.add_argument("--n-experts", type=int, metavar="N", help="routed experts per layer (default: the catalog's)")
    asked.add_argument("--top-k", type=int, metavar="N", help="experts per token (default: the catalog's, the file's)")
    asked.add_argument("--n-layers", type=int, metavar="N", help="all layers (default: the catalog's, highest + 1)")
    asked.add_argument("--moe-layers", metavar="LIST", help="MoE layers, such as 1-26 (default: the catalog's)")
    asked.add_argument(
        "--phase", metavar="PHASE", help="prefill, decode, by-batch (passes of several tokens are prompts)"
    )
    asked.add_argument("--prompt-tokens", type=int, metavar="N", help="prompt tokens of every request")
    asked.add_argument("--prompt-start", type=int, metavar="N", help="position of a request's first row")
    asked.add_argument("--requests", metavar="RULE", help="one, step, prompt, or tokens each: what a request is")
    asked.add_argument(
        "--verify", type=int, metavar="N", help="passes of 2 to N tokens verify drafts, which are no prompts (by-batch)"
    )
    asked.add_argument("--iteration", type=int, metavar="N", help="which checkpoint of several")
    asked.add_argument("--interleave", type=int, metavar="N", help="so many sequences lie side by side, row by row")
    asked.add_argument("--columns", metavar="MAP", help="its names for ours, such as token=token_pos,experts=topk_ids")
    asked.add_argument("--values", metavar="KIND", help="logits or probabilities: what a number for every expert is")
    kept = command.add_argument_group("kept in the file")
    kept.add_argument("--synthetic", action="store_true", help="not a capture of a real model")
    kept.add_argument("--source", help="where the log comes from")
    kept.add_argument("--licence", help="of the log")


def convert(options: argparse.Namespace) -> None:
    """Run the command. Raises UserError, one line."""
    if options.to is not None:
        _write_to(options)
        return
    path = Path(options.file)
    out = Path(options.out or f"{path.stem}.npz")
    ask = _ask(options, out)
    name = options.format or detected(path, ask.model, ask.columns is not None)
    reader = READERS[name] if name in READERS else reader_of(one_of("format", name, names()))
    if options.model is None and not reader.names_model:
        raise TraceError(f"{path}: a trace names its model; required: --model NAME")
    for flag in FLAGS:
        if getattr(options, flag) is not None and flag not in reader.flags:
            raise TraceError(f"--{flag.replace('_', '-')}: {name} does not take it")
    if not path.exists():
        raise TraceError(f"{path}: No such file or directory")
    if out.suffix in (".pt", ".npy", ".json", ".jsonl", ".parquet", ".bin", ".csv"):
        raise TraceError(f"{out}: a trace or profile is a .npz; --to writes other formats")
    if out.is_file():
        out_file(out, options.force)
    found = reader.read(path, ask)
    if not reader.exact:
        found = recorded(path, found, ask)
    for flag in ask.unused():
        raise TraceError(f"{path}: says by itself what --{flag.replace('_', '-')} says; without the flag it is read")
    if isinstance(found, Profile):
        profile.write(out, found)
        shape = f"{found.n_moe_layers} MoE layers x {found.n_experts} experts"
        said = f"frequency profile of {shape} (counts, no trace)"
    else:
        npz.write(out, found)
        said = size(found)
    print(f"{out}: {said}" + ("" if found.meta["real"] else f"; {LOUD}"))
    if options.format is None:
        print(f"  read as {name}: {reader.doc}")
    for line in [*_lost(found), *_notes(found.meta)]:
        print(f"  {line}")


def _ask(options: argparse.Namespace, out: Path) -> Ask:
    def given(*names: str) -> dict[str, Any]:
        return {name: getattr(options, name) for name in names if getattr(options, name) is not None}

    facts, asked = given("n_experts", "top_k", "n_layers", "moe_layers"), given(*ASKED)
    if "columns" in asked:
        asked["columns"] = parse_columns(options.columns)
    if "moe_layers" in facts:
        facts["moe_layers"] = parse_layers(options.moe_layers)
    folder = out.resolve().parent
    return Ask(
        model(options.model or "", **facts),
        real=not options.synthetic,
        scratch=folder if folder.is_dir() else None,
        meta=given("source", "licence"),
        **asked,
    )


def _lost(found: RoutingTrace | Profile) -> list[str]:
    """The cells that are lost, also where they are too few to be a doubt."""
    if isinstance(found, Profile):
        return []
    lost, rows = lost_cells(found)
    words = lost_words(found, lost, rows)
    doubted = any(line.startswith(words) for line in found.meta.get("doubts", ()))
    return [words] if lost.any() and not doubted else []


def _notes(meta: dict[str, Any]) -> list[str]:
    """What was left out, what could not be told apart, and what is unlikely."""
    lines = [f"dropped {count:,} {what}" for what, count in meta.get("dropped", {}).items()]
    if meta.get("ambiguous_rows"):
        lines.append(f"{meta['ambiguous_rows']:,} rows could have been of another request at the same position")
    return lines + [f"! {plain(line)}" for line in meta.get("doubts", [])]


def _write_to(options: argparse.Namespace) -> None:
    """`--to`: from a trace, a profile or a placement."""
    writer = WRITERS[one_of("format", options.to, list(WRITERS))]
    for flag in ("format", "model", "synthetic", "source", "licence", *FLAGS):
        if getattr(options, flag):
            name = "from" if flag == "format" else flag.replace("_", "-")
            raise TraceError(f"--{name}: not with --to, whose IN is a file of this project")
    if options.out is None:
        raise TraceError(f"OUT: missing; {writer.name} writes {writer.doc}")
    out = Path(options.out)
    if out.is_file():
        out_file(out, options.force)
    if out.suffix == ".npz":
        raise TraceError(f"{out}: {writer.name} writes {writer.doc}; another name is required")
    print(f"{out}: {writer.write(_source(npz.find(options.file), writer), out)}")


def _source(path: Path, writer: Writer) -> RoutingTrace | Profile | Placement:
    """The trace, profile or placement of a file. Raises TraceError where the writer can do nothing with it."""
    found: RoutingTrace | Profile | Placement
    if "residents" in npz.array_names(path):
        found = placement.read(path)
    elif profile.is_profile(path):
        found = profile.read(path)
    else:
        found = npz.read(path)
    if not isinstance(found, writer.takes):
        names = {RoutingTrace: "a trace", Profile: "a frequency profile", Placement: "a placement"}
        right = " or ".join(names[kind] for kind in writer.takes)
        raise TraceError(f"{path}: is {names[type(found)]}; {writer.name} is written from {right}")
    return found
