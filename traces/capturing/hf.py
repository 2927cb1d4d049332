"""A Hugging Face causal model as a source of `python -m traces capture`: a repository's name, or a folder."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from traces.capturing.command import NAMES
from traces.capturing.facts import model_facts
from traces.capturing.inputs import made_with, pick_device
from traces.capturing.routers import find_moe_layers
from traces.errors import UserError

Ids = npt.NDArray[np.int64]

ANSWER_S = 5.0  # the hub has to say whether it has a model
TOP_K = ("num_experts_per_tok", "moe_topk", "top_k_experts", "num_experts_per_token", "moe_k", "moe_top_k")


def facts_of_config(path: str) -> dict[str, Any]:
    """Facts of the model that a config.json describes, laid out on no device: no weights are made, nothing is fetched.

    Raises UserError for what transformers does not know, or is no Mixture of Experts.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; a config.json of a model is required")
    try:
        config: Any = transformers.AutoConfig.from_pretrained(path).get_text_config()
        with torch.device("meta"):
            model: Any = transformers.AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        first = str(error).strip().split("\n")[0]
        raise UserError(
            f"{path}: {first[:300]}; a config.json of a model that transformers knows is required"
        ) from error
    layers = find_moe_layers(model)
    top_k = next((k for name in TOP_K if isinstance(k := getattr(config, name, None), int)), None)
    if top_k is None:
        raise UserError(f"{path}: none of {', '.join(TOP_K)}; how many experts a token has must be said")
    return model_facts(model, layers, int(config.num_hidden_layers), top_k)


def reach(name: str) -> dict[str, Any]:
    """What `from_pretrained` is to be told for a model: nothing of a folder, nor where the hub has it; only what is
    cached where the hub does not answer. Asked once, because loading would try again and again for half a minute.

    Raises UserError for what is nowhere.
    """
    if Path(name).is_dir():
        return {}
    import huggingface_hub

    try:
        huggingface_hub.HfApi().model_info(name, timeout=ANSWER_S)
    except Exception as error:  # of whichever HTTP client it uses, and its own
        if isinstance(cached(name), str):
            return {"local_files_only": True}
        first = str(error).strip().split("\n")[0][:200].rstrip(".")
        wrong = f"is no folder, is not in the cache, and the Hugging Face hub does not give it ({first})"
        raise UserError(f"model: {name}: {wrong}; {NAMES}, a folder, or a model that transformers loads") from None
    return {}


def cached(name: str) -> Any:
    """Where the hub's cache has the config of a model; None where it has none, or the name cannot be one."""
    import huggingface_hub

    try:
        return huggingface_hub.try_to_load_from_cache(name, "config.json")
    except ValueError:
        return None


class Loaded:
    """A causal model that is there, and its tokenizer: Hugging Face's, or of `tokenizers`; None: token ids alone.
    context, vocabulary: its limits, None where it does not say."""

    def __init__(self, model: Any, tokenizer: Any = None) -> None:
        self.model: Any = model
        self.tokenizer: Any = tokenizer
        config: Any = getattr(model, "config", None)
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        limits = (getattr(text, name, None) for name in ("max_position_embeddings", "vocab_size"))
        self.context, self.vocabulary = (None if limit is None else int(limit) for limit in limits)
        self.meta: dict[str, Any] = {"capture": {**made_with(model), "transformers": transformers.__version__}}

    def heldout(self) -> list[Ids]:
        raise UserError("--text FILE: missing; prompts come from a text, or with --prompts-from from a trace")

    def encode(self, text: str) -> Ids:
        if self.tokenizer is None:
            raise UserError("a prompt is text; tokenizer=... makes token ids of it")
        if not callable(self.tokenizer):
            return np.asarray(self.tokenizer.encode(text).ids, np.int64)
        return np.asarray(self.tokenizer(text, verbose=False)["input_ids"], np.int64)

    def run(self, recorder: Any, prompts: Ids, generate: int, temperature: float, seed: int, first: int) -> None:
        """Seeded by request number and seed; one batch's samples depend on which requests it holds."""
        tokens = torch.from_numpy(prompts).to(self.model.device)
        mask = torch.ones_like(tokens)
        if generate and not hasattr(self.model, "generate"):
            wrong = "has no generate(); generate=0, or `with traces.capture(model) as recorder:` around a loop of yours"
            raise UserError(f"{type(self.model).__name__}: {wrong}")
        if not generate:
            with recorder, torch.no_grad():
                self.model(tokens, attention_mask=mask, use_cache=False, logits_to_keep=1)
            return
        torch.manual_seed((seed << 20) + first)
        end = self.model.generation_config.eos_token_id
        pad = self.model.generation_config.pad_token_id
        if pad is None:
            pad = int(np.atleast_1d(0 if end is None else end)[0])
        how: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if temperature:
            how = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
        with recorder:
            self.model.generate(tokens, attention_mask=mask, max_new_tokens=generate, pad_token_id=pad, **how)


class HuggingFace(Loaded):
    """The model of a repository or a folder in the precision of its checkpoint, on one device, and its tokenizer."""

    def __init__(self, name: str, device: str) -> None:
        chosen = pick_device(device)
        how = reach(name)
        try:
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(name, **how)
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(name, dtype="auto", **how)
        except (OSError, ValueError, KeyError) as error:
            first = str(error).strip().split("\n")[0]
            raise UserError(f"--model {name}: {first}; {NAMES}, or a model that transformers loads") from error
        super().__init__(model.to(chosen).eval(), tokenizer)
        self.meta |= {"source": name, "tokenizer": name}
