"""Speeds of engines over the ratio of the machine's link to what its host reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from analysis.reading.run import Run
from sim.experiments.fastest import fastest
from sim.experiments.scaled import is_scaled
from sim.outcome.how_sure import TIE
from sim.outcome.marks import machine_words

SETTING = ("vram", "precision", "context")  # of a run's spec: what engines are only compared within
PHASES = {"tokens_per_s": "decode", "prompt_tokens_per_s": "prompts"}  # key of the summary -> word


@dataclass(frozen=True)
class ByRatio:
    """Runs of one trace in one setting (SETTING), which is said in `setting`. speeds: tokens/s by phase (PHASES),
    engine and ratio; what did not fit, or had nothing to do there, is left out."""

    trace: str
    setting: str
    synthetic: bool
    ratios: Sequence[float]
    speeds: dict[str, dict[str, dict[float, float]]]

    def fastest(self, phase: str) -> dict[float, list[str]]:
        """Of each ratio, with who ties with it; nobody where nobody ran."""
        out = {}
        for ratio in self.ratios:
            found = {name: at[ratio] for name, at in self.speeds[phase].items() if ratio in at}
            out[ratio] = fastest(found)
        return out

    def winners(self, phase: str) -> list[str]:
        """Who is fastest at some ratio, or ties there, by the first."""
        return list(dict.fromkeys(name for names in self.fastest(phase).values() for name in names))

    def told(self, phase: str) -> str:
        """`decode: a at 0.25 to 0.41, b at 0.5`; who ties stands beside who is faster."""
        if not any(self.speeds[phase].values()):
            return f"{PHASES[phase]}: nobody ran"
        stretches: list[tuple[str, float, float]] = []
        for ratio, names in self.fastest(phase).items():
            name = tied(sorted(names)) or "nobody"
            if stretches and stretches[-1][0] == name:
                stretches[-1] = (name, stretches[-1][1], ratio)
            else:
                stretches.append((name, ratio, ratio))
        if len(stretches) == 1:
            return f"{PHASES[phase]}: {stretches[0][0]} at every ratio"
        return f"{PHASES[phase]}: " + ", ".join(_stretch(*each) for each in stretches)


def tied(names: Sequence[str]) -> str:
    """`a`, or `a and b (within 1 %)`."""
    return " and ".join(names) + f" (within {100 * TIE:g} %)" * (len(names) > 1)


def _stretch(name: str, first: float, last: float) -> str:
    return f"{name} at {first:.2g}" + ("" if first == last else f" to {last:.2g}")


def by_ratio(runs: Sequence[Run]) -> list[ByRatio]:
    """One for each trace and setting of which there are runs of engines at several ratios."""
    groups: dict[tuple[str, ...], list[tuple[float, Run]]] = {}
    for run in runs:
        ratio = ratio_of(run)
        if ratio is not None:
            groups.setdefault((run.trace["hash"], *setting_of(run)), []).append((ratio, run))
    return [_table(found) for found in groups.values() if len({ratio for ratio, _ in found}) > 1]


def setting_of(run: Run) -> tuple[str, ...]:
    """SETTING of a run, whatever its ratio."""
    return tuple(str(run.spec[key]) if run.spec.get(key) is not None else "" for key in SETTING)


def told_setting(runs: Sequence[Run]) -> str:
    """`16GB of an rtx4090, experts in q4-k-m`, of runs of one setting."""
    named = [run.spec | {"hardware": PurePath(str(run.spec["hardware"])).stem} for run in runs if not scaled(run)]
    names = [*dict.fromkeys(machine_words(spec) for spec in named)] or ["a machine with its link scaled"]
    vram, precision = runs[0].spec.get("vram"), runs[0].spec.get("precision")
    return f"{f'{vram} of ' * bool(vram)}{' and '.join(names)}{f', experts in {precision}' * bool(precision)}"


def scaled(run: Run) -> bool:
    """Whether the machine of a run is one that nobody has: one with a faster or slower link."""
    return is_scaled(str(run.spec["hardware"]))


def ratio_of(run: Run) -> float | None:
    """Link rate by host read rate, to four digits; None of a run without an engine, or a machine without rates."""
    engine = run.summary.get("engine") or {}
    link, host = engine.get("link_gb_per_s"), engine.get("host_gb_per_s")
    return float(f"{link / host:.4g}") if link and host else None


def _table(found: Sequence[tuple[float, Run]]) -> ByRatio:
    speeds: dict[str, dict[str, dict[float, float]]] = {phase: {} for phase in PHASES}
    for ratio, run in found:
        for phase in PHASES:
            if run.summary.get(phase) and run.summary["marks"]["fits"] is not False:
                speeds[phase].setdefault(run.summary["engine"]["name"], {})[ratio] = run.summary[phase]
    first = found[0][1]
    ratios, setting = sorted({ratio for ratio, _ in found}), told_setting([run for _, run in found])
    return ByRatio(str(first.spec["trace"]), setting, first.synthetic, ratios, speeds)
