"""`python -m traces card`: a trace as a data set that others can load, with the card that Hugging Face's hub reads."""

import argparse
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from traces.command import one_of, out_folder
from traces.foreign.formats import parquet
from traces.format import npz
from traces.format.trace import RoutingTrace
from traces.statistics.describe import LOUD, describe
from traces.statistics.stats import info

TO = ("parquet", "npz")
MOST = 400  # letters of one of meta's values
UNKNOWN = "licence: unknown"
# Licences that the hub knows by these words; any other is `other`, with its name.
LICENCES = (
    "apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "odc-by", "odbl",
    "cdla-permissive-2.0", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "agpl-3.0", "openrail",
)  # fmt: skip
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B")
COLUMNS = {
    "sequence": ("int32", "which request a token belongs to; a request's rows stand together, its prompt first"),
    "position": ("int32", "its place in that request"),
    "prefill": ("bool", "a token of the prompt (true) or a generated one"),
    "token_ids": ("int32", "the token"),
    "experts": ("list of int16 [MoE layers][top-k]", "the experts that the router chose; -1 = none"),
    "weights": ("list of floats [MoE layers][top-k]", "their weights, as the model applies them"),
    "resident": ("list of bool [MoE layers][top-k]", "what the engine that recorded it found in its cache"),
    "logits": ("list of float16 [MoE layers][experts]", "the router's logits"),
    "lookahead": ("list of int16 [distances][MoE layers][m]", "experts predicted from earlier layers; -1 = none"),
}
SAID = (
    "model",
    "n_layers",
    "moe_layers",
    "n_experts",
    "top_k",
    "real",
    "format_version",
    "doubts",
    "dropped",
    "groups",
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """What `card` takes."""
    command.add_argument("file", metavar="TRACE", help="a .npz file, or the name of a shipped sample")
    command.add_argument("--out", metavar="FOLDER", help="a new one (default: NAME-dataset)")
    command.add_argument(
        "--to", metavar="FORMAT", default="parquet", help="parquet (default), one row per token; or npz"
    )
    command.add_argument("--force", action="store_true", help="put it into a folder that holds something")


def card(options: argparse.Namespace) -> None:
    """Run the command. Raises UserError, one line."""
    to, path = one_of("format", options.to, TO), npz.find(options.file)
    trace = npz.read(path)
    folder = Path(options.out if options.out is not None else f"{path.stem}-dataset")
    there = () if options.force or not folder.is_dir() else sorted(os.listdir(folder))[:3]
    _publish(trace, out_folder(folder, there), path.stem, to)
    print(f"{folder}: README.md, trace.{to}")
    if not trace.real:
        print(f"  {LOUD}")
    if not _licence(trace):
        print(f"  ! {UNKNOWN}; whoever may give one: python -m traces convert ... --licence TEXT")


def _publish(trace: RoutingTrace, folder: Path, name: str, to: str) -> None:
    """Both files into the folder, or none of them."""
    draft = Path(tempfile.mkdtemp(dir=folder.absolute().parent, prefix=f".{folder.name}."))
    try:
        file = draft / f"trace.{to}"
        parquet.write(trace, file) if to == "parquet" else npz.write(file, trace)
        (draft / "README.md").write_text(text(trace, name, to), encoding="utf-8")
        os.chmod(draft, 0o755)
        if not folder.exists() or not os.listdir(folder):
            os.replace(draft, folder)
            return
        for written in (file.name, "README.md"):
            os.replace(draft / written, folder / written)
        for other in (f"trace.{each}" for each in TO if each != to):  # what an earlier card was of
            (folder / other).unlink(missing_ok=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def text(trace: RoutingTrace, name: str, to: str) -> str:
    """The card: what the hub reads, then what people read."""
    parts = [
        _front(trace, name, to),
        f"# Expert routing of {_plain(trace.model)}\n",
        _what(trace),
        _licence_part(trace),
    ]
    parts += ["## Statistics\n\n````text\n" + describe(info(trace), name).replace("````", "'''") + "\n````\n"]
    parts += [_doubts(trace), _provenance(trace), _columns(trace, to), _loading(to)]
    return "\n".join(part for part in parts if part)


def _front(trace: RoutingTrace, name: str, to: str) -> str:
    """YAML between two lines of ---; words of the trace's author as JSON strings, which are YAML."""
    licence = _licence(trace).lower()
    lines = [f"license: {licence if licence in LICENCES else 'other' if licence else 'unknown'}"]
    if licence and licence not in LICENCES:
        lines.append(f"license_name: {json.dumps(_licence(trace))}")
    tags = ["mixture-of-experts", "routing-traces", *([] if trace.real else ["synthetic"])]
    lines += [f"pretty_name: {json.dumps(name)}", "tags:", *(f"- {tag}" for tag in tags)]
    lines += ["size_categories:", f"- {SIZES[max(0, min(len(str(trace.n_tokens)) - 3, len(SIZES) - 1))]}"]
    if to == "parquet":
        files = ["  data_files:", "  - split: train", "    path: trace.parquet"]
        lines += ["configs:", "- config_name: default", *files]
    return "\n".join(["---", *lines, "---", ""])


def _what(trace: RoutingTrace) -> str:
    loud = "" if trace.real else f"**{LOUD.strip('* ')}.**\n\n"
    shape = f"{trace.n_tokens:,} tokens of {len(trace.requests()[0]):,} requests, {trace.n_moe_layers} MoE layers"
    what = f"Which experts the router of each MoE layer chose, token by token: {shape}, top-{trace.top_k}"
    return f"{loud}{what} of {trace.n_experts} experts.\n"


def _licence(trace: RoutingTrace) -> str:
    return str(trace.meta.get("licence") or "").strip()


def _licence_part(trace: RoutingTrace) -> str:
    said = _licence(trace)
    if said:
        return f"## Licence\n\n{_plain(said)}\n"
    return f"> **{UNKNOWN.capitalize()}.** The trace does not say under which licence it may be used: ask its author.\n"


def _doubts(trace: RoutingTrace) -> str:
    """What is unlikely in the trace, and what of its source is not in it."""
    lines = [_plain(doubt) for doubt in _list(trace.meta.get("doubts"))]
    dropped = trace.meta.get("dropped")
    lines += [
        f"left out: {_plain(n)} {_plain(why)}" for why, n in (dropped if isinstance(dropped, dict) else {}).items()
    ]
    return "## Doubts\n\n" + "\n".join(f"- {line}" for line in lines) + "\n" if lines else ""


def _provenance(trace: RoutingTrace) -> str:
    """How it was captured, as far as the trace says."""
    rows = {key: value for key, value in trace.meta.items() if key not in (*SAID, "licence")}
    if not rows:
        return ""
    said = {key: json.dumps(value) if isinstance(value, dict | list) else str(value) for key, value in rows.items()}
    cut = {key: value if len(value) <= MOST else value[:MOST] + "..." for key, value in said.items()}
    lines = [f"| {_plain(key)} | {_plain(value)} |" for key, value in cut.items()]
    return "## How it was captured\n\n| | |\n|---|---|\n" + "\n".join(lines) + "\n"


def _columns(trace: RoutingTrace, to: str) -> str:
    lines = ["| column | type | |" if to == "parquet" else "| array | | |", "|---|---|---|"]
    for name in (name for name in COLUMNS if trace.has(name)):
        kind, what = COLUMNS[name]
        called = parquet.column(name) if to == "parquet" else name
        lines.append(f"| {called} | {kind if to == 'parquet' else getattr(trace, name).dtype.name} | {what} |")
    layers = ", ".join(map(str, trace.meta["moe_layers"]))
    one = "One row per token" if to == "parquet" else "Arrays of as many rows as tokens"
    return f"## Columns\n\n{one}. MoE layers, counted from 0: {layers}.\n\n" + "\n".join(lines) + "\n"


def _loading(to: str) -> str:
    if to == "parquet":
        code = 'from datasets import load_dataset\n\nrows = load_dataset("FOLDER", split="train")'
        back = "python -m traces convert FOLDER/trace.parquet trace.npz\npython -m sim.run --trace trace.npz"
    else:
        code = 'import numpy as np\n\ntrace = np.load("FOLDER/trace.npz")  # `datasets` does not read a .npz'
        back = "python -m sim.run --trace FOLDER/trace.npz"
    return f"## Loading\n\n```python\n{code}\n```\n\nIn the simulator that wrote it:\n\n```console\n{back}\n```\n"


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _plain(value: object) -> str:
    """One line of printable ASCII that Markdown takes as it is: meta is the file's author's."""
    line = "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in str(value))
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", line)
