"""The line that tells an engine itself what an answer ran: no letter of what the answer knows is left, and where
experts are is what the run had."""

import re
import shlex
from typing import Any

import numpy as np
import pytest

from sim import catalog
from sim.engines import behaving
from sim.layers import overridden
from sim.prepare import Setting, prepare
from sim.search.own_command import layers_regex, own_command
from sim.spec import RunSpec

LEFT = re.compile(r"\b(N|SLOTS|MIB|GIB|LAYERS\S*|main_size,|offload_size,)(?=[\s,)]|$)")


def setting_of(engine: str, **more: Any) -> Setting:
    base = {"trace": "mixtral.npz", "hardware": "rtx4090", "precision": "q4-k-m", "vram": "16GB", "context": 4096}
    return prepare(RunSpec.of(base | {"engine": engine, "calibration": 0.3} | more))


def said(engine: str, **more: Any) -> str:
    return own_command(setting_of(engine, **more)) or ""


@pytest.mark.parametrize("name", [name for name in catalog.names("engine") if behaving(name)])
def test_no_letter_that_the_answer_knows_is_left(name: str) -> None:
    line = said(name)
    assert line and not LEFT.search(line.partition("  (")[0])
    for word in ("MODEL.gguf", "PATH", "CPU-WEIGHTS", "GGUF", "DIR"):
        assert not re.search(rf"(?<![\w.-]){re.escape(word)}\b", line.partition("  (")[0]) or f"{word}: " in line


def test_what_is_resident_is_what_the_run_had() -> None:
    """llama.cpp's own fit keeps the first layers, which its --n-cpu-moe, of the first ones, cannot say: -ot does."""
    setting = setting_of("llama.cpp")
    words = shlex.split((own_command(setting) or "").partition("  (")[0])
    pattern = words[words.index("-ot") + 1]
    moe = setting.trace.meta["moe_layers"]
    assert "--n-cpu-moe" not in words
    assert np.array_equal(overridden(pattern, moe, setting.trace.n_layers, 8), setting.plan.slots)
    assert pattern == layers_regex([layer for layer, n in zip(moe, setting.plan.slots, strict=True) if n == 0])
    assert f"--n-cpu-moe {int((setting.plan.slots == 0).sum())} " in said("ik_llama.cpp")  # of the last ones
    assert "--n-cpu-moe 20 " in said("llama.cpp", n_cpu_moe=20)
    whole = said("llama.cpp", vram="80GB")
    assert r"|31)\.ffn_.*_exps=CPU" in said("llama.cpp", dense_on_host="without-slots")  # -ngl has the first alone
    assert "n-cpu-moe" not in whole and "-ot" not in whole and "cache" not in said("llama.cpp+cache", vram="80GB")


SAID: dict[str, tuple[str, dict[str, Any], str]] = {
    "off": ("llama.cpp", {"bulk": "none"}, " --no-op-offload"),
    "from other rows": ("llama.cpp", {"bulk_rows": "128"}, "GGML_OP_OFFLOAD_MIN_BATCH=128 llama-server"),
    "a number of its build": ("ik_llama.cpp", {"bulk_rows": "128"}, "what these say: --bulk-rows"),
    "KV": ("llama.cpp", {"context": 131072, "kv_precision": "q8"}, "-c 131072 -np 1 -ub 512 -ctk q8_0 -ctv q8_0"),
    "of each sequence": ("llama.cpp", {"batch": 2}, "-c 8192 -np 2 "),
    "ubatch": ("llama.cpp", {"prefill_chunk": 1024}, "-ub 1024"),
    "dense parts": ("llama.cpp", {"n_cpu_moe": 5, "dense_on_host": "without-slots"}, "-ngl 28 -c"),
    "those of the last layers": ("llama.cpp", {"dense_on_host": "without-slots"}, "what these say: --dense-on-host"),
    "a type that llama.cpp lacks": ("llama.cpp", {"kv_precision": "fp8"}, "what these say: --kv-precision"),
    "ktransformers": ("ktransformers", {"bulk": "none", "defer": 1}, "--kt-max-deferred-experts-per-token 1 "),
    "ollama": ("ollama", {"n_cpu_moe": 5, "cache": None}, "num_gpu 28, num_ctx 4096"),
    "vllm": ("vllm-uva", {"kv_precision": "fp8"}, "--kv-cache-dtype fp8"),
    "freetoken": ("freetoken", {"miss": "fetch"}, "--moe-strategy offload"),
    "mixtral-offloading": ("mixtral-offloading", {"cache": 5}, "(main_size=160, offload_size=96, buffer_size=4)"),
    "nothing known": ("fiddler", {"kv_precision": "q8"}, "what these say: --kv-precision"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_each_engine_is_told_in_its_own_words(name: str) -> None:
    engine, fields, words = SAID[name]
    line = said(engine, **fields)
    assert words in line and "threshold" not in (line if fields.get("bulk") == "none" else "")
