"""GPU memory that a run takes beside weights, KV entries and experts: the CUDA context, and buffers of a step.

The buffers hold what one step computes, its rows at once: the largest of three phases that follow one another. It is
counted as llama.cpp with flash attention lays it out, values of 4 bytes (docs/recommend.md has the published sizes that
it was held against):

    head        rows x 4 x (vocabulary + hidden)                    logits of every row, beside what they come from
    attention   rows x (2 x context + 4 x 2 x (heads x qk + hidden))    a mask of 2 bytes an entry, queries, outputs
    experts     rows x 4 x top-k x (2 x width + hidden)             gate and up, and the experts' outputs before the sum

An engine whose fit leaves memory free by itself (`reserve_mib`, `memory_share`, `buffered_logits` of its entry) keeps
its own figure: nothing is counted twice.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.catalog.engine_spec import Engine
    from sim.catalog.hardware_spec import Hardware
    from sim.catalog.model_spec import ModelSpec

VALUE_BYTES = 4
MASK_BYTES = 2


def buffer_bytes(model: "ModelSpec", rows: int, context: int) -> int:
    """Of steps of at most `rows` rows over at most `context` entries."""
    head = VALUE_BYTES * (model.vocab + model.hidden)
    attention = MASK_BYTES * context + VALUE_BYTES * 2 * (model.n_heads * model.qk_dim + model.hidden)
    experts = VALUE_BYTES * model.top_k * (2 * model.expert_intermediate + model.hidden)
    return rows * max(head, attention, experts)


def context_bytes(hardware: "Hardware") -> int:
    """Of the CUDA context; 0 without a GPU that computes."""
    return 0 if hardware.gpu is None or hardware.on_host else hardware.gpu.context_mib << 20


def working_bytes(model: "ModelSpec | None", hardware: "Hardware", engine: "Engine", rows: int, context: int) -> int:
    """Context and buffers, of an engine that says nothing of them itself; 0 of any other, and where a GPU or a model is
    not known."""
    says = engine.reserve_mib or engine.buffered_logits or engine.memory_share < 1
    if says or model is None or hardware.gpu is None or hardware.on_host:
        return 0
    return context_bytes(hardware) + buffer_bytes(model, rows, context)
