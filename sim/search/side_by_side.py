"""Engines that exist beside policies: every engine of the catalog that has a behaviour, in its default setting, over
the same steps, with the same memory."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from sim import catalog
from sim.costs.memory_split import TooSmall, vram_text
from sim.costs.roofline import needed
from sim.engines import FREE, behaving
from sim.errors import SpecError
from sim.outcome.marks import HOST_PARTS, short_of_host
from sim.prepare import prepare
from sim.search.first_screen import Way
from sim.search.judging import Case, Evaluate, Rated, command, told
from sim.search.smaller_kv import smaller_kv
from sim.search.ties import ENGINE, POLICY, UNRELEASED, away, tie
from sim.spec import RunSpec
from sim.sweeps.answer import by_prompts, lost_weight, speed
from sim.sweeps.config import Configuration, identity
from sim.sweeps.rows import PAIRS, Row, pair_of
from traces.errors import UserError
from traces.progress import doing

TIES = 0.001  # generated tokens/s closer than this share are equal
NOT_DONE = "the time was over before it was done"
RAM_GB = (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)  # as it is sold
ON_THE_GPU = ("dense", "kv", "slots", "staging", "reserve")


class SideBySide:
    """An `evaluate` (see sim.search.halving) that runs the engines before the candidates, once for each length, so that
    they have run whatever length the search reaches; its caller sees nothing of them."""

    def __init__(self, case: Case, evaluate: Evaluate) -> None:
        self.evaluate, self.case = evaluate, case
        shared = {name: value for name, value in case.base.items() if name in FREE and name != "engine_as_costs"}
        names = [name for name in catalog.names("engine") if behaving(name)]
        self.specs = {name: RunSpec.of({**shared, **case.gpu, "engine": name}) for name in names}
        self.found: dict[int | None, dict[str, Row]] = {}  # by max_steps and by id

    def __call__(self, runs: Sequence[Configuration]) -> Sequence[Row]:
        lengths = {run.spec.max_steps for run in runs if run.spec is not None}
        new = lengths - self.found.keys()
        mine = {run.id: run for steps in new for run in self._runs(steps).values()}
        if mine:
            self._keep(new, self.evaluate(list(mine.values())))
        return self.evaluate(runs)

    def _keep(self, lengths: Iterable[int | None], rows: Sequence[Row]) -> None:
        for steps in lengths:
            ids = {run.id for run in self._runs(steps).values()}
            self.found[steps] = {row["id"]: row for row in rows if row["id"] in ids}

    def alone(self, lengths: Sequence[int], refusal: SpecError) -> dict[str, Any]:
        """The answer where no policy can be recommended, because of `refusal`: the engines over all steps, or where the
        time was over, over the longest of `lengths` (ascending, the last is all) that one of them has done. There is no
        `best`; the command, the bounds and what was judged are of the first of `engines`. Raises SpecError where none
        can run either."""
        whole = self.case.setting.spec.max_steps
        for steps in (*lengths[:-1][:1], whole):
            if steps not in self.found:
                doing(f"{len(self.specs)} engines over {steps or lengths[-1]:,} of {lengths[-1]:,} steps")
                self._keep([steps], self.evaluate(list(self._runs(steps).values())))
        for steps in (whole, *reversed(lengths[:-1])):
            rows = self._table(steps)
            if rows[0]["error"] is None:
                rated = self.case.rate(self.specs[rows[0]["name"]].model_copy(update={"max_steps": steps}))
                notes = [] if steps == whole else [f"the time was over: all here is of the first {steps} steps"]
                mine = {"best": None, "refusal": str(refusal), **fastest_engine(rows)}
                return self.case.answer(rated, {}, notes) | {"search": None} | mine
        late = all(row["error"] == NOT_DONE for row in self._table(whole))
        if late:
            raise SpecError(str(refusal))
        raise SpecError(f"{refusal}{self._least_ram() or self._least()}{self.smaller_kv()}")

    def smaller_kv(self) -> str:
        """What of KV entries would make room for an engine that the card is too small for."""
        return smaller_kv(self.specs.values(), self.case.longest, self.case.memo)

    def _least_ram(self) -> str:
        """`; of the engines llama.cpp needs least: --ram 61.00GB`: of those that the host's memory is too small for."""
        needs: dict[str, int] = {}
        for name, run in self._runs(self.case.setting.spec.max_steps).items():
            row = self.found.get(self.case.setting.spec.max_steps, {}).get(run.id)
            if row is not None and row["error"] is None and row["memory.host.fits"] is False:
                needs[name] = on_the_host(row) or 0
        if not needs:
            return ""
        name = min(needs, key=lambda each: needs[each])
        return f"; of the engines {name} needs least: --ram {vram_text(needs[name])}"

    def _least(self) -> str:
        """`; llama.cpp needs --vram 3.20GB`: of the engines that the card is too small for the one that needs least."""
        needs = {}
        for name, spec in self.specs.items():
            try:
                prepare(spec, self.case.memo)
            except TooSmall as error:
                needs[name] = error.vram
            except UserError:
                continue
        if not needs:
            return "; no engine can run either"
        name = min(needs, key=lambda each: needs[each])
        return f"; of the engines {name} needs least: --vram {vram_text(needs[name])}"

    def _runs(self, steps: int | None) -> dict[str, Configuration]:
        specs = {name: spec.model_copy(update={"max_steps": steps}) for name, spec in self.specs.items()}
        return {name: Configuration(identity(spec), spec) for name, spec in specs.items()}

    def at(self, steps: int | None) -> dict[str, Way]:
        """By name, the run of each engine, and the same with other memory, rates or precision, as much as then fits."""
        found = {name: run.spec for name, run in self._runs(steps).items()}
        return {name: (spec, partial(_again, spec)) for name, spec in found.items() if spec is not None}

    def rows(self, policies: Mapping[str, Rated]) -> list[dict[str, Any]]:
        """The engines and these policies (by name, all over the same steps), the fastest first; last those that cannot
        run, each with its `error`. kind: `engine`, `unreleased` (of a paper, no code does it), or `policy` (on an
        engine without overhead, or with the costs of one)."""
        return self._table(next(iter(policies.values())).spec.max_steps, policies)

    def _table(self, steps: int | None, policies: Mapping[str, Rated] | None = None) -> list[dict[str, Any]]:
        found, every = self.found.get(steps, {}), self._runs(steps)
        rows = [_of_engine(name, self.specs[name], found.get(run.id), self.case) for name, run in every.items()]
        rows += [of_policy(name, rated) for name, rated in (policies or {}).items()]
        good = by_prompts((row for row in rows if row["error"] is None), _speeds, TIES)
        return [*good, *(row for row in rows if row["error"] is not None)]


def _again(spec: RunSpec, changes: Mapping[str, Any]) -> RunSpec:
    return RunSpec.of({**spec.asked(), **changes})


def fastest(rows: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The first engine of a table that exists and can run."""
    return next((row for row in rows if row["kind"] == ENGINE and row["error"] is None), None)


def fastest_engine(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a table says of it in an answer: `best_engine`, the table, and who cannot be told from it (`tie`)."""
    best = fastest(rows)
    return {"best_engine": best, "engines": rows, "tie": tie(best, [row for row in rows if row["error"] is None])}


def why_not(row: Row | None, lossy: bool) -> str | None:
    """Why a run is no answer, in one line: it was not done, failed, does not fit, or is lossy where nothing may be."""
    if row is None or row["error"] is not None:
        return NOT_DONE if row is None else str(row["error"])
    if row["memory.fits"] is False:
        return f"needs {on_the_gpu(row) / 1e9:.2f} GB of the GPU, which has {row['memory.gpu'] / 1e9:.2f}"
    if row.get("memory.host.fits") is False:
        parts = {part: row[f"memory.host.{part}"] for part in HOST_PARTS} | {"ram": row["memory.host.ram"]}
        return short_of_host(parts)
    return "is lossy, and --max-lossy-weight is 0" if row["open_loop"] and not lossy else None


def on_the_gpu(row: Row) -> int:
    """Bytes of GPU memory that a run takes."""
    return needed({part: row[f"memory.{part}"] for part in ON_THE_GPU})


def on_the_host(row: Row) -> int | None:
    """Bytes of host memory that a run takes; None where its summary does not say."""
    parts = [row[f"memory.host.{part}"] for part in HOST_PARTS]
    return None if None in parts else sum(parts)


def _of_engine(name: str, spec: RunSpec, row: Row | None, case: Case) -> dict[str, Any]:
    """An engine as it comes, or why it is no answer."""
    engine = behaving(name)
    assert engine is not None
    kind = ENGINE if engine.released else UNRELEASED
    out = {"name": name, "kind": kind}
    error = why_not(row, case.wish.max_lossy_weight > 0)
    if row is None or error is not None:
        return out | {"error": error} | _with_more_ram(name, kind, spec, row, case)
    return of_engine(name, kind, spec, row, case)


def _with_more_ram(name: str, kind: str, spec: RunSpec, row: Row | None, case: Case) -> dict[str, Any]:
    """`with_ram`: the line of an engine that --ram alone is too small for, with the next size that holds it. The same
    run: no duration hangs on that size."""
    lossy = case.wish.max_lossy_weight > 0
    if (
        row is None
        or why_not(row | {"memory.host.fits": None}, lossy) is not None
        or (need := on_the_host(row)) is None
    ):
        return {}
    size = next((size for size in RAM_GB if size * 1e9 >= need), math.ceil(need / 1e9))
    more = spec.model_copy(update={"ram": f"{size}GB"})
    return {"with_ram": of_engine(name, kind, more, row, case) | {"ram": more.ram}}


def of_engine(name: str, kind: str, spec: RunSpec, row: Row, case: Case) -> dict[str, Any]:
    """A run of an engine as a line of a table."""
    return {
        "name": name,
        "kind": kind,
        "error": None,
        "tokens_per_s": row["tokens_per_s"],
        "total_tokens_per_s": row["total_tokens_per_s"],
        "prompt_tokens_per_s": row["prompt_tokens_per_s"],
        **{key: pair_of(row, key) for key in PAIRS},
        "catalog_costs": case.setting.hardware.durations is None,
        "costs_of": name,
        "away": away(spec),
        "typed": spec.behaves is not None and spec.behaves.typed,
        "residents": row["engine.residents"],
        "slots": row["slots.total"],
        "vram_bytes": on_the_gpu(row),
        "ram_bytes": on_the_host(row),
        "words": row["engine.words"],
        "deferred": (row["deferred"] or 0) / row["slots_wanted"],
        "lost_router_weight": lost_weight(row),
        "open_loop": row["open_loop"],
        "command": command(spec.model_copy(update={"max_steps": row["spec.max_steps"]})),
    }


def of_policy(name: str, rated: Rated) -> dict[str, Any]:
    figures = told(rated, None)
    speeds = ("tokens_per_s", "total_tokens_per_s", "prompt_tokens_per_s", "catalog_costs", *PAIRS)
    kept = (*speeds, "lost_router_weight", "open_loop", "deferred", "slots", "vram_bytes", "ram_bytes")
    return {
        "name": name,
        "kind": POLICY,
        "error": None,
        "residents": rated.residents,
        "words": rated.words,
        "costs_of": rated.spec.engine,
        "dense_precision": catalog.engine(rated.spec.engine).precision_of("dense", rated.spec.precision),
        "away": away(rated.spec),
        "command": command(rated.spec),
        **{key: figures[key] for key in kept},
    }


def _speeds(row: Mapping[str, Any]) -> tuple[float, float]:
    return speed(row), row["prompt_tokens_per_s"] or 0.0
