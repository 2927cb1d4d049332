"""docs/glossary.md: made of one file, complete for what summary, text and flags say, and nothing besides."""

import re
from pathlib import Path
from typing import get_args

from sim.catalog.files import normal
from sim.flags import GROUPS
from sim.outcome import table
from sim.outcome.glossary import WORDS, named, page
from sim.outcome.summary import Marks, columns
from sim.policies.describe import named as policies
from sim.policies.describe import text
from sim.spec import RunSpec

ROOT = Path(__file__).parent.parent
SPELLINGS = {normal(spelling) for name, word in WORDS.items() for spelling in (name, *word.also)}
# plain English, or units: nobody needs them explained
PLAIN = {
    "all", "answers", "batch", "bytes", "cache", "copies", "cpu", "even", "fetch", "fetched", "fifo", "global", "gpu",
    "hardware", "hash", "high", "host memory", "layer", "least", "machine", "mean", "memory", "model", "most", "ms",
    "n", "name", "nearest-layer", "none", "notes", "ns", "one", "p50", "p95", "p99", "policy_files", "probability",
    "prompt_tokens", "prompt_tokens_per_s", "ram", "ready", "replaced", "request", "requests", "rest", "runs", "seed",
    "set", "skip_prompts", "source", "split", "time", "time_ns", "tokens", "tokens/s", "tokens_per_s", "total",
    "total_tokens_per_s", "version", "vram", "words", "bulk_rows",
}  # fmt: skip


def read(where: str) -> str:
    """A page, a file, or what `--describe NAME` prints."""
    name = where.removeprefix("--describe ")
    return normal(
        (ROOT / where).read_text() if name == where else "".join(text(*each) for each in policies(name).items())
    )


def missing(words: set[str]) -> list[str]:
    return sorted(word for word in words - PLAIN if normal(word) not in SPELLINGS)


def test_every_key_of_the_summary_has_an_entry() -> None:
    keys = {part for column in columns() for part in column.split(".")} | {*Marks.model_fields}
    assert len(keys) > 100 and missing(keys) == []


def test_every_head_of_the_printed_lines_has_an_entry() -> None:
    """`f"{'stall by':<12} ..."` in the source of the printed report."""
    text = Path(table.__file__).read_text()
    heads = set(re.findall(r"\{'([^']+)':<12\}", text)) | {"bound", "own work", "TPOT", "ITL", "TTFT"}
    assert len(heads) > 15 and missing({"stall" if head == "stall by" else head for head in heads}) == []


def test_every_flag_and_every_word_that_one_takes_has_an_entry() -> None:
    flags = {name for names in GROUPS.values() for name in names}
    choices = {
        word
        for name in flags
        for part in (RunSpec.model_fields[name].annotation, *get_args(RunSpec.model_fields[name].annotation))
        for word in get_args(part)
        if isinstance(word, str)
    }
    assert len(flags) > 50 and {"marginal", "stream"} <= choices
    assert missing(flags | choices) == []


def test_every_entry_is_used_somewhere_beside_the_glossary() -> None:
    """Its word or another spelling of it stands in what is printed, in a flag, or on a page."""
    files = [*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "VALIDATION.md", *ROOT.glob("sim/outcome/*.py")]
    files += [ROOT / "sim/spec.py", ROOT / "sim/run.py", ROOT / "sim/policies/meanings.py"]
    text = normal("\n".join(file.read_text() for file in files if file.name not in ("glossary.md", "glossary.py")))
    unused = [name for name, word in WORDS.items() if not any(normal(each) in text for each in (name, *word.also))]
    assert unused == []


def test_entries_are_in_order_unique_and_lead_to_pages_that_have_their_word() -> None:
    assert [*WORDS] == sorted(WORDS, key=normal)
    every = [normal(spelling) for name, word in WORDS.items() for spelling in {normal(name), *map(normal, word.also)}]
    assert len(every) == len(set(every)), [word for word in every if every.count(word) > 1]
    for name, word in WORDS.items():
        assert len(word.means) <= 130 and not word.means.endswith("."), name
        assert any(normal(each) in read(word.read) for each in (name, *word.also)), f"{name}: {word.read} has it not"


def test_the_page_is_made_of_the_entries() -> None:
    assert (ROOT / "docs/glossary.md").read_text() == page(), "make glossary"
    assert [*named("open_loop")] == [*named("Open-Loop")] == ["open-loop"] and named("nonsense") == {}
