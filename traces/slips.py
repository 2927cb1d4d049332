"""What a user probably meant: the one place for slips on a command line, whichever command it is of.

Everything here makes text for an error; nothing is accepted that was not said.
"""

import argparse
import difflib
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

SAMPLES = Path(__file__).parent / "samples"
NEAR = 0.6  # of difflib's ratio: a word that is less alike is no help
ONCE = ("trace", "like")  # what a command is about: two of them are no correction
_WITH_UNIT = re.compile(r"[$€£]?\s*(\d+(?:\.\d+)?)\s*(k?)\s*(?:[a-z/%]*)", re.IGNORECASE | re.ASCII)
# what other tools call a flag: what is said of it where the flag behind it is known
_ELSEWHERE = {
    "gpu": ("--hardware", "did you mean --hardware?"),
    **dict.fromkeys(
        ("ngl", "n-gpu-layers", "gpu-layers"),
        ("--n-cpu-moe", "did you mean --n-cpu-moe, the layers whose experts stay on the host (docs/engines.md)?"),
    ),
    "cache": ("--max-lossy-weight", "it is chosen for you, as large as --vram allows"),
    "json": ("--repeats", "a sweep's rows are in its folder, results.csv and results.parquet: --out DIR"),
    "version": ("--help", "moe-offload-sim --version, or python -m sim --version"),
}
_UNIT = re.compile(r"[KMGT]?i?B?|%", re.IGNORECASE)
_REQUIRED = re.compile(r"the following arguments are required: (.*)")
# what people call the one file that a command is about
_FILE_WORDS = {"trace", "traces", "file", "files", "input", "run", "runs"}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing when no known word is near."""
    near = difflib.get_close_matches(word, list(known), 1, NEAR)
    return f"; did you mean {near[0]}?" if near else ""


def flags_of(parser: argparse.ArgumentParser) -> list[str]:
    """Every option, those of the commands below this one too."""
    out: list[str] = []
    for action in parser._actions:
        out += action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                out += flags_of(command)
    return out


def told(parser: argparse.ArgumentParser, message: str, example: str) -> str:
    """argparse's message with what to do."""
    if (found := _REQUIRED.fullmatch(message)) is not None:
        such = f"; such as: {example}" if example else f"; see {parser.prog} --help"
        return f"{found[1]}: missing{such}"
    message = message.removeprefix("argument ")
    if (value := re.fullmatch(r"(\S+): expected one argument", message)) is not None:
        given = ["", *getattr(parser, "given", []), ""]
        behind = next((after for word, after in pairwise(given) if word in value[1].split("/")), "")
        if re.match(r"-\d", behind):
            return f"{value[1]}: {behind!r}: must be above 0"
        return f"{value[1]}: needs a value: {value[1]} {_metavar(parser, value[1])}"
    return f"{message}; see {parser.prog} --help"


def _metavar(parser: argparse.ArgumentParser, flag: str) -> str:
    action = next((each for each in parser._actions if flag.split("/")[0] in each.option_strings), None)
    return "VALUE" if action is None else str(action.metavar or action.dest.upper())


def no_number(text: str, whole: bool) -> str:
    """Of a value that should have been a number."""
    try:
        number = float(text)
        meant = f"; did you mean {int(number)}?" if whole and number.is_integer() else ""
    except (ValueError, OverflowError):
        found = _WITH_UNIT.fullmatch(text.strip())
        meant = "" if found is None else f"; did you mean {_plain(*found.groups())}?"
    return f"{text!r}: must be a {'whole ' if whole else ''}number{meant}"


def _plain(number: str, thousands: str) -> str:
    return f"{float(number) * 1000:.0f} (or {float(number) * 1024:.0f})" if thousands else number


# --- words that nobody asked for ---


def strange(parser: argparse.ArgumentParser, given: Sequence[str]) -> str | None:
    """Of a command line that lacks something: the first word that has no place in it, the likelier mistake; or None."""
    spare, known = sum(_takes(each) for each in parser._actions if not each.option_strings), flags_of(parser)
    at = 0
    while at < len(given):
        word = given[at]
        flag = word.split("=")[0]
        at += 1
        if _is_flag(word):
            if flag not in known:
                return word
            at += _values(parser, given, flag, "=" in word, at)
            continue
        spare -= 1
        if spare < 0:
            return word
    return None


def gathered(parser: argparse.ArgumentParser, given: Sequence[str]) -> list[str]:
    """The words of a command line, those that stand without a flag in front: argparse gives a positional that may be
    left out up when a flag stands before it (`split FILE --fraction 0.5 OUT`)."""
    front, behind, at = list[str](), list[str](), 0
    while at < len(given):
        word, at = given[at], at + 1
        if word == "--":
            return [*behind, word, *front, *given[at:]]
        if _is_flag(word):
            n = _values(parser, given, word.split("=")[0], "=" in word, at)
            behind += [word, *given[at : at + n]]
            at += n
        else:
            front.append(word)
    return [*front, *behind]


def repeated(parser: argparse.ArgumentParser, given: Sequence[str]) -> str | None:
    """Of a flag of ONCE that is given twice, each time another value, of which argparse would take the last; or None.
    Of any other flag the last one wins, as scripts that add to a common line expect."""
    had: dict[str, list[str]] = {}
    at = 0
    while at < len(given) and given[at] != "--":
        word, at = given[at], at + 1
        flag, equals, value = word.partition("=")
        action = next((each for each in parser._actions if flag in each.option_strings), None)
        if action is None:
            continue
        n = _values(parser, given, flag, bool(equals), at)
        words = [value] if equals else [*given[at : at + n]]
        if (
            isinstance(action, argparse._StoreAction)
            and action.dest in ONCE
            and had.setdefault(action.dest, words) != words
        ):
            return f"{flag}: given twice ({' '.join(had[action.dest])}, {' '.join(words)}); it takes one value"
        at += n
    return None


def _takes(action: argparse.Action) -> int:
    """How many words a positional argument takes at most."""
    many = action.nargs in ("+", "*", argparse.REMAINDER) or isinstance(action, argparse._SubParsersAction)
    return 1_000_000 if many else action.nargs if isinstance(action.nargs, int) else 1


def _values(parser: argparse.ArgumentParser, given: Sequence[str], flag: str, said: bool, at: int) -> int:
    """How many words behind a flag are its values."""
    action = next((each for each in parser._actions if flag in each.option_strings), None)
    if action is None or said or action.nargs == 0:
        return 0
    behind = 0
    while at + behind < len(given) and not _is_flag(given[at + behind]):
        behind += 1
    return behind if action.nargs in ("+", "*") else min(behind, action.nargs if isinstance(action.nargs, int) else 1)


def _is_flag(word: str) -> bool:
    return word.startswith("-") and len(word) > 1 and re.fullmatch(r"-\d+(\.\d*)?", word) is None


def unknown(parser: argparse.ArgumentParser, given: Sequence[str], word: str) -> str:
    """Of a word that has no place on the command line."""
    return (_flag if _is_flag(word) else _stray)(parser, given, word)


def _flag(parser: argparse.ArgumentParser, given: Sequence[str], word: str) -> str:
    """Of a flag that there is not: a name for what stands without one, or the nearest."""
    flag, _, value = word.partition("=")
    name = flag.strip("-").lower().replace("_", "-")
    needs, said = _ELSEWHERE.get(name, ("", ""))
    if needs in flags_of(parser):
        return f"{flag}: unknown argument; {said}"
    places = [each for each in parser._actions if not each.option_strings and not _commands(each)]
    named = [each for each in places if name in (each.dest, str(each.metavar or "").lower())]
    first = named or [each for each in places if name in _FILE_WORDS]
    if first:
        behind = [*given, word, ""][[*given, word].index(word) + 1]
        value = value or ("" if behind.startswith("-") else behind)
        what = value or str(first[0].metavar or first[0].dest.upper())
        return f"{flag}: unknown argument; here it stands without a flag: {parser.prog} {what}"
    return f"{flag}: unknown argument{did_you_mean(flag.replace('_', '-'), flags_of(parser))}; see {parser.prog} --help"


def _commands(action: argparse.Action) -> bool:
    return isinstance(action, argparse._SubParsersAction)


def _stray(parser: argparse.ArgumentParser, given: Sequence[str], word: str) -> str:
    """Of a word that belongs to no flag."""
    meant = _meant(parser, given, word)
    if not meant and word.endswith(".npz") and "--trace" in given:
        return f"{word}: unknown argument; --trace takes one file; several: python -m sim.sweep --trace A.npz,B.npz"
    return f"{word}: unknown argument; {f'did you mean {meant}?' if meant else f'see {parser.prog} --help'}"


def _meant(parser: argparse.ArgumentParser, given: Sequence[str], word: str) -> str:
    """The flag, or the value, that a stray word was probably meant as; empty where nobody knows."""
    at = [*given, word].index(word)
    before, flag = ("", "", *given)[at + 1], ("", "", *given)[at]
    known = flags_of(parser)
    if flag in known and re.fullmatch(r"[\d.]+", before) and _UNIT.fullmatch(word):
        return f"{flag} {before}{word}"
    if "--config" in known and word.endswith(".toml") and "--config" not in given:
        return f"--config {word}"
    is_trace = word.endswith(".npz") or (SAMPLES / f"{word}.npz").is_file()
    if "--trace" in known and is_trace and "--trace" not in given:
        return f"--trace {word}"
    for option, is_one in getattr(parser, "named", {}).items():
        if option not in given and is_one(word):
            return f"{option} {word}"
    return f"--{word}" if f"--{word}" in known else ""
