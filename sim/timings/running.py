"""A timing as a run: its routing, its plan made once, and its time per token under any costs."""

import shutil
import tempfile
from dataclasses import replace
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim import catalog
from sim.memo import Kept
from sim.outcome.summary import summarise
from sim.prepare import Setting, prepare
from sim.simulation import machine
from sim.spec import RunSpec
from sim.timings.rows import Timing

if TYPE_CHECKING:
    from sim.catalog.engine_spec import Engine
    from sim.catalog.hardware_spec import Hardware
    from sim.catalog.model_spec import ModelSpec
    from sim.machines.record import RunRecord

STEPS, WARM = 300, 160  # of decode: in all, and those before anything is counted, where slots are filled and emptied
FEW = 6  # of decode where nothing moves
NO_CACHE = ("layers:", "1.0")  # of --cache: nothing moves in its layers
PROMPT = 512  # tokens, where a row of prefill states none


class Runs:
    """Plans of timings, each made once; traces lie in a folder that goes with the object."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp())
        Finalize(self, shutil.rmtree, (self._folder, True), exitpriority=0)  # also where a process of a pool ends
        self._memo = Kept(1 << 30)
        self._settings: dict[str, Setting] = {}

    def setting(self, timing: Timing) -> Setting:
        """The run that a timing is. Raises SpecError or CatalogError for one that cannot be."""
        key = repr((sorted(timing.fields.items(), key=str), timing.prompt, timing.top_k, timing.prefill))
        if key not in self._settings:
            self._settings[key] = prepare(self.spec(timing), self._memo, model=_model(timing))
        return self._settings[key]

    def seconds(self, timing: Timing, hardware: "Hardware | None" = None, engine: "Engine | None" = None) -> float:
        """Per token, on the costs of its own names or on these."""
        setting = self.setting(timing)
        plan = setting.on(hardware or setting.hardware, engine or setting.engine)
        record = machine("compiled")(plan, False)
        return _per_token(record, timing.prefill)

    def spec(self, timing: Timing) -> RunSpec:
        """The spec of a timing, its routing written into the folder."""
        moves = _moves(timing)
        fields = {**timing.fields, "trace": str(self._trace(timing, moves))}
        if not timing.prefill:
            fields |= {"as_decode": True, "max_steps": STEPS if moves else FEW, "warmup_steps": WARM if moves else 1}
        return RunSpec.of(fields)

    def _trace(self, timing: Timing, moves: bool) -> Path:
        from traces.format import npz
        from traces.synthetic import PRESETS, Preset, generate

        of = catalog.model(timing.fields["model"])
        top_k = timing.top_k or of.top_k
        name = catalog.find("model", timing.fields["model"])
        own = PRESETS.get(name)
        if own is None or not (moves or timing.prefill) or timing.top_k:
            own = Preset(name, of.n_experts, top_k, of.n_layers, of.moe_layers, pattern="uniform")
        prompt, generated = ((timing.prompt or PROMPT), 1) if timing.prefill else (1, STEPS if moves else FEW)
        shape = replace(own, requests=1, prompt=(prompt, prompt), generation=(generated, generated))
        path = self._folder / f"{name}-{shape.pattern}-{top_k}-{prompt}-{generated}.npz"
        if not path.exists():
            npz.write(path, generate(shape, 0))
        return path


def _model(timing: Timing) -> "ModelSpec":
    """The row's model; where its tokens take other than its number of experts, so."""
    model = catalog.model(timing.fields["model"])
    return model if timing.top_k is None else model.model_copy(update={"top_k": timing.top_k})


def _moves(timing: Timing) -> bool:
    """Whether what is resident changes as the run goes on."""
    fields: dict[str, Any] = timing.fields
    text = str(fields.get("cache", ""))
    return fields.get("n_cpu_moe") is None and not text.startswith(NO_CACHE)


def _per_token(record: "RunRecord", prefill: bool) -> float:
    """Seconds per token of the phase."""
    out = summarise(record)
    if prefill:
        return float(out["prefill_ns"] / 1e9 / out["prompt_tokens"])
    return float(1 / out["tokens_per_s"])
