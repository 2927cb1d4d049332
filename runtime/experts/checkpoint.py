"""Experts of a real checkpoint, for the expert store."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from runtime.experts.layout import Layout, StoreError

NAME = re.compile(
    r"layers\.(?P<layer>\d+)\.(?:mlp|block_sparse_moe|feed_forward)\.(?:experts\.)?(?:(?P<expert>\d+)\.)?"
    r"(?P<part>gate_up_proj|gate_proj|up_proj|down_proj|w1|w2|w3|input_linear|output_linear)(?:\.weight)?$"
)
PARTS = {"gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "down_proj": "down", "w2": "down"}
FUSED = {"gate_up_proj": "gate_up", "down_proj": "down", "input_linear": "gate_up", "output_linear": "down"}


class Checkpoint:
    """Experts of a Hugging Face checkpoint in safetensors: one tensor per expert and matrix (Mixtral's w1, w2, w3;
    Qwen's, OLMoE's and DeepSeek's gate_proj, up_proj, down_proj), or one per layer and matrix (transformers 5:
    gate_up_proj [E, 2 I, H] and down_proj [E, H, I]; Granite: input_linear and output_linear).

    moe_layers: index in the model of each MoE layer. Raises StoreError, one line, for a folder that is none, a missing
    tensor or a wrong shape.
    """

    def __init__(self, folder: str | Path, layout: Layout, moe_layers: Sequence[int]) -> None:
        self.folder, self.layout, self.moe_layers = Path(folder), layout, list(moe_layers)
        if layout.matrices != 3 or layout.biases:
            raise StoreError(f"weights: {folder}: only experts of three matrices without biases are read")
        self.files: dict[Path, Any] = {}
        self.tensors: dict[tuple[int, int, str], tuple[Path, str]] = {}
        for name, file in self._names().items():
            found = NAME.search(name)
            if found is None:
                continue
            fused, part = found["expert"] is None, found["part"]
            kind = (FUSED if fused else PARTS).get(part)
            if kind is not None and not (
                fused and "experts" not in name and part not in ("input_linear", "output_linear")
            ):
                self.tensors[int(found["layer"]), -1 if fused else int(found["expert"]), kind] = (file, name)
        if not self.tensors:
            raise StoreError(f"weights: {folder}: holds no experts under the names of a Hugging Face MoE model")

    def _names(self) -> dict[str, Path]:
        """Every tensor's file."""
        index = self.folder / "model.safetensors.index.json"
        if index.is_file():
            try:
                found = json.loads(index.read_text())["weight_map"]
                return {str(name): self.folder / Path(file).name for name, file in found.items()}
            except (ValueError, KeyError, AttributeError, TypeError):
                raise StoreError(f"weights: {index}: is no index of safetensors files") from None
        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            raise StoreError(f"weights: {self.folder}: has no .safetensors files")
        return {name: file for file in files for name in self._open(file).keys()}  # noqa: SIM118 - no mapping

    def _open(self, file: Path) -> Any:
        from safetensors import SafetensorError, safe_open

        if file not in self.files:
            try:
                self.files[file] = safe_open(file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise StoreError(f"weights: {file}: {error}") from None
        return self.files[file]

    def _tensor(self, layer: int, expert: int, kind: str, shape: tuple[int, int]) -> torch.Tensor | None:
        """A matrix of one expert; None where the checkpoint has none under that name."""
        for e in (expert, -1):
            if (layer, e, kind) in self.tensors:
                file, name = self.tensors[layer, e, kind]
                whole = self._open(file).get_slice(name)
                size = tuple(whole.get_shape())
                if size[e < 0 :] != shape or (e < 0 and expert >= size[0]):
                    raise StoreError(
                        f"weights: {name}: has shape {list(size)}; the model wants {list(shape)} an expert"
                    )
                found: torch.Tensor = whole[expert] if e < 0 else whole[:]
                return found
        return None

    def fill(self, layer: int, expert: int, out: torch.Tensor) -> None:
        h, i, there = self.layout.hidden, self.layout.intermediate, self.moe_layers[layer]
        up, down, *_ = self.layout.weights(out)
        both = self._tensor(there, expert, "gate_up", (2 * i, h))
        parts = [("down", (h, i), down)]
        if both is not None:
            up.copy_(both)
        else:
            parts += [("gate", (i, h), up[:i]), ("up", (i, h), up[i:])]
        for kind, shape, target in parts:
            found = self._tensor(there, expert, kind, shape)
            if found is None:
                raise StoreError(f"weights: {self.folder}: layer {there}, expert {expert}: has no {kind} matrix")
            target.copy_(found)
