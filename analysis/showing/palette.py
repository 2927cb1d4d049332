"""Colours that mean one thing on a whole page, and stay apart for colour-blind eyes, on white and on black.

Okabe and Ito's set (jfly.uni-koeln.de/color, "Color Universal Design"), without its black and with a yellow that
shows on white. Time that works is blue, time that waits is warm; what a transfer was for has one colour everywhere.
"""

from collections.abc import Iterable

BLUE, SKY, GREEN, ORANGE, RED, PURPLE, YELLOW, GREY = (
    "#2274b5",
    "#6bb8ea",
    "#0e9b74",
    "#e69f00",
    "#d55e00",
    "#c26a9c",
    "#cdb82e",
    "#8a949e",
)
# parts of a run's time, in the order in which they are stacked; stall by its cause; draft of runs that speculate
TIME = {
    "draft": ("draft model", "#134a7c"),
    "dense": ("dense part", "#2f6db0"),
    "experts": ("experts", SKY),
    "decide": ("decision", GREY),
    "head": ("head", "#b9c3cc"),
    "demand": ("stall: fetch under way", RED),
    "late": ("stall: prefetch came late", ORANGE),
    "held": ("stall: no slot free", YELLOW),
    "cpu_wait": ("waiting for the CPU", PURPLE),
}
CAUSE = {"demand": RED, "prefetch": BLUE, "background": GREY, "admission": GREEN, "stream": ORANGE}
SLOT = {
    "first residents": "#b9c3cc",
    "fetched on demand": RED,
    "prefetched, used": BLUE,
    "prefetched, not used yet": SKY,
    "admitted behind the CPU": ORANGE,
    "low-precision copies": GREEN,
    "on its way": YELLOW,
}
PREFETCHED = {"used": BLUE, "late": ORANGE, "wasted": RED, "promoted": PURPLE, "withdrawn": GREY, "rejected": YELLOW}
ANSWER = {
    "fetch": RED,
    "substitute": GREEN,
    "drop": GREY,
    "cpu": PURPLE,
    "low": SKY,
    "stream": ORANGE,
    "remote": YELLOW,
}
SEQUENCE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, GREY)
SHADES = tuple(shade for shade in SEQUENCE if shade != GREY)  # where grey is for the others
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x", "star", "pentagon", "hexagram")
SCALE = "Cividis"  # one hue from dark to light, made for colour-blind readers (Nunez et al. 2018)


def colours(policies: Iterable[str]) -> dict[str, str]:
    """A colour for each policy, by first appearance."""
    return {policy: SEQUENCE[i % len(SEQUENCE)] for i, policy in enumerate(dict.fromkeys(policies))}


def symbols(policies: Iterable[str]) -> dict[str, str]:
    """A marker for each policy: what colours do once more, and further when there are more policies than colours."""
    return {policy: SYMBOLS[i % len(SYMBOLS)] for i, policy in enumerate(dict.fromkeys(policies))}
