"""The object of a recommendation as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from sim.report import BOUNDS


def text(out: Mapping[str, Any]) -> str:
    """For people."""
    j, m, spec, search = out["judged"], out["memory"], out["spec"], out["search"]
    aside = f"; {j['set_aside_tokens']:,} tokens of others set aside to fit policies" if j["set_aside_tokens"] else ""
    return "\n".join(
        [
            f"{spec['trace']}: {j['model']} on {spec['hardware']}, engine {spec['engine']}, {spec['precision']}, "
            f"batch {spec['batch']}; judged on {j['requests']} requests, {j['tokens']:,} generated tokens{aside}",
            *(f"! {note}" for note in out["notes"]),
            "",
            f"{'memory':<12} {_memory(m)}",
            "",
            f"{'best':<12} {out['best']['policy']}",
            f"{'':<12} {_speed(out['best'])}{_lossy(out['best'])}",
            *_beaten(out["beats"]),
            "",
            *_bounds(out),
            f"{'verdict':<12} {out['verdict']}",
            f"{'searched':<12} {search['candidates']} candidates and neighbours of the best, {search['runs']:,} runs, "
            f"{search['whole']:,} of them of the whole judged trace"
            + (f"; {search['failed']:,} failed" if search["failed"] else ""),
            f"{'again':<12} {out['command']}",
        ]
    )


def _memory(m: Mapping[str, Any]) -> str:
    left = (m["vram"] - m["dense"] - m["kv"] - m["staging"]) / 1e9
    return (
        f"{m['vram'] / 1e9:.2f} GB = dense weights {m['dense'] / 1e9:.2f} + KV {m['kv'] / 1e9:.2f} ({m['batch']} x "
        f"{m['context']:,} tokens) + staging {m['staging'] / 1e9:.2f} + experts {left:.2f}: {m['slots']:,} slots for "
        f"{m['experts']:,} experts of {m['expert_bytes'] / 1e6:.1f} MB ({m['slots'] / m['experts']:.1%})"
    )


def _speed(told: Mapping[str, Any]) -> str:
    if told["tokens_per_s"] is None:
        return f"{told['total_tokens_per_s']:,.2f} tokens/s with prompts (the trace generates none)"
    return f"{told['tokens_per_s']:,.2f} tokens/s{_between(told['tokens_per_s_interval'], 2)}"


def _between(pair: Sequence[float] | None, digits: int) -> str:
    return "" if pair is None else f" [{pair[0]:,.{digits}f}, {pair[1]:,.{digits}f}]"


def _lossy(told: Mapping[str, Any]) -> str:
    return f"; LOSSY, open loop: {told['lost_router_weight']:.2%} of the router weight" if told["open_loop"] else ""


def _beaten(beats: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What it beats, by how much, and whether that is more than other requests could undo."""
    lines = [] if "lru + fetch" in beats else [f"{'':<12} this is lru + fetch itself: nothing that was tried beats it"]
    for name, told in beats.items():
        lines.append(f"{'beats':<12} {name}: {_speed(told)}{_lossy(told)}")
        if told["ratio"] is not None:
            pair = told["ratio_interval"]
            sure = "one request: no interval" if pair is None else "95 % over requests, paired"
            unsure = "; other requests might turn this around" if pair is not None and pair[0] <= 1.0 else ""
            lines.append(f"{'':<12} {told['ratio']:.3f} x as fast{_between(pair, 3)} ({sure}{unsure})")
        lines.append(f"{'':<12} {told['policy']}")
    return lines


def _bounds(out: Mapping[str, Any]) -> list[str]:
    """The bounds of its own class, and of the lossless GPU runs with these slots where it is in another."""
    time, own = out["bounds"]["time_ns"], out["bounds"]["own"]
    lines = [_bound(own[name], time, what) for name, what in BOUNDS.items() if name in own]
    for name, ns in out["bounds"]["lossless_on_gpu"].items():
        if name not in own and name == "lossless_ns":
            lines.append(_bound(ns, time, f"{BOUNDS[name]}, that computes no expert on the CPU"))
    return lines


def _bound(ns: int, time: int, what: str) -> str:
    return f"{'bound':<12} {ns / 1e9:.3f} s for {what}; this takes {time / 1e9:.3f} s, {time / (ns or 1):.2f} x"
