"""The cost tables: small cases worked by hand, published measurements, and laws that every table keeps."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import catalog
from sim.catalog.engine_spec import Engine
from sim.catalog.hardware_spec import Gpu, Hardware, Host, Link
from sim.core.plan import Costs, Int
from sim.costs.classes import StepShapes, distinct_rows
from sim.costs.roofline import costs, expert_bytes, expert_ns, head_ns, low_copies, memory, transfer_ns
from sim.errors import CatalogError

IDEAL = catalog.engine("ideal")
RTX4090 = catalog.hardware("rtx4090")
MIXTRAL = catalog.model("mixtral-8x7b")
GPT = catalog.model("gpt-oss-20b")
HBM = 1008 * 0.7  # bytes per ns that kernels read on the 4090


def shapes(rows: list[int], positions: list[int], prefill: list[bool], n_layers: int, moe: list[int]) -> StepShapes:
    offset = np.concatenate(([0], np.cumsum(rows))).astype(np.int64)
    return StepShapes(offset, np.array(positions, np.int64), np.array(prefill), n_layers, np.array(moe))


def decode(position: int, n_layers: int = 32, moe: list[int] | None = None) -> StepShapes:
    return shapes([1], [position], [False], n_layers, list(range(n_layers)) if moe is None else moe)


def on(link: Link) -> Hardware:
    return Hardware(gpu=RTX4090.gpu, link=link, host=RTX4090.host)


# ---- worked by hand


def test_one_mixtral_expert_in_bf16_over_pcie4() -> None:
    # 3 x 4096 x 14336 x 2 = 352,321,536 bytes at 25.5 GB/s = 13,816,530.8 ns;
    # a lone copy 7 + 1 us, a following one 1 us
    assert transfer_ns(RTX4090, IDEAL, 352_321_536).tolist() == [13_824_531, 13_817_531]


def test_one_mixtral_expert_on_the_gpu() -> None:
    # one token: 352,321,536 bytes of weights + 2 x 2 x (4096 + 14336) of activations, at 1008 x 0.7 GB/s =
    # 499,426.4 ns; 1024 tokens: 2 x 1024 x 176,160,768 operations at 165.2 x 0.6 TFLOP/s = 3,639,803.1 ns
    table = expert_ns(MIXTRAL, RTX4090, IDEAL, "bf16", 1024)
    assert table[:2].tolist() == [0, round((352_321_536 + 73_728) / HBM)] == [0, 499_426]
    assert table[1024] == round(2 * 1024 * 176_160_768 / (165.2e3 * 0.6)) == 3_639_803


def test_an_expert_reads_and_writes_the_activations_of_each_token() -> None:
    # 8 tokens, still bound by reading: 352,321,536 bytes of weights + 8 x 73,728 of activations
    assert expert_ns(MIXTRAL, RTX4090, IDEAL, "bf16", 8)[8] == round((352_321_536 + 8 * 73_728) / HBM) == 500_158


def test_low_precision_copies() -> None:
    # q4 is 4.5 bits a weight: 176,160,768 x 4.5 / 8 = 99,090,432 bytes; over the link at 25.5 GB/s = 3,885,899.3 ns
    low = low_copies(MIXTRAL, RTX4090, IDEAL, "q4", np.array([3]), 2)
    assert low.bytes == 99_090_432 and low.slots.tolist() == [3]
    assert low.transfer_ns.tolist() == [3_893_899, 3_886_899]
    assert low.expert_ns.tolist() == [0, *(round((99_090_432 + n * 73_728) / HBM) for n in (1, 2))]
    with pytest.raises(CatalogError, match=r"--model NAME\|FILE"):
        low_copies(None, RTX4090, IDEAL, "q4", np.array([3]), 2)


def test_one_mixtral_expert_on_the_host() -> None:
    # 352,321,536 bytes at 62.3 GB/s; while the link takes 25.5 of the host's 75 GB/s, at 49.5
    table = costs(MIXTRAL, RTX4090, IDEAL, "bf16", decode(0)).cpu_expert_ns
    assert table.tolist() == [[0, 5_655_241], [0, 7_117_607]]


def test_a_mixtral_layer_and_the_head_at_one_token() -> None:
    # attention 41,943,040 + router 32,768 + norms 8,192 weights of 2 bytes, and 100 KV entries of 4,096 bytes
    layer = round((2 * (41_943_040 + 32_768 + 8_192) + 100 * 4096) / HBM)
    # 32000 x 4096 weights and a norm in bf16, and 32000 logits of 4 bytes
    head = round((2 * 32000 * 4096 + 2 * 4096 + 4 * 32000) / HBM)
    table = costs(MIXTRAL, RTX4090, IDEAL, "bf16", decode(99))
    assert table.dense_ns.tolist() == [[layer] * 32 + [0]] == [[119_583] * 32 + [0]]
    assert table.head_ns.tolist() == [head] == [371_712]
    assert (table.decide_ns, table.group_ns, table.commit_gap_ns, table.commit_depth) == (10_000, 0, 0, 1)


def test_the_head_reads_its_weights_once_and_writes_the_logits_of_every_row() -> None:
    # 4 rows that decode: bound by reading; 200: by 2 x 200 x 131,072,000 operations; of a prompt's 200 one row counts
    weights, rows = 2 * 32000 * 4096 + 2 * 4096, np.array([4, 200, 200])
    found = head_ns(MIXTRAL, RTX4090, IDEAL, "bf16", rows, np.array([False, False, True]))
    assert found[0] == round((weights + 4 * 4 * 32000) / HBM) == 372_257
    assert found[1] == round(2 * 200 * 131_072_000 / 99_120) == 528_943
    assert found[2] == 371_712


def test_the_link_s_rate_is_that_of_one_copy() -> None:
    # 3000 bytes in three copies of 1000, at which this link has half its rate: 5 bytes per ns; 3 x 7 + 3000 / 5
    half = Link(h2d_gb_per_s=10.0, n_half_bytes=1000, setup_ns=5, per_copy_ns=7)
    assert transfer_ns(on(half), Engine(copies_per_expert=3), 3000).tolist() == [5 + 21 + 600, 21 + 600]
    # and what a busy link takes from the host's memory bandwidth: 4 of its 62.4 GB/s total leave 58.4 to the host
    host = Host(read_gb_per_s=60.0, total_gb_per_s=62.4, tflops=1e6)
    size = MIXTRAL.expert_bytes("bf16")
    link = Link(h2d_gb_per_s=8.0, n_half_bytes=size // 3, setup_ns=5)
    busy = costs(
        MIXTRAL, Hardware(gpu=RTX4090.gpu, link=link, host=host), Engine(copies_per_expert=3), "bf16", decode(0)
    )
    assert busy.cpu_expert_ns[:, 1].tolist() == [round(size / 60), round(size / 58.4)]


def test_a_prefill_chunk_is_bound_by_operations_and_needs_one_row_of_logits() -> None:
    # 512 rows: 2 x 512 x 41,984,000 + 2 x 32 x (128 + 128) x (1 + ... + 512) operations at 99.12 TFLOP/s
    operations = 2 * 512 * 41_984_000 + 2 * 32 * 256 * (512 * 513 // 2)
    step = shapes([512], list(range(512)), [True], 32, list(range(32)))
    table = costs(MIXTRAL, RTX4090, IDEAL, "bf16", step)
    assert table.dense_ns[0, 0] == round(operations / 99_120) == 455_441
    assert table.head_ns.tolist() == [371_712]
    assert len(table.expert_ns) == 513 and table.cpu_expert_ns.shape == (2, 513)


def test_a_prefill_chunk_reads_its_requests_entries_once_and_decode_rows_read_their_own() -> None:
    # two rows at positions 998 and 999: apart they read 999 + 1000 entries, as one chunk 1000
    apart = shapes([2], [998, 999], [False], 1, [0])
    chunk = shapes([2], [998, 999], [True], 1, [0])
    weights = 2 * 41_984_000
    assert costs(MIXTRAL, RTX4090, IDEAL, "bf16", apart).dense_ns[0, 0] == round((weights + 4096 * 1999) / HBM)
    assert costs(MIXTRAL, RTX4090, IDEAL, "bf16", chunk).dense_ns[0, 0] == round((weights + 4096 * 1000) / HBM)


def test_window_layers_read_no_more_than_the_window() -> None:
    # gpt-oss-20b: layer 0 slides, layer 1 is full; at position 999 they read 128 and 1000 entries of 2048 B
    weights = 2 * (26_550_080 + 32 * 2880 + 2 * 2880)
    table = costs(GPT, RTX4090, IDEAL, "mxfp4", decode(999, 24))
    assert table.dense_ns[0, :2].tolist() == [
        round((weights + 2048 * 128) / HBM),
        round((weights + 2048 * 1000) / HBM),
    ]
    # a prefill chunk of 10 rows that ends at position 999 reaches 128 + 9 entries back
    chunk = shapes([10], list(range(990, 1000)), [True], 24, list(range(24)))
    assert costs(GPT, RTX4090, IDEAL, "mxfp4", chunk).dense_ns[0, 0] == round((weights + 2048 * 137) / HBM)


def test_dense_layers_are_charged_to_the_next_moe_layer_and_trailing_ones_to_the_last_column() -> None:
    model = catalog.model("deepseek-v2-lite")
    moe = 2 * (13_762_560 + 2 * 2048 + 64 * 2048 + 3 * 2048 * 2816) + 1152
    dense = 2 * (13_762_560 + 2 * 2048 + 3 * 2048 * 10944) + 1152
    a, b = round(moe / HBM), round(dense / HBM)
    table = costs(model, RTX4090, IDEAL, "bf16", decode(0, n_layers=5, moe=[1, 3]))
    assert table.dense_ns.tolist() == [[b + a, b + a, b]]


def test_a_linear_attention_layer_does_not_grow_with_position() -> None:
    model = catalog.model("qwen3-next")
    early, late = (costs(model, RTX4090, IDEAL, "bf16", decode(p, 48)).dense_ns[0] for p in (0, 100_000))
    assert early[0] == late[0] and early[3] < late[3]
    weights = 2 * (32_104_720 + 2 * 2048 + 512 * 2048 + 3 * 2048 * 512 + 2048)
    assert early[0] == round((weights + 2 * 2_146_304) / HBM)
    # two rows that decode read and write a state each; 600 rows of a prompt share one, and their operations decide:
    # 2 for each of the 36,305,168 weights and row, and one for each byte of state and row
    two = costs(model, RTX4090, IDEAL, "bf16", shapes([2], [7, 9], [False], 48, list(range(48)))).dense_ns[0, 0]
    assert two == round((weights + 2 * 2 * 2_146_304) / HBM)
    prompt = costs(model, RTX4090, IDEAL, "bf16", shapes([600], list(range(600)), [True], 48, list(range(48))))
    operations = 600 * (2 * (weights // 2) + 2_146_304)
    assert prompt.dense_ns[0, 0] == round(operations / 99_120)
    few = costs(model, RTX4090, IDEAL, "bf16", shapes([3], [0, 1, 2], [True], 48, list(range(48)))).dense_ns[0, 0]
    assert few == round((weights + 2 * 2_146_304) / HBM)


def test_layers_of_each_kind_have_their_own_weights_and_entries() -> None:
    # at position 4999, 5000 entries. Gemma: a window of 1024 in layer 0, layer 5 is full, of other sizes
    gemma = costs(catalog.model("gemma-4-26b-a4b"), RTX4090, IDEAL, "bf16", decode(4999, 30)).dense_ns[0]
    rest = 2 * 2816 + 128 * 2816 + 3 * 2816 * 2112
    assert gemma[0] == round((2 * (34_603_520 + rest) + 8192 * 1024) / HBM)
    assert gemma[5] == round((2 * (49_021_952 + rest) + 4096 * 5000) / HBM)
    # GLM-5: 2048 entries of 1152 bytes, chosen by the index keys of all 5000, 256 bytes each
    sparse = costs(catalog.model("glm-5"), RTX4090, IDEAL, "bf16", decode(4999, 78, list(range(3, 78)))).dense_ns[0]
    rest = 174_394_112 + 2 * 6144 + 256 * 6144 + 3 * 6144 * 2048
    assert sparse[1] == round((2 * rest + 1152 * 2048 + 256 * 5000) / HBM)
    # Nemotron: its second layer is an MoE layer without attention, in front of which a Mamba layer without an FFN
    model = catalog.model("nemotron-3-nano")
    nano = costs(model, RTX4090, IDEAL, "bf16", decode(4999, 52, list(model.moe_layers))).dense_ns[0]
    mamba = round((2 * (38_742_208 + 2 * 2688) + 2 * 2_134_016) / HBM)
    moe = round(2 * (2 * 2688 + 128 * 2688 + 2 * 2688 * 3712) / HBM)
    full = round((2 * (23_396_352 + 2 * 2688) + 1024 * 5000) / HBM)
    assert nano[:3].tolist() == [mamba + moe, mamba + moe, mamba + full + moe]  # MEMEM*E


def test_a_host_reads_what_lies_on_the_ssd_of_a_machine_of_one_memory_from_there() -> None:
    # one Mixtral expert, 352,321,536 bytes at 5.58 GB/s of the SSD, not at the 0.7 x 273 of the memory
    gb10 = catalog.hardware("gb10")
    apart = gb10.model_copy(update={"unified": False})
    of_ssd, of_memory = (
        costs(MIXTRAL, machine, IDEAL, "bf16", decode(0)).cpu_expert_ns[0, 1] for machine in (gb10, apart)
    )
    assert (of_ssd, of_memory) == (round(352_321_536 / 5.58), round(352_321_536 / (0.7 * 273)))


def test_cross_attention_is_read_in_decoder_layers_only() -> None:
    switch = catalog.model("switch-large-128")
    both = costs(switch, RTX4090, IDEAL, "fp32", decode(0, 48, list(range(48)))).dense_ns[0]
    decoder = costs(switch, RTX4090, IDEAL, "fp32", decode(0, 24, list(range(24)))).dense_ns[0]
    assert both[0] < both[24] == decoder[0]
    assert both[24] - both[0] == pytest.approx(4 * 4_194_304 / HBM, abs=1)


def test_durations_are_rounded_half_even() -> None:
    link = Link(h2d_gb_per_s=2.0, setup_ns=0)
    assert [transfer_ns(on(link), IDEAL, size)[0] for size in (1, 3, 5, 7)] == [0, 2, 2, 4]


def test_link_laws() -> None:
    half = Link(h2d_gb_per_s=10.0, n_half_bytes=1000, setup_ns=5)
    assert half.rate(1000) == 5.0
    assert transfer_ns(on(half), IDEAL, 1000).tolist() == [205, 200]
    curve = Link(curve=((100.0, 1.0), (10_000.0, 4.0)), setup_ns=0)
    assert [curve.rate(size) for size in (1, 100, 10_000, 1e9)] == [1.0, 1.0, 4.0, 4.0]
    assert curve.rate(1000) == pytest.approx(2.0)  # half the way in log size: the geometric mean


def test_an_engine_adds_its_own_costs() -> None:
    link = Link(h2d_gb_per_s=1.0, setup_ns=50, follow_setup_ns=20, per_copy_ns=3)
    engine = Engine(
        layer_ns=7, group_ns=11, expert_ns=13, transfer_ns=17, step_ns=19, decide_ns=23, copies_per_expert=2,
        write_back=True, launches_per_layer=2, launches_per_group=1, launches_per_expert=3,
        launches_per_step=4,
    )  # fmt: skip
    # twice (set-up + 2 x 3 + 1000), then 17
    assert transfer_ns(on(link), engine, 1000).tolist() == [2129, 2069]
    plain, busy = (costs(MIXTRAL, on(link), e, "bf16", decode(0)) for e in (IDEAL, engine))
    launch = 4500
    assert busy.dense_ns[0, 0] - plain.dense_ns[0, 0] == 7 + 2 * launch
    assert busy.expert_ns[1] - plain.expert_ns[1] == 13 + 3 * launch
    assert busy.head_ns[0] - plain.head_ns[0] == 19 + 4 * launch
    assert (busy.group_ns, busy.decide_ns) == (11 + launch, 10_023)


def test_engine_precisions_memory_share_and_dequantisation() -> None:
    mla = catalog.model("deepseek-v2-lite")
    assert [Engine(dense_precision=p).precision_of("dense", "q4") for p in ("bf16", "experts")] == [
        "bf16",
        "q4",
    ]
    assert Engine().precision_of("head", "fp32") == "fp32"
    base = costs(mla, RTX4090, Engine(), "q4", decode(0, 27)).dense_ns[0, 0]
    own = costs(mla, RTX4090, Engine(layer_ns=5, mla_layer_ns=9), "q4", decode(0, 27)).dense_ns[0, 0]
    assert own - base == 9
    of_another = Engine(layer_ns=5, mla_layer_ns=9)  # Mixtral's attention is not latent
    plain, busy = (costs(MIXTRAL, RTX4090, e, "bf16", decode(0)).dense_ns[0, 0] for e in (IDEAL, of_another))
    assert busy - plain == 5
    slow = expert_ns(MIXTRAL, RTX4090, Engine(memory_efficiency=0.5), "bf16", 1)[1]  # of the GPU's 0.7
    assert slow == round((352_321_536 + 73_728) / (1008 * 0.7 * 0.5))
    most = expert_ns(MIXTRAL, RTX4090, Engine(memory_efficiency=2.0), "bf16", 1)[1]  # never more than the peak
    assert most == round((352_321_536 + 73_728) / 1008)
    expand = Engine(dequant_gb_per_s=100.0)
    added = expert_ns(MIXTRAL, RTX4090, expand, "q4", 1)[1] - expert_ns(MIXTRAL, RTX4090, IDEAL, "q4", 1)[1]
    assert added == pytest.approx(99_090_432 / 100, abs=1)
    assert expert_ns(MIXTRAL, RTX4090, expand, "bf16", 1)[1] == 499_426  # nothing to expand
    eight = expert_ns(MIXTRAL, RTX4090, expand, "q8", 1)[1] - expert_ns(MIXTRAL, RTX4090, IDEAL, "q8", 1)[1]
    assert eight == pytest.approx(MIXTRAL.expert_bytes("q8") / 100, abs=1)


def test_a_pageable_source_uses_the_second_link() -> None:
    pageable = Engine(page_locked=False)
    assert transfer_ns(RTX4090, pageable, 10_000_000)[0] == 7000 + 1000 + 1_000_000


# ---- [fixed]


def fixed(tmp_path: Path, text: str = "") -> Hardware:
    path = tmp_path / "fixed.toml"
    path.write_text("[fixed]\ndense_ns = 10\nexpert_ns = 5\ntransfer_ns = 100\ndecide_ns = 0\n" + text)
    return catalog.hardware(str(path))


def test_fixed_durations_replace_everything(tmp_path: Path) -> None:
    steps = shapes([1, 3], [0, 1, 2, 3], [False, False], 5, [1, 3])
    engine = catalog.engine("moe-infinity")
    table = costs(None, fixed(tmp_path), engine, "no such precision", steps)
    assert table.dense_ns.tolist() == [[20, 20, 10]]
    assert table.cost_class.tolist() == [0, 0]
    assert table.expert_ns.tolist() == [0, 5, 5, 5]
    assert table.transfer_ns.tolist() == [100, 100]
    assert (table.decide_ns, table.group_ns, table.head_ns.tolist()) == (0, 0, [0])
    assert (table.commit_gap_ns, table.commit_depth) == (0, 1)
    assert costs(None, fixed(tmp_path), engine, "", shapes([1], [0], [False], 4, [1, 3])).dense_ns.tolist() == [
        [20, 20, 0]
    ]
    assert table.cpu_expert_ns.tolist() == [[0, 0, 0, 0]] * 2
    more = fixed(tmp_path, "cpu_expert_ns = 9\nhead_ns = 1\ngroup_ns = 2\ncommit_gap_ns = 3\ncommit_depth = 4\n")
    table = costs(MIXTRAL, more, engine, "bf16", steps)
    assert table.cpu_expert_ns.tolist() == [[0, 9, 9, 9]] * 2
    assert (table.head_ns.tolist(), table.group_ns, table.commit_gap_ns, table.commit_depth) == ([1], 2, 3, 4)


def test_fixed_durations_of_low_precision_copies(tmp_path: Path) -> None:
    given = fixed(tmp_path, "low_transfer_ns = 30\nlow_expert_ns = 2\nlow_bytes = 7\n")
    low = low_copies(None, given, IDEAL, "q4", np.array([2, 3]), 2)
    assert (low.slots.tolist(), low.bytes, low.transfer_ns.tolist()) == ([2, 3], 7, [30, 30])
    assert low.expert_ns.tolist() == [0, 2, 2]
    for one in ("low_transfer_ns = 30", "low_expert_ns = 2", ""):
        with pytest.raises(CatalogError, match="no low_transfer_ns and low_expert_ns"):
            low_copies(None, fixed(tmp_path, one), IDEAL, "q4", np.array([2, 3]), 2)


def test_a_model_is_needed_unless_durations_are_fixed(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"--model NAME\|FILE"):
        costs(None, RTX4090, IDEAL, "bf16", decode(0))
    with pytest.raises(CatalogError, match=r"--model NAME\|FILE"):
        expert_bytes(None, RTX4090, "bf16")
    assert expert_bytes(None, fixed(tmp_path), "bf16") == 1
    assert expert_bytes(MIXTRAL, fixed(tmp_path), "bf16") == 352_321_536
    assert expert_bytes(MIXTRAL, fixed(tmp_path, "expert_bytes = 7\n"), "bf16") == 7


# ---- memory


def test_mixtral_in_bf16_at_four_slots_is_45_gb() -> None:
    line = memory(MIXTRAL, "bf16", 4 * 32, 1000, 2, RTX4090, IDEAL)
    assert line["slots"] == 128 * 352_321_536 == 45_097_156_608
    assert line["dense"] == 2 * (MIXTRAL.total_params - 256 * 176_160_768)
    assert line["kv"] == 2 * 32 * 4096 * 1000
    assert (line["staging"], line["gpu"], line["fits"]) == (0, 24_080 * 1024**2, False)


def test_memory_that_fits_and_memory_that_is_not_known(tmp_path: Path) -> None:
    assert memory(MIXTRAL, "q4", 128, 1000, 1, RTX4090, IDEAL)["fits"] is True
    staged = memory(MIXTRAL, "hqq2", 128, 0, 1, RTX4090, catalog.engine("mixtral-offloading"))
    assert staged["staging"] == 4 * MIXTRAL.expert_bytes("hqq2")
    unknown = {"dense": None, "kv": None, "slots": 21, "staging": 0, "gpu": None, "fits": None}
    assert memory(None, "bf16", 3, 9, 1, fixed(tmp_path, "expert_bytes = 7\n"), IDEAL) == unknown
    # the edge itself fits: what is needed is what there is
    exact = fixed(tmp_path, "expert_bytes = 1000\nmem_gb = 4\n")
    free = 4_000_000_000 - MIXTRAL.dense_bytes("bf16")
    assert memory(MIXTRAL, "bf16", free // 1000, 0, 1, exact, IDEAL)["fits"] is True
    assert memory(MIXTRAL, "bf16", free // 1000 + 1, 0, 1, exact, IDEAL)["fits"] is False


# ---- against measurements


def test_near_a_published_mixtral_layer_on_a_threadripper() -> None:
    # arXiv 2512.16473: both bf16 experts of a layer take 7.34 ms on the host and 28.02 ms over PCIe 4
    table = costs(MIXTRAL, catalog.hardware("rtx4090-threadripper"), IDEAL, "bf16", decode(0))
    assert 2 * table.cpu_expert_ns[0, 1] / 1e6 == pytest.approx(7.34, rel=0.02)
    assert table.transfer_ns.sum() / 1e6 == pytest.approx(28.02, rel=0.02)


def test_near_the_constants_of_fiddler() -> None:
    # efeslab/fiddler: 7 ms per token and expert on the host, 70 ms to copy one, pageable, over PCIe 3
    machine, engine = catalog.hardware("quadro-rtx-6000"), catalog.engine("fiddler")
    table = costs(MIXTRAL, machine, engine, "bf16", shapes([4], [0, 1, 2, 3], [False], 32, list(range(32))))
    assert table.cpu_expert_ns[0, 1:] / 1e6 == pytest.approx([7, 14, 21, 28], rel=0.01)
    assert table.transfer_ns[0] / 1e6 == pytest.approx(70, rel=0.1)


def test_near_a_published_fetch_of_one_to_four_copies_on_an_rtx5090() -> None:
    # results/059, pipelined: 2.86 MB x 1/2/4 in 51.4/102/203.3 us
    for copies, us in ((1, 51.4), (2, 102.0), (4, 203.3)):
        one = transfer_ns(catalog.hardware("rtx5090"), Engine(), 2_860_000)
        assert (one[0] + (copies - 1) * one[1]) / 1e3 == pytest.approx(us, rel=0.01)


# ---- laws


STEP = st.tuples(st.integers(1, 6), st.booleans(), st.integers(0, 300))


def build_steps(drawn: list[tuple[int, bool, int]], gap: int) -> tuple[list[int], list[list[int]], list[bool]]:
    """Prefill rows are consecutive positions of one request; decode rows come from requests `gap` apart."""
    rows = [n for n, _, _ in drawn]
    positions = [[p + i * (1 if prefill else gap) for i in range(n)] for n, prefill, p in drawn]
    return rows, positions, [prefill for _, prefill, _ in drawn]


@settings(max_examples=60)
@given(
    st.lists(STEP, min_size=1, max_size=30),
    st.sampled_from([0, 1, 7, 10**6, 10**9]),
    st.sampled_from(["gpt-oss-20b", "mixtral-8x7b", "qwen3-next"]),
)
def test_every_step_costs_in_its_class_what_it_costs_alone(drawn: Any, gap: int, name: str) -> None:
    model = catalog.model(name)
    rows, positions, prefill = build_steps(drawn, gap)
    moe = [1, 2, 5]
    together = costs(model, RTX4090, IDEAL, "bf16", shapes(rows, [p for r in positions for p in r], prefill, 7, moe))
    for s in range(len(rows)):
        alone = costs(model, RTX4090, IDEAL, "bf16", shapes([rows[s]], positions[s], [prefill[s]], 7, moe))
        row = together.cost_class[s]
        assert together.dense_ns[row].tolist() == alone.dense_ns[0].tolist()
        assert together.head_ns[row] == alone.head_ns[0]
    assert together.cost_class.dtype == np.int32
    assert sorted(set(together.cost_class.tolist())) == list(range(len(together.head_ns)))


@settings(max_examples=40)
@given(
    st.integers(0, 5000),
    st.integers(1, 5000),
    st.sampled_from(catalog.names("model")),
    st.sampled_from(["bf16", "q4"]),
)
def test_a_later_position_never_costs_less(position: int, more: int, name: str, precision: str) -> None:
    model = catalog.model(name)
    moe = list(model.moe_layers)
    early, late = (
        costs(model, RTX4090, IDEAL, precision, decode(p, model.n_layers, moe)) for p in (position, position + more)
    )
    assert (early.dense_ns <= late.dense_ns).all() and early.head_ns[0] == late.head_ns[0]


@settings(max_examples=40)
@given(st.sampled_from(catalog.names("model")), st.sampled_from(catalog.names("hardware")), st.integers(1, 64))
def test_more_tokens_or_more_bits_never_cost_less(name: str, preset: str, tokens: int) -> None:
    model, hardware = catalog.model(name), catalog.hardware(preset)
    steps = shapes([tokens], list(range(tokens)), [False], model.n_layers, list(model.moe_layers))
    tables: list[Costs] = [costs(model, hardware, IDEAL, p, steps) for p in ("q2", "q4", "q8", "bf16", "fp32")]
    for table in tables:
        assert (np.diff(table.expert_ns) >= 0).all() and (np.diff(table.cpu_expert_ns) >= 0).all()
        assert (table.cpu_expert_ns[1] >= table.cpu_expert_ns[0]).all()
        assert table.transfer_ns[0] >= table.transfer_ns[1] > 0
    for fewer, wider in pairwise(tables):
        assert (fewer.expert_ns <= wider.expert_ns).all() and (fewer.transfer_ns <= wider.transfer_ns).all()


@given(st.integers(1, 10**9), st.integers(0, 10**6), st.sampled_from(catalog.names("link")))
def test_a_larger_copy_never_takes_less_time(size: int, more: int, name: str) -> None:
    entry = catalog.entries("link")[name]
    if "curve" in entry:
        entry["curve"] = tuple((float(a), float(b)) for a, b in entry["curve"])
    link = Link(**{key: value for key, value in entry.items() if key != "aliases"})
    assert size / link.rate(size) <= (size + more) / link.rate(size + more) * (1 + 1e-12)


@given(st.floats(1, 1000), st.floats(0, 1000), st.floats(0.1, 100))
def test_a_busy_link_never_helps_the_host_and_leaves_it_half(read: float, link: float, more: float) -> None:
    host = Host(read_gb_per_s=read)
    assert host.read_rate(link + more) <= host.read_rate(link) <= read
    assert host.read_rate(link + more) >= 0.6 * read * (1 - 1e-12)


@given(st.integers(1, 200), st.booleans())
def test_the_head_reads_its_weights_once(rows: int, prefill: bool) -> None:
    many = head_ns(MIXTRAL, RTX4090, IDEAL, "bf16", np.array([rows]), np.array([prefill]))[0]
    one = head_ns(MIXTRAL, RTX4090, IDEAL, "bf16", np.array([1]), np.array([False]))[0]
    assert one <= many < 2 * one and (many == one or not prefill)


def test_a_million_steps_share_a_small_table() -> None:
    n = 1_000_000
    steps = StepShapes(np.arange(n + 1), np.arange(n) % 1000, np.zeros(n, bool), 24, np.arange(24, dtype=np.int64))
    table = costs(GPT, RTX4090, IDEAL, "mxfp4", steps)
    assert table.dense_ns.shape == (1000, 25) and table.cost_class.shape == (n,)
    assert (table.cost_class[:1000] == table.cost_class[-1000:]).all()


@given(st.lists(st.tuples(*[st.sampled_from([0, 1, 2**32 - 1, 2**40])] * 3), min_size=1, max_size=20))
def test_distinct_rows_survive_keys_beyond_64_bits(rows: list[tuple[int, int, int]]) -> None:
    inverse, index = distinct_rows([np.array(column, np.int64) for column in zip(*rows, strict=True)])
    assert [rows[index[i]] for i in inverse] == rows
    assert len(index) == len(set(rows))


def test_keys_that_would_wrap_to_the_same_number_stay_apart() -> None:
    # (1 x 2^32 + 0) x 2^32 + 0 = 2^64, which is 0 again in 64 bits
    top = 2**32 - 1
    columns: list[Int] = [np.array(c, np.int64) for c in ([0, 1, 0], [0, 0, top], [0, 0, top])]
    assert len(distinct_rows(columns)[1]) == 3


def test_a_gpu_computes_in_the_dtype_it_has_a_figure_for() -> None:
    gpu = Gpu(mem_gb=1.0, hbm_gb_per_s=1.0, tflops={"bf16": 10.0, "fp8": 20.0}, flops_efficiency=0.5)
    assert [gpu.compute_rate(p) for p in ("bf16", "q4", "fp8")] == [5000.0, 5000.0, 10_000.0]
