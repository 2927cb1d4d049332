"""Logs of home-made kinds: other names, other layouts of the experts, padded top-k, counts, nested lists, arrays."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import foreign_home_made
from tests.test_readers import convert, ids_agree, refused, small
from traces.__main__ import main
from traces.foreign.columns import find
from traces.foreign.json_stream import Stream
from traces.foreign.registry import detected
from traces.format import npz, profile

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"
M8 = ["--model", "m", "--n-experts", "8"]


def case(name: str) -> Path:
    if not (CASES / name).exists():
        pytest.skip(f"no {name} in ../shared/cases")
    return CASES / name


def counted(path: Path, out: Path, flags: list[str]) -> profile.Profile:
    assert main(["convert", "--force", str(path), str(out), *flags]) == 0
    return profile.read(out)


def jsonl(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


# --- names ---


def test_names_compare_without_case_and_marks() -> None:
    at = find(["Layer ID", "Batch-Number", "TOKEN_POS", "Activated Expert IDs", "note"], None, "f")
    assert at == {
        "layer": "Layer ID", "sequence": "Batch-Number", "token": "TOKEN_POS", "experts": "Activated Expert IDs",
    }  # fmt: skip
    assert find(["a", "b"], {"expert": "B", "layer": "a"}, "f") == {"experts": "b", "layer": "a"}


def test_two_names_of_one_field_are_asked_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.csv"
    path.write_text("token_idx,position,layer,expert_ids,phase\n7,0,0,1 2,decode\n9,1,0,3 4,decode\n")
    command = ["convert", "--force", str(path), str(tmp_path / "o.npz"), *M8]
    wrong = "line 1: token_idx and position could each be the token; required: --columns token=token_idx or token=pos"
    assert wrong in refused(command, capsys)
    trace = convert(path, tmp_path / "o.npz", [*M8, "--columns", "token=position"])
    assert trace.experts.tolist() == [[[1, 2]], [[3, 4]]] and trace.position.tolist() == [0, 1]
    wrong = "line 1: --columns token=pos: no such name; there are token_idx, position, layer, expert_ids, phase"
    assert wrong in refused([*command, "--columns", "token=pos"], capsys)
    assert "--columns tokn=: no such field; one of" in refused([*command, "--columns", "tokn=position"], capsys)


def test_a_column_map_for_names_in_no_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = jsonl(tmp_path / "t.jsonl", [{"where": 0, "when": 3, "who": [1, 2]}, {"where": 1, "when": 3, "who": [3, 4]}])
    flags = [*M8, "--from", "jsonl", "--columns", "layer=where,token=when,experts=who", "--phase", "decode"]
    trace = convert(path, tmp_path / "o.npz", flags)
    assert trace.experts.tolist() == [[[1, 2], [3, 4]]] and trace.position.tolist() == [3]
    command = ["convert", "--force", "--from", "jsonl", str(path), str(tmp_path / "o.npz"), *M8]
    wrong = "no object of it has a layer or experts; the last has where, when, who; required: layer and experts by"
    assert wrong in refused(command, capsys)
    assert "where" in refused([*command, "--columns", "experts=who"], capsys)


def test_from_csv_on_something_else_names_its_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.csv"
    command = ["convert", "--force", "--from", "csv", str(path), str(tmp_path / "o.npz"), *M8]
    for text, message in (
        ("time,loss\n1,2\n", "line 1 has no column layer; its columns are time, loss; required: layer by a known name"),
        ("layer,loss\n1,2\n", "no column expert; its columns are layer, loss; required: experts"),
        ("layer,expert\n1,2\n", "required: --from llamacpp"),
        ("layer,expert,hits\n1,2,3\n", "required: --from counts-csv"),
        ("layer,token,layer,experts\n1,2,3,4\n", "names the column 'layer' twice"),
    ):
        path.write_text(text)
        assert message in refused(command, capsys)


# --- how a line has its experts ---


@pytest.mark.parametrize("cell", ['"[1, 2, 3]"', "1 2 3", "1;2;3", "[1 2 3]", '"(1, 2, 3)"', "1|2|3"])
def test_lists_in_a_cell(cell: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"tok,layer_id,topk_ids,phase,probs\n0,2,{cell},prefill,.5 .25 .25\n")
    trace = convert(tmp_path / "t.csv", tmp_path / "o.npz", M8)
    assert trace.experts.tolist() == [[[1, 2, 3]]] and trace.weights is not None
    assert trace.weights.tolist() == [[[0.5, 0.25, 0.25]]] and trace.meta["moe_layers"] == [2]


def test_a_column_per_slot_and_a_line_per_slot_without_ranks(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("token,layer,e0,e1,w0,w1,phase\n0,0,3,1,.6,.4,decode\n1,0,5,,.9,,decode\n")
    trace = convert(tmp_path / "t.csv", tmp_path / "o.npz", M8)
    assert trace.experts.tolist() == [[[3, 1]], [[5, -1]]] and trace.meta["slots_ordered_by_weight"] is True
    (tmp_path / "t.csv").write_text("token,layer,expert_id\n0,0,3\n0,0,1\n0,1,5\n1,0,2\n1,0,4\n1,1,0\n1,1,6\n")
    trace = convert(tmp_path / "t.csv", tmp_path / "o.npz", [*M8, "--phase", "decode"])
    assert trace.experts.tolist() == [[[3, 1], [5, -1]], [[2, 4], [0, 6]]]


def test_the_order_of_lines_says_the_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A prompt of two tokens and a generated one, in two passes of two layers, twice."""
    lines = ["Layer ID,Batch Number,Token,Activated Expert IDs"]
    for request in range(2):
        lines += [f'{layer},{request},the,"[{i}, {layer}]"' for layer in (4, 5) for i in range(2)]
        lines += [f'{layer},{request},7,"[6, {layer}]"' for layer in (4, 5)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    flags = [*M8, "--phase", "by-batch"]
    trace = convert(tmp_path / "t.csv", tmp_path / "o.npz", flags)
    assert trace.sequence.tolist() == [0, 0, 0, 1, 1, 1] and trace.position.tolist() == [0, 1, 2] * 2
    assert trace.prefill.tolist() == [True, True, False] * 2
    assert trace.experts[:3].tolist() == [[[0, 4], [0, 5]], [[1, 4], [1, 5]], [[6, 4], [6, 5]]]
    assert "in their order" in trace.meta["doubts"][0]
    one = [*M8, "--phase", "decode", "--requests", "one"]
    trace = convert(tmp_path / "t.csv", tmp_path / "o.npz", one)
    assert trace.sequence.tolist() == [0] * 6 and trace.position.tolist() == list(range(6))
    assert "required: --phase" in refused(
        ["convert", "--force", str(tmp_path / "t.csv"), str(tmp_path / "o.npz"), *M8], capsys
    )


def test_objects_that_are_no_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    route = {"type": "route", "layer": 3, "token_idx": 0, "topk_ids": [5, 1], "stage": "decode"}
    lines = [{"type": "meta", "top_k": 3, "num_experts": 8, "num_layers": 6}, route, {"type": "end", "n": 1}]
    path = jsonl(tmp_path / "t.jsonl", lines)
    trace = convert(path, tmp_path / "o.npz", ["--model", "m"])
    assert (trace.n_experts, trace.n_layers, trace.top_k) == (8, 6, 3) and trace.experts.tolist() == [[[5, 1, -1]]]
    assert trace.meta["dropped"] == {
        "objects of type 'meta' that are no routing": 1, "objects of type 'end' that are no routing": 1,
    }  # fmt: skip
    trace = convert(path, tmp_path / "o.npz", ["--model", "m", "--n-experts", "16"])
    assert trace.meta["doubts"][0] == "the file says 8 experts a layer, m has 16: the file's number is kept"
    jsonl(path, [*lines[:2], {"type": "route", "layer": 3, "token_idx": 1}])
    assert "line 3: topk_ids is missing" in refused(
        ["convert", "--force", str(path), str(tmp_path / "o.npz"), "--model", "m"], capsys
    )
    jsonl(path, [{"type": "meta", "num_experts": 10**30}, route])
    wrong = refused(["convert", "--force", str(path), str(tmp_path / "o.npz"), "--model", "m"], capsys)
    assert "line 1: num_experts = a longer integer" in wrong


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('0,0,"[1, 2",.5 .5', "line 3: topk_ids = '[1, 2'; a list of expert ids such as [8, 26]"),
        ("0,0,1 x,.5 .5", "line 3: topk_ids = '1 x'"),
        ("0,0,1 9,.5 .5", "line 3: topk_ids = '9'; an integer from -1 to 7"),
        ("0,0,1 2,.5", "line 3: probs has 1 numbers; 2 experts are there"),
        ("0,0,1 2,.5 nan", "line 3: probs = 'nan'"),
        ("0,0,1 1,.5 .5", "already in slot 0"),
        ("0,10000,1 2,.5 .5", "line 3: layer_id = '10000'"),
        ("9,0,1 2,.5 .5", "line 3: token 9, layer 0, rank 0 is there already"),
        ("0,0,1 2", "line 3 has 3 fields; line 1 has 4"),
    ],
)
def test_bad_lists(line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text(f"tok,layer_id,topk_ids,probs\n9,0,1 2,.5 .5\n{line}\n")
    command = [
        "convert",
        "--force",
        "--from",
        "csv",
        str(tmp_path / "t.csv"),
        str(tmp_path / "o.npz"),
        *M8,
        "--phase",
        "decode",
    ]
    assert message in refused(command, capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


# --- top-k that varies ---


@pytest.mark.parametrize(("flags", "top_k"), [([], 3), (["--top-k", "4"], 4)])
def test_fewer_ids_are_padded(flags: list[str], top_k: int, tmp_path: Path) -> None:
    """A token of one expert, of three, of two, of none, which is left out; weights go with them."""
    ids: list[list[int]] = [[4], [1, 2, 3], [6, 5], []]
    lines: list[dict[str, Any]] = [{"token": t, "layer": 0, "experts": e, "phase": "decode"} for t, e in enumerate(ids)]
    want = [[e + [-1] * (top_k - len(e))] for e in ids[:3]]
    trace = convert(jsonl(tmp_path / "t.jsonl", lines), tmp_path / "o.npz", [*M8, *flags])
    assert trace.experts.tolist() == want
    weighed = [line | {"weights": [0.5] * len(line["experts"])} for line in lines]
    trace = convert(jsonl(tmp_path / "t.jsonl", weighed), tmp_path / "o.npz", [*M8, *flags])
    assert trace.weights is not None and np.array_equal(trace.weights > 0, np.array(want) >= 0)
    rows = [f"{t},0,{' '.join(map(str, e))},decode" for t, e in enumerate(ids)]
    (tmp_path / "t.csv").write_text("\n".join(["token,layer,experts,phase", *rows]))
    assert convert(tmp_path / "t.csv", tmp_path / "o.npz", [*M8, *flags]).experts.tolist() == want


def test_more_ids_than_the_model_has_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = jsonl(tmp_path / "t.jsonl", [{"token": 0, "layer": 0, "experts": [1, 2, 3]}])
    wrong = refused(
        ["convert", "--force", str(path), str(tmp_path / "o.npz"), *M8, "--top-k", "2", "--phase", "decode"], capsys
    )
    assert "line 1: experts has 3 slots; with --top-k 2 there are at most 2" in wrong


# --- counts ---


def test_counts_in_every_spelling(tmp_path: Path) -> None:
    flags = [*M8, "--moe-layers", "1-2"]
    want = np.zeros((2, 8))
    want[0, 3], want[1, [0, 7]] = 9, (2, 4)
    texts = {
        "a.csv": "layer,expert,count\n1,3,9\n2,0,2\n2,7,4\n",
        "b.csv": "# by a tool\n\nLayer ID,expert_id,frac,hits\n1,3,1.0,9\n2,0,.3,2\n2,7,.7,4\n# total,15\n",
        "c.csv": "# layer,expert,count\n1,3,9\n2,0,2.0\n2,7,4\ntotal,,15\n",
        "d.csv": "layer,0,1,2,3,4,5,6,7\n1,0,0,0,9,0,0,0,0\n2,2,0,0,0,0,0,0,4\n",
        "e.json": '{"1": {"3": 9}, "2": {"0": 2, "7": 4}}',
        "f.json": '{"counts": {"layer_1": [0,0,0,9,0,0,0,0], "layer_2": [2,0,0,0,0,0,0,4]}, "n": 3}',
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        found = counted(tmp_path / name, tmp_path / "p.npz", flags)
        assert np.array_equal(found.counts, want) and found.meta["moe_layers"] == [1, 2], name
        assert "doubts" not in found.meta or not found.meta["doubts"], name


def test_counts_of_shared_experts_and_totals_that_differ(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("layer,expert,count\n0,3,9\n0,-1,12\n# total,10\n")
    found = counted(tmp_path / "a.csv", tmp_path / "p.npz", M8)
    assert found.meta["dropped"] == {"lines of expert -1 (a shared expert)": 1}
    assert "add up to 9; its total says 10" in found.meta["doubts"][0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "required: layer,expert,count"),
        ("layer,expert,count\n", "counts nothing"),
        ("layer,expert,count\n0,3,9\n0,3,9\n", "line 3: layer 0, expert 3 is there already"),
        ("layer,expert,count\n0,8,9\n", "line 2: expert = '8'; an integer from -1 to 7"),
        ("layer,expert,count\n0,3,-1\n", "line 2: count = '-1'; a number of uses"),
        ("layer,expert,count\n0,3,nan\n", "line 2: count = 'nan'"),
        ("layer,expert,count\n0,3,inf\n", "line 2: count = 'inf'"),
        ("layer,expert,count\n0,3\n", "line 2 has 2 fields; its header has 3"),
        ("layer,expert,count\n99999,3,1\n", "line 2: layer = '99999'"),
        (
            "layer,expert,count,tokens\n0,3,1,1\n",
            "count and tokens could each be the count; required: --columns count=",
        ),
        ("layer,e0,e1\n0,1,1\n0,2,2\n", "line 3: layer 0, expert 0 is there already"),
        ("layer,expert,count\n0,3,0\n", "counts[0] are all 0"),
    ],
)
def test_bad_counts(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.csv").write_text(text)
    flags = ["--model", "m", "--n-experts", "8"]
    command = ["convert", "--force", "--from", "counts-csv", str(tmp_path / "c.csv"), str(tmp_path / "p.npz"), *flags]
    assert message in refused(command, capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["c.csv"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "no object by layers"),
        ({}, "no object by layers"),
        ({"a": [1]}, "no object by layers"),
        ({"0": 3}, "layer 0 has 3"),
        ({"0": [1, True]}, "expert 1 = 'nothing'"),
        ({"0": {"9": 1}}, "expert = '9'"),
        ({"0": [1, 2], "1": [1]}, "layers of 1 and of 2 counts"),
        ({"0": [1], "layer_0": [1]}, "layer 0, expert 0 is there already"),
    ],
)
def test_bad_json_counts(value: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.json").write_text(json.dumps(value))
    command = ["convert", "--force", "--from", "counts-json", str(tmp_path / "c.json"), str(tmp_path / "p.npz"), *M8]
    assert message in refused(command, capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]


def test_a_profile_goes_out_and_comes_back(tmp_path: Path) -> None:
    trace = small("csv")
    foreign_home_made.counts_csv(tmp_path / "a.csv", trace)
    first = counted(tmp_path / "a.csv", tmp_path / "p.npz", foreign_home_made.shape(trace))
    assert main(["convert", "--force", "--to", "counts-csv", str(tmp_path / "p.npz"), str(tmp_path / "b.csv")]) == 0
    again = counted(tmp_path / "b.csv", tmp_path / "q.npz", foreign_home_made.shape(trace))
    assert np.array_equal(first.counts, again.counts)


# --- nested lists ---


def nested(path: Path, **more: Any) -> Path:
    rows = [[[1, 2], [3, 4]], [[5, 6], [7, 0]]]
    facts = {"num_experts": 8, "num_layers": 2, "top_k": 2, "prompts": {"a": {"prefill": rows, "decode": rows[:1]}}}
    path.write_text(json.dumps(facts | more))
    return path


def test_nested_lists_of_several_prompts(tmp_path: Path) -> None:
    a = {"decode": [[[1, 2], None]], "prefill": [[[3], [4, 5]]], "prompt_len": 1}
    nested(tmp_path / "n.json", prompts={"x": a, "empty": {}, "y": a})
    trace = convert(tmp_path / "n.json", tmp_path / "o.npz", ["--model", "m", "--source", "s"])
    assert trace.experts.tolist() == [[[3, -1], [4, 5]], [[1, 2], [-1, -1]]] * 2
    assert trace.prefill.tolist() == [True, False] * 2 and trace.meta["groups"] == {"prompt": ["x", "y"]}
    nested(tmp_path / "n.json", prompts=[a, a])
    assert len(convert(tmp_path / "n.json", tmp_path / "o.npz", ["--model", "m"]).requests()[0]) == 2
    (tmp_path / "n.json").write_text(json.dumps(a | {"n_experts": 8, "n_layers": 2}))
    assert convert(tmp_path / "n.json", tmp_path / "o.npz", ["--model", "m"]).position.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"prompts": {}}, "no lists of rows in it"),
        ({"prompts": {"a": {"prefill": [[[1, 2], [3, 4]], [[1, 2]]]}}}, "a.prefill[1] has 1 layers"),
        ({"prompts": {"a": {"prefill": [[[1, 2], [3, "x"]]]}}}, "a.prefill[0]"),
        ({"prompts": {"a": {"prefill": [[[1, 2], [3, 1.5]]]}}}, "holds something else than expert ids"),
        ({"prompts": {"a": {"prefill": [[[1, 2], [3, -2]]]}}}, "holds something else than expert ids"),
        ({"prompts": {"a": {"prefill": [[[1, 2], [3, 10**30]]]}}}, "a.prefill[0]"),
        ({"prompts": {"a": {"prefill": [[[1, 2], [3, 8]]]}}}, "expert 8; ids lie in [0, 8)"),
        ({"prompts": {"a": {"prefill": [7]}}}, "a.prefill[0] is 7"),
        ({"prompts": {"a": {"prompt_len": 3, "prefill": [[[1, 2], [3, 4]]]}}}, "1 prompt rows; its length says 3"),
        ({"num_experts": 0}, "num_experts = 0"),
        ({"num_layers": 3}, "required: --moe-layers"),
        ({"top_k": 1}, "more than 1 experts"),
    ],
)
def test_bad_nested_lists(more: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nested(tmp_path / "n.json", **more)
    command = [
        "convert",
        "--force",
        "--from",
        "nested-json",
        str(tmp_path / "n.json"),
        str(tmp_path / "o.npz"),
        "--model",
        "m",
    ]
    assert message in refused(command, capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["n.json"]


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a": [1,,2]}', '{"a" 1}', '{"a": NaN}', "{}x", '{"a": 1,}'])
def test_what_is_no_json(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "n.json").write_text(text)
    command = [
        "convert",
        "--force",
        "--from",
        "nested-json",
        str(tmp_path / "n.json"),
        str(tmp_path / "o.npz"),
        "--model",
        "m",
    ]
    assert "n.json" in refused(command, capsys)


def test_a_value_is_read_across_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of a piece, the same values come out as json's."""
    value = {"a": [1, 23, [456, -7.5e3], 'x\\"]y'], "b": {"c": None, "ä": [True, []]}, "d": 12345}
    (tmp_path / "v.json").write_text(json.dumps(value, indent=1))
    for size in (1, 2, 3, 7, 100):
        monkeypatch.setattr("traces.foreign.json_stream.CHUNK", size)
        monkeypatch.setattr("traces.foreign.json_stream.Stream._more.__defaults__", (size,))
        with Stream(tmp_path / "v.json") as stream:
            found: dict[str, Any] = {}
            for key in stream.members():
                found[key] = [stream.value() for _ in stream.elements()] if key == "a" else stream.value()
            stream.end()
        assert found == value
        with Stream(tmp_path / "v.json") as stream:
            stream.skip()
            stream.end()


# --- arrays ---


def test_arrays_tell_their_axes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = np.argsort(np.random.default_rng(0).random((6, 3, 8)), axis=2)[:, :, :2]
    flags = [*M8, "--moe-layers", "0-2", "--requests", "one", "--phase", "decode", "--from", "npz"]
    np.savez(tmp_path / "a.npz", selected_experts=ids)
    assert np.array_equal(convert(tmp_path / "a.npz", tmp_path / "o.npz", flags).experts, ids)
    weights = np.linspace(0, 1, 36, dtype=np.float32).reshape(3, 6, 2)
    np.savez(tmp_path / "a.npz", selected_experts=ids.swapaxes(0, 1), scores=weights)
    trace = convert(tmp_path / "a.npz", tmp_path / "o.npz", flags)
    assert np.array_equal(trace.experts, ids) and np.array_equal(trace.weights, weights.swapaxes(0, 1))
    np.savez(tmp_path / "a.npz", selected_experts=ids[:3])
    command = ["convert", "--force", str(tmp_path / "a.npz"), str(tmp_path / "o.npz"), *flags]
    assert "could be the layers'; required: --columns layer=0 or layer=1" in refused(command, capsys)
    trace = convert(tmp_path / "a.npz", tmp_path / "o.npz", [*flags, "--columns", "layer=0"])
    assert np.array_equal(trace.experts, ids[:3].swapaxes(0, 1))


def test_arrays_say_requests_and_phases(tmp_path: Path) -> None:
    ids = np.argsort(np.random.default_rng(0).random((6, 3, 8)), axis=2)[:, :, :2]
    more = {
        "position": np.array([4, 5, 6, 0, 1, 2]),
        "prefill": np.array([1, 1, 0, 1, 0, 0]),
        "token_ids": np.arange(6),
    }
    np.savez(tmp_path / "a.npz", topk_ids=ids, **more)
    trace = convert(tmp_path / "a.npz", tmp_path / "o.npz", [*M8, "--moe-layers", "0-2"])
    assert trace.sequence.tolist() == [0, 0, 0, 1, 1, 1] and trace.position.tolist() == [4, 5, 6, 0, 1, 2]
    assert trace.prefill.tolist() == [True, True, False, True, False, False] and trace.token_ids is not None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"topk_ids": np.zeros((2, 3))}, "topk_ids is float64 [2, 3]; integers of 3 dimensions"),
        ({"topk_ids": np.zeros((2, 3, 0), int)}, "[2, 3, 0]"),
        ({"topk_ids": np.full((4, 3, 1), 8)}, "expert 8; ids lie in [0, 8)"),
        ({"topk_ids": np.zeros((4, 5, 1), int)}, "could be the layers'"),
        ({"topk_ids": np.zeros((2, 2, 1), int)}, "2 layers; m has 3 MoE layers"),
        ({"topk_ids": np.zeros((4, 3, 1), int), "position": np.arange(5)}, "arrays by token have [5] entries"),
        ({"topk_ids": np.zeros((4, 3, 1), int), "position": -np.arange(4)}, "position holds -3"),
        ({"topk_ids": np.zeros((4, 3, 1), int), "probs": np.full((4, 3, 1), np.nan)}, "weights"),
        ({"topk_ids": np.zeros((4, 3, 1), int), "probs": np.ones((4, 3))}, "probs is float64 [4, 3]"),
        ({"topk_ids": np.zeros((4, 3, 1), int), "experts": np.zeros(1)}, "could each be the experts"),
        ({"topk_ids": np.array([[[{}]]], object)}, "never unpickled"),
        ({"other": np.zeros(3)}, "no array experts; its arrays are other"),
    ],
)
def test_bad_arrays(arrays: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    flags = [*M8, "--moe-layers", "0-2", "--requests", "one", "--phase", "decode"]
    flags = flags[:-4] + flags[-2:] if "position" in arrays else flags
    command = ["convert", "--force", "--from", "npz", str(tmp_path / "a.npz"), str(tmp_path / "o.npz"), *flags]
    assert message in refused(command, capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


# --- moe-cache-lab, MoEArc ---


def test_moe_cache_lab_version_1_and_what_is_unassigned(tmp_path: Path) -> None:
    trace = small("moe-cache-lab")
    flags = foreign_home_made.cache_lab(tmp_path / "a.jsonl", trace, version=1)
    ids_agree(convert(tmp_path / "a.jsonl", tmp_path / "o.npz", flags), trace)
    lines = case_lines(tmp_path / "b.jsonl")
    lines[2] |= {"assignment_state": "unassigned", "selected_experts": [], "selected_probabilities": []}
    lines[2]["unassigned_reason"] = "capacity"
    trace = convert(jsonl(tmp_path / "b.jsonl", lines), tmp_path / "o.npz", ["--model", "m"])
    assert trace.experts.tolist() == [[[5, 1], [-1, -1]]]


def case_lines(path: Path) -> list[dict[str, Any]]:
    """A file as the project's example, with two records."""
    stage = {"routing_stage": "decoder", "num_experts": 8, "assigned_experts_per_token": 2, "allows_unassigned": True}
    head = {"record_type": "metadata", "format": "moe-cache-lab.routing-jsonl", "format_version": 2, "model_id": "x"}
    event: dict[str, Any] = {"record_type": "routing_selection", "routing_stage": "decoder", "phase": "decoder_prompt"}
    event |= {"assignment_state": "assigned", "token_position": 0, "selected_probabilities": [0.8, 0.1]}
    lines = [head | {"routing_stages": [stage]}, event | {"layer": 0, "selected_experts": [5, 1]}]
    lines.append(event | {"layer": 1, "selected_experts": [2, 0]})
    jsonl(path, lines)
    return lines


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        (0, {"format_version": 3}, "version 3; metadata of moe-cache-lab.routing-jsonl 1 or 2"),
        (
            0,
            {"routing_stages": [{"routing_stage": "encoder"}, {"routing_stage": "decoder"}]},
            "2 routing stages (encoder, ",
        ),
        (0, {"routing_stages": []}, "0 routing stages"),
        (1, {"routing_stage": "encoder"}, "line 2: a record 'routing_selection' of stage 'encoder'"),
        (1, {"record_type": "note"}, "line 2: a record 'note'"),
        (1, {"phase": "warm"}, "line 2: phase = 'warm'"),
        (1, {"selected_experts": [8, 1]}, "line 2: selected_experts = 8"),
        (1, {"selected_experts": [-1, 1]}, "line 2: selected_experts = -1"),
        (1, {"selected_experts": []}, "assignment_state = 'assigned' with 0 experts"),
        (1, {"selected_experts": [1, 2, 3], "selected_probabilities": []}, "at most 2"),
        (1, {"selected_probabilities": [0.5]}, "2 numbers are required"),
        (1, {"token_position": 10**12}, "token_position = 1000000000000"),
        (2, {"layer": 0}, "is there already"),
    ],
)
def test_bad_moe_cache_lab(
    line: int, change: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = case_lines(tmp_path / "a.jsonl")
    lines[line] |= change
    jsonl(tmp_path / "a.jsonl", lines)
    command = [
        "convert",
        "--force",
        "--from",
        "moe-cache-lab",
        str(tmp_path / "a.jsonl"),
        str(tmp_path / "o.npz"),
        "--model",
        "m",
    ]
    assert message in refused(command, capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_moe_cache_lab_is_written_for_one_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = small("csv")
    npz.write(tmp_path / "in.npz", trace)
    command = ["convert", "--force", "--to", "moe-cache-lab", str(tmp_path / "in.npz"), str(tmp_path / "o.jsonl")]
    assert "holds one request, the trace has 3" in refused(command, capsys)
    assert not (tmp_path / "o.jsonl").exists()


def test_moearc_says_what_is_cut_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = {"format": "moearc-trace-v1", "phase": "decode", "n_layer": 2, "n_expert_used": 2, "n_expert": 8}
    line = {"step": 0, "phase": "decode", "pos": 4, "e": [0, 5, 0, 0, 1, 1, 1, 7]}
    path = jsonl(tmp_path / "a.ndjson", [head | {"n_decode_steps": 2}, line])
    trace = convert(path, tmp_path / "o.npz", ["--model", "m"])
    assert trace.experts.tolist() == [[[5, 0], [1, 7]]] and trace.position.tolist() == [4]
    assert trace.meta["doubts"][0] == "the header says 2 decode steps; 1 are there: cut short"
    for bad, message in (
        (line | {"e": [0, 5, 0]}, "line 2: e has 3 numbers"),
        (line | {"e": [0, 8, 0, 1]}, "an expert of e = 8"),
        (line | {"e": [0, 1, 0, 2, 0, 3]}, "at most 2"),
        (line | {"pos": -1}, "line 2: pos = -1"),
        (line | {"phase": "warm"}, "line 2: phase = 'warm'"),
        ({"step": 0, "pos": 0}, "line 2: e is missing"),
    ):
        jsonl(path, [head, bad])
        assert message in refused(["convert", "--force", str(path), str(tmp_path / "p.npz"), "--model", "m"], capsys)


# --- the files beside the project ---


def test_case_variable_k(tmp_path: Path) -> None:
    path = case("jsonl_variable_k.jsonl")
    trace = convert(path, tmp_path / "o.npz", ["--model", "qwen3-30b-a3b"])
    have = {(line["token"], line["layer"]): line["experts"] for line in map(json.loads, path.read_text().splitlines())}
    for (t, layer), experts in have.items():
        assert trace.experts[t, layer].tolist() == experts + [-1] * (8 - len(experts))


@pytest.mark.parametrize(
    ("name", "right"), [("complete", True), ("upper_layers_lost", True), ("decode_restarts", False)]
)
def test_cases_that_stay_as_they_were(
    name: str, right: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = case(f"jsonl_{name}.jsonl")
    command = ["convert", "--force", str(path), str(tmp_path / "o.npz"), "--model", "qwen3-30b-a3b"]
    if not right:
        assert "token 0, layer 0, rank 0 is there already" in refused(command, capsys)
        return
    trace = convert(path, tmp_path / "o.npz", command[4:])
    have = {(line["token"], line["layer"]): line["experts"] for line in map(json.loads, path.read_text().splitlines())}
    for t, layer in np.ndindex(trace.experts.shape[:2]):
        assert trace.experts[t, layer].tolist() == have.get((t, layer), [-1] * 8)


def test_case_vllm_moe_logger(tmp_path: Path) -> None:
    path = case("real_vllm_moe_logger.jsonl")
    trace = convert(path, tmp_path / "o.npz", ["--model", "qwen1.5-moe-a2.7b", "--phase", "decode"])
    assert trace.experts.shape == (59, 1, 4) and trace.experts[7, 0].tolist() == [43, 5, 7, 58]
    assert trace.weights is not None and trace.meta["slots_ordered_by_weight"] is True
    assert trace.meta["dropped"] == {"objects of type 'meta' that are no routing": 1}


def test_case_moe_beyond(tmp_path: Path) -> None:
    path = case("real_moe_beyond.csv")
    trace = convert(path, tmp_path / "o.npz", ["--model", "deepseek-v2-lite", "--phase", "prefill"])
    assert trace.experts.shape == (3, 26, 6) and trace.meta["moe_layers"] == list(range(1, 27))
    assert trace.experts[1, 0].tolist() == [8, 10, 14, 30, 56, 44] and trace.position.tolist() == [0, 1, 2]


def test_case_onnx_genai(tmp_path: Path) -> None:
    path = case("real_onnx_genai.json")
    trace = convert(path, tmp_path / "o.npz", ["--model", "granite-3.0-1b-a400m"])
    prompts = json.loads(path.read_text())["prompts"]
    want = [row for prompt in prompts.values() for row in prompt["prefill"] + prompt["decode"]]
    assert trace.experts.tolist() == want and trace.meta["groups"]["prompt"] == list(prompts)


def test_case_moe_cache_lab(tmp_path: Path) -> None:
    trace = convert(case("moe_cache_lab_v2_example.jsonl"), tmp_path / "o.npz", ["--model", "m"])
    assert trace.experts.tolist() == [[[5, 1], [2, 0]]] and trace.weights is not None and trace.n_experts == 8


def test_case_layer_expert_count(tmp_path: Path) -> None:
    path = case("layer_expert_count.csv")
    found = counted(path, tmp_path / "p.npz", ["--model", "qwen3-30b-a3b"])
    assert found.counts[0, :3].tolist() == [64, 59, 85] and found.counts[47, 127] == 74
    assert main(["convert", "--force", "--to", "counts-csv", str(tmp_path / "p.npz"), str(tmp_path / "c.csv")]) == 0
    assert (tmp_path / "c.csv").read_text() == path.read_text()


@pytest.mark.parametrize(
    ("name", "format_name"),
    [
        ("jsonl_variable_k.jsonl", "jsonl"), ("real_vllm_moe_logger.jsonl", "jsonl"), ("real_moe_beyond.csv", "csv"),
        ("real_onnx_genai.json", "nested-json"), ("moe_cache_lab_v2_example.jsonl", "moe-cache-lab"),
        ("layer_expert_count.csv", "counts-csv"), ("moe_trace_pr28544.csv", "llamacpp"),
    ],
)  # fmt: skip
def test_cases_are_told_by_their_content(name: str, format_name: str) -> None:
    assert detected(case(name)) == format_name


@pytest.mark.parametrize("file", ["t.csv", "t.jsonl", "t.npz"])
def test_names_that_nobody_knows_are_told_by_columns_alone(file: str, tmp_path: Path) -> None:
    """No --from: what the content is made of says which of the three it is."""
    ids = np.argsort(np.random.default_rng(3).random((4, 2, 8)), axis=2)[:, :, :2]
    if file == "t.npz":
        np.savez(tmp_path / file, a=ids, b=np.arange(4))
    elif file == "t.jsonl":
        jsonl(tmp_path / file, [{"b": t, "l": n, "a": ids[t, n].tolist()} for t in range(4) for n in range(2)])
    else:
        rows = [f"{t},{n},{ids[t, n, 0]} {ids[t, n, 1]}" for t in range(4) for n in range(2)]
        (tmp_path / file).write_text("b,l,a\n" + "\n".join(rows))
    layer = "layer=1" if file == "t.npz" else "layer=l"
    flags = [*M8, "--moe-layers", "0-1", "--phase", "decode", "--columns", f"token=b,experts=a,{layer}"]
    assert np.array_equal(convert(tmp_path / file, tmp_path / "o.npz", flags).experts, ids)
