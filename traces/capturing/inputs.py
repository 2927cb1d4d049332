"""What a model is called with, for the recorder: the prompt that `generate` is given, and which tokens are padding."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from traces.capturing.batch import Batch
from traces.errors import UserError

PACKED = ("cu_seq_lens_q", "cu_seqlens_q", "block_table", "read_index")  # of several requests in one row


def announced(model: Any, inputs: Any, generation_config: Any, kwargs: dict[str, Any]) -> tuple[Batch, int]:
    """The batch that a call of `generate` begins, and how many token ids of each prompt it was given.

    Its prompt ends with the ids, embeddings or mask given, whichever is longer: with a filled cache the ids may be the
    new ones alone, the mask covers all. The end tokens in force: the call's own, else of the first configuration that
    has some.
    """
    mask: Any = kwargs.get("attention_mask")
    ids: Any = next((p for p in (inputs, kwargs.get("input_ids")) if p is not None), None)
    told = [p.shape[1] for p in (ids, kwargs.get("inputs_embeds")) if p is not None]
    known = isinstance(mask, Tensor) and mask.dim() == 2
    end = kwargs.get("eos_token_id")
    if "eos_token_id" not in kwargs:
        own = getattr(model, "generation_config", None)
        told_by: tuple[Any, ...] = (generation_config, kwargs.get("generation_config"), own)
        end = next((c.eos_token_id for c in told_by if getattr(c, "eos_token_id", None) is not None), None)
    ends = [] if end is None else np.atleast_1d(np.asarray(torch.as_tensor(end).cpu())).tolist()
    batch = Batch(
        mask=mask.cpu().numpy() != 0 if known else None,
        prompt_columns=int(max([*told, mask.shape[1] if known else 1])),
        end_tokens=ends,
        declared=True,
    )
    return batch, 0 if ids is None else int(ids.shape[1])


def tokens_seen(mask: Any, past: int, rows: int, columns: int) -> npt.NDArray[np.bool_]:
    """[rows, columns]: which of a forward pass's tokens its attention mask lets be seen: the others are padding.

    A mask [B, past + columns] says it directly. In one of [B, heads, queries, keys], true or 0 where a key is seen, a
    padding's key is seen by no query from its own on.
    """
    if isinstance(mask, dict):
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if mask is None:
        return np.ones((rows, columns), np.bool_)
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        raise UserError(
            f"an attention mask of type {type(mask).__name__}; begin(attention_mask=...) says where tokens are"
        )
    seen = mask > -1 if mask.is_floating_point() and mask.dim() == 4 else mask != 0
    if mask.dim() == 4:
        keys = seen[:, 0, :, past : past + columns]
        seen = keys.tril().any(dim=1)
    else:
        seen = seen[:, past : past + columns]
    if seen.shape[1] != columns:
        raise UserError(f"an attention mask of shape {tuple(mask.shape)} for columns {past} to {past + columns - 1}")
    return seen.expand(rows, -1).cpu().numpy()


def refuse_packed(given: dict[str, Any], valid: npt.NDArray[np.bool_]) -> None:
    """Raise UserError where one row holds several requests: by the arguments that come with it, or where positions
    fall inside a row. given: the decoder's arguments by name; valid [rows, columns]: without padding."""
    positions = given.get("position_ids")
    packed = any(given.get(name) is not None for name in PACKED)
    if isinstance(positions, Tensor) and positions.dim() == 2 and positions.shape[1] == valid.shape[1]:
        falls = np.diff(positions.cpu().numpy(), axis=1) < 0
        packed = packed or bool((falls & valid[:, 1:] & valid[:, :-1]).any())
    if packed:
        raise UserError("several requests packed into one row are not recorded; give each a row of its own")


def pick_device(name: str) -> torch.device:
    """`auto` is the accelerator that torch finds, else the CPU. Raises UserError for what this machine has not."""
    found = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device is {name!r}; auto, cpu, cuda or another device of torch is required") from error
    if device.type not in ("cpu", found.type if found else "cpu"):
        raise UserError(f"--device is {name!r}; this machine has {found or 'the CPU alone'}")
    return device


def made_with(model: Any) -> dict[str, str]:
    """What a capture's numbers depend on beside the model: torch, the kind of device, the precision."""
    weight = next(model.parameters())
    found = {"torch": torch.__version__, "device": weight.device.type, "precision": str(weight.dtype).split(".")[-1]}
    return found | ({"cpu": torch.backends.cpu.get_cpu_capability()} if weight.device.type == "cpu" else {})
