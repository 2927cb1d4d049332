"""Hardware files with a [measured] section: tables worked by hand, laws, refusals in one line, and a run."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim import catalog
from sim.catalog.hardware_spec import Hardware
from sim.costs.classes import StepShapes
from sim.costs.roofline import costs, expert_bytes, memory
from sim.errors import CatalogError
from sim.run import main

IDEAL = catalog.engine("ideal")
MIXTRAL = catalog.model("mixtral-8x7b")
GPT = catalog.model("gpt-oss-20b")

TERMS = """
[measured]
device = "a test"
torch = "2.13.0"
model = "mixtral-8x7b"
precision = "bf16"
expert_bytes = 1000
decide_ns = 7
group_ns = 3
transfer_idle_ns = 110
transfer_following_ns = 100
commit_gap_ns = 2
commit_depth = 2
mem_gb = 4
"""
TABLES = """
[measured.expert]
tokens = [1, 3, 7]
ns = [10, 15, 35]
[measured.head]
tokens = [1, 2]
ns = [20, 21]
[measured.cpu_expert]
tokens = [1, 2]
ns = [50, 60]
busy_ns = [70, 90]
[[measured.dense]]
tokens = [1, 3]
ns = [100, 105]
entry_ns = 0.5
[[measured.dense]]
phase = "prefill"
tokens = [1]
ns = [200]
entry_ns = 0.25
[measured.uncertainty.expert]
spread = 0.02
residual = 0.01
repeats = 3
samples = 100
"""


def measured(tmp_path: Path, text: str = TERMS + TABLES) -> Hardware:
    path = tmp_path / "measured.toml"
    path.write_text(text)
    return catalog.hardware(str(path))


def shapes(rows: list[int], positions: list[int], prefill: list[bool], n_layers: int = 2) -> StepShapes:
    offset = np.concatenate(([0], np.cumsum(rows))).astype(np.int64)
    return StepShapes(offset, np.array(positions), np.array(prefill), n_layers, np.arange(n_layers))


def test_the_tables_are_the_knots_and_straight_lines_between_and_beyond(tmp_path: Path) -> None:
    steps = shapes([1, 2, 9], [4, 5, 6, *range(9)], [False, False, True])
    table = costs(MIXTRAL, measured(tmp_path), IDEAL, "bf16", steps)
    # 1 -> 10, 2 -> 12.5 (half-even: 12), 3 -> 15, then 5 ns a token, also beyond 7
    assert table.expert_ns.tolist() == [0, 10, 12, 15, 20, 25, 30, 35, 40, 45]
    assert table.cpu_expert_ns[:, :4].tolist() == [[0, 50, 60, 70], [0, 70, 90, 110]]
    # one row at position 4: 100 + 5 x 0.5 = 102.5, half-even 102; two at 5 and 6: 102.5 + 13 x 0.5 = 109;
    # nine rows of a prompt score 1 + ... + 9 = 45 entries: 200 + 11.25
    of = table.dense_ns[table.cost_class]
    assert of.tolist() == [[102, 102, 0], [109, 109, 0], [211, 211, 0]]
    assert table.head_ns[table.cost_class].tolist() == [20, 21, 20]  # a prompt needs one row's logits
    assert (table.decide_ns, table.group_ns, table.commit_gap_ns, table.commit_depth) == (7, 3, 2, 2)
    assert table.transfer_ns.tolist() == [110, 100]


def test_what_was_measured_goes_before_what_the_catalog_knows(tmp_path: Path) -> None:
    hardware = measured(tmp_path)
    assert (hardware.decide_ns, hardware.mem_bytes, hardware.answers_cpu) == (7, 4_000_000_000, True)
    assert expert_bytes(MIXTRAL, hardware, "bf16") == 1000
    line = memory(MIXTRAL, "bf16", 5, 10, 1, hardware, IDEAL)
    assert line["slots"] == 5000 and line["dense"] == MIXTRAL.dense_bytes("bf16") and line["fits"] is True
    small = measured(tmp_path, TERMS + "scale = 0.5\n" + TABLES)
    assert memory(MIXTRAL, "bf16", 5, 10, 1, small, IDEAL)["dense"] is None  # bytes of another, smaller model


def test_a_window_layer_has_a_table_of_its_own(tmp_path: Path) -> None:
    window = '[[measured.dense]]\nattention = "window"\ntokens = [1]\nns = [70]\nentry_ns = 1.0\n'
    of_gpt = TERMS.replace("mixtral-8x7b", "gpt-oss-20b")
    steps = shapes([1], [199], [False], 2)
    table = costs(GPT, measured(tmp_path, of_gpt + TABLES + window), IDEAL, "bf16", steps)
    assert table.dense_ns.tolist() == [[70 + 128, 100 + 100, 0]]  # gpt-oss: layer 0 slides over 128 tokens
    with pytest.raises(CatalogError, match="nothing for moe window decode; it has moe full decode, moe full prefill"):
        costs(GPT, measured(tmp_path, of_gpt + TABLES), IDEAL, "bf16", steps)


def test_layers_without_experts_and_with_linear_attention_have_tables_of_their_own(tmp_path: Path) -> None:
    # layers 0 and 2 without experts; 0, 1 and 2 linear, whose state costs the same at every position; 3 scores 10
    dense = "".join(
        f'[[measured.dense]]\nlayer = "{layer}"\nattention = "{kind}"\ntokens = [1]\nns = [{ns}]\nentry_ns = 5.0\n'
        for layer, kind, ns in (("moe", "linear", 70), ("ffn", "linear", 30), ("moe", "full", 100))
    )
    tables = TABLES[: TABLES.index("[measured.cpu_expert]")] + dense  # and no times of the host
    hardware = measured(tmp_path, TERMS.replace("mixtral-8x7b", "qwen3-next-80b-a3b") + tables)
    steps = StepShapes(np.array([0, 1]), np.array([9]), np.array([False]), 4, np.array([1, 3]))
    table = costs(catalog.model("qwen3-next"), hardware, IDEAL, "bf16", steps)
    assert table.dense_ns.tolist() == [[30 + 70, 30 + 100 + 50, 0]]
    assert table.cpu_expert_ns.tolist() == [[0, 0], [0, 0]] and not hardware.answers_cpu


def test_another_model_or_precision_than_was_measured_is_refused(tmp_path: Path) -> None:
    hardware, steps = measured(tmp_path), shapes([1], [0], [False])
    with pytest.raises(CatalogError, match="measured with model mixtral-8x7b, not gpt-oss-20b"):
        costs(GPT, hardware, IDEAL, "bf16", steps)
    with pytest.raises(CatalogError, match="measured at --precision bf16, not q4"):
        costs(MIXTRAL, hardware, IDEAL, "q4", steps)
    without_prefill = TABLES.replace('phase = "prefill"', 'attention = "linear"')
    with pytest.raises(CatalogError, match="nothing for moe full prefill"):
        costs(MIXTRAL, measured(tmp_path, TERMS + without_prefill), IDEAL, "bf16", shapes([2], [0, 1], [True]))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "ns = [10, 15, 35]",
            "ns = [10, 9, 35]",
            "measured.expert: ns: 9 at 3 tokens: less than with fewer tokens (10)",
        ),
        ("ns = [10, 15, 35]", "ns = [10, 15]", "measured.expert: ns: 2 values for 3 numbers of tokens"),
        ("ns = [10, 15, 35]", "ns = [10, 15, 3.5]", "measured.expert.ns.2 = 3.5: should be a valid integer"),
        ("ns = [10, 15, 35]", "ns = []", "measured.expert.ns"),
        ("tokens = [1, 3, 7]", "tokens = [2, 3, 7]", "measured.expert: tokens: [2, 3, 7]: must rise from 1"),
        ("tokens = [1, 3, 7]", "tokens = [1, 7, 3]", "must rise from 1"),
        ("busy_ns = [70, 90]", "busy_ns = [70, 60]", "measured.cpu_expert: busy_ns: 60 at 2 tokens"),
        ('phase = "prefill"', "", "measured: dense: moe full decode: given 2 times"),
        ('phase = "prefill"', 'phase = "both"', "measured.dense.1.phase = 'both'"),
        ("entry_ns = 0.5", "entry_ns = -0.5", "measured.dense.0.entry_ns = -0.5"),
        ("entry_ns = 0.5", "entry_ns = nan", "measured.dense.0.entry_ns = nan"),
        ("decide_ns = 7", "", "measured.decide_ns: missing"),
        ("decide_ns = 7", "decide_ns = -7", "measured.decide_ns = -7"),
        ("decide_ns", "decidens", "measured.decidens: unknown key; did you mean decide_ns?"),
        ("uncertainty.expert", "uncertainty.exprt", "measured.uncertainty: exprt: no such term"),
        ('"a test"', '"a\\ntest"', "measured.device = "),
        ("[measured]", "readback_ns = 3\n[measured]", "readback_ns: not beside [measured]"),
        ("[measured]", "[measured]\nscale = 0.0", "measured.scale = 0.0"),
    ],
)
def test_a_bad_section_is_refused_in_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = TERMS + TABLES
    assert old in text
    with pytest.raises(CatalogError) as error:
        measured(tmp_path, text.replace(old, new, 1))
    assert message in str(error.value) and "\n" not in str(error.value)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 10**6)), min_size=1, max_size=6), st.integers(1, 400))
def test_more_tokens_never_cost_less(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[int, int]], n: int
) -> None:
    from sim.catalog.measured_spec import Knots
    from sim.costs.measured import interpolated

    tokens = tuple(np.cumsum([1] + [step for step, _ in drawn[1:]]).tolist())
    ns = tuple(np.cumsum([rise for _, rise in drawn]).tolist())
    table = interpolated(Knots(tokens=tokens, ns=ns), np.arange(n + 1))
    assert table[0] == 0 and (np.diff(table) >= -1e-6).all()
    assert all(table[t] == v for t, v in zip(tokens, ns, strict=True) if t <= n)


def test_a_run_takes_it_like_any_hardware_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my-gpu.toml"
    path.write_text(TERMS + TABLES)
    assert main(["--trace", "mixtral.npz", "--hardware", str(path), "--max-steps", "30"]) == 0
    said = capsys.readouterr().out
    assert "! MEASURED: durations from a calibration on a test, of mixtral-8x7b\n" in said
    assert main(["--trace", "mixtral.npz", "--hardware", str(path), "--precision", "q4"]) == 2
    assert capsys.readouterr().err == "error: hardware: measured at --precision bf16, not q4\n"
    path.write_text(TERMS + "scale = 0.5\n" + TABLES)
    assert main(["--trace", "mixtral.npz", "--hardware", str(path), "--max-steps", "3"]) == 0
    assert "on a test, of mixtral-8x7b with its sizes x 0.5\n" in capsys.readouterr().out
