"""Nanoseconds of an operation: from a model, hardware, an engine and the shapes of the steps to the plan's
cost tables.

A GPU kernel lasts as long as the slower of its two demands, the roofline of Williams et al. 2009 (doi
10.1145/1498765.1498785):

    ns = max(bytes / (bandwidth x efficiency), operations / (peak x efficiency))

Weights are read once per step and layer whatever the rows. 1 GB/s is 1 byte/ns and 1 TFLOP/s is 1000
operations/ns. Everything is computed in float64 ns and rounded half-even once per entry; a table entry of
several layers is the sum of the rounded layers. Efficiencies, set-ups and overheads are data, with their
sources, in `sim.catalog`.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sim.catalog.files import cpu_gops_per_core, find, weight_bytes
from sim.core.plan import Costs, Int, Low
from sim.costs.classes import CostClasses, StepShapes, classify, dense_table, layer_columns
from sim.costs.measured import measured_costs
from sim.errors import CatalogError

if TYPE_CHECKING:
    from sim.catalog.engine_spec import Engine
    from sim.catalog.hardware_spec import Fixed, Gpu, Hardware
    from sim.catalog.link_spec import Link
    from sim.catalog.model_spec import Kind, ModelSpec

Float = npt.NDArray[np.float64]
ACTIVATION_BYTES = 2
LOGIT_BYTES = 4
HOST_REST = 2_000_000_000  # bytes of the operating system, the process and its libraries: an assumption
NO_MODEL = "model: none that the catalog knows; give --model NAME|FILE, or hardware with [fixed] durations"


def costs(
    model: "ModelSpec | None",
    hardware: "Hardware",
    engine: "Engine",
    precision: str,
    steps: StepShapes,
    on_host: Collection[int] = (),
) -> Costs:
    """The cost tables of a run. Raises CatalogError when a model is needed and there is none, or for an
    unknown precision. on_host: layers (of all) whose dense part the host computes; none on hardware without terms.

    With hardware of [fixed] durations these replace every other term and no model is needed; without its
    cpu_expert_ns the table of CPU times is zero and must not be used (`hardware.answers_cpu`). [measured] ones do the
    same for the model that they were measured with.
    """
    if hardware.fixed is not None:
        return _fixed_costs(hardware.fixed, steps)
    if model is None:
        raise CatalogError(NO_MODEL)
    if hardware.measured is not None:
        return measured_costs(model, hardware.measured, precision, steps)
    precision = find("precision", precision)
    classes, moe = classify(steps, model.window), set(steps.moe_layers.tolist())
    first_decoder = max(0, steps.n_layers - (model.n_layers - model.encoder_layers))
    return Costs(
        dense_ns=dense_table(
            steps,
            classes,
            lambda layer: (layer in moe, layer >= first_decoder, model.attention_kind(layer), layer in on_host),
            lambda kind: _layer_ns(model, hardware, engine, precision, classes, *kind),
        ),
        head_ns=head_ns(model, hardware, engine, precision, classes.rows, classes.prefill),
        cost_class=classes.of_step,
        decide_ns=hardware.decide_ns + engine.decide_ns,
        group_ns=group_ns(hardware, engine),
        expert_ns=expert_ns(model, hardware, engine, precision, steps.max_rows),
        cpu_expert_ns=cpu_expert_ns(model, hardware, engine, precision, steps.max_rows),
        transfer_ns=transfer_ns(hardware, engine, model.expert_bytes(precision)),
        commit_gap_ns=hardware.commit_gap_ns,
        commit_depth=hardware.commit_depth,
    )


def _fixed_costs(fixed: "Fixed", steps: StepShapes) -> Costs:
    tokens = np.arange(steps.max_rows + 1)
    per_column = np.bincount(layer_columns(steps), minlength=len(steps.moe_layers) + 1)
    return Costs(
        dense_ns=(fixed.dense_ns * per_column)[None, :],
        head_ns=np.array([fixed.head_ns], np.int64),
        cost_class=np.zeros(len(steps.prefill), np.int32),
        decide_ns=fixed.decide_ns,
        group_ns=fixed.group_ns,
        expert_ns=np.where(tokens > 0, fixed.expert_ns, 0),
        cpu_expert_ns=np.tile(np.where(tokens > 0, fixed.cpu_expert_ns or 0, 0), (2, 1)),
        transfer_ns=np.array([fixed.transfer_ns] * 2, np.int64),
        commit_gap_ns=fixed.commit_gap_ns,
        commit_depth=fixed.commit_depth,
    )


def low_copies(
    model: "ModelSpec | None", hardware: "Hardware", engine: "Engine", precision: str, slots: Int, max_rows: int
) -> Low:
    """Low-precision copies of a model's experts: bytes, transfers and executions as those of experts stored at
    `precision`. Raises CatalogError where the hardware's [fixed] or [measured] durations have none."""
    fixed = hardware.fixed
    if hardware.measured is not None:
        raise CatalogError("hardware: [measured] has no times of low-precision copies, which this policy needs")
    if fixed is not None:
        if fixed.low_transfer_ns is None or fixed.low_expert_ns is None:
            raise CatalogError("hardware: [fixed] has no low_transfer_ns and low_expert_ns, which this policy needs")
        by_tokens = np.where(np.arange(max_rows + 1) > 0, fixed.low_expert_ns, 0)
        return Low(slots, fixed.low_bytes, np.array([fixed.low_transfer_ns] * 2, np.int64), by_tokens)
    if model is None:
        raise CatalogError(NO_MODEL)
    precision = find("precision", precision)
    size = model.expert_bytes(precision)
    by_tokens = expert_ns(model, hardware, engine, precision, max_rows)
    return Low(slots, size, transfer_ns(hardware, engine, size), by_tokens)


def group_ns(hardware: "Hardware", engine: "Engine") -> int:
    """Once per expert group: the engine's own time and the kernel launches that the GPU waits for."""
    return engine.group_ns + engine.launches_per_group * _launch_ns(hardware)


def expert_ns(model: "ModelSpec", hardware: "Hardware", engine: "Engine", precision: str, max_tokens: int) -> Int:
    """One expert on the GPU by its tokens, int64 [max_tokens + 1], 0 tokens = 0.

    bytes = weights + tokens x 2 bytes x (hidden in and out, intermediate written and read); operations = 2 x
    tokens x weights; then the engine's time per expert, its launches, and the expansion of quantised weights
    where a separate kernel does it.
    """
    tokens = np.arange(max_tokens + 1, dtype=np.float64)
    weights = model.expert_bytes(precision)
    activations = tokens * (ACTIVATION_BYTES * 2 * (model.hidden + model.expert_intermediate))
    ns = _roofline(hardware, engine, precision, weights + activations, 2.0 * tokens * model.expert_params)
    ns += _own_ns(hardware, engine, "expert_ns") + engine.launches_per_expert * _launch_ns(hardware)
    if engine.dequant_gb_per_s is not None and weights < model.expert_params * 2:
        ns += weights / engine.dequant_gb_per_s
    ns[0] = 0
    return _rounded(ns)


def cpu_expert_ns(model: "ModelSpec", hardware: "Hardware", engine: "Engine", precision: str, max_tokens: int) -> Int:
    """One expert on the host by its tokens, int64 [2, max_tokens + 1]: link idle, link busy; 0 tokens = 0.

    cpu_expert_ns + max(bytes / read rate, 2 x tokens x weights / arithmetic): reading dominates at one token
    (arXiv 2512.16473: 704.6 MB in 7.34 ms = 96 GB/s). A busy link takes its share of the host's memory
    bandwidth (`Host.read_rate`).
    """
    read, operations = cpu_terms_ns(model, hardware, engine, precision, np.arange(max_tokens + 1))
    ns = _own_ns(hardware, engine, "cpu_expert_ns") + np.maximum(read[:, None], operations)
    ns[:, 0] = 0
    return _rounded(ns)


def cpu_visit_ns(hardware: "Hardware", engine: "Engine", given_us: float | None = None) -> int:
    """Once per visit that computes anything on the host: as given, else as [fixed] says it or, beside catalog terms,
    the engine; [measured] times of experts hold all of it."""
    if given_us is not None:
        return round(given_us * 1e3)
    if hardware.durations is not None:
        return hardware.fixed.cpu_visit_ns if hardware.fixed is not None else 0
    return round(_own_ns(hardware, engine, "cpu_visit_ns"))


def cpu_terms_ns(
    model: "ModelSpec", hardware: "Hardware", engine: "Engine", precision: str, tokens: npt.NDArray[Any]
) -> tuple[Float, Float]:
    """The two terms of an expert on the host: reading its weights, float64 [2] with the link idle and busy, and its
    operations, float64 by `tokens` (any shape)."""
    host, size = hardware.host, model.expert_bytes(precision)
    assert host is not None
    link_rate = hardware.link_for(engine.page_locked).rate(size / engine.copies_per_expert)
    rates = np.array([host_read_rate(hardware, engine), host_read_rate(hardware, engine, link_rate)])
    read = np.maximum(size / rates, size / link_rate if hardware.unified else 0.0)  # it comes from the SSD first
    weighed = np.minimum(tokens, 1) + np.maximum(tokens - 1, 0) / engine.cpu_batch_gain
    return read, weighed * (2.0 * model.expert_params) / host_compute_rate(hardware, engine, precision)


def host_read_rate(hardware: "Hardware", engine: "Engine", link_rate: float = 0.0) -> float:
    """Bytes per ns that an engine's threads read on the host while a link takes `link_rate`."""
    assert hardware.host is not None
    return hardware.host.read_rate(link_rate, engine.numa == "one") * engine.cpu_read_share


def host_compute_rate(hardware: "Hardware", engine: "Engine", precision: str) -> float:
    """Operations per ns of an engine's kernels on the host, for weights of a precision."""
    assert hardware.host is not None
    return hardware.host.compute_rate(cpu_gops_per_core(precision)) * engine.cpu_compute_share


def _own_ns(hardware: "Hardware", engine: "Engine", field: str) -> float:
    """A duration of the engine's own, in ns; one of the host's work on a host of that speed."""
    ns = float(getattr(engine, field))
    return ns / hardware.host.single_thread if field in engine.host_work and hardware.host is not None else ns


def transfer_ns(hardware: "Hardware", engine: "Engine", size: int) -> Int:
    """One expert of `size` bytes over the link, int64 [2]: on an idle link, following on (design.md section
    6).

    set-up + copies x per-copy cost + bytes / rate(bytes of one copy); twice that when the engine writes
    victims back; plus the engine's synchronisation.
    """
    link, ways = hardware.link_for(engine.page_locked), 2 if engine.write_back else 1
    moving = _copying_ns(link, size, engine.copies_per_expert)
    return _rounded(ways * moving + _own_ns(hardware, engine, "transfer_ns"))


def _copying_ns(link: "Link", size: int, copies: int) -> Float:
    """`size` bytes in so many copies, float64 [2]: on an idle link, following on."""
    set_ups = np.array([link.setup_ns, link.follow_setup_ns], np.float64)
    return set_ups + (copies * link.per_copy_ns + size / link.rate(size / copies))


def chunk_ns(hardware: "Hardware", engine: "Engine", size: int, chunk: int, transfer_ns_: Int) -> Int:
    """A chunk of an expert of `size` bytes, int64 [2, 2]: on an idle link, following on; a full one of `chunk` bytes,
    and the last, of the remainder. Zeros where chunk is 0: nothing is cut.

    Each is a transfer of one copy. Of [fixed] transfers (transfer_ns_, int64 [2]) what is not set-up is in proportion
    to the bytes. Beside [measured] ones each chunk takes beyond a bare copy of its bytes what a transfer took beyond
    one of the expert's.
    """
    if chunk == 0:
        return np.zeros((2, 2), np.int64)
    sizes = (chunk, size - (-(-size // chunk) - 1) * chunk)
    if hardware.fixed is not None:
        set_up = hardware.fixed.transfer_setup_ns or 0
        moving: Float = (transfer_ns_ - set_up)[:, None] * np.array(sizes) / size
        return _rounded(set_up + moving)
    if hardware.measured is None:
        one = engine.model_copy(update={"copies_per_expert": 1})
        return np.stack([transfer_ns(hardware, one, part) for part in sizes], axis=1)
    link = hardware.measured.link
    assert link is not None
    beyond = transfer_ns_ - _copying_ns(link, size, 1)
    return _rounded(np.stack([np.maximum(0.0, beyond + _copying_ns(link, part, 1)) for part in sizes], axis=1))


def run_ns(hardware: "Hardware", engine: "Engine", size: int, n_experts: int, transfer_ns_: Int) -> Int:
    """n experts of `size` bytes as one transfer, int64 [2, E + 1]: on an idle link, following on; [:, 1] is
    transfer_ns_, that of one.

    Copies as of one expert, each of so many experts' bytes at the rate of that size. Where durations are given
    outright, each expert after the first takes what one that follows on does.
    """
    if hardware.durations is not None:
        found: Int = transfer_ns_[:, None] + np.arange(-1, n_experts) * transfer_ns_[1]
    else:
        found = np.stack([transfer_ns(hardware, engine, n * size) for n in range(n_experts + 1)], axis=1)
    found[:, 0] = 0
    return found


def head_ns(
    model: "ModelSpec",
    hardware: "Hardware",
    engine: "Engine",
    precision: str,
    rows: Int,
    prefill: npt.NDArray[np.bool_],
) -> Int:
    """End of step, by rows int64 [n] and prefill bool [n]: final norm, LM head, logits, the engine's time per
    step.

    A prefill step needs the logits of one row at most, the request's last; each of its chunks is charged that
    row.
    """
    needed = np.where(prefill, np.minimum(rows, 1), rows).astype(np.float64)
    stored = engine.precision_of("head", precision)
    weights = weight_bytes(model.head_params, stored) + ACTIVATION_BYTES * model.hidden
    size = weights + needed * (LOGIT_BYTES * model.vocab)
    ns = _roofline(hardware, engine, stored, size, 2.0 * needed * model.head_params)
    ns += _own_ns(hardware, engine, "step_ns") + engine.launches_per_step * _launch_ns(hardware)
    return _rounded(ns)


def _layer_ns(
    model: "ModelSpec",
    hardware: "Hardware",
    engine: "Engine",
    precision: str,
    classes: CostClasses,
    moe: bool,
    decoder: bool,
    attention: "Kind",
    on_host: bool,
) -> Int:
    """One layer without its routed experts, int64 [classes].

    bytes = weights + KV entries read x bytes per entry; operations = 2 x rows x weights + 2 x heads x (qk + v
    width) x entries scored. A sparse layer reads the index keys of every entry beside. A linear-attention layer reads
    and writes its state once per sequence instead, one operation per byte and row. Activations are left out: below 1 %
    of the weights at few rows, and at many rows operations decide. So are the cached entries of cross-attention, whose
    number a trace does not say. On the host it takes what an expert of such bytes and operations would
    (`cpu_expert_ns`), and no kernels.
    """
    stored = engine.precision_of("dense", precision)
    params = model.layer_params(moe, decoder, attention)
    rows = classes.rows.astype(np.float64)
    size = np.full(len(rows), weight_bytes(params, stored), np.float64)
    operations = 2.0 * rows * params
    if attention == "linear":
        sequences = np.where(classes.prefill, np.minimum(rows, 1), rows)
        size += 2.0 * sequences * model.linear_state_bytes
        operations += rows * model.linear_state_bytes
    elif attention != "none":
        entries = classes.read[attention] * float(model.kv_entry_bytes(attention))
        if attention == "sparse":
            entries += classes.read["full"] * float(model.index_bytes_per_token)
        size += entries / np.where(classes.prefill, 1.0, engine.kv_read_share)
        operations += classes.scored[attention] * (2.0 * model.n_heads * (model.qk_dim + model.v_dim))
    own = _layer_own_ns(model, hardware, engine, on_host or hardware.on_host)
    if on_host:
        return _rounded(own + _host_roofline(hardware, engine, stored, size, operations))
    ns = _roofline(hardware, engine, stored, size, operations)
    return _rounded(ns + own + engine.launches_per_layer * _launch_ns(hardware))


def _layer_own_ns(model: "ModelSpec", hardware: "Hardware", engine: "Engine", on_host: bool) -> float:
    """The engine's own time of a layer, in ns: the most particular that it has."""
    names = ["layer_ns"]
    names += ["mla_layer_ns"] if model.attention == "mla" else []
    names += ["host_layer_ns"] if on_host else []
    names += ["mla_host_layer_ns"] if on_host and model.attention == "mla" else []
    return _own_ns(hardware, engine, [name for name in names if getattr(engine, name) is not None][-1])


def _host_roofline(hardware: "Hardware", engine: "Engine", stored: str, size: Float, operations: Float) -> Float:
    """The slower of the host's reading `size` bytes, the link idle, and its operations on weights stored at a
    precision, in ns."""
    read = size / host_read_rate(hardware, engine)
    return np.maximum(read, operations / host_compute_rate(hardware, engine, stored))


def _launch_ns(hardware: "Hardware") -> int:
    return 0 if hardware.on_host else _gpu(hardware).kernel_launch_ns


def _gpu(hardware: "Hardware") -> "Gpu":
    assert hardware.gpu is not None
    return hardware.gpu


def _roofline(hardware: "Hardware", engine: "Engine", stored: str, size: Float, operations: Float) -> Float:
    """The slower of reading `size` bytes and doing `operations` on weights stored at a precision, in ns."""
    if hardware.on_host:
        return _host_roofline(hardware, engine, stored, size, operations)
    gpu = _gpu(hardware)
    return np.maximum(
        size / min(gpu.hbm_gb_per_s, gpu.memory_rate() * engine.memory_efficiency),
        operations / gpu.compute_rate(find("precision", stored)),
    )


def _rounded(ns: Float) -> Int:
    return np.rint(ns).astype(np.int64)


def expert_bytes(model: "ModelSpec | None", hardware: "Hardware", precision: str) -> int:
    """Bytes of one expert: what [measured] or [fixed] says, else the model's, else 1 (a fixed file without either
    counts transfers)."""
    if hardware.measured is not None:
        return hardware.measured.expert_bytes
    fixed = hardware.fixed
    if fixed is not None and (model is None or "expert_bytes" in fixed.model_fields_set):
        return fixed.expert_bytes
    if model is None:
        raise CatalogError(NO_MODEL)
    return model.expert_bytes(precision)


def memory(
    model: "ModelSpec | None",
    precision: str,
    slots_total: int,
    context: int,
    batch: int,
    hardware: "Hardware",
    engine: "Engine",
    more: int = 0,
    stages: int = 0,
    on_host: Collection[int] = (),
    rows: int = 0,
    vram: int | None = None,
    working: int = 0,
) -> dict[str, Any]:
    """GPU memory in bytes, the summary's memory line: dense (all weights but routed experts), kv (`batch` sequences
    of `context` tokens, bf16), slots (and `more` bytes: low-precision copies), staging (the engine's buffers, at least
    `stages` of one expert each), reserve (of an engine that leaves memory free, or buffers the logits of a step of
    `rows` rows; of any other `working`, see sim.costs.reserve; where it is 0 no such key), gpu (what there is, or
    `vram`), fits (whether all of it does). on_host: MoE layers, among all, whose dense part and KV entries are the
    host's.

    None is what cannot be known: dense, kv, fits without a model or where it was measured with its sizes shrunk, gpu
    and fits without a GPU. Raises CatalogError for an unknown precision.
    """
    size = expert_bytes(model, hardware, precision)
    line: dict[str, Any] = {"dense": None, "kv": None}
    if model is not None and not hardware.shrunk:
        stored = (engine.precision_of("dense", precision), engine.precision_of("head", precision))
        dense, kv = layers_bytes(model, engine, precision, on_host, context, batch)
        line = {"dense": model.dense_bytes(*stored) - dense, "kv": batch * model.kv_bytes(context) - kv}
    line |= {
        "slots": slots_total * size + more,
        "staging": max(engine.staging_experts, stages) * size,
    }
    if reserve := _reserve(model, engine, rows) or working:
        line["reserve"] = reserve
    line["gpu"] = hardware.mem_bytes if vram is None else vram
    known = all(part is not None for part in line.values())
    line["fits"] = needed(line) <= line["gpu"] if known else None
    return line


def needed(line: Mapping[str, Any]) -> int:
    """Bytes of GPU memory that a memory line comes to, of what is known of it."""
    return sum(line.get(part) or 0 for part in ("dense", "kv", "slots", "staging", "reserve"))


def _reserve(model: "ModelSpec | None", engine: "Engine", rows: int) -> int:
    logits = rows * LOGIT_BYTES * model.vocab if engine.buffered_logits and model is not None else 0
    return (engine.reserve_mib << 20) + logits


def layers_bytes(
    model: "ModelSpec", engine: "Engine", precision: str, layers: Collection[int], context: int, batch: int
) -> tuple[int, int]:
    """(weights outside the routed experts, KV entries) of MoE layers, in bytes."""
    params = sum(model.layer_params(True, attention=model.attention_kind(layer)) for layer in layers)
    return weight_bytes(params, engine.precision_of("dense", precision)), batch * model.kv_bytes(context, layers)


def host_memory(
    model: "ModelSpec | None",
    hardware: "Hardware",
    engine: "Engine",
    precision: str,
    experts: int,
    ram: int | None,
    more: int = 0,
) -> dict[str, Any]:
    """Host memory in bytes: experts and page_locked (`experts` of them, all that the model has, in the one kind of
    memory that the engine keeps them in), rest (HOST_REST, and `more` bytes: dense parts of layers, low-precision
    copies), ram (what there is), fits (whether the three fit into it).

    Experts that are resident on the GPU count too, also those of layers that never leave it: an engine reads the file
    into host memory first. None is what cannot be known: fits without a model or the size of the memory.
    """
    size = experts * expert_bytes(model, hardware, precision)
    kinds = (0, size) if engine.page_locked else (size, 0)
    line: dict[str, Any] = dict(zip(("experts", "page_locked"), kinds, strict=True))
    line |= {"rest": HOST_REST + more, "ram": ram}
    known = ram is not None and model is not None and not hardware.shrunk
    return line | {"fits": size + line["rest"] <= ram if known else None}
