"""What to type so that an engine itself does what an answer ran: the `command` of its entry in the catalog, its letters
filled in. A family of engines is known by the program that it starts. What no flag is known for is said."""

import re
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from sim import catalog
from sim.prepare import Setting

KV_TYPES = {
    "fp32": "f32", "bf16": "f16", "q8": "q8_0", "q5": "q5_0", "q5-1": "q5_1", "q4": "q4_0", "q4-1": "q4_1",
}  # fmt: skip  # of llama.cpp, by --kv-precision
STANDS = {
    "MODEL.gguf": "the file of {model} at {precision}",
    "CPU-WEIGHTS": "the folder of its weights for the CPU, {precision}",
    "MODEL": "{model} at {precision}",
    "PATH": "the folder of {model}",
    "GGUF": "the folder of its GGUF files, {precision}",
    "DIR": "a folder for its experts",
}
PLACEMENTS = {"first": "", "global-popular": " --kt-expert-placement-strategy frequency",
              "random": " --kt-expert-placement-strategy random"}  # fmt: skip
STRATEGIES = {"split": "hybrid", "fetch": "offload", "cpu": "cpu"}  # of freetoken, by --miss
MEMORY = {"cache", "n_cpu_moe", "override_tensor"}  # fields of what is resident


def own_command(setting: Setting) -> str | None:
    """The line; None of an engine that is costs alone."""
    engine = setting.spec.behaves
    if engine is None:
        return None
    if not engine.typed:
        return engine.command
    family = next((name for name in FAMILIES if name in engine.command), None)
    text, said = (engine.command, set[str]()) if family is None else FAMILIES[family](_Run(setting), engine.command)
    return f"{text}{_letters(text, setting)}{_unsaid(setting, said)}"


def _letters(text: str, setting: Setting) -> str:
    """What a letter that is left stands for."""
    words = set(re.findall(r"[A-Z][A-Z-]+(?:\.gguf)?", text))
    about = {"model": setting.spec.model or setting.trace.model, "precision": setting.spec.precision}
    found = [f"{word}: {said.format(**about)}" for word, said in STANDS.items() if word in words]
    return f"  ({'; '.join(found)})" if found else ""


def _unsaid(setting: Setting, said: set[str]) -> str:
    """What of the setting the line does not say."""
    spec = setting.spec
    yours = {name for name in spec.who_set["you"] if name not in ("context", "vram", "precision", "calibration")}
    yours |= {"kv_precision"} if catalog.precision(spec.kv_precision) != "bf16" else set()
    left = sorted(name for name in yours - said)
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in left)
    return f"  (no flag of the engine is known here for what these say: {flags})" if left else ""


class _Run:
    """Of a run, what engines are told. host: layers of the model (their indices) whose experts are on the CPU; dense:
    those whose dense part is."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.spec, self.plan = setting, setting.spec, setting.plan
        self.layers = int(setting.trace.n_layers)
        moe = np.asarray(setting.trace.meta["moe_layers"])
        self.host = [] if self.plan.pooled else [int(layer) for layer in moe[self.plan.slots == 0]]
        self.dense = sorted(int(layer) for layer in setting.costed.on_host)
        self.begins = self.dense == list(range(len(self.dense)))  # with them, as -ngl has it
        self.every = len(moe) * self.plan.n_experts
        self.slots = int(self.plan.slots.sum())
        self.each = int(self.plan.slots.min())  # of a layer
        self.context = self.spec.context or 0
        self.chunk = self.spec.prefill_chunk
        self.kv = catalog.precision(self.spec.kv_precision)

    @property
    def whole(self) -> bool:
        return self.slots >= self.every and not self.dense

    def size(self, experts: int, unit: int) -> float:
        return experts * int(self.plan.expert_bytes) / unit


def _llama(run: _Run, command: str) -> tuple[str, set[str]]:
    """llama-server and its forks."""
    spec, engine, said = run.spec, run.setting.engine, {*MEMORY, "dense_on_host", "prefill_chunk", "bulk_rows"}
    words = re.sub(r" -ub \d+", "", command)
    cached = "SLOTS" in words or "MIB" in words
    if cached and run.whole:
        words = re.sub(r" --(cpu-moe|n-cpu-moe 99|moe-expert-cache SLOTS|moe-cache MIB)", "", words)
    words = words.replace("SLOTS", str(run.each)).replace("MIB", f"{int(run.size(run.slots, 1 << 20))}")
    words = words.replace(" --n-cpu-moe N", "" if cached else _on_the_cpu(run, engine.cpu_moe))
    if run.dense:  # the first ones: -ngl counts from the end, the output is one more
        words = re.sub(r"-ngl \d+", f"-ngl {run.layers + 1 - len(run.dense)}", words) if run.begins else words
        said -= set() if run.begins else {"dense_on_host"}
    words += f" -c {run.context * spec.batch} -np {spec.batch} -ub {run.chunk}"
    words += f" -b {run.chunk}" if run.chunk > 2048 else ""
    if run.kv in KV_TYPES:
        said.add("kv_precision")
        kv = KV_TYPES[run.kv]
        words += "" if kv == "f16" else f" -ctk {kv} -ctv {kv}"
    own = str(engine.sets.get("bulk_rows"))
    if own.endswith("E"):  # a number of its build, and no rule to turn off
        return words, said - ({"bulk_rows"} if spec.bulk_rows != own else set())
    if spec.bulk == "none":
        return f"{words} --no-op-offload", said | {"bulk"}
    return (words if spec.bulk_rows == own else f"GGML_OP_OFFLOAD_MIN_BATCH={spec.bulk_rows} {words}"), said


def _on_the_cpu(run: _Run, end: str) -> str:
    """--n-cpu-moe counts all layers, dense ones too, from one end; what it cannot say is said by names of tensors."""
    host = [layer for layer in run.host if not (run.begins and layer in run.dense)]
    if not host:
        return ""
    moe = run.setting.trace.meta["moe_layers"]
    n = run.layers - host[0] if end == "last" else host[-1] + 1
    meant = [layer for layer in moe if (layer >= run.layers - n if end == "last" else layer < n)]
    if meant == sorted({*host, *(layer for layer in run.host if layer in meant)}):
        return f" --n-cpu-moe {n}"
    return f" -ot {shlex.quote(layers_regex(host))}"


def layers_regex(layers: Sequence[int]) -> str:
    """The experts of these layers, as -ot takes it."""
    return rf"blk\.({'|'.join(map(str, layers))})\.ffn_.*_exps=CPU"


def _ktransformers(run: _Run, command: str) -> tuple[str, set[str]]:
    spec, said = run.spec, {*MEMORY, "bulk", "bulk_rows", "prefill_chunk"}
    words = re.sub(r"(--kt-num-gpu-experts) N", rf"\1 {run.each}", command)
    rule = "" if spec.bulk == "none" else f" --kt-gpu-prefill-token-threshold {spec.bulk_rows}"
    words = re.sub(r" --kt-gpu-prefill-token-threshold \d+", rule, words)
    if spec.placement in PLACEMENTS:
        said.add("placement")
        words += PLACEMENTS[spec.placement]
    if spec.defer:
        said.add("defer")
        words += f" --kt-max-deferred-experts-per-token {spec.defer}"
    sizes = f"--context-length {run.context} --max-running-requests {spec.batch} --chunked-prefill-size {run.chunk}"
    return f"{words} {sizes}", said


def _ollama(run: _Run, command: str) -> tuple[str, set[str]]:
    """Its num_gpu counts the output as a layer."""
    n = run.layers + 1 - len(run.dense or run.host)
    words = command.replace("LAYERS-ON-THE-GPU", str(n))
    words += f", num_ctx {run.context}, num_batch {run.chunk}"
    said = {*MEMORY, "dense_on_host", "prefill_chunk"}
    if (kv := KV_TYPES.get(run.kv)) in (None, "f16", "f32"):
        return words, said
    return f"{words}; OLLAMA_KV_CACHE_TYPE={kv} OLLAMA_FLASH_ATTENTION=1 of ollama serve", said | {"kv_precision"}


def _vllm(run: _Run, command: str) -> tuple[str, set[str]]:
    spec, said = run.spec, {*MEMORY, "prefill_chunk"}
    words = command.replace("GIB", f"{run.size(run.every - run.slots, 1 << 30):.1f}")
    if run.whole:
        words = words.partition(" --cpu-offload-gb")[0].partition(" --offload-backend")[0]
    elif "GIB" not in command and run.slots:
        said -= MEMORY  # groups of layers, of which every one is offloaded
    words += f" --max-model-len {run.context} --max-num-seqs {spec.batch} --max-num-batched-tokens {run.chunk}"
    if run.kv == "fp8":
        return f"{words} --kv-cache-dtype fp8", said | {"kv_precision"}
    return words, said


def _freetoken(run: _Run, command: str) -> tuple[str, set[str]]:
    start = command.partition(" --moe-strategy")[0]
    return f"{start} --moe-strategy {STRATEGIES.get(run.spec.miss, run.spec.miss)}", {"miss"}


def _slots(run: _Run, command: str) -> tuple[str, set[str]]:
    return command.replace("SLOTS", str(run.each)), set(MEMORY)


def _offload_config(run: _Run, command: str) -> tuple[str, set[str]]:
    """OffloadConfig's two sizes are of all layers, offload_per_layer of one."""
    left = run.every - run.slots
    words = command.replace("main_size, offload_size", f"main_size={run.slots}, offload_size={left}")
    return re.sub(r"per_layer = \d+", f"per_layer = {run.plan.n_experts - run.each}", words), set(MEMORY)


FAMILIES: dict[str, Any] = {
    "llama-server": _llama, "sglang.launch_server": _ktransformers, "ollama run": _ollama, "vllm serve": _vllm,
    "ft serve": _freetoken, "--cache_size SLOTS": _slots, "OffloadConfig": _offload_config,
}  # fmt: skip
