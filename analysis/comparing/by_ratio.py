"""Speeds of engines over the ratio of the machine's link to what its host reads."""

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.reading.run import Run

PHASES = {"tokens_per_s": "decode", "prompt_tokens_per_s": "prompts"}  # key of the summary -> word


@dataclass(frozen=True)
class ByRatio:
    """Runs of one trace in one GPU memory. speeds: tokens/s by phase (PHASES), engine and ratio; what did not fit, or
    had nothing to do there, is left out."""

    trace: str
    synthetic: bool
    ratios: Sequence[float]
    speeds: dict[str, dict[str, dict[float, float]]]

    def fastest(self, phase: str) -> dict[float, list[str]]:
        """Of each ratio; several that are equally fast."""
        out = {}
        for ratio in self.ratios:
            found = {name: at[ratio] for name, at in self.speeds[phase].items() if ratio in at}
            out[ratio] = [name for name, speed in found.items() if speed == max(found.values())]
        return out

    def winners(self, phase: str) -> list[str]:
        """Who is fastest at some ratio, by the first."""
        return list(dict.fromkeys(name for names in self.fastest(phase).values() for name in names))

    def told(self, phase: str) -> str:
        """`a wins decode up to 0.41, b from 0.5 on`."""
        stretches: list[tuple[str, float, float]] = []
        for ratio, names in self.fastest(phase).items():
            name = " and ".join(names) or "nobody"
            if stretches and stretches[-1][0] == name:
                stretches[-1] = (name, stretches[-1][1], ratio)
            else:
                stretches.append((name, ratio, ratio))
        if len(stretches) == 1:
            return f"{stretches[0][0]} wins {PHASES[phase]} at every ratio"
        return f"{PHASES[phase]}: " + ", ".join(_stretch(*each) for each in stretches)


def _stretch(name: str, first: float, last: float) -> str:
    return f"{name} at {first:.2g}" + ("" if first == last else f" to {last:.2g}")


def by_ratio(runs: Sequence[Run]) -> list[ByRatio]:
    """One for each trace and memory of which there are runs of engines at several ratios."""
    groups: dict[tuple[str, str], list[tuple[float, Run]]] = {}
    for run in runs:
        ratio = ratio_of(run)
        if ratio is not None:
            groups.setdefault((run.trace["hash"], str(run.spec.get("vram"))), []).append((ratio, run))
    return [_table(found) for found in groups.values() if len({ratio for ratio, _ in found}) > 1]


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
    return ByRatio(str(first.spec["trace"]), first.synthetic, sorted({ratio for ratio, _ in found}), speeds)
