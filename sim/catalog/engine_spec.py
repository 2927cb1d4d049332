"""What an inference engine adds to the time of the hardware."""

from typing import Literal

from sim.catalog.parts import Count, Entry, Ns, Positive, Rate, Share


class Engine(Entry):
    """An engine's own costs, all zero by default, and how it handles experts.

    layer_ns: once per layer and step (`mla_layer_ns` instead for models with MLA, where given); group_ns:
    once per expert group; expert_ns: once per expert executed on the GPU; transfer_ns: once per transfer
    (synchronisation); step_ns: once per step; decide_ns: once per visit, beside what the hardware's host
    takes; cpu_visit_ns: once per visit that computes any expert on the host. launches_per_*: kernel launches
    that the GPU waits for, times the GPU's kernel_launch_ns.
    copies_per_expert: copies that one transfer is made of. page_locked: experts lie in page-locked memory;
    else the hardware's pageable link is used. write_back: a victim is copied back, which doubles the
    transfer. staging_experts: GPU buffers of one expert each, beside the slots. dense_precision,
    head_precision: `experts` = as the experts, else a named precision; experts in fp32 make both fp32.
    dequant_gb_per_s: rate at which a separate kernel expands quantised experts, if any. memory_efficiency:
    replaces the GPU's hbm_efficiency.
    """

    layer_ns: Ns = 0
    mla_layer_ns: Ns | None = None
    group_ns: Ns = 0
    expert_ns: Ns = 0
    transfer_ns: Ns = 0
    step_ns: Ns = 0
    decide_ns: Ns = 0
    cpu_visit_ns: Ns = 0
    launches_per_layer: Count = 0
    launches_per_group: Count = 0
    launches_per_expert: Count = 0
    launches_per_step: Count = 0
    copies_per_expert: Positive = 1
    expert_group: Literal["one", "ready", "all"] = "one"
    page_locked: bool = True
    write_back: bool = False
    staging_experts: Count = 0
    dense_precision: str = "bf16"
    head_precision: str = "bf16"
    dequant_gb_per_s: Rate | None = None
    memory_efficiency: Share | None = None

    def precision_of(self, part: Literal["dense", "head"], experts: str) -> str:
        """Precision of the dense weights or of the LM head and embedding, when experts are stored at
        `experts`."""
        named = self.dense_precision if part == "dense" else self.head_precision
        return experts if named == "experts" or experts == "fp32" else named
