"""The models that a closed loop judges, step by step: our own small one, or a Hugging Face one.

A judged model gives logits for the next tokens of one sequence from a key-value cache, with the experts as they are or,
while it is `looped`, as a closed loop says.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from runtime.closed_loop.driver import Driver, served, shape_of
from runtime.closed_loop.loop import ClosedLoop
from runtime.closed_loop.routed import ModelShape
from runtime.closed_loop.text_windows import HfTokens, OwnTokens, Tokens
from runtime.small_model.model import FOLDERS, KvCache, MoeDecoder, load_checkpoint
from runtime.small_model.text import FILE_ID
from traces.capturing.inputs import pick_device
from traces.errors import UserError

TINY = "tiny-moe"


class JudgedModel(Protocol):
    """shape: of its routing. tokens: its tokenizer. lead: a token that stands before every text, or None. context:
    the most positions."""

    shape: ModelShape
    tokens: Tokens
    lead: int | None
    context: int

    @property
    def model(self) -> nn.Module:
        """What the closed loop hooks."""
        ...

    def fresh(self) -> Any:
        """An empty key-value cache."""
        ...

    def forward(self, ids: Tensor, cache: Any) -> Tensor:
        """ids int64 [n] behind what the cache holds -> float32 logits [n, V] on the CPU."""
        ...

    def looped(self, loop: ClosedLoop) -> AbstractContextManager[Driver]:
        """While open, forward passes within the driver's steps compute what the loop says."""
        ...


class Own:
    """Our own decoder."""

    def __init__(self, model: MoeDecoder, folder: Path, name: str, device: str = "cpu") -> None:
        self.model, self.shape = model.to(device), shape_of(model, name)
        self.device, self.folder = device, folder
        self.tokens: Tokens = OwnTokens(folder / "tokenizer.json")
        self.lead: int | None = FILE_ID
        self.context = model.config.max_position_embeddings

    def fresh(self) -> KvCache:
        return KvCache(self.model)

    @torch.inference_mode()
    def forward(self, ids: Tensor, cache: KvCache) -> Tensor:
        logits: Tensor = self.model(ids[None].to(self.device), cache)[0][0]
        return logits.float().cpu()

    def looped(self, loop: ClosedLoop) -> AbstractContextManager[Driver]:
        return served(self.model, loop)


class HuggingFace:
    """A causal language model of transformers >= 5.0; its experts run from real slots while it is looped."""

    def __init__(self, model: Any, tokenizer: Any, name: str | None = None, device: str | None = None) -> None:
        self.model, self.shape, self.device = model, shape_of(model, name), device
        self.tokens: Tokens = HfTokens(tokenizer)
        self.lead: int | None = tokenizer.bos_token_id
        self.context = int(model.config.max_position_embeddings)

    def fresh(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    @torch.inference_mode()
    def forward(self, ids: Tensor, cache: Any) -> Tensor:
        out = self.model(input_ids=ids[None].to(self.model.device), past_key_values=cache, use_cache=True)
        logits: Tensor = out.logits[0]
        return logits.float().cpu()

    def looped(self, loop: ClosedLoop) -> AbstractContextManager[Driver]:
        from runtime.closed_loop.slotted import slotted

        return slotted(self.model, loop, self.device)


def own_model(name: str) -> Own:
    """A decoder of ours, by name or from a folder of runtime.train. Raises UserError, one line, for anything else."""
    if not (FOLDERS.get(name, Path(name)) / "record.json").is_file():
        raise UserError(f"--model {name}: must be {', '.join(FOLDERS)} or a folder that runtime.train wrote")
    model = judged_model(name)
    assert isinstance(model, Own)
    return model


def judged_model(name: str, device: str | None = None) -> JudgedModel:
    """`tiny-moe`, `tiny-moe-8`, a folder that runtime.train wrote, or a Hugging Face model's path; on a device (None:
    the CPU).

    Raises UserError, one line."""
    if device is not None:
        pick_device(device)
    folder = FOLDERS.get(name, Path(name))
    if (folder / "record.json").is_file():
        return Own(load_checkpoint(folder), folder, name if name in FOLDERS else folder.name, device or "cpu")
    if name in FOLDERS or (not folder.exists() and "/" not in name):
        known = ", ".join(FOLDERS)
        raise UserError(f"model: {name}: no such folder; {known}, a folder of runtime.train or a Hugging Face model")
    from runtime.closed_loop.slotted import load_model

    model, tokenizer = load_model(name)
    return HuggingFace(model, tokenizer, Path(name).name, device)
