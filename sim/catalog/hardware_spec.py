"""GPU, link, host, and the three together. GB = 1e9 bytes, and GB/s is bytes per ns, which keeps the
arithmetic short."""

import math
from typing import Literal

from pydantic import model_validator

from sim.catalog.link_spec import Link
from sim.catalog.measured_spec import Measured
from sim.catalog.parts import Count, Entry, Factors, Ns, Positive, Rate, Share, Sized

NOMINAL_SHARE = 0.7  # of the nominal DRAM peak that an engine's threads read
CORES_IN_STEP = 32  # beyond so many each operation's barriers cost: an assumption, as the square root
CORES_PER_GB_PER_S = 16 / 62.3  # of a desktop with DDR5: what a host has whose cores nobody stated


class Gpu(Sized):
    """A GPU. Its memory is given as mem_gb or as mem_mib.

    mem_mib: as nvidia-smi reports it; mem_cuda_mib: what CUDA shows to a process (cudaMemGetInfo, total_memory in
    torch), which is that less the driver's reserve. A run may use the latter where it is known, else all of the
    former. context_mib: what of it a CUDA context takes, 500 where nothing is known: near the most of the cards that
    have a figure; it is taken off where memory is to be filled (sim.costs.reserve).

    hbm_efficiency .7: the share of the memory bandwidth that batch-1 kernels reach, upper end of .38-.7 in
    the collected formulas (moe-speed-of-light fits .38 with launches and waits inside; here those are terms
    of the engine). flops_efficiency .6 is an assumption: no measurement was collected. kernel_launch_ns 4500:
    the middle of CUDA's 3-6 us. tflops: dense peak by dtype (`bf16` required; `fp32`, `fp8` used for such
    weights where given).
    """

    mem_cuda_mib: Positive | None = None
    context_mib: Count = 500
    hbm_gb_per_s: Rate
    hbm_efficiency: Share = 0.7
    tflops: dict[str, Rate]
    flops_efficiency: Share = 0.6
    kernel_launch_ns: Ns = 4500
    hbm_read_gb_per_s: Rate | None = None
    slot: str = ""

    @model_validator(mode="after")
    def _has_a_size(self) -> "Gpu":
        if self.mem_gb is None and self.mem_mib is None:
            raise ValueError("mem_gb or mem_mib: missing; give one of the two")
        if self.mem_cuda_mib is not None and self.mem_cuda_mib > (self.mem_mib or 0):
            raise ValueError(f"mem_cuda_mib = {self.mem_cuda_mib}: must stand beside mem_mib, and be at most that")
        return self

    @property
    def mem_bytes(self) -> int | None:
        return super().mem_bytes if self.mem_cuda_mib is None else self.mem_cuda_mib << 20

    @model_validator(mode="after")
    def _has_bf16(self) -> "Gpu":
        if "bf16" not in self.tflops:
            raise ValueError("tflops: needs bf16, the dtype that the others fall back to")
        return self

    def memory_rate(self) -> float:
        """Bytes per ns that kernels of few tokens read."""
        return self.hbm_gb_per_s * self.hbm_efficiency

    def compute_rate(self, precision: str) -> float:
        """Operations per ns; a precision without a figure of its own computes in bf16."""
        return self.tflops.get(precision, self.tflops["bf16"]) * 1e3 * self.flops_efficiency


class Host(Entry):
    """A CPU and its memory; at least one of read_gb_per_s and peak_gb_per_s.

    read_gb_per_s: weights read alone, as measured with the engine's threads over all sockets; where nobody measured
    it, NOMINAL_SHARE of peak_gb_per_s, channels x transfers/s x 8 bytes. one_socket_gb_per_s: the same of one socket
    and its own memory, for engines that keep to one. total_gb_per_s: CPU and copy engine together; default 1.2 x
    the read rate (desktop of results/059: 75 together, 62.3 alone). cores: physical ones of all sockets. tflops: the
    arithmetic of all of them, where measured or claimed; else `cores` at the rate of the precision's kernels.
    single_thread: speed of one thread beside a Zen 4 desktop at 5 GHz, by which an engine's host work is divided.
    link_share: the share of its rate at which a link moves while experts are computed, 1 where nobody has measured
    it; ram_gb: memory, 1e9 bytes.
    """

    read_gb_per_s: Rate | None = None
    one_socket_gb_per_s: Rate | None = None
    total_gb_per_s: Rate | None = None
    peak_gb_per_s: Rate | None = None
    sockets: Positive = 1
    cores: Positive | None = None
    tflops: Rate | None = None
    single_thread: Rate = 1.0
    link_share: Share = 1.0
    ram_gb: Rate | None = None

    @model_validator(mode="after")
    def _has_a_rate(self) -> "Host":
        if self.read_gb_per_s is None and self.peak_gb_per_s is None:
            raise ValueError("read_gb_per_s or peak_gb_per_s: missing; give one of the two")
        return self

    def compute_rate(self, per_core: float) -> float:
        """Operations per ns of all cores, `per_core` (1e9 operations/s) those of one with the kernels of a precision;
        where neither tflops nor cores is known, as many as a desktop has beside each byte that it reads."""
        if self.tflops is not None:
            return self.tflops * 1e3
        cores = self.cores if self.cores is not None else self.read_rate() * CORES_PER_GB_PER_S
        return per_core * min(cores, math.sqrt(cores * CORES_IN_STEP))

    @property
    def ram_bytes(self) -> int | None:
        """Memory that a run may use, in bytes; None where it is not said."""
        return None if self.ram_gb is None else round(self.ram_gb * 1e9)

    def read_rate(self, link_rate: float = 0.0, one_socket: bool = False) -> float:
        """Bytes per ns that the CPU reads while a link takes `link_rate`: what is left of the total, at least
        half of it (results/059: CPU 37 and link 38 of 75), at most what it reads alone."""
        alone = self.read_gb_per_s or NOMINAL_SHARE * (self.peak_gb_per_s or 0)
        if one_socket and self.sockets > 1:
            alone = self.one_socket_gb_per_s or alone / self.sockets
        total = self.total_gb_per_s or 1.2 * alone
        return alone if link_rate == 0 else min(alone, max(total - link_rate, total / 2))


class Fixed(Sized):
    """Durations given outright, in ns; they replace every other cost, the engine's included.

    dense_ns: each layer of the model; expert_ns, cpu_expert_ns: each executed expert, whatever its tokens (no
    cpu_expert_ns: no cpu answers); cpu_visit_ns: each visit that computes any on the host; transfer_ns: idle
    and following (of it transfer_setup_ns whatever the bytes, without which no transfer is cut into chunks); decide_ns:
    each visit; head_ns: each step; group_ns: each expert group. low_*: of a
    low-precision copy (none: no answer can be `low`).
    """

    dense_ns: Ns
    expert_ns: Ns
    transfer_ns: Ns
    decide_ns: Ns
    cpu_expert_ns: Ns | None = None
    cpu_visit_ns: Ns = 0
    head_ns: Ns = 0
    group_ns: Ns = 0
    commit_gap_ns: Ns = 0
    commit_depth: Positive = 1
    expert_bytes: Positive = 1
    low_transfer_ns: Ns | None = None
    low_expert_ns: Ns | None = None
    low_bytes: Positive = 1
    transfer_setup_ns: Ns | None = None

    @model_validator(mode="after")
    def _set_up_within(self) -> "Fixed":
        if (self.transfer_setup_ns or 0) > self.transfer_ns:
            raise ValueError(
                f"transfer_setup_ns = {self.transfer_setup_ns}: is a part of transfer_ns; must not exceed it"
            )
        return self


class Hardware(Entry):
    """A machine: GPU, link, host, and the times a decision takes on the host; or [fixed] alone; or [measured] alone.

    readback_ns 9000: routed ids to the host, a 4-byte copy of 6.6 us (NVIDIA forum 56270) and a call of 2.3
    us (FlexKV). policy_ns 1000: a compiled policy. predictor_ns 0: predictions come with the trace.
    commit_depth 1: the engine queues on the host; a plain CUDA stream is a large depth. commit_gap_ns: from a
    commit to its start on an idle link. compute: `host` is a machine whose CPU computes everything, from its own
    memory (a GPU that it may have is idle); a decision then takes no time. unified: GPU and host have one memory, so
    that experts lie on an SSD, which is the link, and what the host computes is read from it first; the memory is the
    GPU's, no word of the host's. interval: as an engine's, of every engine on this machine; not beside [fixed].
    """

    gpu: Gpu | None = None
    link: Link | None = None
    pageable_link: Link | None = None
    host: Host | None = None
    readback_ns: Ns = 9000
    policy_ns: Ns = 1000
    predictor_ns: Ns = 0
    commit_depth: Positive = 1
    commit_gap_ns: Ns = 0
    compute: Literal["gpu", "host"] = "gpu"
    unified: bool = False
    fixed: Fixed | None = None
    measured: Measured | None = None
    interval: Factors | None = None

    @model_validator(mode="after")
    def _whole(self) -> "Hardware":
        parts = {"gpu": self.gpu, "link": self.link, "host": self.host}
        for alone in ("fixed", "measured"):
            beside = {"interval"} if alone == "measured" else set()
            given = self.model_fields_set - set(Entry.model_fields) - {alone} - beside
            if getattr(self, alone) is not None and given:
                raise ValueError(f"{min(given)}: not beside [{alone}], which replaces every other cost")
        missing = [name for name, part in parts.items() if part is None and not (name == "gpu" and self.on_host)]
        if self.durations is None and missing:
            raise ValueError(f"{missing[0]}: missing; give gpu, link and host, or [fixed] or [measured] alone")
        return self

    @property
    def durations(self) -> Fixed | Measured | None:
        """The section that gives durations outright, if one does."""
        return self.fixed or self.measured

    @property
    def decide_ns(self) -> int:
        """From the end of the dense part to the routed instant, the engine's own time apart."""
        given = self.durations
        if self.on_host:
            return 0
        return given.decide_ns if given else self.readback_ns + self.policy_ns + self.predictor_ns

    @property
    def mem_bytes(self) -> int | None:
        """GPU memory that a run may use; None when only [fixed] or [measured] is given and does not say it."""
        if self.on_host:
            return None if self.host is None else self.host.ram_bytes
        part = self.durations or self.gpu
        return None if part is None else part.mem_bytes

    @property
    def on_host(self) -> bool:
        """Whether the CPU computes everything."""
        return self.compute == "host"

    @property
    def shrunk(self) -> bool:
        """Whether it was measured with a model's sizes made smaller, so that these say nothing of memory."""
        return self.measured is not None and self.measured.scale != 1

    @property
    def answers_cpu(self) -> bool:
        """Whether a cpu answer has a cost here."""
        if self.measured is not None:
            return self.measured.cpu_expert is not None
        return self.fixed is None or self.fixed.cpu_expert_ns is not None

    def link_for(self, page_locked: bool) -> Link:
        """The link that serves experts in page-locked or in ordinary memory (the former if there is no second
        one)."""
        assert self.link is not None
        return self.link if page_locked or self.pageable_link is None else self.pageable_link
