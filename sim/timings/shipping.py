"""What the catalog ships of the evidence: constants of engines and GPUs, and how far predictions by them are off."""

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import Any

from sim import catalog
from sim.catalog.writing import toml
from sim.timings.estimate import Estimate
from sim.timings.judging import EIGHTY, JUDGED, Judged
from sim.timings.terms import COMPILED, TERMS, free, share_before

FROM = "python -m sim.experiments published"
DIGITS = 3  # significant ones of a constant
NOTICED = 0.05  # of a logarithm, from which a GPU has a share of its own
FAMILIES = ("llama.cpp",)  # engines whose intervals hold for those that are `like` them, too


def constants(found: Estimate) -> dict[str, dict[str, dict[str, Any]]]:
    """`engine` and `gpu`: by name of the catalog, the fields that the evidence tells. An engine without rows has what
    all that are launched like it have in common."""
    engines = {}
    for name in catalog.names("engine"):
        engine = catalog.engine(name)
        if engine.dispatch:
            engines[name] = _of_engine(name, engine.dispatch, free(engine), found)
    return {"engine": engines, "gpu": _of_gpus(found)}


def _of_engine(name: str, dispatch: str, terms: Sequence[str], found: Estimate) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for term in terms:
        for field, before in zip(TERMS[term].fields, TERMS[term].value[dispatch], strict=bool(TERMS[term].fields)):
            log, _ = found.of(dict.fromkeys(effects_of("engine", name, field), 1.0))
            out[field] = _rounded(field, before * math.exp(log))
    return out


def effects_of(kind: str, entry: str, field: str) -> list[str]:
    """The effects that an entry's constant is the sum of."""
    if kind == "gpu":
        return [f"gpu_memory {COMPILED}: gpu {entry}"]
    term = next(name for name, each in TERMS.items() if field in each.fields)
    of = f"{term} {catalog.engine(entry).dispatch}"
    return [f"{of}: all", f"{of}: engine {entry}", *([f"{of}: mla"] if field.startswith("mla_") else [])]


def _of_gpus(found: Estimate) -> dict[str, dict[str, Any]]:
    out = {}
    for name in catalog.names("gpu"):
        log, _ = found.of(dict.fromkeys(effects_of("gpu", name, ""), 1.0))
        if abs(log) > NOTICED:
            out[name] = {"hbm_efficiency": _rounded("", share_before(name) * math.exp(log))}
    return out


def _rounded(field: str, value: float) -> float | int:
    digits = DIGITS - 1 - math.floor(math.log10(abs(value)))
    return round(value, digits) if not field.endswith("_ns") else int(round(value, digits))


def constants_toml(found: Estimate) -> str:
    """constants.toml."""
    lines = [
        f"# Constants that published speeds tell, made by `{FROM} --catalog sim/catalog`: of all rows",
        "# together; predictions are judged with each machine left out (analysis/results/published.md).",
        "# Keys: of engines.toml and gpus.toml.",
    ]
    for kind, entries in constants(found).items():
        for name, fields in entries.items():
            lines += ["", f"[{kind}.{toml(name)}]", *(f"{field} = {toml(value)}" for field, value in fields.items())]
    return "\n".join(lines) + "\n"


def intervals_toml(judged: Sequence[Judged]) -> str:
    """intervals.toml."""
    lines = [
        "# How far speeds of an engine on machines that no constant of it came from lie from simulated ones:",
        "# 80 % of published tokens/s are between `low` and `high` times these: the median width over rows of",
        f"# grade A and B, each with its machine left out. Made by `{FROM} --catalog sim/catalog`.",
        "# Keys: sim/catalog/intervals.py, class Interval.",
    ]
    for (engine, phase, host), ones in sorted(_by_engine(judged).items()):
        sd = median(one.sd for one in ones)
        row: dict[str, Any] = {"engine": engine, "phase": phase} | ({"host": host} if host else {})
        row |= {"low": round(math.exp(-EIGHTY * sd), 3), "high": round(math.exp(EIGHTY * sd), 3)}
        row |= {"rows": len(ones), "machines": len({one.row.timing.measured_on for one in ones})}
        row |= {"family": True} if engine in FAMILIES else {}
        row["source"] = "analysis/results/published.md"
        lines += ["", "[[interval]]", *(f"{key} = {toml(value)}" for key, value in row.items())]
    return "\n".join(lines) + "\n"


def _by_engine(judged: Sequence[Judged]) -> dict[tuple[str, str, str], list[Judged]]:
    """Rows of engines with enough of them, by engine, phase and how the host's rate is known (empty: of all)."""
    out = defaultdict(list)
    for one in judged:
        timing = one.row.timing
        if timing.grade == "C":
            continue
        phase = "prefill" if timing.prefill else "decode"
        engine = catalog.find("engine", timing.fields["engine"])
        for host in ("", "measured" if timing.host_rate == "measured" else "nominal"):
            out[engine, phase, host].append(one)
    return {key: ones for key, ones in out.items() if len(ones) >= JUDGED}
