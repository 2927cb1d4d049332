"""Other tools' files, made from a trace by the layouts that their documentation or source gives, for tests.

Each builder writes a file or folder and returns the flags with which it is read back. Nothing here uses the readers'
or writers' code: what these functions write is the tests' own reading of the layouts.
"""

import base64
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests import foreign_home_made
from tests.foreign_engines import bigmoeonedge, expert_selection
from traces.format.trace import RoutingTrace

Flags = list[str]
Builder = Callable[[Path, RoutingTrace], Flags]


def shape_flags(trace: RoutingTrace) -> Flags:
    """What no log of a model unknown to the catalog says."""
    layers = ",".join(map(str, trace.meta["moe_layers"]))
    flags = ["--model", "test-model", "--n-experts", str(trace.n_experts), "--top-k", str(trace.top_k)]
    return [*flags, "--n-layers", str(trace.n_layers), "--moe-layers", layers]


def requests_of(trace: RoutingTrace) -> list[slice]:
    starts, ends = trace.requests()
    return [slice(int(a), int(b)) for a, b in zip(starts, ends, strict=True)]


def prompt_flags(trace: RoutingTrace) -> Flags:
    """For one request: where its generated tokens begin."""
    first = int(trace.position[0])
    return ["--prompt-tokens", str(first + int(trace.prefill.sum())), "--prompt-start", str(first)]


def all_layers(trace: RoutingTrace, rows: slice) -> np.ndarray:
    """[n, all layers, K], zeros in the dense ones."""
    out = np.zeros((rows.stop - rows.start, trace.n_layers, trace.top_k), np.int64)
    out[:, trace.meta["moe_layers"]] = trace.experts[rows]
    return out


def passes(trace: RoutingTrace) -> list[slice]:
    """The prompt in one pass, then one pass per generated token."""
    out = []
    for rows in requests_of(trace):
        prompt = int(trace.prefill[rows].sum())
        out += [slice(rows.start, rows.start + prompt)] if prompt else []
        out += [slice(row, row + 1) for row in range(rows.start + prompt, rows.stop)]
    return out


def csv(path: Path, trace: RoutingTrace) -> Flags:
    lines = ["phase,token,layer,rank,expert,weight,sequence"]
    for t, i, j in np.argwhere(trace.experts >= 0).tolist():
        phase = "prefill" if trace.prefill[t] else "decode"
        weight = repr(float(trace.weights[t, i, j])) if trace.weights is not None else "0"
        layer = trace.meta["moe_layers"][i]
        lines.append(f"{phase},{trace.position[t]},{layer},{j},{trace.experts[t, i, j]},{weight},{trace.sequence[t]}")
    path.write_text("\n".join(lines) + "\n")
    return shape_flags(trace)


def jsonl(path: Path, trace: RoutingTrace) -> Flags:
    with path.open("w") as file:
        for t in range(trace.n_tokens):
            for i, layer in enumerate(trace.meta["moe_layers"]):
                line: dict[str, Any] = {"token": int(trace.position[t]), "layer": layer}
                line |= {"experts": trace.experts[t, i].tolist(), "sequence": int(trace.sequence[t])}
                line["phase"] = "prefill" if trace.prefill[t] else "decode"
                if trace.weights is not None:
                    line["weights"] = [float(w) for w in trace.weights[t, i]]
                if trace.token_ids is not None:
                    line["token_id"] = int(trace.token_ids[t])
                file.write(json.dumps(line) + "\n")
    return shape_flags(trace)


def llamacpp_pairs(path: Path, trace: RoutingTrace) -> Flags:
    lines = ["layer,expert"]
    for rows in passes(trace):
        for i, layer in enumerate(trace.meta["moe_layers"]):
            lines += [f"{layer},{e}" for e in trace.experts[rows, i].reshape(-1)]
    path.write_text("\n".join(lines) + "\n")
    return [*shape_flags(trace), *prompt_flags(trace), "--requests", "one"]


def llamacpp_positions(path: Path, trace: RoutingTrace) -> Flags:
    lines = ["pos,layer," + ",".join(f"e{j}" for j in range(trace.top_k))]
    for rows in passes(trace):
        for i, layer in enumerate(trace.meta["moe_layers"]):
            for t in range(rows.start, rows.stop):
                pos = -1 if trace.prefill[t] else trace.position[t]
                lines.append(f"{pos},{layer}," + ",".join(map(str, trace.experts[t, i])))
    path.write_text("\n".join(lines) + "\n")
    return [*shape_flags(trace), "--prompt-start", str(trace.position[0])]


def llamacpp_records(path: Path, trace: RoutingTrace) -> Flags:
    data = b""
    for rows in passes(trace):
        for i, layer in enumerate(trace.meta["moe_layers"]):
            ids = np.asarray(trace.experts[rows, i])
            data += struct.pack("<3i", layer, *ids.shape) + ids.astype("<i4").tobytes()
    path.write_bytes(data)
    return ["--from", "llamacpp", *shape_flags(trace), *prompt_flags(trace), "--requests", "one"]


def npy_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def small(trace: RoutingTrace) -> type:
    return np.uint8 if trace.n_experts <= 256 else np.uint16


def vllm_npy(path: Path, trace: RoutingTrace) -> Flags:
    path.write_bytes(npy_bytes(all_layers(trace, slice(0, trace.n_tokens)).astype(small(trace))))
    return [*shape_flags(trace), *prompt_flags(trace)]


def vllm(path: Path, trace: RoutingTrace) -> Flags:
    """0.33: one response a line; the completion has one token more than rows."""
    with path.open("w") as file:
        for rows in requests_of(trace):
            prompt, first = int(trace.prefill[rows].sum()), int(trace.position[rows.start])
            array = base64.b64encode(npy_bytes(all_layers(trace, rows).astype(small(trace)))).decode()
            choice: dict[str, Any] = {"index": 0, "message": {"content": "words"}, "routed_experts": array}
            completion = rows.stop - rows.start - prompt + 1
            usage = {"prompt_tokens": first + prompt, "completion_tokens": completion}
            response = {"object": "chat.completion", "choices": [choice], "usage": usage}
            if trace.token_ids is not None:
                before = [7] * first
                response["prompt_token_ids"] = before + trace.token_ids[rows][:prompt].tolist()
                choice["token_ids"] = [*trace.token_ids[rows][prompt:].tolist(), 99]
            file.write(json.dumps(response) + "\n")
    return shape_flags(trace)


def vllm_split(path: Path, trace: RoutingTrace) -> Flags:
    """0.21: prompt and generated tokens apart, MoE layers alone; what came from the prefix cache is -1."""
    found = []
    for rows in requests_of(trace):
        prompt, first = int(trace.prefill[rows].sum()), int(trace.position[rows.start])
        cached = np.full((first, trace.n_moe_layers, trace.top_k), -1, np.int64)
        ids = np.asarray(trace.experts[rows], np.int64)
        choice = {"index": 0, "text": "words", "routed_experts": ids[prompt:].tolist()}
        before = np.concatenate([cached, ids[:prompt]])
        found.append({"choices": [choice], "prompt_routed_experts": before.tolist()})
    path.write_text(json.dumps(found, indent=1))
    return shape_flags(trace)


def sglang_routed(path: Path, trace: RoutingTrace) -> Flags:
    with path.open("w") as file:
        for rows in requests_of(trace):
            prompt, first = int(trace.prefill[rows].sum()), int(trace.position[rows.start])
            raw = base64.b64encode(all_layers(trace, rows).astype("<i4").tobytes()).decode()
            meta = {"routed_experts": raw, "prompt_tokens": first + prompt}
            meta["completion_tokens"] = rows.stop - rows.start - prompt + 1
            file.write(json.dumps({"text": "words", "meta_info": meta}) + "\n")
    return shape_flags(trace)


def schedule(trace: RoutingTrace, chunk: int, seed: int, mixed: bool = False) -> list[tuple[int, list[slice]]]:
    """(mode, segments) of the passes of a server with continuous batching: prompts in chunks, one request after the
    other, then one row of every running request per pass until each has ended; later requests join on the way."""
    rng = np.random.default_rng(seed)
    waiting, running = requests_of(trace), []
    out: list[tuple[int, list[slice]]] = []
    while waiting or running:
        if waiting and (not running or rng.random() < 0.5):
            rows = waiting.pop(0)
            at, prompt = rows.start, rows.start + int(trace.prefill[rows].sum())
            while at < prompt:
                segments = [slice(at, min(at + chunk, prompt))]
                mode = 1
                if mixed and running:
                    mode, segments = 3, [*segments, *[slice(r[0], r[0] + 1) for r in running]]
                    running = [[a + 1, b] for a, b in running if a + 1 < b]
                out.append((mode, segments))
                at = segments[0].stop
            running += [[prompt, rows.stop]] if prompt < rows.stop else []
        else:
            out.append((2, [slice(a, a + 1) for a, _ in running]))
            running = [[a + 1, b] for a, b in running if a + 1 < b]
    return out


def sglang(path: Path, trace: RoutingTrace, chunk: int = 4, seed: int = 0, mixed: bool = False) -> Flags:
    """The recorder's dump of mode per_token, physical ids through a shuffled map with redundant experts."""
    import torch

    rng = np.random.default_rng(seed)
    n, redundant = trace.n_experts, 3
    physical = np.stack(
        [rng.permutation(np.append(np.arange(n), rng.integers(0, n, redundant))) for _ in range(trace.n_layers)]
    )
    back = [[np.flatnonzero(line == e) for e in range(n)] for line in physical]
    columns = max(8, trace.top_k)
    records = []
    idle = {"forward_mode": 4, "input_ids": [], "positions": [], "extend_seq_lens": None}
    for number, (mode, segments) in enumerate(schedule(trace, chunk, seed, mixed)):
        rows = np.concatenate([np.arange(s.start, s.stop) for s in segments])
        ids = np.full((trace.n_layers, len(rows), columns), -1, np.int32)
        for i, layer in enumerate(trace.meta["moe_layers"]):
            for t, row in enumerate(rows):
                ids[layer, t, : trace.top_k] = [rng.choice(back[layer][e]) for e in trace.experts[row, i]]
        tokens = trace.token_ids[rows].tolist() if trace.token_ids is not None else [5] * len(rows)
        lengths = None if mode == 2 else [s.stop - s.start for s in segments]
        record = {"forward_mode": mode, "input_ids": tokens, "positions": trace.position[rows].tolist()}
        records.append(record | {"extend_seq_lens": lengths, "topk_ids_of_layer": torch.from_numpy(ids)})
        if number == 1:
            records.append(idle | {"topk_ids_of_layer": torch.full((trace.n_layers, 0, columns), -1).int()})
    for number, record in enumerate(records):
        record |= {"forward_pass_id": number, "rank": 0, "gatherer_key": "primary", "misc_objects": []}
        record["global_physical_count"] = torch.zeros(physical.shape, dtype=torch.int32)
    torch.save({"records": records, "last_physical_to_logical_map": torch.from_numpy(physical)}, path)
    return shape_flags(trace)


def megatron(path: Path, trace: RoutingTrace) -> Flags:
    """`router_trace_rank0.jsonl`, ids sorted by id; with logits, their sidecar in bf16."""
    sidecar = path.with_name("logits_rank0.bin")
    blob = b""
    with path.open("w") as file:
        for step, rows in enumerate(passes(trace)):
            for i, layer in enumerate(trace.meta["moe_layers"]):
                ids = np.sort(np.asarray(trace.experts[rows, i]), axis=1)
                line: dict[str, Any] = {"step": step, "stage": "pre_dispatch", "block": "decoder", "layer": layer}
                line |= {"rank": 0, "num_tokens": len(ids), "topk": trace.top_k, "top_indices": ids.tolist()}
                if trace.logits is not None:
                    raw = bf16(np.asarray(trace.logits[rows, i], np.float32))
                    line |= {"logit_offset": len(blob), "logit_bytes": len(raw)}
                    line["logit_shape"] = [len(ids), trace.n_experts]
                    blob += raw
                file.write(json.dumps(line) + "\n")
            file.write(json.dumps(line | {"block": "mtp", "mtp_idx": 0}) + "\n")
    if trace.logits is not None:
        sidecar.write_bytes(blob)
    return [*shape_flags(trace), *prompt_flags(trace), "--requests", "one"]


def bf16(values: np.ndarray) -> bytes:
    """Raw bf16 of float32, cut off (values that bf16 holds stay as they are)."""
    return (values.view(np.uint32) >> 16).astype("<u2").tobytes()


def flame(path: Path, trace: RoutingTrace) -> Flags:
    """actives/iter_0540/layer_LL.parquet from 1, fixed-size lists; samples in two files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    k = trace.top_k
    folder = path / "actives" / "iter_0540"
    folder.mkdir(parents=True)
    for i, layer in enumerate(trace.meta["moe_layers"]):
        ids = pa.array(trace.experts[:, i].astype(np.int16).reshape(-1))
        scores = pa.array(np.asarray(trace.weights[:, i], np.float16).reshape(-1))
        lists = [pa.FixedSizeListArray.from_arrays(values, k) for values in (ids, scores)]
        table = pa.Table.from_arrays(lists, names=["indices", "scores"])
        pq.write_table(table, folder / f"layer_{layer + 1:02d}.parquet", row_group_size=7)
    if trace.token_ids is not None:
        (path / "samples").mkdir()
        cut = trace.n_tokens // 2
        for name, part in (("000", trace.token_ids[:cut]), ("001", trace.token_ids[cut:])):
            table = pa.table({"token_id": pa.array(np.array(part), pa.int32())})
            pq.write_table(table, path / "samples" / f"{name}.parquet")
    return [*shape_flags(trace), *prompt_flags(trace), "--requests", "one"]


def flame_pt(path: Path, trace: RoutingTrace) -> Flags:
    """actives/MODEL/RUN/ITERATION/LAYER/SHARD.pt, layers from 1: pairs (scores, indices), in two shards, 2 and 10."""
    import torch

    weights = np.zeros(trace.experts.shape) if trace.weights is None else trace.weights
    cut = trace.n_tokens // 2
    for i, layer in enumerate(trace.meta["moe_layers"]):
        folder = path / "actives" / "flame-moe-290m" / "31066" / "540" / str(layer + 1)
        folder.mkdir(parents=True)
        for name, rows in (("2", slice(0, cut)), ("10", slice(cut, None))):
            pair = (np.array(weights[rows, i], np.float32), np.array(trace.experts[rows, i], np.int64))
            torch.save(tuple(map(torch.from_numpy, pair)), folder / f"{name}.pt")
    return [*shape_flags(trace), *prompt_flags(trace), "--requests", "one"]


def ranked_logits(trace: RoutingTrace) -> np.ndarray:
    """float32 [T, L, E] whose highest are the trace's experts, slot by slot; all different, none like a count."""
    order = np.array([[list(row) + [e for e in range(trace.n_experts) if e not in row] for row in of]
                      for of in trace.experts.tolist()])  # fmt: skip
    logits = np.zeros((*trace.experts.shape[:2], trace.n_experts), np.float32)
    np.put_along_axis(logits, order, np.broadcast_to(-0.5 - np.arange(trace.n_experts), order.shape), axis=2)
    return logits


def hf_ids(path: Path, trace: RoutingTrace) -> Flags:
    """A list with the top-k ids of each MoE layer."""
    import torch

    ids = [torch.from_numpy(np.array(trace.experts[:, i], np.int64)) for i in range(trace.n_moe_layers)]
    torch.save({"expert_ids": ids, "prompt": "words"}, path)
    return [*shape_flags(trace), *prompt_flags(trace), "--requests", "one"]


def hf_logits(path: Path, trace: RoutingTrace) -> Flags:
    """An array of router logits per MoE layer, by its name."""
    logits = ranked_logits(trace)
    names = [f"model.layers.{layer}.mlp.gate" for layer in trace.meta["moe_layers"]]
    np.savez(path, **{name: logits[:, i] for i, name in enumerate(names)})
    return [*shape_flags(trace), *prompt_flags(trace), "--requests", "one"]


def parquet(path: Path, trace: RoutingTrace) -> Flags:
    """One row per token, row groups of five, the meta in the schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    meta = dict(trace.meta) | {"real": True, "tool": "tests"}
    columns = {"sequence": pa.int32(), "position": pa.int32(), "prefill": pa.bool_()}
    columns["experts"] = pa.list_(pa.list_(pa.int16()))
    if trace.weights is not None:
        columns["weights"] = pa.list_(pa.list_(pa.float16()))
    arrays = {}
    for name, kind in columns.items():
        values: Any = getattr(trace, name)
        halves = [[list(map(np.float16, slots)) for slots in row] for row in values] if name == "weights" else None
        arrays[name] = pa.array(values.tolist() if halves is None else halves, kind)
    if trace.token_ids is not None:
        arrays["token_id"] = pa.array(trace.token_ids.tolist(), pa.int32())
    table = pa.table(arrays).replace_schema_metadata({"routing_trace_meta": json.dumps(meta)})
    pq.write_table(table, path, row_group_size=5)
    return shape_flags(trace)


def trtllm_raw(path: Path, trace: RoutingTrace) -> Flags:
    from safetensors.numpy import save_file

    path.mkdir()
    (path / "meta_info.json").write_text(
        json.dumps({"num_experts": trace.n_experts, "num_experts_per_token": trace.top_k})
    )
    tensors = {}
    for step, rows in enumerate(passes(trace)):
        for i, layer in enumerate(trace.meta["moe_layers"]):
            tensors[f"{100 + step}_{layer}"] = np.ascontiguousarray(trace.experts[rows, i], np.int32)
    save_file(tensors, path / "rank0_raw.safetensors")
    return [*shape_flags(trace), *prompt_flags(trace), "--requests", "one"]


# --- counts: int64 [MoE layers, E] of a trace ---


def counts_of(trace: RoutingTrace) -> np.ndarray:
    counts = np.zeros((trace.n_moe_layers, trace.n_experts), np.int64)
    for _, i, _, e in ((*at, trace.experts[tuple(at)]) for at in np.argwhere(trace.experts >= 0)):
        counts[i, e] += 1
    return counts


def over_all_layers(trace: RoutingTrace, counts: np.ndarray) -> np.ndarray:
    out = np.zeros((trace.n_layers, trace.n_experts), counts.dtype)
    out[trace.meta["moe_layers"]] = counts
    return out


def trtllm(path: Path, trace: RoutingTrace) -> Flags:
    """Two ranks, two iterations: the counts are spread over them."""
    from safetensors.numpy import save_file

    path.mkdir()
    (path / "meta_info.json").write_text(
        json.dumps({"num_experts": trace.n_experts, "num_experts_per_token": trace.top_k, "ep_size": 1})
    )
    counts = counts_of(trace)
    part = counts // 3
    for rank, share in enumerate((part, counts - 2 * part)):
        tensors = {f"100_{layer}": share[i] for i, layer in enumerate(trace.meta["moe_layers"])}
        if rank == 0:
            tensors |= {f"101_{layer}": part[i] for i, layer in enumerate(trace.meta["moe_layers"])}
        save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()},
                  path / f"rank{rank}.safetensors")  # fmt: skip
    return shape_flags(trace)


def imatrix(path: Path, trace: RoutingTrace) -> Flags:
    """By the gguf package: counts of gate, up and down of every MoE layer, and of a dense tensor."""
    import gguf

    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["wiki.txt"])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_tensor("blk.0.attn_q.weight.counts", np.ones((1, 1), np.float32))
    for i, layer in enumerate(trace.meta["moe_layers"]):
        counts = counts_of(trace)[i].astype(np.float32)[:, None]
        for part in ("gate", "up", "down"):
            name = f"blk.{layer}.ffn_{part}_exps.weight"
            writer.add_tensor(f"{name}.in_sum2", np.ones((trace.n_experts, 4), np.float32))
            writer.add_tensor(f"{name}.counts", counts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return shape_flags(trace)


def sglang_stat(path: Path, trace: RoutingTrace) -> Flags:
    import torch

    counts = over_all_layers(trace, counts_of(trace)).astype(np.int32)
    steps = torch.from_numpy(np.stack([counts // 2, counts - counts // 2]))
    torch.save({"rank": 0, "logical_count": steps, "average_utilization_rate_over_window": None}, path)
    return shape_flags(trace)


def sglang_per_pass(path: Path, trace: RoutingTrace) -> Flags:
    """Physical counts per pass; one redundant expert takes half of the uses of expert 0."""
    import torch

    counts = over_all_layers(trace, counts_of(trace)).astype(np.int32)
    physical = np.concatenate([counts, counts[:, :1] // 2], axis=1)
    physical[:, 0] -= physical[:, -1]
    mapping = np.tile(np.append(np.arange(trace.n_experts), 0), (trace.n_layers, 1))
    records = [
        {"forward_pass_id": i, "rank": 0, "gatherer_key": "primary", "global_physical_count": torch.from_numpy(part)}
        for i, part in enumerate((physical // 2, physical - physical // 2))
    ]
    torch.save({"records": records, "last_physical_to_logical_map": torch.from_numpy(mapping)}, path)
    return shape_flags(trace)


def sglang_location(path: Path, trace: RoutingTrace) -> Flags:
    path.write_text(json.dumps({"logical_count": over_all_layers(trace, counts_of(trace)).tolist()}))
    return shape_flags(trace)


def moe_infinity(path: Path, trace: RoutingTrace) -> Flags:
    """A matrix per request, and places that no sequence has used."""
    matrices = [counts_of(trace.select(np.arange(rows.start, rows.stop))) for rows in requests_of(trace)]
    np.save(path, np.stack([*matrices, np.zeros_like(matrices[0])]).astype(np.float32))
    return shape_flags(trace)


def eplb_pt(path: Path, trace: RoutingTrace) -> Flags:
    import torch

    torch.save(torch.from_numpy(counts_of(trace)), path)
    return shape_flags(trace)


def eplb_npy(path: Path, trace: RoutingTrace) -> Flags:
    np.save(path, counts_of(trace))
    return shape_flags(trace)


# format name, file name, builder, whether it holds one request only
PER_TOKEN: dict[str, tuple[str, str, Builder, bool]] = {
    "csv": ("csv", "t.csv", csv, False),
    "jsonl": ("jsonl", "t.jsonl", jsonl, False),
    "llamacpp-pairs": ("llamacpp", "moe_trace.csv", llamacpp_pairs, True),
    "llamacpp-positions": ("llamacpp", "routes.csv", llamacpp_positions, True),
    "llamacpp-records": ("llamacpp", "topk.bin", llamacpp_records, True),
    "vllm-npy": ("vllm", "routed.npy", vllm_npy, True),
    "vllm": ("vllm", "responses.jsonl", vllm, False),
    "vllm-0.21": ("vllm", "responses.json", vllm_split, False),
    "sglang": ("sglang", "expert_distribution_recorder_1_0.pt", sglang, False),
    "sglang-routed": ("sglang-routed", "responses.jsonl", sglang_routed, False),
    "megatron": ("megatron", "router_trace_rank0.jsonl", megatron, True),
    "flame": ("flame", "flame-moe-290m", flame, True),
    "flame-pt": ("flame", "flame-moe-290m", flame_pt, True),
    "hf-ids": ("hf", "topk.pt", hf_ids, True),
    "hf-logits": ("hf", "router_logits.npz", hf_logits, True),
    "parquet": ("parquet", "trace.parquet", parquet, False),
    "trtllm-raw": ("trtllm-raw", "statistic", trtllm_raw, True),
    "bigmoeonedge": ("bigmoeonedge", "route_trace.csv", bigmoeonedge, False),
    "expert-selection": ("expert-selection", "0.json", expert_selection, True),
    **foreign_home_made.PER_TOKEN,
}
COUNTED: dict[str, tuple[str, str, Builder]] = {
    "trtllm": ("trtllm", "statistic", trtllm),
    "imatrix": ("imatrix", "imatrix.gguf", imatrix),
    "sglang-stat": ("sglang-stat", "expert_distribution_recorder_1.pt", sglang_stat),
    "sglang-per-pass": ("sglang-stat", "expert_distribution_recorder_1_0.pt", sglang_per_pass),
    "sglang-location": ("sglang-stat", "location.json", sglang_location),
    "moe-infinity": ("moe-infinity", "eam.npy", moe_infinity),
    "eplb-pt": ("eplb", "weight.pt", eplb_pt),
    "eplb-npy": ("eplb", "weight.npy", eplb_npy),
    **foreign_home_made.COUNTED,
}
FIXTURES: dict[str, tuple[str, str, Builder]] = {**{name: entry[:3] for name, entry in PER_TOKEN.items()}, **COUNTED}
# What a writer can be asked for: file name -> the format that reads it; None: checked by hand in tests/test_writers.py.
WRITTEN: dict[str, dict[str, str | None]] = {
    "parquet": {"trace.parquet": "parquet"},
    "sglang": {"location.pt": "sglang-stat", "location.json": "sglang-stat"},
    "eplb": {"weight.pt": "eplb", "weight.npy": "eplb"},
    "moe-infinity": {"eam.npy": "moe-infinity"},
    "flame": {"capture": "flame"},
    "vllm": {"routed.npy": "vllm", "responses.jsonl": "vllm"},
    "oracle-general": {"t.oracleGeneral": None},
    **foreign_home_made.WRITTEN,
}
