"""What the simulator knows of a model: its shape, and the parameters and bytes that follow from the shape."""

from collections.abc import Collection
from typing import Literal

from pydantic import Field, model_validator

from sim.catalog.files import precision_bits, weight_bytes
from sim.catalog.parts import Count, Entry, Positive
from traces.format.limits import MOST_LAYERS

Kind = Literal["full", "window", "sparse", "linear", "none"]
KINDS: dict[str, Kind] = {"f": "full", "w": "window", "s": "sparse", "l": "linear", "-": "none"}


class ModelSpec(Entry):
    """A Mixture-of-Experts model. Parameters are counts; KV bytes are at bf16 whatever the weights are.

    n_layers counts every layer, an encoder's first (`encoder_layers`). MoE layers are moe_first, moe_first +
    moe_step, ..., or those of `moe_layer_list`; every other layer has a dense FFN of `dense_intermediate`, none at 0.
    `expert_biases` are parameters of one expert outside its matrices; `shared_intermediate` is the width of all shared
    experts together, `shared_gate` a vector of `hidden` that scales their output. `qk_dim` and `v_dim` are what one
    head multiplies per cached entry (for MLA in its absorbed form).

    attention_pattern: a letter for each layer (KINDS), repeated to the last one: full attention; window, which reads
    and keeps the last `window` entries; sparse, which reads as many, keeps all, and reads index_bytes_per_token of each
    to choose; linear, which reads `linear_state_bytes` per sequence; none at all. attn_params_per_layer are those
    of every kind that attn_params_by_kind does not name, kv_bytes_per_token_per_layer those of a window layer where
    window_kv_bytes_per_token_per_layer is not given.
    """

    n_layers: int = Field(gt=0, le=MOST_LAYERS)
    encoder_layers: Count = 0
    moe_first: Count = 0
    moe_step: Positive = 1
    moe_layer_list: tuple[Count, ...] | None = Field(default=None, strict=False)
    n_experts: Positive
    top_k: Positive
    hidden: Positive
    expert_intermediate: Positive
    expert_matrices: Literal[2, 3] = 3
    expert_biases: Count = 0
    n_shared_experts: Count = 0
    shared_intermediate: Count = 0
    shared_gate: bool = False
    dense_intermediate: Count | None = None
    attn_params_per_layer: Positive
    attn_params_by_kind: dict[Kind, Count] = Field(default_factory=dict)
    cross_attn_params_per_layer: Count = 0
    kv_bytes_per_token_per_layer: Positive
    window_kv_bytes_per_token_per_layer: Positive | None = None
    index_bytes_per_token: Count = 0
    attention: Literal["gqa", "mla"] = "gqa"
    n_heads: Positive
    qk_dim: Positive
    v_dim: Positive
    window: Positive | None = None
    attention_pattern: str = Field(default="f", pattern=f"^[{''.join(KINDS)}]+$")
    linear_state_bytes: Count = 0
    vocab: Positive
    tied_embeddings: bool = False
    router: str = ""
    score_function: Literal["softmax", "softmax-topk", "sigmoid", "other"] = "other"
    norm_topk: bool | None = None
    routed_scaling_factor: float = 1.0
    native_precision: str = "bf16"
    published_total_b: float | None = Field(default=None, gt=0)
    published_active_b: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> "ModelSpec":
        if self.top_k > self.n_experts:
            raise ValueError(f"top_k = {self.top_k}: more than n_experts = {self.n_experts}")
        if self.moe_first >= self.n_layers:
            raise ValueError(f"moe_first = {self.moe_first}: must be below n_layers = {self.n_layers}")
        if self.encoder_layers >= self.n_layers:
            raise ValueError(f"encoder_layers = {self.encoder_layers}: must be below n_layers = {self.n_layers}")
        if self.moe_layer_list is not None:
            self._listed(self.moe_layer_list)
        if self.window is None and set(self.attention_pattern) & set("ws"):
            raise ValueError(f'window: missing, and attention_pattern = "{self.attention_pattern}" has such layers')
        if "l" in self.attention_pattern and "linear_state_bytes" not in self.model_fields_set:
            where = f'attention_pattern = "{self.attention_pattern}" has such layers'
            raise ValueError(f"linear_state_bytes: missing, and {where}")
        if self.n_moe_layers < self.n_layers and self.dense_intermediate is None:
            raise ValueError("dense_intermediate: missing, and some layers are not MoE layers")
        return self

    def _listed(self, layers: tuple[int, ...]) -> None:
        if not layers or list(layers) != sorted(set(layers)) or layers[-1] >= self.n_layers:
            raise ValueError(f"moe_layer_list = {list(layers)}: must be rising layers below n_layers = {self.n_layers}")

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the MoE layers."""
        if self.moe_layer_list is not None:
            return self.moe_layer_list
        return tuple(range(self.moe_first, self.n_layers, self.moe_step))

    @property
    def n_moe_layers(self) -> int:
        return len(self.moe_layers)

    @property
    def expert_params(self) -> int:
        return self.expert_matrices * self.hidden * self.expert_intermediate + self.expert_biases

    @property
    def router_params(self) -> int:
        return self.hidden * self.n_experts

    @property
    def shared_params(self) -> int:
        """Shared experts of one MoE layer and their gate."""
        gate = self.hidden if self.shared_gate else 0
        return self.expert_matrices * self.hidden * self.shared_intermediate + gate

    @property
    def dense_ffn_params(self) -> int:
        """FFN of one layer that is not an MoE layer."""
        return self.expert_matrices * self.hidden * (self.dense_intermediate or 0)

    @property
    def head_params(self) -> int:
        """LM head; read once per step even when it is the embedding."""
        return self.vocab * self.hidden

    def layer_params(self, moe: bool, cross: bool = False, attention: Kind = "full") -> int:
        """Weights of one layer that every token reads: attention, two norms, and router + shared experts or
        the dense FFN."""
        ffn = self.router_params + self.shared_params if moe else self.dense_ffn_params
        return self.attn_params(attention) + 2 * self.hidden + (self.cross_attn_params_per_layer if cross else 0) + ffn

    def attn_params(self, attention: Kind) -> int:
        """Weights of attention of a kind."""
        usual = 0 if attention == "none" else self.attn_params_per_layer
        return self.attn_params_by_kind.get(attention, usual)

    def attention_kind(self, layer: int) -> Kind:
        """How a layer attends."""
        return KINDS[self.attention_pattern[layer % len(self.attention_pattern)]]

    def kv_entry_bytes(self, attention: Kind) -> int:
        """Bytes of one cached entry in a layer of a kind."""
        own = self.window_kv_bytes_per_token_per_layer if attention == "window" else None
        return self.kv_bytes_per_token_per_layer if own is None else own

    @property
    def read_dense_params(self) -> int:
        """Weights outside the routed experts that every token reads, LM head included."""
        decoders = self.n_layers - self.encoder_layers if self.encoder_layers else 0
        moe = set(self.moe_layers)
        layers = sum(self.layer_params(i in moe, attention=self.attention_kind(i)) for i in range(self.n_layers))
        return layers + decoders * self.cross_attn_params_per_layer + self.head_params

    @property
    def dense_params(self) -> int:
        """All weights outside the routed experts: what stays on the GPU."""
        return self.read_dense_params + (0 if self.tied_embeddings else self.head_params)

    @property
    def n_routed(self) -> int:
        """Routed experts of all layers."""
        return self.n_moe_layers * self.n_experts

    @property
    def total_params(self) -> int:
        return self.dense_params + self.n_routed * self.expert_params

    @property
    def active_params(self) -> int:
        """Weights one token reads: dense ones, LM head, top-k experts per MoE layer; not the embedding
        table."""
        return self.read_dense_params + self.n_moe_layers * self.top_k * self.expert_params

    def expert_bytes(self, precision: str) -> int:
        """Bytes of one routed expert."""
        return weight_bytes(self.expert_params, precision)

    def dense_bytes(self, precision: str, head_precision: str | None = None) -> int:
        """Bytes of all weights outside the routed experts; head and embedding at `head_precision` if
        given."""
        ends = self.head_params * (1 if self.tied_embeddings else 2)
        return weight_bytes(self.dense_params - ends, precision) + weight_bytes(ends, head_precision or precision)

    def with_kv(self, precision: str) -> "ModelSpec":
        """The same model, its KV entries, which the catalog has in bf16, stored at a precision; linear states and index
        keys stay. Raises CatalogError for an unknown one."""
        share = precision_bits(precision) / precision_bits("bf16")
        fields = ("kv_bytes_per_token_per_layer", "window_kv_bytes_per_token_per_layer")
        sizes = {name: size for name in fields if (size := getattr(self, name)) is not None}
        smaller = {name: max(1, round(size * share)) for name, size in sizes.items()}
        return self if share == 1 else self.model_copy(update=smaller)

    def kv_bytes(self, context: int, layers: Collection[int] | None = None) -> int:
        """Bytes that one sequence of `context` tokens keeps: KV entries (a window keeps its last ones), index keys,
        linear states; of some layers, or of all."""
        near = min(context, self.window or context)
        sizes: dict[Kind, int] = {
            "full": context * self.kv_bytes_per_token_per_layer,
            "window": near * self.kv_entry_bytes("window"),
            "sparse": context * (self.kv_bytes_per_token_per_layer + self.index_bytes_per_token),
            "linear": self.linear_state_bytes,
            "none": 0,
        }
        return sum(sizes[self.attention_kind(i)] for i in (range(self.n_layers) if layers is None else layers))

    def mismatch(self, n_layers: int, moe_layers: tuple[int, ...], n_experts: int, top_k: int) -> str | None:
        """What a trace's shape contradicts, in words, or None. A decoder alone is accepted of an
        encoder-decoder model."""
        ours = (self.n_layers, self.moe_layers)
        first = self.encoder_layers
        decoder = (self.n_layers - first, tuple(i - first for i in self.moe_layers if i >= first))
        if (n_layers, moe_layers) not in (ours, decoder):
            theirs = f"{n_layers} layers, {len(moe_layers)} of them MoE"
            own = f"{self.n_layers} layers, {self.n_moe_layers} of them MoE"
            return f"{self.name} has {own}; the trace has {theirs}"
        if (n_experts, top_k) != (self.n_experts, self.top_k):
            theirs = f"{n_experts} experts, top-{top_k}"
            return f"{self.name} has {self.n_experts} experts, top-{self.top_k}; the trace has {theirs}"
        return None
