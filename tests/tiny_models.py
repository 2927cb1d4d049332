"""Nine Mixture-of-Experts families of Hugging Face in a size for tests, with weights that make routing matter."""

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: hf)")
transformers = pytest.importorskip("transformers", reason="Hugging Face transformers is not installed (extra: hf)")

COMMON = {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
MLA = {
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "num_experts_per_tok": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "n_group": 4,
    "topk_group": 2,
}
FINE = {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 32, "num_key_value_heads": 2}
COARSE = {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 96, "num_key_value_heads": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", COARSE),
    "qwen2-moe": ("Qwen2Moe", FINE | {"shared_expert_intermediate_size": 48}),
    "qwen3-moe": ("Qwen3Moe", FINE | {"head_dim": 16}),
    "olmoe": ("Olmoe", {"num_experts": 16, "num_experts_per_tok": 4, "intermediate_size": 32}),
    "deepseek-v2": ("DeepseekV2", MLA | {"topk_method": "group_limited_greedy"}),
    "deepseek-v3": ("DeepseekV3", MLA),
    "gpt-oss": (
        "GptOss",
        {
            "num_local_experts": 8,
            "num_experts_per_tok": 4,
            "intermediate_size": 64,
            "head_dim": 16,
            "num_key_value_heads": 2,
        },
    ),
    "phimoe": ("Phimoe", COARSE),
    "glm4-moe": (
        "Glm4Moe",
        {
            "n_routed_experts": 16,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 32,
            "num_experts_per_tok": 4,
            "num_key_value_heads": 2,
            "n_group": 4,
            "topk_group": 2,
            "head_dim": 16,
        },
    ),
}


def build(family: str, seed: int = 0) -> Any:
    """A causal model of the family on the CPU; routers and their biases are drawn wide, so that tokens differ."""
    name, own = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**{**COMMON, **own})
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for part, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if part.endswith(("gate.weight", "router.weight")):
            tensor.data.normal_(0, 0.3)
        elif part.endswith(("router.bias", "e_score_correction_bias")):
            tensor.data.normal_(0, 0.2)
        elif "experts." in part:
            tensor.data.normal_(0, 0.1)
    return model


def prompts(rows: int, length: int, seed: int = 1) -> Any:
    """Token ids int64 [rows, length] from 2 up: 1 is the padding."""
    return torch.randint(2, 128, (rows, length), generator=torch.Generator().manual_seed(seed))


GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 1}
