"""Logs of vLLM and SGLang as they are: failures among good responses, streams, cached and unrecorded rows.

Each kind is made here, and read from the files of ../shared/cases where they lie beside the project.
"""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.foreign import npy_bytes
from tests.test_readers import convert, few, refused
from traces.__main__ import main
from traces.foreign.formats import sglang_routed, vllm
from traces.format.trace import RoutingTrace

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"
LAYERS, TOP_K, EXPERTS = 4, 2, 16
FLAGS = ["--model", "m", "--n-experts", str(EXPERTS), "--top-k", str(TOP_K), "--n-layers", str(LAYERS)]
FLAGS += ["--moe-layers", "1-3"]
QWEN = ["--model", "qwen3-30b-a3b"]
CACHED = "prompt tokens taken from the prefix cache (not routed in this run)"
FAILED = "responses that failed or have no routed experts"
CUT = "lines cut short at the end of the file"
SGLANG_ERROR = {"error": {"message": "out of memory", "code": 500}}


def routed(n: int, seed: int = 0) -> np.ndarray:
    """[n, LAYERS, TOP_K] different experts a token and layer, zeros in the dense layer 0."""
    rng = np.random.default_rng(seed)
    rows = np.stack([[rng.permutation(EXPERTS)[:TOP_K] for _ in range(LAYERS)] for _ in range(n)]) if n else []
    rows = np.asarray(rows, np.int64).reshape(n, LAYERS, TOP_K)
    rows[:, 0] = 0
    rows[:, 1:][(rows[:, 1:] == 0).all(axis=2)] = [1, 2]
    return rows


def npy64(rows: np.ndarray, dtype: Any = np.uint8) -> str:
    return base64.b64encode(npy_bytes(rows.astype(dtype))).decode()


def raw64(rows: np.ndarray) -> str:
    return base64.b64encode(rows.astype("<i4").tobytes()).decode()


def by_vllm(rows: np.ndarray, prompt: int, generated: int, cached: int | None = None, **more: Any) -> dict[str, Any]:
    """A response of /v1/chat/completions, 0.33."""
    choice = {"index": 0, "message": {"content": "x"}, "finish_reason": "length", "routed_experts": npy64(rows)}
    usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": generated}
    if cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    return {"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage, "prompt_logprobs": None} | more


def by_sglang(rows: np.ndarray | None, prompt: int, generated: int, name: str = "x", **more: Any) -> dict[str, Any]:
    """A response of /generate."""
    meta = {"id": name, "prompt_tokens": prompt, "completion_tokens": generated, "cached_tokens": 0} | more
    return {"text": "", "meta_info": meta if rows is None else meta | {"routed_experts": raw64(rows)}}


def by_sglang_chat(parts: list[np.ndarray], prompt: int, generated: int, key: str = "sgl_ext") -> dict[str, Any]:
    choices = [{"index": i, "finish_reason": "stop", key: {"routed_experts": raw64(p)}} for i, p in enumerate(parts)]
    usage = {"prompt_tokens": prompt, "completion_tokens": generated}
    return {"id": "c", "object": "chat.completion", "model": "m", "choices": choices, "usage": usage}


def lines(path: Path, *values: Any) -> Path:
    """A log: what is text stands as it is, all else as JSON."""
    path.write_text("".join((v if isinstance(v, str) else json.dumps(v)) + "\n" for v in values))
    return path


def events(*values: Any) -> list[str]:
    return [f"data: {v if isinstance(v, str) else json.dumps(v)}\n" for v in values]


def read(path: Path, *flags: str) -> RoutingTrace:
    return convert(path, path.with_suffix(".npz"), [*FLAGS, *flags])


def refusal(path: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    message = refused(["convert", "--force", str(path), str(path.with_suffix(".npz")), *FLAGS, *flags], capsys)
    assert not path.with_suffix(".npz").exists()
    return message


def holds(trace: RoutingTrace, *requests: np.ndarray) -> None:
    """The trace's requests have these rows, without what was not recorded."""
    have = (np.asarray(trace.experts) >= 0).any(axis=(1, 2))
    found = [np.asarray(trace.experts)[(trace.sequence == s) & have] for s in dict.fromkeys(trace.sequence.tolist())]
    assert [len(rows) for rows in found] == [len(rows) for rows in requests]
    for rows, right in zip(found, requests, strict=True):
        assert np.array_equal(rows, right[:, 1:])


def doubts(trace: RoutingTrace) -> str:
    return " | ".join(trace.meta.get("doubts", []))


# --- the prefix cache ---


@pytest.mark.parametrize("said", ["usage", "response", "choice"])
def test_rows_of_cached_prompt_tokens_are_left_out(said: str, tmp_path: Path) -> None:
    """They are in the array, though this run did not compute them; a request that asked for later rows lacks them."""
    first, second = routed(11, 0), routed(13, 1)
    last = by_vllm(second, 10, 4, 6 if said == "usage" else None)
    if said != "usage":
        (last if said == "response" else last["choices"][0])["num_cached_tokens"] = 6
    trace = read(lines(tmp_path / "r.jsonl", by_vllm(first, 8, 4, 0), last, by_vllm(second[6:], 10, 4, 6)))
    holds(trace, first, second[6:], second[6:])
    assert trace.meta["dropped"] == {CACHED: 6}
    assert trace.position[trace.sequence == 1].tolist() == list(range(6, 13))
    assert trace.prefill.sum() == 8 + 4 + 4


def test_a_start_within_the_cached_tokens(tmp_path: Path) -> None:
    rows = routed(13)
    trace = read(lines(tmp_path / "r.jsonl", by_vllm(rows[4:], 10, 4, 6)))
    holds(trace, rows[6:])
    assert trace.meta["dropped"] == {CACHED: 2} and trace.position[0] == 6


def test_token_ids_go_with_the_rows(tmp_path: Path) -> None:
    rows = routed(6)
    response = by_vllm(rows, 4, 3, 2, prompt_token_ids=[10, 11, 12, 13])
    response["choices"][0]["token_ids"] = [20, 21, 22]
    trace = read(lines(tmp_path / "r.jsonl", response))
    assert trace.token_ids is not None and trace.token_ids.tolist() == [12, 13, 20, 21]


@pytest.mark.parametrize("cached", [9, 2**40, -1, "6", 1.5])
def test_cached_tokens_that_cannot_be(cached: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lines(tmp_path / "r.jsonl", by_vllm(routed(11), 8, 4, cached))
    assert "line 1" in refusal(path, capsys) and "cached" in refusal(path, capsys)
    path = lines(tmp_path / "s.jsonl", by_sglang(routed(11), 8, 4, cached_tokens=cached))
    assert "line 1" in refusal(path, capsys) and "cached" in refusal(path, capsys)


def test_cached_tokens_of_sglang(tmp_path: Path) -> None:
    rows = routed(11)
    late = by_sglang(rows[5:], 8, 4, "y", cached_tokens=5)  # routed_experts_start_len 5: they are not there
    trace = read(lines(tmp_path / "r.jsonl", by_sglang(rows, 8, 4, cached_tokens=5), late))
    holds(trace, rows[5:], rows[5:])
    assert trace.meta["dropped"] == {CACHED: 5}
    chat = by_sglang_chat([rows], 8, 4)
    chat["usage"]["prompt_tokens_details"] = {"cached_tokens": 5}
    holds(read(lines(tmp_path / "c.jsonl", chat)), rows[5:])
    chat = by_sglang_chat([rows], 8, 4)
    chat["choices"][0]["sgl_ext"]["cached_tokens_details"] = {"device": 3, "host": 2, "storage_backend": "x"}
    holds(read(lines(tmp_path / "d.jsonl", chat)), rows[5:])


def test_whose_cached_tokens_they_are_has_to_be_known(tmp_path: Path) -> None:
    """/v1/completions with two prompts: `cached_tokens` is of one of them."""
    rows = routed(5)
    choices = [
        {"index": i, "routed_experts": npy64(rows), "prompt_token_ids": [i] * 3, "token_ids": [1, 2, 3]}
        for i in range(2)
    ]
    usage = {"prompt_tokens": 6, "completion_tokens": 6, "prompt_tokens_details": {"cached_tokens": 2}}
    path = lines(tmp_path / "r.jsonl", {"object": "text_completion", "choices": choices, "usage": usage})
    trace = read(path)
    holds(trace, rows, rows)
    assert "do not say whose tokens the prefix cache held" in doubts(trace) and "line 1" in doubts(trace)


# --- failures among good responses ---

BROKEN = [
    {"error": {"message": "Internal", "type": "InternalServerError", "code": 500}},
    {"error": "Request timed out"},
    {"object": "error", "message": "too long", "type": "BadRequestError", "code": 400},
    {"detail": "Not Found"},
    {"id": "c", "choices": [{"index": 0, "finish_reason": "abort", "routed_experts": None}], "usage": {}},
    {"text": "", "meta_info": {"id": "q", "finish_reason": {"type": "abort"}, "prompt_tokens": 3}},
    "null",
    '"upstream request timeout"',
    "Internal Server Error",
    "HTTP/1.1 502 Bad Gateway",
    "<html>\n<head><title>502 Bad Gateway</title></head>\n</html>",
    'data: {"error": {"message": "cancelled"}}',
]


@pytest.mark.parametrize("tool", ["vllm", "sglang"])
@pytest.mark.parametrize("broken", BROKEN, ids=[str(i) for i in range(len(BROKEN))])
def test_failed_lines_are_left_out_counted_and_said(
    tool: str, broken: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = routed(11, 0), routed(6, 1)
    good = [by_vllm(one, 8, 4), by_vllm(two, 4, 3)] if tool == "vllm" else [by_sglang(one, 8, 4), by_sglang(two, 4, 3)]
    trace = read(lines(tmp_path / "r.jsonl", good[0], broken, good[1]))
    holds(trace, one, two)
    assert trace.meta["dropped"] == {FAILED: 1} and "the first: line 2: " in doubts(trace)
    trace = read(lines(tmp_path / "first.jsonl", broken, *good))  # told by content although it begins with a failure
    holds(trace, one, two)
    assert "line 1: " in doubts(trace)
    name = {"vllm": "vllm", "sglang": "sglang-routed"}[tool]
    message = refusal(lines(tmp_path / "all.jsonl", broken, broken), capsys, "--from", name)
    assert "line 1" in message and "no response has rows" in message


def test_a_choice_that_failed_among_others(tmp_path: Path) -> None:
    response = by_vllm(routed(11), 8, 4)
    response["choices"].append({"index": 1, "finish_reason": "abort", "routed_experts": None})
    response["prompt_token_ids"], response["choices"][0]["token_ids"] = [1] * 8, [1] * 4
    trace = read(lines(tmp_path / "r.jsonl", response))
    holds(trace, routed(11))
    assert trace.meta["dropped"] == {FAILED: 1}


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_last_line_cut_short_is_left_out(keep: float, tmp_path: Path) -> None:
    good, last = by_vllm(routed(11), 8, 4), json.dumps(by_vllm(routed(6), 4, 3))
    path = lines(tmp_path / "r.jsonl", good)
    path.write_text(path.read_text() + last[: int(len(last) * keep)])
    trace = read(path)
    holds(trace, routed(11))
    assert trace.meta["dropped"] == {CUT: 1} and "line 2: the last line is cut short" in doubts(trace)


@given(keep=st.integers(1, 10_000))
@few
def test_wherever_the_last_line_is_cut(keep: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("cut")
    last = json.dumps(by_sglang(routed(6), 4, 3, "é\n"), ensure_ascii=False).encode()
    path = lines(folder / "r.jsonl", by_sglang(routed(11), 8, 4))
    path.write_bytes(path.read_bytes() + last[: keep % len(last) or 1])
    assert read(path).meta["dropped"] == {CUT: 1}


@pytest.mark.parametrize(
    "garbage", ["INFO: 200 requests", "{'a': 1}", '{"choices": nonsense}', '{"a": 1} {"b": 2}', "7"]
)
@pytest.mark.parametrize("place", [1, 2])
def test_other_garbage_is_refused_with_its_line(
    garbage: str, place: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [by_vllm(routed(11), 8, 4)] * 2
    path = lines(tmp_path / "r.jsonl", *good[:place], garbage, *good[place:])
    assert f"line {place + 1}: " in refusal(path, capsys)


def test_a_line_cut_short_in_the_middle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = by_vllm(routed(11), 8, 4)
    path = lines(tmp_path / "r.jsonl", good, json.dumps(good)[:99], good)
    assert "line 2: not JSON" in refusal(path, capsys)


# --- streams ---


def test_a_stream_of_vllm(tmp_path: Path) -> None:
    """/inference/v1/generate: the chunk that ends the completion has the rows, the last one the lengths."""
    rows, other = routed(6), routed(7, 3)

    def stream(name: str, rows: np.ndarray, generated: int) -> list[dict[str, Any]]:
        chunk = {"request_id": name, "usage": None}
        chunks = [chunk | {"choices": [{"index": 0, "token_ids": [1], "finish_reason": None, "routed_experts": None}]}]
        chunks *= generated - 1
        last = {"index": 0, "token_ids": [1], "finish_reason": "length", "routed_experts": npy64(rows)}
        usage = {"prompt_tokens": 4, "completion_tokens": generated}
        return [*chunks, chunk | {"choices": [last]}, chunk | {"choices": [], "usage": usage}]

    whole = by_vllm(routed(11, 2), 8, 4)
    log = [*events(*stream("a", rows, 3), "[DONE]", *stream("b", other, 4), "[DONE]")]
    trace = read(lines(tmp_path / "r.jsonl", ": ping\n", "event: message", *log))
    holds(trace, rows, other)
    assert "dropped" not in trace.meta and trace.prefill.tolist() == [True] * 4 + [False] * 2 + [True] * 4 + [False] * 3
    first, second = stream("a", rows, 3), stream("b", other, 4)
    trace = read(lines(tmp_path / "s.jsonl", whole, second[0], *first[:3], *second[1:4], first[3], second[4]))
    assert sorted(np.bincount(trace.sequence).tolist()) == [6, 7, 11] and "dropped" not in trace.meta
    path = lines(tmp_path / "t.jsonl", *events(*second[:2], {"error": {"message": "aborted"}}, "[DONE]", *first))
    assert read(path).meta["dropped"] == {FAILED: 1}  # what it broke off is not counted once more


@pytest.mark.parametrize("kind", ["deltas", "all so far"])
def test_pieces_in_several_chunks_of_vllm(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = routed(6)
    pieces = [rows[:4], rows[4:5], rows[5:]] if kind == "deltas" else [rows[:4], rows[:5], rows]
    chunk = {"id": "a", "object": "chat.completion.chunk", "model": "m"}
    chunks = [chunk | {"choices": [{"index": 0, "delta": {}, "routed_experts": npy64(piece)}]} for piece in pieces]
    usage = chunk | {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 3}}
    holds(read(lines(tmp_path / "r.jsonl", *events(*chunks, usage, "[DONE]"))), rows)
    holds(read(lines(tmp_path / "s.jsonl", *chunks, usage)), rows)
    if kind == "deltas":
        message = refusal(lines(tmp_path / "t.jsonl", *events(*chunks[:2], usage, "[DONE]")), capsys)
        assert "line 1: choices[0].routed_experts: chunks of [4, 1] rows" in message and "6 rows" in message
        message = refusal(lines(tmp_path / "u.jsonl", *events(*chunks, "[DONE]")), capsys)
        assert "an unknown number of rows" in message


@pytest.mark.parametrize("sse", [True, False])
@pytest.mark.parametrize("kind", ["all so far", "others so far", "deltas", "the last alone"])
def test_a_stream_of_sglang(kind: str, sse: bool, tmp_path: Path) -> None:
    """Chunks of one id with ever more tokens are one request, side by side with another's too."""
    rows, other = routed(10), routed(6, 5)
    pieces: list[np.ndarray | None] = [rows[:8], rows[:9], rows]
    if kind == "others so far":  # the last counts, whatever the ones before had
        pieces = [routed(8, 1), routed(9, 2), rows]
    if kind == "deltas":
        pieces = [rows[:8], rows[8:9], rows[9:]]
    if kind == "the last alone":
        pieces = [None, None, rows]
    chunks = [by_sglang(piece, 8, i) for i, piece in enumerate(pieces, 1)]
    log = [chunks[0], by_sglang(other, 4, 3, "y"), *chunks[1:]]
    trace = read(lines(tmp_path / "r.jsonl", *(events(*log, "[DONE]") if sse else log)))
    assert sorted(len(rows) for rows in (trace.experts[trace.sequence == s] for s in set(trace.sequence))) == [6, 10]
    alone = np.asarray(trace.experts)[np.repeat(np.bincount(trace.sequence) == 10, np.bincount(trace.sequence))]
    assert np.array_equal(alone, rows[:, 1:]) and "dropped" not in trace.meta and FAILED not in doubts(trace)


def test_equal_ids_are_no_stream_by_themselves(tmp_path: Path) -> None:
    """Logs whose ids were replaced: other prompts, or fewer tokens than before, are other requests."""
    rows, other, third = routed(10), routed(8, 1), routed(6, 2)
    log = [by_sglang(rows, 8, 3), by_sglang(None, 8, 3), by_sglang(other, 8, 1), by_sglang(third, 4, 3)]
    trace = read(lines(tmp_path / "r.jsonl", *log))
    holds(trace, rows, other, third)
    assert trace.meta["dropped"] == {FAILED: 1}
    same = by_vllm(rows, 8, 3)
    holds(read(lines(tmp_path / "v.jsonl", same, same)), rows, rows)


def test_chunks_that_fit_together_in_no_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lines(tmp_path / "r.jsonl", *events(by_sglang(routed(8), 8, 1), by_sglang(routed(4), 8, 3)))
    assert "line 3: rows 6 to 9, after 0 to 7 of the chunk before: neither" in refusal(path, capsys)


@pytest.mark.parametrize("key", ["sglext", "sgl_ext"])
def test_a_stream_of_sglang_by_openai(key: str, tmp_path: Path) -> None:
    """The rows come in a chunk of their own, the lengths in another."""
    rows = routed(6)
    chunk = {"id": "a", "object": "chat.completion.chunk", "model": "m", "choices": []}
    words = chunk | {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]}
    last = chunk | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    usage = chunk | {"usage": {"prompt_tokens": 4, "completion_tokens": 3}}
    log = [words, last, chunk | {key: {"routed_experts": raw64(rows)}}, usage]
    holds(read(lines(tmp_path / "r.jsonl", *events(*log, "[DONE]"))), rows)
    holds(read(lines(tmp_path / "s.jsonl", *log)), rows)


# --- rows that were not recorded ---


@pytest.mark.parametrize("tool", ["vllm", "sglang", "npy"])
def test_rows_of_zeros_were_not_recorded(tool: str, tmp_path: Path) -> None:
    rows = routed(11)
    rows[:3] = 0
    if tool == "npy":
        np.save(tmp_path / "r.npy", rows.astype(np.uint8))
        trace = read(tmp_path / "r.npy", "--prompt-tokens", "8")
    else:
        good = routed(6, 1)
        log = [by_vllm(good, 4, 3), by_vllm(rows, 8, 4)]
        if tool == "sglang":
            log = [by_sglang(good, 4, 3), by_sglang(rows, 8, 4)]
        trace = read(lines(tmp_path / "r.jsonl", *log))
        assert "line 2" in doubts(trace)
    assert "3 tokens have expert 0 alone in every layer: rows that were not recorded" in doubts(trace)
    assert not (np.asarray(trace.experts) == 0).all(axis=(1, 2)).any()
    have = (np.asarray(trace.experts) >= 0).any(axis=(1, 2))
    assert np.array_equal(np.asarray(trace.experts)[have][-8:], rows[3:, 1:])


def test_rows_of_zeros_of_a_top_1_model_are_kept_and_said(tmp_path: Path) -> None:
    flags = ["--model", "m", "--n-experts", "4", "--top-k", "1", "--n-layers", "3", "--moe-layers", "0-2"]
    rows = np.array([[[1], [2], [3]], [[0], [0], [0]], [[0], [2], [0]]], np.uint8)
    np.save(tmp_path / "r.npy", rows)
    trace = convert(tmp_path / "r.npy", tmp_path / "o.npz", [*flags, "--phase", "prefill"])
    assert np.array_equal(trace.experts, rows)
    assert "1 tokens have expert 0 alone" in doubts(trace) and "they are kept (the first: " in doubts(trace)


def test_rows_of_minus_1_are_handed_on(tmp_path: Path) -> None:
    rows = routed(11)
    rows[8:10] = -1  # in the dense layer too
    trace = read(lines(tmp_path / "r.jsonl", by_sglang(rows, 8, 4)))
    holds(trace, rows[[*range(8), 10]])


# --- SGLang's lengths ---


def test_prompts_without_generation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each token; in releases with issue 20964 the last is missing."""
    rows = routed(8)
    trace = read(lines(tmp_path / "r.jsonl", by_sglang(rows, 8, 0)))
    holds(trace, rows)
    assert trace.prefill.all() and "20964" not in doubts(trace)
    trace = read(lines(tmp_path / "s.jsonl", by_sglang(rows[:7], 8, 0)))
    holds(trace, rows[:7])
    assert trace.position.tolist() == list(range(7)) and "20964" in doubts(trace)
    trace = read(lines(tmp_path / "t.jsonl", by_sglang(rows[3:], 8, 0, routed_experts_start_len=3)))
    assert trace.position.tolist() == list(range(3, 8)) and "20964" not in doubts(trace)
    assert "9 rows; 7 tokens" in refusal(lines(tmp_path / "u.jsonl", by_sglang(routed(9), 8, 0)), capsys)
    path = lines(tmp_path / "v.jsonl", by_sglang(rows, 8, 3, routed_experts_start_len=4))
    assert "routed_experts_start_len = 4; by its lengths the 8 rows begin at 2" in refusal(path, capsys)


@pytest.mark.parametrize(("rows", "generated"), [(8, 1), (9, 2)])
def test_short_generations(rows: int, generated: int, tmp_path: Path) -> None:
    trace = read(lines(tmp_path / "r.jsonl", by_sglang(routed(rows), 8, generated)))
    holds(trace, routed(rows))
    assert trace.prefill.sum() == 8 and trace.position[0] == 0


@pytest.mark.parametrize("key", ["sgl_ext", "sglext", "meta_info"])
def test_choices_of_sglang(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each with its own rows; `usage` says what they generated together, and that is enough for a chat."""
    parts = [routed(10, 0), routed(9, 1), routed(12, 2)]
    chat = by_sglang_chat(parts, 8, 3 + 2 + 5, key)
    trace = read(lines(tmp_path / "r.jsonl", chat))
    holds(trace, *parts)
    assert trace.prefill.sum() == 24
    chat["choices"].reverse()
    holds(read(lines(tmp_path / "s.jsonl", chat)), *parts)
    chat["object"] = "text_completion"  # may be of several prompts
    assert "required: --prompt-start" in refusal(lines(tmp_path / "t.jsonl", chat), capsys)
    holds(read(tmp_path / "t.jsonl", "--prompt-start", "0", "--prompt-tokens", "8"), *parts)


def test_a_response_with_rows_of_one_of_its_choices(tmp_path: Path) -> None:
    """Older releases put those of the first choice into the response."""
    chat = by_sglang_chat([routed(10)], 8, 3)
    chat["choices"].append({"index": 1, "finish_reason": "stop"})
    trace = read(lines(tmp_path / "r.jsonl", chat), "--prompt-start", "0")
    holds(trace, routed(10))
    assert trace.meta["dropped"] == {FAILED: 1} and "1 of 2 choices have routed_experts" in doubts(trace)


# --- responses of many kinds ---


def test_choices_of_vllm_in_any_order(tmp_path: Path) -> None:
    """0.33, a chat without token ids; and 0.21, where the prompt goes to the first by index."""
    parts = [routed(10, 0), routed(9, 1)]
    chat = by_vllm(parts[0], 8, 3 + 2)
    chat["choices"] = [{"index": i, "routed_experts": npy64(parts[i])} for i in (1, 0)]
    holds(read(lines(tmp_path / "r.jsonl", chat)), *parts)
    rows = routed(6)[:, 1:]
    choices = [{"index": 1, "routed_experts": rows[5:].tolist()}, {"index": 0, "routed_experts": rows[4:].tolist()}]
    old = {"prompt_routed_experts": rows[:4].tolist(), "choices": choices}
    trace = read(lines(tmp_path / "s.jsonl", old))
    assert np.bincount(trace.sequence).tolist() == [6, 1] and np.array_equal(trace.experts[:6], rows)
    choices[0]["routed_experts"] = None  # ended before it generated: its prompt was computed all the same
    assert np.bincount(read(lines(tmp_path / "t.jsonl", old)).sequence).tolist() == [6]


def test_a_prompt_of_another_length_than_its_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = routed(6)[:, 1:]
    choice = {"index": 0, "routed_experts": rows[4:].tolist(), "prompt_token_ids": [1, 2, 3]}
    path = lines(tmp_path / "r.jsonl", {"prompt_routed_experts": rows[:4].tolist(), "choices": [choice]})
    assert "4 rows of prompt_routed_experts; its prompt has 3 tokens" in refusal(path, capsys)


@pytest.mark.parametrize("tool", ["vllm", "sglang"])
def test_two_models_in_one_log(tool: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make = by_vllm(routed(11), 8, 4) if tool == "vllm" else by_sglang_chat([routed(11)], 8, 4)
    path = lines(tmp_path / "r.jsonl", make | {"model": "org/a"}, make | {"model": "org/a"}, make | {"model": "b"})
    message = refusal(path, capsys)
    assert "line 3: model 'b'; the responses before have 'org/a'" in message


@pytest.mark.parametrize("shape", [(5, LAYERS, 3), (5, LAYERS + 1, TOP_K)])
def test_responses_of_different_shapes(
    shape: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lines(tmp_path / "r.jsonl", by_vllm(routed(11), 8, 4), by_vllm(np.ones(shape), 3, 3))
    assert "line 2: choices[0].routed_experts: shape " in refusal(path, capsys)


@pytest.mark.parametrize("dtype", ["u1", "u2", "i1", "<i2", ">i2", "<i4", "<i8"])
def test_any_integers(dtype: str, tmp_path: Path) -> None:
    rows = routed(11)
    np.save(tmp_path / "r.npy", rows.astype(dtype))
    flags = [*FLAGS, "--from", "vllm", "--prompt-tokens", "8"]
    holds(convert(tmp_path / "r.npy", tmp_path / "o.npz", flags), rows)
    assert vllm.detect(tmp_path / "r.npy")
    response = by_vllm(rows, 8, 4)
    response["choices"][0]["routed_experts"] = npy64(rows, dtype)
    holds(read(lines(tmp_path / "r.jsonl", response)), rows)


@pytest.mark.parametrize(
    "array",
    [np.random.default_rng(0).poisson(2.0, (4, 3, 64)), np.ones((2, 3, 4)), np.zeros((5, 4), np.int64),
     np.full((2, 2, 2), 40_000), np.array([[[3, -2]]])],
)  # fmt: skip
def test_what_cannot_be_ids(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "r.npy", array)
    assert not vllm.detect(tmp_path / "r.npy")


# --- hostile files ---


def without_rows(value: Any) -> dict[str, Any]:
    return {"choices": [{"routed_experts": value}], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


HOSTILE: list[tuple[str, Any]] = [
    ("vllm", ""),
    ("vllm", "[]"),
    ("vllm", {"choices": 5}),
    ("vllm", {"choices": [5, None, "x"]}),
    ("vllm", without_rows(5)),
    ("vllm", without_rows({"data": "x"})),
    ("vllm", without_rows("no base64!")),
    ("vllm", without_rows([[[1, 10**30]]])),
    ("vllm", without_rows([[[1, 2.5]]])),
    ("vllm", '{"choices": [{"routed_experts": [[[1, NaN]]]}]}'),
    ("vllm", without_rows(npy64(routed(4), np.float32))),
    ("vllm", without_rows(npy64(routed(4) + 100))),
    ("vllm", by_vllm(routed(4), 3, 2) | {"usage": {"prompt_tokens": 1e3, "completion_tokens": 2}}),
    ("vllm", by_vllm(routed(4), 3, 2) | {"usage": {"prompt_tokens": 10**40, "completion_tokens": 2}}),
    ("vllm", by_vllm(routed(4), 3, 2) | {"usage": {"prompt_tokens": -1, "completion_tokens": 2}}),
    ("vllm", "data: [DONE]"),
    ("vllm", 'data: {"choices": [{"routed_experts": "AAAA"}]}'),
    ("vllm", 'data: {"id": {"a": 1}, "choices": [{"index": -1e9, "token_ids": 5, "routed_experts": 7}]}'),
    ("vllm", 'data: {"choices": [{"token_ids": "x"}, {"index": 0, "token_ids": [1], "routed_experts": ""}]}'),
    ("sglang-routed", {"meta_info": 5}),
    ("sglang-routed", {"meta_info": {"routed_experts": [1, 2]}}),
    ("sglang-routed", {"meta_info": {"routed_experts": "AAAA"}}),
    ("sglang-routed", by_sglang(routed(4) + 100, 3, 2)),
    ("sglang-routed", by_sglang(routed(4) - 5, 3, 2)),
    ("sglang-routed", by_sglang(routed(4), 3, -1)),
    ("sglang-routed", by_sglang(routed(4), 3, 2, routed_experts_start_len="x")),
    ("sglang-routed", {"choices": [], "sgl_ext": []}),
    ("sglang-routed", {"choices": [{"sgl_ext": {"routed_experts": {"0": "AAAA"}}}]}),
    ("sglang-routed", '{"meta_info": ' * 500 + "1" + "}" * 500),
    ("sglang-routed", 'data: {"sgl_ext": ' * 1 + '{"sgl_ext": ' * 500 + "1" + "}" * 501),
    ("sglang-routed", 'data: {"choices": [], "sgl_ext": {"sgl_ext": {"routed_experts": 5}, "routed_experts": 6}}'),
]


@pytest.mark.parametrize(("name", "content"), HOSTILE, ids=[str(i) for i in range(len(HOSTILE))])
def test_hostile(name: str, content: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lines(tmp_path / "r.jsonl", content)
    assert str(path) in refusal(path, capsys, "--from", name)
    vllm.detect(path), sglang_routed.detect(path)  # and neither falls over it


def test_streams_that_never_end_are_not_held(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("traces.foreign.responses.MOST_JSON_BYTES", 1000)
    chunks = [
        {"id": str(i), "object": "chat.completion.chunk", "choices": [{"routed_experts": "A" * 400}]} for i in range(4)
    ]
    message = refusal(lines(tmp_path / "r.jsonl", *chunks), capsys, "--from", "vllm")
    assert "line 3: more than 1000 bytes of streams that have not ended" in message


# --- any log ---


@few
@given(data=st.data())
def test_any_log_is_read_as_what_is_good_in_it(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Responses of random lengths, with a cached begin, in any order with failures."""
    vllm_s = data.draw(st.booleans())
    log, right, dropped = [], [], {FAILED: 0, CACHED: 0}
    for i in range(data.draw(st.integers(1, 5))):
        prompt, generated = data.draw(st.integers(2, 6)), data.draw(st.integers(1, 4))
        forwarded = prompt + generated - 1
        cached, start = data.draw(st.integers(0, prompt - 1)), data.draw(st.integers(0, prompt - 1))
        rows = routed(forwarded, i)
        told = by_vllm(rows[start:], prompt, generated, cached)
        log.append(told if vllm_s else by_sglang(rows[start:], prompt, generated, str(i), cached_tokens=cached))
        right.append(rows[max(cached, start) :])
        dropped[CACHED] += max(0, cached - start)
        if data.draw(st.booleans()):
            log.append(data.draw(st.sampled_from([SGLANG_ERROR, "null", "Bad Gateway", *events(SGLANG_ERROR)])))
            dropped[FAILED] += 1
    trace = read(lines(tmp_path_factory.mktemp("log") / "r.jsonl", *log))
    holds(trace, *right)
    assert trace.meta.get("dropped", {}) == {what: n for what, n in dropped.items() if n}


# --- the files of ../shared/cases ---

# file -> (flags, rows that hold something of each request, prompt rows, what is dropped or doubted, in words)
READ: dict[str, tuple[list[str], list[int], int, str]] = {
    "vllm_cached_tokens_033.jsonl": ([], [67, 39], 64 + 36, f"'{CACHED}': 64"),
    "vllm_with_error_line.jsonl": ([], [11, 11], 16, f"'{FAILED}': 1"),
    "vllm_zero_prompt.jsonl": ([], [3], 0, "8 tokens have expert 0 alone in every layer"),
    "vllm_int16.npy": (["--from", "vllm", "--prompt-tokens", "8"], [11], 8, ""),
    "vllm_int32.npy": (["--from", "vllm", "--prompt-tokens", "8"], [11], 8, ""),
    "vllm_n2.jsonl": ([], [11, 11], 16, ""),
    "vllm_prefix_omitted.jsonl": ([], [6], 3, ""),
    "vllm_prefill_only.jsonl": ([], [7], 7, ""),
    "vllm021_cached.jsonl": ([], [6], 3, f"'{CACHED}': 5"),
    "sgl_ok.jsonl": ([], [11], 8, ""),
    "sgl_batch_line.jsonl": ([], [11, 5], 12, ""),
    "sgl_minus1_rows.jsonl": ([], [9], 8, ""),
    "sgl_openai_choice_sgl_ext.jsonl": ([], [11], 8, ""),
    "sgl_openai_choice_sglext.jsonl": ([], [11], 8, ""),
    "sgl_stream.jsonl": ([], [10], 8, ""),
    "sgl_prefill_only_fixed.jsonl": ([], [8], 8, ""),
    "sgl_prefill_only_bug20964.jsonl": ([], [7], 7, "20964"),
}
REFUSED = {
    "vllm_full_rows.jsonl": "line 1: choices[0]: 12 rows for 8 prompt and 4 generated tokens",
    "vllm_prefill_only_full.jsonl": "line 1: choices[0]: 8 rows for 8 prompt and 0 generated tokens",
    "vllm_dup_in_row.jsonl": "experts[5, 3, 1] = 40 is already in slot 0; a token's experts are distinct",
    "vllm_fused_shared.jsonl": "9 experts a token; qwen3-30b-a3b has 8",
    "vllm_n2_noids.jsonl": "does not say how many tokens this completion has; required: --prompt-start N",
    "sgl_spec.jsonl": "line 1: 13 rows; 11 tokens are forwarded",
    "sgl_int16.jsonl": "8448 bytes are not whole rows of 384 ids of 4 bytes",
}


def case(name: str) -> Path:
    if not (CASES / name).is_file():
        pytest.skip("no ../shared/cases beside the project")
    return CASES / name


@pytest.mark.parametrize("name", READ)
def test_case_is_read(name: str, tmp_path: Path) -> None:
    flags, rows, prompt, said = READ[name]
    trace = convert(case(name), tmp_path / "o.npz", [*QWEN, *flags])
    have = (np.asarray(trace.experts) >= 0).any(axis=(1, 2))
    assert np.bincount(trace.sequence[have]).tolist() == rows
    assert trace.prefill[have].sum() == prompt
    if said:
        assert said in f"{trace.meta.get('dropped')} {trace.meta.get('doubts')}"
    elif name != "sgl_minus1_rows.jsonl":
        assert "dropped" not in trace.meta and have.all()


@pytest.mark.parametrize("name", REFUSED)
def test_case_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert REFUSED[name] in refused(["convert", "--force", str(case(name)), str(tmp_path / "o.npz"), *QWEN], capsys)


def test_the_last_chunk_of_the_case_is_what_is_read(tmp_path: Path) -> None:
    path = case("sgl_stream.jsonl")
    last = json.loads(path.read_text().splitlines()[-1])["meta_info"]["routed_experts"]
    trace = convert(path, tmp_path / "o.npz", QWEN)
    assert np.array_equal(trace.experts, np.frombuffer(base64.b64decode(last), "<i4").reshape(trace.experts.shape))


def test_what_is_left_out_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--force", str(case("vllm_cached_tokens_033.jsonl")), str(tmp_path / "o.npz"), *QWEN]) == 0
    assert f"dropped 64 {CACHED}" in capsys.readouterr().out
