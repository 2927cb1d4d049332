"""What `sim.sweep` says at the end: best per group, by the mean over seeds; ties are called ties."""

from typing import Any

from sim.spec import RunSpec
from sim.sweeps.answer import CHOICES, COLUMNS_READ, MOST_LINES, answer
from sim.sweeps.rows import COLUMNS, Row


def told(speed: float, **fields: Any) -> Row:
    """A row of that speed; fields of its spec by name."""
    row = {name: None for name in COLUMNS_READ} | {"spec.eviction": "lru", "spec.rerank": "none", "spec.seed": 0}
    marks = {"synthetic": False, "open_loop": False, "oracle": False, "low": 0, "tokens_per_s": speed}
    return {**row, **marks, **{name if name in row else f"spec.{name}": value for name, value in fields.items()}}


def test_the_columns_and_the_fields_are_there() -> None:
    assert set(COLUMNS_READ) <= set(COLUMNS) and set(CHOICES) <= set(RunSpec.model_fields)


def test_settings_that_are_no_alternatives_have_a_line_each() -> None:
    unlike: list[dict[str, Any]] = [
        {},
        {"hardware": "b"},
        {"batch": 4},
        {"trace": "u"},
        {"cache": "4"},
        {"link_gbps": 2.0},
    ]
    rows = [
        told(i + j, **fields, eviction=name) for i, fields in enumerate(unlike) for j, name in ((1, "lru"), (3, "lfu"))
    ]
    lines = answer(rows).splitlines()
    assert len(lines) == 6 and all("eviction lfu" in line for line in lines)


def test_what_an_engine_does_is_a_choice_and_no_setting() -> None:
    rows = [told(1.0, n_cpu_moe=8), told(4.0, n_cpu_moe=16), told(2.0, n_cpu_moe=24)]
    assert answer(rows) == "best: 4.00 tokens/s  n_cpu_moe 16"


def test_ties_are_called_ties() -> None:
    rows = [told(100.0), told(99.5, eviction="lfu"), told(98.0, eviction="fifo")]
    assert answer(rows) == "best: 100.00 tokens/s  eviction lru  TIE: 1 more within 1 %"


def test_the_best_seed_is_no_winner() -> None:
    """random is the fastest once and the slower in the mean."""
    rows = [told(10.0, seed=i) for i in range(3)]
    rows += [told(speed, eviction="random", seed=i) for i, speed in enumerate((4.0, 14.0, 6.0))]
    assert answer(rows) == "best: 10.00 tokens/s  eviction lru  mean of 3 seeds"


def test_what_does_not_fit_competes_only_with_its_like() -> None:
    no: dict[str, Any] = {"memory.fits": False}
    rows = [told(50.0, eviction="lfu", **no), told(5.0), told(60.0, hardware="b", **no)]
    assert answer(rows).splitlines() == [
        "best: 5.00 tokens/s  eviction lru",
        "hardware b: 60.00 tokens/s  eviction lru  DOES NOT FIT",
    ]
    host: dict[str, Any] = {"memory.host.fits": False}
    assert answer([told(9.0, eviction="lfu", **host), told(5.0)]) == "best: 5.00 tokens/s  eviction lru"


def test_what_is_left_out_is_counted() -> None:
    lines = answer([told(1.0, batch=i) for i in range(MOST_LINES + 3)]).splitlines()
    assert len(lines) == MOST_LINES + 1 and lines[-1].startswith("... and 3 more")
