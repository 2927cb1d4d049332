"""The object of a recommendation as text: its first screen (sim.search.screen), then what it rests on."""

from collections.abc import Mapping, Sequence
from typing import Any

from sim.outcome.how_sure import how_sure
from sim.outcome.marks import machine_words
from sim.outcome.table import BOUNDS, keeping
from sim.search.screen import first_screen
from sim.search.side_by_side import NOT_DONE
from sim.search.windows import words


def text(out: Mapping[str, Any]) -> str:
    """For people: what is asked most first, settings and the search at the end."""
    return "\n".join([*first_screen(out), "", *_judged(out), *(_refusal(out) if out["best"] is None else _found(out))])


def _judged(out: Mapping[str, Any]) -> list[str]:
    """What is judged, on what."""
    j, spec, search = out["judged"], out["spec"], out["search"]
    engine = f", engine {spec['engine']}" if out["best"] is not None and "engines" not in out else ""
    aside = f"; {j['set_aside_tokens']:,} tokens of others set aside to fit policies" if j["set_aside_tokens"] else ""
    return [
        f"{spec['trace']}: {j['model']} on {machine_words(spec)}{engine}, {spec['precision']}, "
        f"batch {spec['batch']}; judged on {j['requests']} requests, {j['tokens']:,} generated tokens{aside}",
        *(f"! {note}" for note in (*_of_policies(out), *([] if search is None else _cut_short(search)))),
    ]


def _of_policies(out: Mapping[str, Any]) -> list[str]:
    """What is to be said of the best policy that the answer's own notes do not say."""
    said = (*out["answer"]["notes"], out.get("made", {}).get("said"))
    return [note for note in out["notes"] if note not in said]


def _found(out: Mapping[str, Any]) -> list[str]:
    """Of a search that has an answer."""
    best, why = out["best"], out["judged"]["no_interval"]
    return [
        f"{'memory':<12} {_memory(out['memory'])}",
        f"{'best policy' if 'engines' in out else 'best':<12} {best['policy']}",
        f"{'':<12} {_speed(best)}{_lossy(best)}{'' if why is None else f' ({why}: no interval over requests)'}",
        *_beaten(out),
        *_bounds(out),
        *([f"{'speculation':<12} {words(out['speculation'])}"] if "speculation" in out else []),
        f"{'verdict':<12} {out['verdict']}",
        *_not_run(out),
        f"{'searched':<12} {_searched(out['search'])}",
        *_refused(out),
        f"{'again':<12} {out['command']}",
        *([f"{'with windows':<12} {pays}"] if (pays := out.get("speculation", {}).get("command")) else []),
    ]


def _refusal(out: Mapping[str, Any]) -> list[str]:
    """Where no policy can be recommended."""
    return [f"{'policies':<12} none: {out['refusal']}", *_not_run(out)]


def _not_run(out: Mapping[str, Any]) -> list[str]:
    """Engines that are no answer, and why; how to be told more of one."""
    rows = out.get("engines", [])
    late = [row["name"] for row in rows if row["error"] == NOT_DONE]
    lines = [f"{'not run':<12} {', '.join(late)}: {NOT_DONE}"] if late else []
    wrong = [row for row in rows if row["error"] not in (None, NOT_DONE)]
    lines += [f"{'cannot run':<12} {row['name']}: {row['error']}" for row in wrong]
    return [*lines, *([f"{'one engine':<12} --engine NAME finds the best setting of it"] if rows else [])]


def _plain_speed(told: Mapping[str, Any]) -> str:
    sure = how_sure(told["tokens_per_s_interval"], told["catalog_costs"])
    return f"{told['tokens_per_s'] or told['total_tokens_per_s']:,.2f} tokens/s{sure}"


def _memory(m: Mapping[str, Any]) -> str:
    left = (m["vram"] - m["dense"] - m["kv"] - m["staging"] - m["reserve"]) / 1e9
    free = f" + kept free {m['reserve'] / 1e9:.2f}" if m["reserve"] else ""
    return (
        f"{m['vram'] / 1e9:.2f} GB = dense weights {m['dense'] / 1e9:.2f} + KV {m['kv'] / 1e9:.2f} ({m['batch']} x "
        f"{m['context']:,} tokens) + staging {m['staging'] / 1e9:.2f}{free} + experts {left:.2f}: {m['slots']:,} slots "
        f"for {m['experts']:,} experts of {m['expert_bytes'] / 1e6:.1f} MB ({m['slots'] / m['experts']:.1%})"
    )


def _refused(out: Mapping[str, Any]) -> list[str]:
    """What of an engine was not tried, or could not run."""
    return [f"{'refused':<12} {count} x {why}" for why, count in out.get("refused", {}).items()]


def _speed(told: Mapping[str, Any]) -> str:
    if told["tokens_per_s"] is None:
        return f"{told['total_tokens_per_s']:,.2f} tokens/s with prompts (the trace generates none)"
    prompts, sure = told["prompt_tokens_per_s"], how_sure(told["prompt_tokens_per_s_interval"], None)
    of_prompts = "" if prompts is None else f", {prompts:,.2f} of prompts{sure}"
    pair = told["tokens_per_s_over_requests"]
    over_requests = "" if pair is None else f" [{pair[0]:,.2f}, {pair[1]:,.2f} over requests]"
    return f"{_plain_speed(told)}{over_requests}{of_prompts}"


def _between(pair: Sequence[float] | None, digits: int) -> str:
    return "" if pair is None else f" [{pair[0]:,.{digits}f}, {pair[1]:,.{digits}f}]"


def _lossy(told: Mapping[str, Any]) -> str:
    if not told["open_loop"]:
        return ""
    late = f", and {told['deferred']:.2%} of the experts come a layer late" if told.get("deferred") else ""
    lost = f"; LOSSY, open loop: {told['lost_router_weight']:.2%} of the router weight{late}"
    if told["closed_loop"] is None:
        return lost
    rise, low, high = told["closed_loop"]["bits_per_byte_percent"]
    at = told["closed_loop"]["cache"]
    rose = f"bits per byte {rise:+.2f} % [{low:+.2f}, {high:+.2f}]"
    return f"{lost}; measured in closed loop with {at:g} of the experts: {rose}"


def _beaten(out: Mapping[str, Any]) -> list[str]:
    """What it beats, by how much, and whether that is more than other requests could undo."""
    lines, why = _floor(out), out["judged"]["no_interval"] or "requests make no difference"
    for name, told in out["beats"].items():
        beats = "slower than" if told["ratio"] is not None and told["ratio"] < 1 else "beats"
        lines.append(f"{beats:<12} {name}: {_speed(told)}{_lossy(told)}")
        if told["ratio"] is not None:
            pair = told["ratio_interval"]
            sure = f"{why}: no interval" if pair is None else "95 % over requests, paired"
            unsure = "; other requests might turn this around" if pair is not None and pair[0] <= 1.0 <= pair[1] else ""
            lines.append(f"{'':<12} {told['ratio']:.3f} x as fast{_between(pair, 3)} ({sure}{unsure})")
        lines.append(f"{'':<12} {told['policy']}")
    return lines


def _floor(out: Mapping[str, Any]) -> list[str]:
    """Of the plainest one, where it is not among what is beaten."""
    floor, error = out["floor"], out.get("floor_error")
    if error is not None:
        return [f"{'':<12} {floor} does not run: {error}"]
    tried = "setting" if "ranked" in out else "policy"
    return [] if floor in out["beats"] else [f"{'':<12} no {tried} that was tried beats {floor}"]


def _cut_short(search: Mapping[str, Any]) -> list[str]:
    """What the time limit left undone."""
    if search["ended"] != "time-limit":
        return []
    n, all_of_it = search["compared_steps"], search["compared_steps"] == search["steps"]
    over = "all" if all_of_it else f"the first {n:,}"
    judged = "" if all_of_it else "; everything here is of those steps alone"
    return [
        f"the time limit of {search['time_limit_s']:g} s ended the search: the answer is the best of the "
        f"{search['compared']:,} candidates that were done over {over} of {search['steps']:,} steps{judged}"
    ]


def _searched(search: Mapping[str, Any]) -> str:
    ended = {
        "settled": "no choice of the best is left to change",
        "rounds": "the rounds of changing the best are over",
        "candidates": "as many as were allowed",
        "time-limit": "the time was over",
    }
    failed = f" ({search['failed']:,} failed)" if search["failed"] else ""
    return (
        f"{search['candidates']:,} different candidates of at most {search['most']:,}: {ended[search['ended']]}; "
        f"{search['runs']:,} runs{failed}, {search['whole']:,} of them of the whole judged trace"
    )


def _bounds(out: Mapping[str, Any]) -> list[str]:
    """How much is left to gain in its own classes; how it stands to lossless GPU runs, where it is none itself."""
    bounds, own, time = out["bounds"], out["bounds"]["own_class"], out["bounds"]["time_ns"]
    lines = [_possible(own[name], time, what + keeping(name, own)) for name, what in BOUNDS.items() if name in own]
    return lines if bounds["is_lossless_gpu"] else [*lines, _beside(bounds["lossless_gpu_ns"], time)]


def _possible(ns: int, time: int, what: str) -> str:
    """A bound of a class that the best belongs to."""
    return f"{'bound':<12} at best {time / (ns or 1):.2f} x as fast is possible: at least {ns / 1e9:.3f} s for {what}"


def _beside(ns: int, time: int) -> str:
    """A bound of runs that answer every miss by a fetch, of which the best is none."""
    change = f"{abs(time / (ns or 1) - 1):.0%} {'less' if time < ns else 'more'} time"
    return (
        f"{'':<12} no lossless GPU run with these slots and first residents takes less than {ns / 1e9:.3f} s; this one "
        f"answers misses otherwise and takes {time / 1e9:.3f} s, i.e. {change}"
    )
