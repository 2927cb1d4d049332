"""What VALIDATION.md should say of a GPU day, made of the parts' records alone: Markdown.

A part that is not done has no figures; its status stands in the table of parts, with the last line of its log.
"""

import json
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from runtime.gpu.table import Part

Kept = Sequence[tuple[Part, dict[str, Any]]]
MODELS = {"mixtral": "few large experts", "second": "many small experts"}
FEWER = 1 << 20  # bytes, from which a copy's rate says something of the link
TERMS = ("transfer_idle_ns", "transfer_following_ns", "commit_gap_ns", "decide_ns")


def page(kept: Kept, parts: Path, project: dict[str, str]) -> str:
    """kept: parts with their results, as result.json has them; parts: the folder of their folders; project: version
    and sources as they are now."""
    done = {part.name for part, result in kept if result["status"] == "done"}
    sections: dict[str, Callable[[Path], list[str]]] = {
        "versions": machine,
        "copies": copies,
        "calibrate": calibration,
        **{name: validation for name in MODELS},
        "live": live,
    }
    on_gpu = any(result["made_with"].get("device") == "cuda" for _, result in kept)
    lines = ["## What a GPU showed" if on_gpu else "## A dry run without a GPU: no figure counts", ""]
    lines += [*made_by(kept, project), "", *table(kept)]
    for name, section in sections.items():
        if name in done:
            lines += ["", *told(section, parts / name)]
    return "\n".join(lines) + "\n"


def told(section: Callable[[Path], list[str]], folder: Path) -> list[str]:
    """A section, or what is wrong with its record: the page of a day must not end the day."""
    try:
        return section(folder)
    except Exception as error:  # whatever the record holds
        return [f"**{folder.name}**: its record cannot be read: {type(error).__name__} {cell(str(error))}"]


def made_by(kept: Kept, project: dict[str, str]) -> list[str]:
    """The project as it is now, and the parts that it was another when they ran."""
    others: dict[str, list[str]] = {}
    for part, result in kept:
        if result["commands"] and result["made_by"] != project:
            others.setdefault(_named(result["made_by"]), []).append(part.name)
    lines = [f"Made by {_named(project)}."]
    return lines + [f"**Kept from {other}**: {', '.join(names)}." for other, names in others.items()]


def _named(project: dict[str, str]) -> str:
    return f"version {project.get('version', '?')}, sources {project.get('sources', '?')}"


def table(kept: Kept) -> list[str]:
    """The parts: what they show and what became of them."""
    lines = ["| part | shows | status | seconds |", "|---|---|---|---|"]
    for part, result in kept:
        said = ", ".join(cell(text) for text in (result["status"], result["verdict"], result["why"]) if text)
        lines.append(f"| {part.name} | {part.shows} | {said} | {result['seconds']:.0f} |")
    return lines


def machine(folder: Path) -> list[str]:
    """One paragraph."""
    found = read(folder / "versions.json")
    smi = found["nvidia_smi"] or {}
    bus = "PCIe generation {} x{}, driver {}".format(
        *(smi.get(name, "?") for name in ("pcie.link.gen.max", "pcie.link.width.current", "driver_version"))
    )
    gpu = f"{found['gpu']}, {bus}, CUDA {found['cuda']}" if found["gpu"] else "no GPU"
    return [
        f"**Machine**: {gpu}; {found['cores']} cores of {found['cpu']}, {gigabytes(found['host_free_bytes'])} of host "
        f"memory free, {gigabytes(found.get('touched_bytes', 0))} of it touched; Python {found['python']}, torch "
        f"{found['torch']}."
    ]


def copies(folder: Path) -> list[str]:
    """GB/s by size and kind, to the device and back."""
    found = read(folder / "copies.json")
    rows = [row for row in found["copies"] if row["bytes"] >= FEWER]
    kinds = list(dict.fromkeys(row["host_memory"] for row in rows))
    by = {(row["bytes"], row["host_memory"]): row for row in rows}
    head = "| bare copy, GB/s to the device / back | " + " | ".join(kinds) + " |"
    lines = [head, "|---|" + "---|" * len(kinds)]
    for size in sorted({row["bytes"] for row in rows}):
        rates = (f"{size / by[size, kind]['h2d_ns']:.1f} / {size / by[size, kind]['d2h_ns']:.1f}" for kind in kinds)
        lines.append(f"| {size / 1e6:,.1f} MB | " + " | ".join(rates) + " |")
    if alone := found.get("kernels_ns_alone"):
        slower = found["kernels_ns_beside_copies"] / alone - 1
        lines += ["", f"Kernels that read device memory take {slower:+.1%} beside copies to it."]
    return lines


def calibration(folder: Path) -> list[str]:
    """The terms of the link and of the host."""
    measured = tomllib.loads((folder / "calibrated.toml").read_text())["measured"]
    terms = [f"{name.removesuffix('_ns')} {measured[name] / 1e3:,.1f} us" for name in TERMS if name in measured]
    return [f"**Calibrated** for {measured['model']} in {measured['precision']}: {', '.join(terms)}."]


def validation(folder: Path) -> list[str]:
    """One record: what it is of, its statements, and the GPU beside the host."""
    found = read(folder / "validation" / "validation.json")
    trace, arms = found["trace"], found["arms"]
    made = "" if trace["real"] else ", a synthetic trace"
    lines = [
        f"**{trace['model']}**, {MODELS[folder.name]}{made}: {len(arms)} arms, {found['rounds']} rounds, "
        f"{found.get('seconds', 0):.0f} s, exit {found['exit']}; {covered(found)}.",
        "",
        "| statement | found | asked | verdict |",
        "|---|---|---|---|",
        *(
            f"| {name} | {value(stated['value'])} | {value(stated['asked'])} | {stated['verdict']} |"
            for name, stated in found["statements"].items()
        ),
    ]
    return [*lines, "", *busy(found)]


def covered(found: dict[str, Any]) -> str:
    """Which regimes the arms were in, by the record's own word for it."""
    counts = {name: sum(row["regime"] == name for row in found["arms"]) for name in ("compute", "mixed", "stall")}
    said = ", ".join(f"{n} {name}" for name, n in counts.items())
    longest = max((row.get("longest_context", 0) for row in found["arms"]), default=0)
    name = found["kind"] if found["kind"] == "full" else f"**{found['kind'].upper()}**"
    return f"{name} ({said}), contexts of up to {longest:,} tokens"


def busy(found: dict[str, Any]) -> list[str]:
    """The device beside the host: one expert alone by tokens, and of the time that an arm's experts take, where kernels
    run while the host goes on."""
    lines = []
    for kernel in found["kernels"]:
        device, launch, seen = (kernel[name] / 1e3 for name in ("device_ns", "host_ns", "seen_ns"))
        bound = ": HOST-BOUND" if kernel["ahead"] and launch > device else ""
        lines.append(f"| {kernel['tokens']} | {device:,.1f} | {launch:,.1f} | {seen:,.1f}{bound} |")
    head = ["| one expert, tokens | device busy us | launched in us | seen to end after us |", "|---|---|---|---|"]
    if not any(kernel["ahead"] for kernel in found["kernels"]):  # what launches a kernel runs it: no GPU beside a host
        return [*head, *lines]
    shares = [row["gpu_busy_ns"] / row["measured_ns"]["experts"] for row in found["arms"]]
    least, most = min(shares), max(shares)
    return [
        *head,
        *lines,
        "",
        f"While experts run, the GPU is busy {median(shares):.0%} of the time ({least:.0%} .. {most:.0%} by arm); the "
        "rest is the host.",
    ]


def live(folder: Path) -> list[str]:
    """Whether tokens were equal, and how long generating took."""
    lines = ["| live model, through the cache | tokens | plain s | offloaded s | misses |", "|---|---|---|---|---|"]
    for row in read(folder / "live.json"):
        asked = ", ".join(f"{name} {of}" for name, of in row["asked"].items())
        equal = "equal" if row["equal"] else "DIFFERENT"
        times = f"{row['plain_s']:.2f} | {row['offloaded_s']:.2f}"
        lines.append(f"| {asked} | {equal} | {times} | {row['misses']} of {row['wanted']} |")
    return lines


# --- small things ---


def read(path: Path) -> Any:
    """A record."""
    return json.loads(path.read_text())


def gigabytes(nbytes: float) -> str:
    """For people."""
    return f"{nbytes / 1e9:.0f} GB"


def value(found: Any) -> str:
    """A statement's value: shares as they are written in VALIDATION.md."""
    if isinstance(found, dict):
        return ", ".join(f"{name} {n}" for name, n in found.items())
    if isinstance(found, float):
        return f"{found:.3g}"
    if found is None:
        return "-"
    return cell(str(found))


def cell(text: str) -> str:
    """Text in a cell of a table."""
    return text.replace("|", "/")[:120]
