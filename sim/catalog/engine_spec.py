"""An inference engine: what it does on a miss, and what it adds to the time of the hardware."""

from typing import Any, Literal

from pydantic import Field, model_validator

from sim.catalog.parts import Count, Entry, Factors, Ns, Positive, Rate, Share

ANY, LAYERS, SLOTS = "any", "layers", "slots"  # options: every value; of `cache`, whole layers or slots alone
PRINTABLE = r"^[ -~]{0,100}$"  # of a name that a header prints


class Behaviour(Entry):
    """An engine's behaviour: which fields of a run it sets, and which its users may set otherwise.

    version: the release that is meant; released: there is code of it. does: in one line, what it does on a miss.
    command: how the real thing is told so (`none: WHY` where nobody can type it). sets: fields of `sim.run` and what
    this engine sets them to, each with its source in `sources`; whatever a run can be asked for and does not stand here
    has its default. options: fields that its users may set, too, and to what: `any`, a list of values, or of `cache`
    `layers` (whole ones alone) or `slots`; of `set`, a list of those parameters that it sets. Nothing else of policies,
    cache and misses can be asked of it. `cache = "fit"` is as much as the card holds; `knob`: what of it: `slots` in
    all, `per-layer` as many in each layer, or whole MoE layers, the `first` or the `last` ones of the model. cpu_moe:
    which layers its --n-cpu-moe puts on the CPU. host_copy: experts that never leave the GPU lie in host memory, too.
    """

    name: str = Field(default="", pattern=PRINTABLE)
    version: str = Field(default="", pattern=PRINTABLE)
    does: str = ""
    command: str = ""
    released: bool = True
    sets: dict[str, Any] = Field(default_factory=dict)
    options: dict[str, str | list[Any]] = Field(default_factory=dict)
    knob: Literal["slots", "per-layer", "first", "last"] = "slots"
    cpu_moe: Literal["first", "last"] = "first"
    host_copy: bool = True

    @property
    def typed(self) -> bool:
        """Whether there is a command that runs it."""
        return not self.command.startswith("none")

    @model_validator(mode="after")
    def _sourced(self) -> "Behaviour":
        missing = [name for name in self.sets if not self.sources.get(name)]
        if missing:
            raise ValueError(f"sources.{missing[0]}: missing; must say where sets.{missing[0]} comes from")
        return self

    @model_validator(mode="after")
    def _parameters(self) -> "Behaviour":
        given = self.sets.get("set", {})
        if not isinstance(given, dict):
            raise ValueError(f'sets.set = {given!r}: must be a table of "POLICY.PARAM" = VALUE')
        for key, value in given.items():
            if "." not in key or not isinstance(value, bool | int | float | str):
                raise ValueError(f'sets.set.{key} = {value!r}: must be "POLICY.PARAM" = VALUE, the name in quotes')
        return self

    @model_validator(mode="after")
    def _said(self) -> "Behaviour":
        for name, option in self.options.items():
            words = (ANY, LAYERS, SLOTS) if name == "cache" else (ANY,)
            if isinstance(option, str) and option not in words:
                raise ValueError(f"options.{name} = {option!r}: must be a list of values, or {' or '.join(words)}")
        return self


class Engine(Behaviour):
    """An engine's own costs, all zero by default, how it handles experts, and (Behaviour) what it does on a miss.

    dispatch: how its operations are launched: by compiled code or a CUDA graph, or by calls from Python.
    layer_ns: once per layer and step (`mla_layer_ns` instead for models with MLA, where given; host_layer_ns,
    mla_host_layer_ns in their place where the host computes the dense part, where given); group_ns: once per expert
    group; expert_ns: once per expert executed on the GPU; transfer_ns: once per transfer
    (synchronisation); step_ns: once per step; decide_ns: once per visit, beside what the hardware's host
    takes; cpu_visit_ns: once per visit that computes any expert on the host, cpu_expert_ns: once per expert there;
    cpu_read_share, cpu_compute_share: of the host's sustained read rate, and of the arithmetic of the precision's
    kernels, that its own reach. cpu_batch_gain: how many times as long the arithmetic of an expert's first token takes
    as that of each further one, whose weights are expanded already. numa: whether its threads read the memory of all
    sockets, each its own, or of one.
    host_work: which of these durations are work of one host thread, which are divided by the host's `single_thread`.
    launches_per_*: kernel launches that the GPU waits for, times the GPU's kernel_launch_ns.
    copies_per_expert: copies that one transfer is made of. page_locked: experts lie in page-locked memory;
    else the hardware's pageable link is used. write_back: a victim is copied back, which doubles the
    transfer. staging_experts: GPU buffers of one expert each, beside the slots. dense_precision,
    head_precision: `experts` = as the experts, else a named precision; experts in fp32 make both fp32. stored_beside:
    by the precision of the experts, that of both instead.
    reserve_mib, memory_share: what its fit leaves free of a GPU (CUDA context, margin), and the share of it that it
    takes. buffered_logits: it has a buffer for the logits of every row of a step.
    dequant_gb_per_s: rate at which a separate kernel expands quantised experts, if any. memory_efficiency:
    times the GPU's hbm_efficiency, what its kernels reach. kv_read_share: of that bandwidth, what attention of decode
    steps reaches on the entries of the KV cache. interval: factors on tokens/s between which 80 % of what the engine
    really does lies, in place of what published measurements say (intervals.toml); interval_on, interval_phases: the
    machine (its name; empty: any) and the phases that it was found on.
    """

    dispatch: Literal["", "compiled", "python"] = ""
    layer_ns: Ns = 0
    mla_layer_ns: Ns | None = None
    host_layer_ns: Ns | None = None
    mla_host_layer_ns: Ns | None = None
    group_ns: Ns = 0
    expert_ns: Ns = 0
    transfer_ns: Ns = 0
    step_ns: Ns = 0
    decide_ns: Ns = 0
    cpu_visit_ns: Ns = 0
    cpu_expert_ns: Ns = 0
    cpu_read_share: Rate = 1.0
    numa: Literal["all", "one"] = "all"
    cpu_compute_share: Rate = 1.0
    cpu_batch_gain: Rate = 1.0
    host_work: tuple[str, ...] = Field(default=(), strict=False)
    launches_per_layer: Count = 0
    launches_per_group: Count = 0
    launches_per_expert: Count = 0
    launches_per_step: Count = 0
    copies_per_expert: Positive = 1
    expert_group: Literal["one", "ready", "all"] = "one"
    page_locked: bool = True
    write_back: bool = False
    staging_experts: Count = 0
    reserve_mib: Count = 0
    memory_share: Share = 1.0
    buffered_logits: bool = False
    dense_precision: str = "bf16"
    stored_beside: dict[str, str] = Field(default_factory=dict)
    head_precision: str = "bf16"
    dequant_gb_per_s: Rate | None = None
    memory_efficiency: Rate = 1.0
    kv_read_share: Rate = 1.0
    interval: Factors | None = None
    interval_on: str = ""
    interval_phases: tuple[str, ...] = Field(default=("decode", "prefill"), strict=False)

    def precision_of(self, part: Literal["dense", "head"], experts: str) -> str:
        """Precision of the dense weights or of the LM head and embedding, when experts are stored at
        `experts`."""
        if experts in self.stored_beside:
            return self.stored_beside[experts]
        named = self.dense_precision if part == "dense" else self.head_precision
        return experts if named == "experts" or experts == "fp32" else named
