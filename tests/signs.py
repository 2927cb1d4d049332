"""What the signs of tests/test_signs.py are measured on: routing as real models route, machines as their sources had
them, one run of the simulator, and what counts as the published size.
"""

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sim import catalog
from sim.catalog.model_spec import ModelSpec
from sim.memo import Kept
from sim.simulation import simulate
from sim.spec import RunSpec
from traces.format.trace import RoutingTrace
from traces.synthetic import Preset, generate

# (strength of memory, spread of popularity) of traces.synthetic by model, beside a topic that takes TOPIC of memory:
# fitted to published hit rates. At 16, 32, 48 slots of 128 LRU hits 61.5, 80.9, 90.8 % of Qwen3-30B's requests and
# 62.8, 80.4, 89.4 % of gpt-oss-120b's (moe-speed-of-light, prereg/policy_study_outcome.md @3a74200). Of a token's
# experts of gpt-oss-20b .44 are the last token's, too, .25 by popularity alone, as in a public capture. Of other models
# as much is not known.
TOPIC = 0.65
ROUTING = {"qwen3-30b-a3b": (0.6, 0.0), "gpt-oss-120b": (0.4, 0.0), "gpt-oss-20b": (0.5, 0.6)}
OTHERS = (0.5, 0.3)
PREDICTION_ERROR = 0.24  # of a lookahead: 85 % of what it names is wanted

_memo = Kept(1 << 28)


@cache
def model_of(name: str, n_layers: int | None = None, top_k: int | None = None) -> ModelSpec:
    """The catalog's model, or its first layers alone, or with fewer experts per token."""
    model = catalog.model(name)
    asked = {"n_layers": n_layers, "top_k": top_k}
    return model.model_copy(update={key: value for key, value in asked.items() if value is not None})


@cache
def routed(
    name: str,
    prompt: int = 4,
    generation: int = 200,
    requests: int = 3,
    n_layers: int | None = None,
    routing: tuple[float, float] | None = None,
) -> RoutingTrace:
    """Synthetic routing of a model: `requests` one after another, of `prompt` and `generation` tokens, each with a
    topic of its own; a lookahead of one layer."""
    model = model_of(name, n_layers)
    strength, offset = routing or ROUTING.get(name, OTHERS)
    preset = Preset(
        model=name,
        n_experts=model.n_experts,
        top_k=model.top_k,
        n_layers=model.n_layers,
        moe_layers=model.moe_layers,
        memory=((0, strength, 0.0),),
        offset_sd=offset,
        topic=TOPIC,
        noise=(PREDICTION_ERROR,),
        lookahead_m=model.top_k,
        requests=requests,
        prompt=(prompt, prompt),
        generation=(generation, generation),
    )
    return generate(preset, 0)


def bare(trace: RoutingTrace, experts: npt.NDArray[Any], **meta: Any) -> RoutingTrace:
    """The trace with other experts (int [tokens, MoE layers, top-k]) and nothing that speaks of the old ones."""
    gone = dict.fromkeys(("weights", "logits", "lookahead"))
    return replace(trace, experts=experts, meta=trace.meta | meta, **gone)


def one_by_one(trace: RoutingTrace) -> RoutingTrace:
    """Each expert of a token as a token of its own, in the order of its slots: what counts hits one after another."""
    n, layers, k = np.asarray(trace.experts).shape
    experts = np.asarray(trace.experts).transpose(0, 2, 1).reshape(n * k, layers, 1)
    rows = {"sequence": np.repeat(trace.sequence, k), "position": np.arange(n * k, dtype=np.int32)}
    return replace(bare(trace, experts, top_k=1), prefill=np.zeros(n * k, np.bool_), **rows)


def least_reads(trace: RoutingTrace, slots: int) -> int:
    """MIN of the policy study whose figures are x MIN (moe-speed-of-light, prereg/policy_study_outcome.md @3a74200): of
    a token's experts, what is not held is read, and behind it those stay that are wanted soonest, of what was held and
    what was read (bypass). Exact over the whole text; counted behind its first tenth. After Belady (1966)."""
    experts = np.asarray(trace.experts)
    return sum(
        least_reads_of_layer(experts[:, layer].tolist(), slots, len(experts) // 10) for layer in range(experts.shape[1])
    )


def least_reads_of_layer(wanted: list[list[int]], slots: int, start: int) -> int:
    """The same of one layer, from empty slots; wanted: each token's experts; counted from token `start` on."""
    again: list[dict[int, int]] = []  # of each token's experts, the next token that wants it
    seen: dict[int, int] = {}
    for token in reversed(range(len(wanted))):
        again.append({expert: seen.get(expert, len(wanted)) for expert in wanted[token]})
        seen |= dict.fromkeys(wanted[token], token)
    held: dict[int, int] = {}
    found = 0
    for token, following in enumerate(reversed(again)):
        found += len(following.keys() - held.keys()) if token >= start else 0
        held |= following
        held = dict(sorted(held.items(), key=lambda pair: pair[1])[:slots])
    return found


class Machines:
    """Files of hardware in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def desktop(self, gpu: str, cpu: float, link: float, both: float) -> str:
        """GB/s: what the CPU reads alone, what page-locked copies move alone, and both together, half of it each."""
        gen = 5 if gpu == "rtx-5090" else 4
        host = f"read_gb_per_s = {cpu}, total_gb_per_s = {both}, link_share = {min(1.0, both / 2 / link):.4f}"
        return self.file(
            f"{gpu}-{cpu}-{link}-{both}",
            gpu=f'"{gpu}"',
            link=f'{{ like = "pcie{gen}x16-pinned", h2d_gb_per_s = {link} }}',
            pageable_link=f'"pcie{gen}x16-pageable"',
            host=f'{{ like = "desktop-ddr5", {host} }}',
        )

    def server(self, gpu: str, read: float) -> str:
        """PCIe 4 beside a host that reads so many GB/s."""
        return self.file(
            f"{gpu}-{read}",
            gpu=f'"{gpu}"',
            link='"pcie4x16-pinned"',
            pageable_link='"pcie4x16-pageable"',
            host=f'{{ like = "ddr4-8ch", read_gb_per_s = {read} }}',
        )

    def file(self, name: str, **parts: str) -> str:
        """A file of these parts, as TOML."""
        path = self.folder / f"{name}.toml"
        path.write_text("".join(f"{key} = {value}\n" for key, value in parts.items()) + 'source = "the sign\'s"\n')
        return str(path)

    @property
    def listing_b(self) -> str:
        """Ryzen 9950X3D and RTX 5090 (moe-speed-of-light, prereg/headline_outcome_081.md @6e27f04)."""
        return self.desktop("rtx-5090", 71.6, 53.2, 77.7)

    @property
    def half(self) -> str:
        """A Core i5 and RTX 4090, about half of listing B in each rate (prereg/grid_outcome_091.md @b01d16e)."""
        return self.desktop("rtx-4090", 33.5, 25.2, 36.5)

    @property
    def even(self) -> str:
        """Ryzen 7950X and RTX 5090: the CPU reads what the link moves (prereg/fix40_outcome_074.md @13b48f8)."""
        return self.desktop("rtx-5090", 46.2, 47.3, 51.8)

    @property
    def stock(self) -> str:
        """Ryzen 9950X and RTX 5090, stock clocks (prereg/stockclock_outcome_089.md @50badcc)."""
        return self.desktop("rtx-5090", 56.2, 52.8, 66.1)

    @property
    def msl_as_measured(self) -> str:
        """The engine of listing B, whose CPU reads at the rate measured of the host: the fit has it read faster."""
        return self.file("msl-as-measured", like='"moe-speed-of-light"', cpu_read_share="1.0")

    @property
    def wsl2(self) -> str:
        """RTX 5090 under WSL2, small copies (kekzl/imp pull requests 1374, 1408)."""
        return self.file("wsl2", gpu='"rtx-5090"', link='"pcie5x16-wsl2-small-copies"', host='"desktop-ddr5"')


def run(trace: RoutingTrace, hardware: str, /, **fields: Any) -> dict[str, Any]:
    """The summary of a run; fields: of RunSpec; fitted_on: a calibration trace."""
    aside, model = fields.pop("fitted_on", None), model_of(trace.model, trace.n_layers, trace.top_k)
    calibration = {} if aside is None else {"calibration": "in memory"}
    spec = RunSpec.of({"trace": "in memory", "hardware": hardware, **calibration, **fields})
    return simulate(spec, memo=_memo, trace=trace, calibration=aside, model=model)[0]


def speed(trace: RoutingTrace, hardware: str, /, **fields: Any) -> float:
    """Decode tokens/s."""
    return float(run(trace, hardware, **fields)["tokens_per_s"])


def prompt_speed(summary: dict[str, Any]) -> float:
    """Prompt tokens/s, of any run."""
    return float(summary["prompt_tokens"] * 1e9 / summary["prefill_ns"])


def hit_share(summary: dict[str, Any]) -> float:
    return float(summary["hits"] / summary["wanted"])


def sized(found: float, least: float, most: float | None = None) -> bool:
    """Whether a gain (percentage points, or the logarithm of a ratio) is the published one within a factor of 2, or
    within that of the nearer end of a published range; of the same sign in any case."""
    ends = sorted((abs(least), abs(least if most is None else most)))
    return found * least > 0 and ends[0] / 2 <= abs(found) <= ends[1] * 2


def sized_ratio(found: float, least: float, most: float | None = None) -> bool:
    """The same of ratios, whose logarithms are compared."""
    return sized(math.log(found), math.log(least), None if most is None else math.log(most))


def percent(gain: float) -> str:
    return f"{100 * gain:+.0f} %"


def tenths(gain: float) -> str:
    return f"{100 * gain:+.1f} %"
