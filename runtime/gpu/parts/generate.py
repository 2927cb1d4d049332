"""python -m runtime.gpu.parts.generate cuda|cpu FOLDER: a tiny random Mixtral of Hugging Face generates, plain and
through the expert cache; the tokens must be equal.

The model is left in FOLDER for `runtime.live`, figures in live.json. Exit status 1 where tokens differ, NOT_HERE
without transformers >= 5.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

import runtime
from runtime.closed_loop.slotted import registry
from runtime.gpu.parts import NOT_HERE
from runtime.live import OffloadedExperts
from traces.command import write_bytes
from traces.errors import UserError

TOKENIZER = Path(runtime.__file__).parent / "tiny_moe" / "tokenizer.json"
PROMPT, TOKENS = "def main(argv):\n    return", 24
SIZES = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "num_local_experts": 8, "num_experts_per_tok": 2,
}  # fmt: skip
ASKED: tuple[dict[str, Any], ...] = (
    {"cache": 2},
    {"cache": 4, "prefetch": "previous-token"},
    {"cache": 0.5, "expert_group": "all"},
)


def made(folder: str) -> tuple[Any, Any]:
    """(model in bf16 on the CPU, tokenizer), saved in the folder; routers drawn wide, so that tokens differ."""
    from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(TOKENIZER))
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(vocab_size=max(512, len(tokenizer)), **SIZES)).eval().to(torch.bfloat16)
    for name, weights in model.named_parameters():
        if "gate.weight" in name:
            weights.data.normal_(0, 0.3)
        elif "experts." in name:
            weights.data.normal_(0, 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def generated(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, float]:
    """(tokens, seconds), greedily."""
    began = time.perf_counter()
    out = model.generate(ids, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0).cpu()
    return out, time.perf_counter() - began


def compared(device: str, folder: str) -> list[dict[str, Any]]:
    """One row for each of ASKED."""
    model, tokenizer = made(folder)
    ids, model = tokenizer(PROMPT, return_tensors="pt")["input_ids"].to(device), model.to(device)
    model.set_experts_implementation("eager")
    generated(model, ids)
    want, plain_s = generated(model, ids)
    out = []
    for asked in ASKED:
        with OffloadedExperts(model, hardware="h200", **asked) as live:
            got, offloaded_s = generated(model, ids)
            facts = live.summary()
        row = {"asked": asked, "equal": torch.equal(got, want), "plain_s": plain_s, "offloaded_s": offloaded_s}
        out.append(row | {name: facts[name] for name in ("wanted", "misses")})
        print(out[-1], flush=True)
    return out


def main(device: str, folder: str) -> int:
    """The command."""
    try:
        registry()
    except UserError as error:
        print(error)
        return NOT_HERE
    found = compared(device, folder)
    write_bytes("live.json", (json.dumps(found, indent=1) + "\n").encode())
    return int(not all(row["equal"] for row in found))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
