"""Other tools' per-token files: every layout read back, every flag asked for, every result replayed."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import foreign
from tests.foreign import PER_TOKEN
from tests.gen import REUSING_FOLDER, random_trace, traces
from traces.__main__ import main
from traces.format import npz
from traces.format.trace import RoutingTrace

FIXED = "[fixed]\ndense_ns = 10\nexpert_ns = 5\ntransfer_ns = 100\ndecide_ns = 0\ncpu_expert_ns = 7\n"
few = settings(REUSING_FOLDER, max_examples=15)
KEPT = ("experts", "position", "prefill")


def convert(path: Path, out: Path, flags: list[str]) -> RoutingTrace:
    assert main(["convert", "--force", str(path), str(out), *flags]) == 0
    return npz.read(out)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a refusal: exit status 2, one line on stderr, nothing on stdout."""
    capsys.readouterr()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, (out, err)
    return err


def small(name: str, seed: int = 0, **options: object) -> RoutingTrace:
    """A trace that the layout can hold: all of its slots filled, one request where it knows no requests."""
    one = PER_TOKEN[name][3]
    fixed = {"requests": 1 if one else 3, "token_ids": True, "dense_layers": 1, "prompt": 0.5} | options
    return random_trace(np.random.default_rng(seed), 18, **fixed)  # type: ignore[arg-type]


def ids_agree(read: RoutingTrace, trace: RoutingTrace, ordered: bool = True) -> None:
    """Ids, positions, phases and requests are the trace's (requests numbered by appearance)."""
    number = np.cumsum(np.append(True, trace.sequence[1:] != trace.sequence[:-1]))
    assert np.array_equal(np.cumsum(np.append(True, read.sequence[1:] != read.sequence[:-1])), number)
    for name in KEPT:
        mine, theirs = getattr(read, name), getattr(trace, name)
        if name == "experts" and not ordered:
            mine, theirs = np.sort(mine, axis=2), np.sort(theirs, axis=2)
        assert np.array_equal(mine, theirs), name
    assert read.meta["moe_layers"] == trace.meta["moe_layers"]
    assert (read.n_layers, read.n_experts, read.top_k) == (trace.n_layers, trace.n_experts, trace.top_k)


OPTIONAL = {
    "csv": ("weights",),
    "jsonl": ("weights", "token_ids"),
    "vllm": ("token_ids",),
    "sglang": ("token_ids",),
    "megatron": ("logits",),
    "flame": ("weights", "token_ids"),
    "bigmoeonedge": ("weights",),
}


@pytest.mark.parametrize("name", [name for name in PER_TOKEN if name not in ("sglang", "expert-selection")])
@few
@given(data=st.data())
def test_round_trip(name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any trace in the layout, read back, is the trace, wherever the layout has the field."""
    _, file, build, one = PER_TOKEN[name]
    weights = True if name in ("flame", "csv") else st.booleans()
    options = {"missing": 0.0, "lookahead": 0, "distances": (1,), "max_tokens": 14}
    options["logits"] = data.draw(st.booleans()) if name == "megatron" else False
    options["weights"] = weights if weights is True else data.draw(st.booleans())
    if one:
        options["requests"] = 1
    trace = data.draw(traces(**options))
    if name == "megatron" and trace.logits is not None:  # what bf16 holds, and different for every expert
        e = trace.n_experts
        ranked = np.argsort(np.argsort(-trace.logits.astype(np.float32), axis=2, kind="stable"), axis=2, kind="stable")
        logits = (e - ranked).astype(np.float16)
        chosen = np.argsort(-logits.astype(np.float32), axis=2, kind="stable")[:, :, : trace.top_k]
        trace = RoutingTrace(
            **{k: v for k, v in trace.arrays().items() if k not in ("logits", "experts")},
            meta=trace.meta,
            logits=logits,
            experts=chosen.astype(np.int16),
        )
    folder = tmp_path_factory.mktemp("round")
    flags = build(folder / file, trace)
    read = convert(folder / file, folder / "out.npz", flags)
    ids_agree(read, trace, ordered=name != "megatron" or trace.logits is not None)
    for array in OPTIONAL.get(name, ()):
        expected = getattr(trace, array)
        if expected is not None:
            assert np.array_equal(getattr(read, array), expected), array
    assert read.real and read.meta["tool"]
    if name == "csv":
        assert np.array_equal(read.sequence, trace.sequence)


@few
@given(trace=traces(missing=0.0, logits=False, lookahead=0, token_ids=True, max_experts=12, max_tokens=20),
       seed=st.integers(0, 99), chunk=st.integers(1, 5), mixed=st.booleans())  # fmt: skip
def test_sglang_round_trip(
    trace: RoutingTrace, seed: int, chunk: int, mixed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Requests are found again by position, whatever the order in which the server ran them; where two wait for the
    same position the rows are counted."""
    folder = tmp_path_factory.mktemp("sglang")
    flags = foreign.sglang(folder / "dump.pt", trace, chunk, seed, mixed)
    read = convert(folder / "dump.pt", folder / "out.npz", flags)
    assert read.n_tokens == trace.n_tokens and read.meta["id_space"] == "logical"
    key = np.lexsort((*read.experts.reshape(read.n_tokens, -1).T, read.token_ids, read.position))
    own = np.lexsort((*trace.experts.reshape(read.n_tokens, -1).T, trace.token_ids, trace.position))
    for name in ("experts", "position", "token_ids"):
        assert np.array_equal(getattr(read, name)[key], getattr(trace, name)[own]), name
    sure = read.meta["ambiguous_rows"] == 0 and not (mixed or trace.position[0] > 0)
    lengths = np.diff(np.append(trace.requests()[0], trace.n_tokens))
    prompts = [int(trace.prefill[rows].sum()) for rows in foreign.requests_of(trace)]
    if sure and all(prompts) and len(lengths):
        ids_agree(read, trace)


def test_sglang_requests_without_ambiguity_are_found_exactly(tmp_path: Path) -> None:
    """Three requests that join and leave: wherever no row was ambiguous, requests and phases are the server's own."""
    exact = 0
    for seed in range(60):
        trace = random_trace(np.random.default_rng(seed), 40, 1, 8, 1, requests=3, prompt=0.5, token_ids=True)
        if min(int(trace.prefill[rows].sum()) for rows in foreign.requests_of(trace)) == 0:
            continue
        flags = foreign.sglang(tmp_path / "dump.pt", trace, 6, seed)
        read = convert(tmp_path / "dump.pt", tmp_path / "out.npz", flags)
        if read.meta["ambiguous_rows"] == 0:
            ids_agree(read, trace)
            exact += 1
    assert exact >= 10, exact


@pytest.mark.parametrize("name", PER_TOKEN)
def test_each_is_told_by_its_content_and_then_replayed(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sim import run

    format_name, file, build, _ = PER_TOKEN[name]
    trace = small(name)
    flags = build(tmp_path / file, trace)
    assert main(["convert", "--force", str(tmp_path / file), str(tmp_path / "out.npz"), *flags]) == 0
    said = capsys.readouterr().out
    assert f"{trace.n_tokens} tokens" in said
    assert ("--from" in flags) or f"read as {format_name}:" in said
    (tmp_path / "h.toml").write_text(FIXED)
    command = ["--trace", tmp_path / "out.npz", "--hardware", tmp_path / "h.toml", "--cache", 3, "--json"]
    assert run.main([str(word) for word in command]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["slots_wanted"] == trace.experts.size
    assert result["tokens"] == int((~trace.prefill).sum())
    given = ["convert", "--force", "--from", format_name, str(tmp_path / file), str(tmp_path / "again.npz")]
    rest = flags[2:] if flags[0] == "--from" else flags
    assert main([*given, *rest]) == 0
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "out.npz").read_bytes()


# --- what is asked for ---


def without(flags: list[str], *names: str) -> list[str]:
    pairs = [flags[i : i + 2] for i in range(0, len(flags), 2)]
    return [word for pair in pairs if pair[0] not in names for word in pair]


SAY_THEIR_EXPERTS = ("nested-json", "moe-cache-lab", "moearc")


@pytest.mark.parametrize(
    ("name", "flag", "message"),
    [
        *((name, "--n-experts", "required: --n-experts N") for name in PER_TOKEN
          if name not in (*SAY_THEIR_EXPERTS, "hf-logits", "parquet", "bigmoeonedge")),
        *((name, "--model", "required: --model") for name in PER_TOKEN if name not in ("parquet", "bigmoeonedge")),
        *((name, "--moe-layers", "required: --moe-layers LIST") for name in
          ("vllm", "vllm-npy", "vllm-0.21", "sglang", "sglang-routed")),
        *((name, "--top-k", "required: --top-k N") for name in ("sglang", "sglang-routed", "llamacpp-pairs")),
        ("sglang-routed", "--n-layers", "required: --n-layers N"),
        *((name, "--prompt-tokens", "--phase prefill|decode|by-batch or --prompt-tokens") for name in
          ("llamacpp-pairs", "llamacpp-records", "megatron", "trtllm-raw")),
        *((name, "--prompt-tokens", "required: --phase prefill|decode or --prompt-tokens") for name in
          ("vllm-npy", "flame")),
        *((name, "--requests", "required: --requests one") for name in
          ("llamacpp-pairs", "llamacpp-records", "megatron", "trtllm-raw", "flame")),
    ],
)  # fmt: skip
def test_what_the_source_does_not_say_is_asked_for(
    name: str, flag: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, file, build, _ = PER_TOKEN[name]
    flags = without(build(tmp_path / file, small(name)), flag)
    before = sorted(p.name for p in tmp_path.iterdir())
    assert message in refused(["convert", "--force", str(tmp_path / file), str(tmp_path / "out.npz"), *flags], capsys)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_the_catalog_knows_the_model(tmp_path: Path) -> None:
    trace = random_trace(np.random.default_rng(0), 6, 26, 64, 6, requests=1, dense_layers=1, prompt=0.5)
    foreign.vllm(tmp_path / "r.jsonl", trace)
    read = convert(tmp_path / "r.jsonl", tmp_path / "o.npz", ["--model", "deepseek-ai/DeepSeek-V2-Lite"])
    ids_agree(read, trace)
    assert read.model == "deepseek-ai/DeepSeek-V2-Lite"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--moe-layers", "3-1"], "layer indices are required"),
        (["--moe-layers", "a"], "layer indices are required"),
        (["--moe-layers", "1-99999999"], "at most layer 9999"),
        (["--phase", "both"], "one of prefill, decode, by-batch is required"),
        (["--requests", "0"], "or tokens each is required"),
        (["--phase", "decode"], "one of the two is required, not both"),
        (["--iteration", "3"], "--iteration: megatron does not take it"),
        (["--top-k", "0"], "top_k is 2|meta.top_k is 0"),
        (["--n-experts", "99999"], "n_experts = 99999; an integer from 1 to 32767"),
        (["--requests", "prompt"], "needs --phase by-batch"),
        (["--prompt-start", "-1"], "a number from 0"),
        (["--from", "megatrn"], "did you mean megatron?"),
    ],
)
def test_bad_flags(flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, file, build, _ = PER_TOKEN["megatron"]
    good = build(tmp_path / file, small("megatron"))
    command = ["convert", "--force", str(tmp_path / file), str(tmp_path / "out.npz"), *good, *flags]
    if flags[0] == "--top-k":  # said twice, the last one counts; the file says top-2 all the same
        assert main(command) == 0
        return
    assert message in refused(command, capsys)


def test_unknown_and_ambiguous_content_asks_for_the_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").write_text("hello\n")
    assert "required: --from, one of csv" in refused(
        ["convert", "--force", str(tmp_path / "x"), "o.npz", "--model", "m"], capsys
    )
    assert "No such file" in refused(["convert", "--force", str(tmp_path / "none"), "o.npz", "--model", "m"], capsys)
    assert "looks like" not in refused(
        ["convert", "--force", str(tmp_path), str(tmp_path / "o.npz"), "--model", "m"], capsys
    )
    good = ["convert", "--force", str(tmp_path / "x"), str(tmp_path / "o.pt"), "--from", "csv", "--model", "m"]
    assert "--to writes other formats" in refused(good, capsys)


# --- each layout's own cases ---


def test_llamacpp_passes_by_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two requests in one file: a prompt pass of 2 tokens, then 2 passes of one; again. Layer 1 is computed for the
    last token of a prompt alone, and the file does not say for which."""
    lines = ["layer,expert"]
    for prompt in ([0, 1, 2, 3], [4, 5, 6, 7]):
        lines += [f"0,{e}" for e in prompt] + [f"1,{e}" for e in prompt[2:]]
        for e in (1, 2):
            lines += [f"0,{e}", f"0,{e + 1}", f"1,{e}", f"1,{e + 2}"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    flags = ["--model", "m", "--n-experts", "8", "--top-k", "2", "--phase", "by-batch", "--requests", "prompt"]
    trace = convert(tmp_path / "t.csv", tmp_path / "o.npz", flags)
    assert trace.sequence.tolist() == [0] * 4 + [1] * 4
    assert trace.position.tolist() == [0, 1, 2, 3] * 2
    assert trace.prefill.tolist() == [True, True, False, False] * 2
    assert trace.experts[:, 0].tolist() == [[0, 1], [2, 3], [1, 2], [2, 3], [4, 5], [6, 7], [1, 2], [2, 3]]
    assert trace.experts[:, 1].tolist() == [[-1, -1]] * 2 + [[1, 3], [2, 4]] + [[-1, -1]] * 2 + [[1, 3], [2, 4]]
    assert "dropped 2 tokens of layer 1, which has fewer than the pass" in capsys.readouterr().out
    flags = [*without(flags, "--requests"), "--requests", "4"]
    assert convert(tmp_path / "t.csv", tmp_path / "o.npz", flags).sequence.tolist() == [0] * 4 + [1] * 4
    flags = [*without(flags, "--requests"), "--requests", "step"]
    assert convert(tmp_path / "t.csv", tmp_path / "o.npz", flags).sequence.tolist() == [0, 0, 1, 2, 3, 3, 4, 5]


def test_llamacpp_positions_say_where_requests_begin(tmp_path: Path) -> None:
    rows = ["pos,layer,e0,e1", "-1,0,0,1", "-1,0,2,3", "-1,3,4,5", "-1,3,6,7", "5,0,1,2", "5,3,3,4", "6,0,1,2"]
    rows += ["6,3,0,1", "-1,0,7,6", "-1,3,5,4", "1,0,1,0", "1,3,1,0", "9,0,1,0", "9,3,1,0"]
    (tmp_path / "t.csv").write_text("\r\n".join(rows) + "\r\n")
    trace = convert(tmp_path / "t.csv", tmp_path / "o.npz", ["--model", "m", "--n-experts", "8"])
    assert trace.sequence.tolist() == [0, 0, 0, 0, 1, 1, 2]
    assert trace.position.tolist() == [3, 4, 5, 6, 0, 1, 9]
    assert trace.prefill.tolist() == [True, True, False, False, True, False, False]
    assert trace.meta["moe_layers"] == [0, 3]


def test_vllm_prefix_cached_prompt_and_several_completions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0.21: two cached prompt tokens of four, two completions that share the prompt."""
    prompt = [[[-1, -1]], [[-1, -1]], [[0, 1]], [[2, 3]]]
    choices = [{"routed_experts": [[[4, 5]]]}, {"routed_experts": [[[6, 7]], [[1, 0]]]}, {"routed_experts": []}]
    (tmp_path / "r.json").write_text(json.dumps({"prompt_routed_experts": prompt, "choices": choices}))
    flags = ["--model", "m", "--n-experts", "8", "--moe-layers", "2", "--n-layers", "4"]
    trace = convert(tmp_path / "r.json", tmp_path / "o.npz", flags)
    assert trace.experts[:, 0].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [1, 0]]
    assert (trace.sequence.tolist(), trace.position.tolist()) == ([0, 0, 0, 1, 1], [2, 3, 4, 4, 5])
    assert trace.prefill.tolist() == [True, True, False, False, False]
    assert "dropped 2 prompt tokens taken from the prefix cache" in capsys.readouterr().out


def test_vllm_folder_of_arrays_and_wide_models(tmp_path: Path) -> None:
    trace = random_trace(np.random.default_rng(1), 9, 2, 300, 2, requests=3, prompt=0.0)
    folder = tmp_path / "arrays"
    folder.mkdir()
    for i, rows in enumerate(foreign.requests_of(trace)):
        np.save(folder / f"{i:03d}.npy", foreign.all_layers(trace, rows).astype(np.uint16))
    read = convert(folder, tmp_path / "o.npz", [*foreign.shape_flags(trace), "--phase", "decode"])
    ids_agree(read, trace)


def test_a_completion_without_rows_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One prompt token and nothing generated: its only token was never forwarded. It is counted as one without rows."""
    empty = {"choices": [{"routed_experts": []}], "usage": {"prompt_tokens": 1, "completion_tokens": 0}}
    full = {"choices": [{"routed_experts": [[[3, 1]]]}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    command = ["convert", "--force", str(tmp_path / "r.jsonl"), str(tmp_path / "o.npz"), "--from", "vllm"]
    flags = ["--model", "m", "--n-experts", "8", "--moe-layers", "0"]
    (tmp_path / "r.jsonl").write_text(json.dumps(empty))
    assert "no response has rows" in refused([*command, *flags], capsys)
    (tmp_path / "r.jsonl").write_text(json.dumps(empty) + "\n" + json.dumps(full))
    assert main([*command, *flags]) == 0
    assert npz.read(tmp_path / "o.npz").experts.tolist() == [[[3, 1]]]


def test_vllm_needs_lengths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = small("vllm", requests=1, first_position=3, prompt=0.5)
    flags = foreign.vllm(tmp_path / "r.jsonl", trace)
    response = json.loads((tmp_path / "r.jsonl").read_text())
    for key in ("prompt_token_ids", "usage"):
        response.pop(key)
    response["choices"][0].pop("token_ids")
    (tmp_path / "r.jsonl").write_text(json.dumps(response))
    command = ["convert", "--force", str(tmp_path / "r.jsonl"), str(tmp_path / "o.npz"), *flags]
    assert "required: --prompt-start N" in refused(command, capsys)
    assert "required: --phase" in refused([*command, "--prompt-start", "3"], capsys)
    prompt = 3 + int(trace.prefill.sum())
    assert main([*command, "--prompt-start", "3", "--prompt-tokens", str(prompt)]) == 0
    ids_agree(npz.read(tmp_path / "o.npz"), trace)


def test_dense_layers_hold_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = small("vllm-npy")
    array = foreign.all_layers(trace, slice(0, trace.n_tokens)).astype(np.uint8)
    array[3, 0, 1] = 2
    np.save(tmp_path / "r.npy", array)
    flags = [*foreign.shape_flags(trace), *foreign.prompt_flags(trace)]
    command = ["convert", "--force", str(tmp_path / "r.npy"), str(tmp_path / "o.npz"), *flags]
    assert "layer 0 has experts; test-model has none there" in refused(command, capsys)


def test_sglang_modes_and_ambiguity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two requests of two prompt tokens in one pass; both are at position 2 when one of them ends: the row that
    follows could be either's. A speculative pass and a child gatherer's are left out."""
    import torch

    def record(mode: int, positions: list[int], lengths: list[int] | None, **more: object) -> dict[str, object]:
        ids = torch.full((1, len(positions), 8), -1, dtype=torch.int32)
        ids[0, :, 0] = torch.arange(len(positions), dtype=torch.int32)
        tokens = list(range(len(positions)))
        known = {"forward_mode": mode, "positions": positions, "input_ids": tokens, "extend_seq_lens": lengths}
        return known | {"topk_ids_of_layer": ids, "gatherer_key": "primary"} | more

    records = [
        record(1, [0, 1, 0, 1], [2, 2]),
        record(5, [2, 3, 4], None),
        record(2, [2, 2], None, gatherer_key="child_a"),
        record(2, [2], None),
        record(2, [3, 9], None),
    ]
    identity = torch.arange(8)[None]
    torch.save({"records": records, "last_physical_to_logical_map": identity}, tmp_path / "d.pt")
    flags = ["--model", "m", "--n-experts", "8", "--top-k", "1", "--moe-layers", "0", "--n-layers", "1"]
    trace = convert(tmp_path / "d.pt", tmp_path / "o.npz", flags)
    assert trace.sequence.tolist() == [0, 0, 0, 0, 1, 1, 2]
    assert trace.position.tolist() == [0, 1, 2, 3, 0, 1, 9]
    assert trace.prefill.tolist() == [True, True, False, False, True, True, False]
    said = capsys.readouterr().out
    assert "dropped 3 rows of target-verify passes" in said and "dropped 2 rows of gatherer 'child_a'" in said
    assert "1 rows could have been of another request" in said


def test_sglang_chunked_prompt_between_decodes(tmp_path: Path) -> None:
    """A prompt of five in chunks of two, with decode passes of another request between the chunks."""
    trace = random_trace(np.random.default_rng(2), 9, 1, 8, 1, requests=1, prompt=1.0, token_ids=True)
    experts = trace.experts
    import torch

    def record(mode: int, rows: list[int], positions: list[int], lengths: list[int] | None) -> dict[str, object]:
        ids = torch.full((1, len(rows), 8), -1, dtype=torch.int32)
        ids[0, :, 0] = torch.from_numpy(np.array(experts[rows, 0, 0], np.int32))
        known = {"forward_mode": mode, "positions": positions, "input_ids": rows, "extend_seq_lens": lengths}
        return known | {"topk_ids_of_layer": ids}

    records = [
        record(1, [0], [0], [1]),
        record(1, [2, 3], [0, 1], [2]),
        record(2, [1], [1], None),
        record(1, [4, 5], [2, 3], [2]),
        record(3, [6, 7], [4, 2], [1, 1]),
        record(2, [8], [5], None),
    ]
    torch.save({"records": records, "last_physical_to_logical_map": torch.arange(8)[None]}, tmp_path / "d.pt")
    flags = ["--model", "m", "--n-experts", "8", "--top-k", "1", "--moe-layers", "0", "--n-layers", "1"]
    read = convert(tmp_path / "d.pt", tmp_path / "o.npz", flags)
    assert read.token_ids.tolist() == [0, 1, 7, 2, 3, 4, 5, 6, 8]
    assert read.position.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5]
    # row 6, one prompt token in a mixed pass, cannot be told from a generated one: it is read as generated
    assert read.prefill.tolist() == [True, False, False, True, True, True, True, False, False]


def test_flame_checkpoints_and_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = small("flame")
    folder = tmp_path / "capture"
    flags = without(foreign.flame(folder, trace), "--requests", "--prompt-start", "--prompt-tokens")
    (folder / "actives" / "iter_0540").rename(folder / "actives" / "iter_1080")
    foreign.flame(tmp_path / "other", trace)
    (tmp_path / "other" / "actives" / "iter_0540").rename(folder / "actives" / "iter_0540")
    command = [
        "convert",
        "--force",
        str(folder),
        str(tmp_path / "o.npz"),
        *flags,
        "--phase",
        "prefill",
        "--requests",
        "5",
    ]
    assert "checkpoints 540, 1080: each is another model; required: --iteration N" in refused(command, capsys)
    assert "no actives/iter_7; there are 540, 1080" in refused([*command, "--iteration", "7"], capsys)
    assert main([*command, "--iteration", "1080"]) == 0
    read = npz.read(tmp_path / "o.npz")
    assert read.meta["checkpoint"] == "iter_1080"
    assert read.sequence.tolist() == [i // 5 for i in range(18)] and read.prefill.all()
    assert np.array_equal(read.token_ids, trace.token_ids)


def test_megatron_logits_order_the_slots(tmp_path: Path) -> None:
    ids, logits = [[0, 2, 3]], np.array([[1.0, 9.0, 2.5, 2.5]], np.float32)
    line = {"step": 3, "stage": "pre_dispatch", "block": "decoder", "layer": 1, "rank": 0, "num_tokens": 1, "topk": 3}
    line |= {"top_indices": ids, "logit_offset": 4, "logit_bytes": 8, "logit_shape": [1, 4]}
    (tmp_path / "router_trace_rank0.jsonl").write_text(json.dumps(line))
    (tmp_path / "logits_rank0.bin").write_bytes(b"xxxx" + foreign.bf16(logits))
    flags = ["--model", "m", "--n-experts", "4", "--phase", "prefill", "--requests", "step"]
    trace = convert(tmp_path / "router_trace_rank0.jsonl", tmp_path / "o.npz", flags)
    assert trace.experts.tolist() == [[[2, 3, 0]]] and trace.meta["slots_ordered_by_weight"] is True
    assert trace.logits.tolist() == [[[1.0, 9.0, 2.5, 2.5]]] and trace.weights is None


# --- bounded memory ---


@pytest.mark.parametrize("name", ["vllm-npy", "vllm", "llamacpp-records"])
def test_a_large_source_is_read_in_bounded_memory(name: str, tmp_path: Path) -> None:
    """About 60 MB of each, 120 MB of routing, while Python and numpy never hold more than 48 MB."""
    import tracemalloc

    layers, n = 400, 150_000
    flags = ["--model", "m", "--n-experts", "4", "--top-k", "1", "--n-layers", str(layers)]
    flags += ["--moe-layers", f"0-{layers - 1}"]
    path = tmp_path / PER_TOKEN[name][1]
    if name == "vllm-npy":  # zeros: expert 0 everywhere, and a file of holes
        with path.open("wb") as file:
            head = {"descr": "|u1", "fortran_order": False, "shape": (n, layers, 1)}
            np.lib.format.write_array_header_1_0(file, head)
            file.truncate(file.tell() + n * layers)
        flags += ["--phase", "decode"]
    elif name == "vllm":
        array = foreign.base64.b64encode(foreign.npy_bytes(np.zeros((5000, layers, 1), np.uint8))).decode()
        usage = {"prompt_tokens": 5000, "completion_tokens": 1}
        line = json.dumps({"choices": [{"routed_experts": array}], "usage": usage}) + "\n"
        with path.open("w") as file:
            for _ in range(n // 5000):
                file.write(line)
    else:
        with path.open("wb") as file:
            for _ in range(n // 1000 // 4):
                for layer in range(layers):
                    file.write(np.array([layer, 1000, 1], "<i4").tobytes() + bytes(4000))
        flags += ["--from", "llamacpp", "--phase", "prefill", "--requests", "step"]
    size = path.stat().st_size
    tracemalloc.start()
    try:
        assert main(["convert", "--force", str(path), str(tmp_path / "out.npz"), *flags]) == 0
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 55 << 20 and most < 48 << 20, (size, most)


# --- the documentation ---

DOCS = Path(__file__).parent.parent / "docs" / "formats.md"


def commands(word: str) -> list[list[str]]:
    lines = [line.removeprefix("$ ") for line in DOCS.read_text().splitlines() if line.startswith("$ ")]
    return [line.split()[3:] for line in lines if line.startswith(f"python -m {word}")]


def test_the_documentation_s_commands_are_ours() -> None:
    """Every command parses, every format is there, and every flag is one that its format takes."""
    from sim.run import parser
    from traces.__main__ import _parser
    from traces.foreign.models import model
    from traces.foreign.registry import FLAGS, READERS, WRITERS

    read, written = set(), set()
    for words in commands("traces"):
        options = _parser(by=False).parse_args(words)
        if options.command != "convert":
            continue
        if options.to is not None:
            written.add(options.to)
            continue
        name = options.format or "llamacpp"
        read.add(name)
        assert {flag for flag in FLAGS if getattr(options, flag) is not None} <= set(READERS[name].flags)
        named = options.model is None and READERS[name].names_model
        assert named or model(options.model).hint == "" or options.n_experts is not None, options.model
    assert read == set(READERS) and written == set(WRITERS)
    for words in [*commands("sim.run"), *commands("sim.placement"), *commands("sim.residency")]:
        parser().parse_args(words)
