"""A device with weights, slots and KV caches on it, opened once for all the settings that are replayed there.

Everything is allocated once, for the largest of the settings; each replay then has its own plan, and with it its own
capacity, policies and steps. Replays do not know of each other: the first residents are copied anew and every choice
starts afresh.

    with Opened(choose("cpu", link_gbps=5), [setting], Options()) as device:
        device.warm_up(setting)
        record = device.machine(setting).run()
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from runtime.device.port import Port
from runtime.device.worker import failing
from runtime.experts.checkpoint import Checkpoint
from runtime.experts.layout import Layout
from runtime.experts.quantised import LowLayout
from runtime.experts.store import ExpertStore, Source, Synthetic, fits, need
from runtime.replaying.layers import KERNELS, CatalogWork, has_grouped
from runtime.replaying.machine import AsTheyCome, Machine, refuse
from runtime.replaying.order import Order
from runtime.replaying.shapes import Batches, dense_bytes, scaled
from runtime.replaying.stages import stages_of
from sim.catalog import precision
from sim.core.plan import ANSWERS_CPU, PLAIN, Plan
from sim.errors import SpecError
from sim.prepare import Setting, low_precision
from sim.steps import first_steps

SAMPLE = 64  # slots that are compared with the host's bytes after a run
WARM_STEPS = 24  # at most, before anything is measured


@dataclass(frozen=True)
class Options:
    """How a trace is replayed, beside its spec. scale: times the model's widths; alias: distinct experts on the host
    per layer (None: all); weights: folder of a checkpoint (None: seeded noise); kernel: how several experts of a group
    run; repeat: how often; host_bytes: host memory as stated (None: as the system has it)."""

    scale: float = 1.0
    alias: int | None = None
    weights: str | None = None
    kernel: str = "auto"
    repeat: int = 1
    host_bytes: int | None = None


def _refuse_durations(setting: Setting) -> None:
    """Of what a spec asks for, where only a simulated machine can make it take that long."""
    for name in ("dense_on_host", "cpu_visit_us"):
        if (given := getattr(setting.spec, name)) is not None:
            raise SpecError(f"{name}: {given}: a device takes the time that it takes; sim.run simulates it")


class Extent:
    """What must be there for every one of the settings: slots of each scope, stages, and room in the dense part. Raises
    SpecError for what only the simulated machines can do."""

    def __init__(self, settings: Sequence[Setting], options: Options) -> None:
        for setting in settings:
            refuse(setting.plan)
            _refuse_durations(setting)
        first, self.options = at_scale(settings[0], options.scale), options
        assert first.model is not None
        self.model, self.seed = first.model, first.spec.seed
        self.layout = Layout.of(self.model, precision(first.spec.precision))
        self.moe_layers, self.n_layers = first.trace.meta["moe_layers"], first.trace.n_layers
        self.sizes = (len(self.moe_layers), first.plan.n_experts)
        self.slots = max((s.plan.slots.tolist() for s in settings), key=sum)
        self.low, self.low_slots = None, []
        if first.plan.low is not None:
            self.low = LowLayout.of(self.layout.elements, low_precision(first.spec))
            self.low_slots = first.plan.low.slots.tolist()
        self.stages = max(stages_of(s.plan) for s in settings)
        self.to_host = any(_answers_cpu(s.plan) for s in settings)
        self.defers = any((s.plan.on_miss or PLAIN).defer for s in settings)
        self.room = _room([batches_of(s) for s in settings])

    def refuse(self, port: Port) -> None:
        """Raises StoreError, with the numbers, when it does not fit."""
        dense = dense_bytes(self.model, self.layout, self.room, self.n_layers, self.moe_layers)
        slots = sum(self.slots), self.options.alias
        needs = need(self.layout, *self.sizes, *slots, dense, self.low, sum(self.low_slots), self.stages)
        fits(needs, port, self.options.host_bytes)


class Opened:
    """See the module's text. A context manager, which closes the port at the end, whatever happens; entering it raises
    StoreError, before anything is allocated, when the largest of the settings does not fit, or when the checkpoint is
    wrong. Low-precision copies are those of the first setting."""

    def __init__(self, port: Port, settings: Sequence[Setting], options: Options) -> None:
        self.port, self.settings, self.options = port, settings, options
        self.last: Machine | None = None

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self.port.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.port.close()

    def _open(self) -> None:
        """Weights, slots, kernels."""
        port, options, e = self.port, self.options, Extent(self.settings, self.options)
        e.refuse(port)
        source: Source = Synthetic(e.layout, e.seed)
        if options.weights is not None:
            source = Checkpoint(options.weights, e.layout, e.moe_layers)
        group = groups(options.kernel, e.layout, port)
        with failing("weights and caches"):
            alias, stages = options.alias, e.stages
            self.store = ExpertStore(port, e.layout, *e.sizes, e.slots, source, alias, e.low, e.low_slots, stages)
            layers = e.moe_layers, e.n_layers
            self.work = CatalogWork(port, e.model, self.store, e.room, *layers, e.to_host, group, defers=e.defers)

    def machine(
        self, setting: Setting, kind: type[Machine] = Machine, order: Callable[[Machine], Order] = AsTheyCome
    ) -> Machine:
        """A fresh run of one of the settings."""
        plan = at_scale(setting, self.options.scale).plan
        self.store.cut(plan.slots.tolist())
        self.work.batches = batches_of(setting)
        self.last = kind(plan, self.port, self.store, self.work, order)
        return self.last

    def warm_up(self, setting: Setting) -> None:
        """Run the first steps once, unmeasured: kernels are loaded, tuned and cached."""
        prefill = setting.plan.step_prefill
        enough = 1 + max(int(np.argmax(prefill)), int(np.argmax(~prefill)))
        steps = first_steps(setting.steps, min(max(enough, 2), len(prefill), WARM_STEPS))
        few = replace(
            setting.plan,
            step_offset=steps.offset,
            step_row=steps.row,
            step_prefill=steps.prefill,
            requests=steps.requests,
            windows=steps.windows,
            warmup_steps=0,
        )
        self.machine(replace(setting, plan=few)).run()

    def wrong_slots(self) -> list[int]:
        """Experts, of a sample of those resident after the last run, whose slot does not hold their bytes."""
        there = sorted(self.last.residents().items()) if self.last else []
        return [] if not there else self.store.wrong_slots(dict(there[:: -(-len(there) // SAMPLE)]))


def _answers_cpu(plan: Plan) -> bool:
    """Whether the host may compute an expert."""
    bulk = None if plan.on_miss is None else plan.on_miss.bulk
    return bool((plan.miss.marks | (0 if bulk is None else bulk.marks)) & ANSWERS_CPU)


def at_scale(setting: Setting, scale: float) -> Setting:
    """The setting with the model's widths times `scale`. Raises SpecError when the model is not known."""
    if setting.model is None:
        raise SpecError(
            "model: the catalog does not know the trace's; the replay needs one, --model NAME|FILE names it"
        )
    model = scaled(setting.model, scale)
    size, low = model.expert_bytes(setting.spec.precision), setting.plan.low
    if low is not None:
        low = replace(low, bytes=model.expert_bytes(low_precision(setting.spec)))
    return replace(setting, model=model, plan=replace(setting.plan, expert_bytes=size, low=low))


def groups(kernel: str, layout: Layout, port: Port) -> bool:
    """Whether the experts of a group run in one kernel. `auto`: on an accelerator in bf16, where torch can."""
    if kernel not in KERNELS:
        raise SpecError(f"expert-kernel: {kernel}: must be one of {', '.join(KERNELS)}")
    possible = has_grouped() and not layout.biases
    if kernel == "grouped" and not possible:
        raise SpecError("expert-kernel: grouped: needs torch.nn.functional.grouped_mm and experts without biases")
    return kernel == "grouped" or (
        kernel == "auto" and possible and port.device.type == "cuda" and layout.dtype.itemsize == 2
    )


def batches_of(setting: Setting) -> Batches:
    """The rows of every step of a setting."""
    plan = setting.plan
    return Batches(setting.trace, plan.step_offset, plan.step_row, plan.step_prefill, setting.spec.context_offset)


def _room(every: Sequence[Batches]) -> Batches:
    """Batches as large as the largest of each kind."""
    out = copy(every[0])
    for name in ("places", "longest", "most"):
        setattr(out, name, max(getattr(b, name) for b in every))
    return out
