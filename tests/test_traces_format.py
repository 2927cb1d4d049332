"""The trace file: what is written is read back, mapped where it can be; hostile files are refused."""

import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gen import REUSING_FOLDER, random_trace, traces
from traces.__main__ import main
from traces.errors import TraceError
from traces.format import npz
from traces.format.check import validate
from traces.format.layout import give_back
from traces.format.trace import RoutingTrace, hash64, split

CAPTURES = Path(__file__).resolve().parents[2] / "shared" / "traces"


def base() -> RoutingTrace:
    """12 rows, 3 layers, 8 experts, top-2, 3 requests, every optional array."""
    rng = np.random.default_rng(1)
    return random_trace(rng, 12, 3, 8, 2, prompt=0.5, logits=True, lookahead=2, token_ids=True)


def same(a: RoutingTrace, b: RoutingTrace) -> bool:
    pairs = [(a.arrays()[n], b.arrays().get(n)) for n in a.arrays()]
    equal = all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)
    return equal and len(a.arrays()) == len(b.arrays()) and a.meta == b.meta


# --- round trips ---


@REUSING_FOLDER
@given(trace=traces())
def test_written_is_read_back(trace: RoutingTrace, tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    npz.write(path, trace)
    read = npz.read(path)
    assert same(trace, read)
    assert npz.content_hash(read) == npz.content_hash(trace)
    with np.load(path, allow_pickle=False) as plain:
        assert set(plain.files) == {"meta", *trace.arrays()}
        assert json.loads(str(plain["meta"])) == trace.meta
        assert all(np.array_equal(plain[n], a) for n, a in trace.arrays().items())


@REUSING_FOLDER
@given(trace=traces())
def test_compressed_reads_the_same(trace: RoutingTrace, tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez_compressed(path, meta=np.array(json.dumps(trace.meta)), **trace.arrays())
    assert same(trace, npz.read(path))
    assert npz.content_hash(npz.read(path)) == npz.content_hash(trace)


def test_members_are_memory_mapped_and_aligned(tmp_path: Path) -> None:
    npz.write(tmp_path / "t.npz", base())
    for array in npz.read(tmp_path / "t.npz").arrays().values():
        assert isinstance(array, np.memmap)
        assert array.offset % 64 == 0
        assert array.ctypes.data % 64 == 0
        assert not array.flags.writeable


def test_opening_reads_headers_alone(tmp_path: Path) -> None:
    """check=False looks at no value and no CRC: it opens a file that check=True refuses for either."""
    trace = base()
    bad = trace.experts.copy()
    bad[3, 1, 0] = 99
    write_raw(tmp_path / "t.npz", {**members(trace), "experts": npy(bad)}, align=True)
    assert npz.read(tmp_path / "t.npz", check=False).experts[3, 1, 0] == 99
    with pytest.raises(TraceError, match=r"experts\[3, 1, 0\] = 99"):
        npz.read(tmp_path / "t.npz")
    flipped_bit(tmp_path / "t.npz")
    assert npz.read(tmp_path / "t.npz", check=False).n_tokens == 4000


def test_equal_bytes_for_equal_traces(tmp_path: Path) -> None:
    trace = base()
    npz.write(tmp_path / "a.npz", trace)
    shuffled = RoutingTrace(meta=dict(reversed(trace.meta.items())), **trace.arrays())
    npz.write(tmp_path / "b.npz", shuffled)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_integer_width_and_byte_order_do_not_change_the_hash(tmp_path: Path) -> None:
    trace = base()
    wide = RoutingTrace(meta=trace.meta, **trace.arrays() | {"experts": trace.experts.astype(np.int64)})
    assert npz.content_hash(wide) == npz.content_hash(trace)
    npz.write(tmp_path / "t.npz", wide)
    assert npz.read(tmp_path / "t.npz").experts.dtype == np.int16
    swapped = {n: npy(a.astype(a.dtype.newbyteorder(">"))) for n, a in trace.arrays().items()}
    write_raw(tmp_path / "swapped.npz", {**members(trace), **swapped})
    assert same(npz.read(tmp_path / "swapped.npz"), trace)


def test_hash_notices_every_array_and_meta() -> None:
    trace = base()
    hashes = {
        npz.content_hash(trace),
        npz.content_hash(RoutingTrace(**parts(trace, meta={**trace.meta, "x": 1}))),
    }
    for name, array in trace.arrays().items():
        changed = array.copy()
        changed[(0,) * array.ndim] = not changed[(0,) * array.ndim]
        hashes.add(npz.content_hash(RoutingTrace(**parts(trace, **{name: changed}))))
    hashes.add(npz.content_hash(RoutingTrace(**parts(trace, token_ids=None))))
    assert len(hashes) == 3 + len(trace.arrays())


def test_fortran_order_and_odd_offsets_are_loaded(tmp_path: Path) -> None:
    trace = base()
    fortran = io.BytesIO()
    np.lib.format.write_array(fortran, np.asfortranarray(trace.experts))
    assert b"'fortran_order': True" in fortran.getvalue()
    for shift in range(4):
        path = tmp_path / f"{shift}.npz"
        write_raw(path, {**members(trace), "experts": fortran.getvalue()}, shift=shift)
        read = npz.read(path)
        assert same(read, trace)
        assert all(a.flags.aligned and a.flags.c_contiguous for a in read.arrays().values())


def test_a_header_from_python_2_is_read_in_silence(tmp_path: Path) -> None:
    old = npy(base().experts).replace(b"(12, 3, 2), }", b"(12L, 3, 2),}")
    assert b"12L" in old
    write_raw(tmp_path / "t.npz", {**members(base()), "experts": old})
    assert same(npz.read(tmp_path / "t.npz"), base())


def test_unknown_members_and_meta_keys(tmp_path: Path) -> None:
    trace = RoutingTrace(**parts(base(), meta={**base().meta, "house": {"note": "kept é"}}))
    write_raw(tmp_path / "t.npz", {**members(trace), "extra": npy(np.arange(3))})
    assert npz.read(tmp_path / "t.npz").meta["house"] == {"note": "kept é"}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    npz.write(path, base())
    before = path.read_bytes()
    for broken in ({"weights": base().weights * np.float16(np.nan)}, {"meta": {**base().meta, "x": {1, 2}}}):
        with pytest.raises(TraceError):
            npz.write(path, RoutingTrace(**parts(base(), **broken)))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["t.npz"]


def test_the_input_may_be_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    npz.write(path, base())
    mapped = npz.read(path)
    npz.write(path, mapped)
    assert same(mapped, npz.read(path))


# --- requests ---


@given(trace=traces(), seed=st.integers(-5, 2**64), fraction=st.floats(0.01, 0.99))
def test_split_parts_the_requests(trace: RoutingTrace, seed: int, fraction: float) -> None:
    n = len(trace.requests()[0])
    if n < 2:
        with pytest.raises(TraceError, match="one request"):
            split(trace, fraction, seed)
        return
    a, b = split(trace, fraction, seed)
    validate(a)
    validate(b)
    assert len(a.requests()[0]) == min(max(int(fraction * n), 1), n - 1)
    ids = [set(part.sequence.tolist()) for part in (a, b)]
    assert ids[0].isdisjoint(ids[1])
    assert ids[0] | ids[1] == set(trace.sequence.tolist())
    assert a.n_tokens + b.n_tokens == trace.n_tokens
    for part in (a, b):
        rows = np.isin(trace.sequence, part.sequence)
        assert np.array_equal(part.experts, trace.experts[rows])
    other = RoutingTrace(**parts(trace, experts=np.full_like(trace.experts, -1), weights=None, logits=None))
    assert split(other, fraction, seed)[0].sequence.tolist() == a.sequence.tolist()


def test_hash64_against_scalar_arithmetic() -> None:
    """What every part shares: mix is splitmix64's, whose first output for state 0 is e220a8397b1dcdaf."""

    def mix(z: int) -> int:
        z = (z + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    assert mix(0) == 0xE220A8397B1DCDAF
    for seed, visit, ordinal in ((0, 0, 0), (7, 3, 1), (2**64 - 1, 2**40, 5)):
        assert int(hash64(seed, visit, ordinal)[0]) == mix(mix(mix(seed) ^ visit) ^ ordinal)
    assert hash64(3, np.arange(4), 0).tolist() == [int(hash64(3, v, 0)[0]) for v in range(4)]


def test_select_takes_whole_requests_alone() -> None:
    trace = base()
    first, last = trace.requests()
    reordered = trace.select(np.r_[first[2] : last[2], first[0] : last[0]])
    validate(reordered)
    assert reordered.sequence[0] == trace.sequence[first[2]]
    middle = trace.select(trace.sequence == trace.sequence[first[1]])
    assert np.shares_memory(middle.experts, trace.experts)
    for rows in (
        [],
        [0],
        range(1, trace.n_tokens),
        [*range(last[0]), *range(last[0])],
        [99],
        np.zeros(12, bool),
    ):
        with pytest.raises(TraceError, match="select"):
            trace.select(rows)


def test_arrays_are_read_only() -> None:
    trace = base()
    with pytest.raises(ValueError, match="read-only"):
        trace.experts[0, 0, 0] = 1
    with pytest.raises(AttributeError):
        trace.experts = trace.experts  # type: ignore[misc]  # frozen: the point of the test


# --- what a file may not be ---


def parts(trace: RoutingTrace, **changes: Any) -> dict[str, Any]:
    return {"meta": trace.meta, **trace.arrays()} | changes


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=array.dtype.hasobject)
    return stream.getvalue()


def lying_npy(descr: str, shape: tuple[int, ...], data: bytes) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue() + data


def members(trace: RoutingTrace) -> dict[str, bytes]:
    return {"meta": npy(np.array(json.dumps(trace.meta)))} | {n: npy(a) for n, a in trace.arrays().items()}


def write_raw(
    path: Path,
    content: dict[str, bytes],
    *,
    method: int = zipfile.ZIP_STORED,
    shift: int = 0,
    align: bool = False,
) -> None:
    """A zip of the given npy members. shift: bytes by which data lie off an even address; align: on 64."""
    with path.open("wb") as file, zipfile.ZipFile(file, "w", method) as archive:
        for name, data in content.items():
            info = zipfile.ZipInfo(f"{name}.npy")
            info.compress_type = method
            padding = -(file.tell() + 30 + len(info.filename) + 4) % 64 + (0 if align else shift)
            info.extra = struct.pack("<2H", 0xD935, padding) + bytes(padding)
            archive.writestr(info, data)


def with_arrays(**changes: Any) -> Callable[[Path], None]:
    """A file of the base trace with arrays replaced by a value, by a function of them, or (None) left out."""

    def build(path: Path) -> None:
        content = members(base())
        for name, change in changes.items():
            old = base().arrays().get(name)
            array = change(np.array(old)) if callable(change) else change
            if array is None:
                del content[name]
            else:
                content[name] = array if isinstance(array, bytes) else npy(array)
        write_raw(path, content)

    return build


def with_meta(**changes: Any) -> Callable[[Path], None]:
    meta = {k: v for k, v in {**base().meta, **changes}.items() if v is not KeyError}
    return with_arrays(meta=np.array(json.dumps(meta)))


def put(index: tuple[int, ...], value: Any) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[index] = value
        return array

    return change


def duplicate(array: np.ndarray) -> np.ndarray:
    array[4, 2, :] = 5
    return array


def truncated(path: Path) -> None:
    npz.write(path, base())
    path.write_bytes(path.read_bytes()[:-200])


def cut_head(path: Path) -> None:
    npz.write(path, base())
    path.write_bytes(path.read_bytes()[1000:])


def flipped_bit(path: Path) -> None:
    npz.write(path, random_trace(np.random.default_rng(0), 4000))
    data = bytearray(path.read_bytes())
    where = npz.read(path).experts.offset
    data[where] ^= 1
    path.write_bytes(bytes(data))


def bomb(path: Path) -> None:
    """400 MB of zeros in 400 kB: a trace of one request whose every slot is expert 0."""
    tokens = 1 << 26
    meta = {**base().meta, "moe_layers": [0], "n_layers": 1, "top_k": 1}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("meta.npy", npy(np.array(json.dumps(meta))))
        for name, descr, shape, size in (
            ("experts", "<i2", (tokens, 1, 1), 2),
            ("sequence", "<i4", (tokens,), 4),
        ):
            with archive.open(f"{name}.npy", "w") as stream:
                stream.write(lying_npy(descr, shape, b""))
                for _ in range(tokens * size >> 24):
                    stream.write(bytes(1 << 24))


def lying_deflate(path: Path) -> None:
    """The directory says that a small deflated member is as long as its npy header declares: 4 GB."""
    member = lying_npy("<i2", (1 << 30, 3, 2), b"\0" * 100)
    write_raw(path, {**members(base()), "experts": member}, method=zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"experts.npy") - 46
    data[entry + 24 : entry + 28] = struct.pack("<I", 0xFFFFFFF0)
    path.write_bytes(bytes(data))


def twice(path: Path) -> None:
    npz.write(path, base())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("experts.npy", npy(base().experts))


def bzip2(path: Path) -> None:
    write_raw(path, members(base()), method=zipfile.ZIP_BZIP2)


def encrypted(path: Path) -> None:
    npz.write(path, base())
    data = bytearray(path.read_bytes())
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(magic) + at] |= 1
    path.write_bytes(bytes(data))


def text(value: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(value) and None


def pickled(path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(path.parent / "unpickled"),))

    write_raw(path, {**members(base()), "experts": npy(np.array([Evil()], dtype=object))})


def huge_header(path: Path) -> None:
    head = b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 30) + b"(" * 20_000
    write_raw(path, {**members(base()), "experts": head})


HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "object array": (pickled, "experts holds Python objects"),
    "pickle for a file": (text(pickle.dumps([1, 2])), "not a complete .npz"),
    "empty file": (text(b""), "not a complete .npz"),
    "text file": (text(b"experts, weights\n1, 2\n"), "not a complete .npz"),
    "npy for npz": (text(npy(np.arange(9))), "not a complete .npz"),
    "end cut off": (truncated, "not a complete .npz"),
    "head cut off": (cut_head, "damaged"),
    "flipped bit": (flipped_bit, "experts is damaged: CRC-32"),
    "deflate bomb": (bomb, "zip bomb"),
    "lying directory": (lying_deflate, "zip bomb|declares"),
    "member twice": (twice, "experts is in the file twice"),
    "bzip2": (bzip2, "method 12"),
    "encrypted": (encrypted, "damaged.*encrypted|password"),
    "header declares more": (
        with_arrays(experts=lying_npy("<i2", (12, 3, 200), b"\0" * 144)),
        "declares 14400 bytes",
    ),
    "header declares terabytes": (
        with_arrays(experts=lying_npy("<i2", (1 << 60, 3, 2), b"\0" * 9)),
        "declares",
    ),
    "header declares less": (
        with_arrays(experts=lying_npy("<i2", (2, 3, 2), b"\0" * 144)),
        "declares 24 bytes",
    ),
    "header with negative shape": (
        with_arrays(experts=lying_npy("<i2", (-12, -3, 2), b"\0" * 144)),
        "lengths are >= 0",
    ),
    "zero-size giant": (with_arrays(experts=lying_npy("<i2", (0, 10**30, 2), b"")), "no rows"),
    "itemless giant": (with_arrays(experts=lying_npy("<U0", (10**15, 3, 2), b"")), "dtype str"),
    "huge npy header": (huge_header, "experts is damaged"),
    "garbage npy header": (
        with_arrays(experts=b"\x93NUMPY\x01\x00\x10\x00{'descr': [[[[[[["),
        "experts is damaged",
    ),
    "npy version 9": (with_arrays(experts=b"\x93NUMPY\x09\x00" + bytes(100)), "experts.*version"),
    "not an npy member": (with_arrays(experts=b"hello"), "experts is damaged"),
    "structured dtype": (with_arrays(experts=np.zeros((12, 3, 2), [("a", "<i2")])), "dtype a structure"),
    "experts missing": (with_arrays(experts=None), "experts is missing"),
    "prefill missing": (with_arrays(prefill=None), "prefill is missing"),
    "meta missing": (with_arrays(meta=None), "meta is missing"),
    "meta not JSON": (with_arrays(meta=np.array("{nope")), "meta is not JSON"),
    "meta a list": (with_arrays(meta=np.array("[1]")), "a JSON object is required"),
    "meta with NaN": (with_arrays(meta=np.array('{"x": NaN}')), "NaN is not a JSON number"),
    "meta nested deeply": (with_arrays(meta=np.array("[" * 100_000)), "meta is not JSON"),
    "meta a number": (with_arrays(meta=np.array(3)), "meta has dtype int64"),
    "meta an array": (with_arrays(meta=np.array(["{}", "{}"])), "one JSON string is required"),
    "meta not Unicode": (with_arrays(meta=lying_npy("<U1", (), b"\xff" * 4)), "meta is not JSON"),
    "version 2": (with_meta(format_version=2), "format_version is 2; this reader knows version 1"),
    "version true": (with_meta(format_version=True), "format_version is True"),
    "no version": (with_meta(format_version=KeyError), "meta.format_version is missing"),
    "no model": (with_meta(model=""), "meta.model"),
    "real not bool": (with_meta(real="yes"), "meta.real is 'yes'; true or false"),
    "n_experts a string": (with_meta(n_experts="8"), "meta.n_experts is '8'"),
    "n_experts too many": (with_meta(n_experts=40_000), "an integer from 1 to 32767"),
    "top_k differs": (with_meta(top_k=3), "meta.top_k is 3"),
    "top_k above experts": (with_meta(top_k=9), "meta.top_k is 9; an integer from 1 to 8"),
    "moe_layers too many": (with_meta(moe_layers=[0, 1, 2, 3], n_layers=4), "experts has 3 MoE layers"),
    "moe_layers beyond": (with_meta(moe_layers=[0, 1, 7]), "meta.moe_layers is"),
    "moe_layers unsorted": (with_meta(moe_layers=[0, 2, 1]), "ascending"),
    "score function": (with_meta(score_function="hardmax"), "meta.score_function is 'hardmax'"),
    "distances": (with_meta(lookahead_distances=[1, 2]), "lookahead has 1 distances"),
    "distance zero": (with_meta(lookahead_distances=[0]), "meta.lookahead_distances"),
    "float experts": (
        with_arrays(experts=lambda a: a.astype(np.float32)),
        "experts has dtype float32; integer",
    ),
    "64-bit sequence": (
        with_arrays(sequence=lambda a: a.astype(np.int64)),
        "sequence has dtype int64; int32",
    ),
    "integer prefill": (with_arrays(prefill=lambda a: a.astype(np.int8)), "prefill has dtype int8; bool"),
    "double weights": (with_arrays(weights=lambda a: a.astype(np.float64)), "weights has dtype float64"),
    "logits float32": (with_arrays(logits=lambda a: a.astype(np.float32)), "logits has dtype float32"),
    "rank": (with_arrays(experts=lambda a: a[..., 0]), "experts has rank 2"),
    "lookahead rank": (with_arrays(lookahead=lambda a: a[0]), "lookahead has rank 3"),
    "lengths": (with_arrays(position=lambda a: a[:-1]), r"position has shape \(11,\)"),
    "weights shape": (with_arrays(weights=lambda a: a[:, :, :1]), r"weights has shape \(12, 3, 1\)"),
    "logits shape": (with_arrays(logits=lambda a: a[:, :, :5]), r"logits has shape \(12, 3, 5\)"),
    "lookahead shape": (with_arrays(lookahead=lambda a: a[:, :4]), "lookahead has shape"),
    "no rows": (with_arrays(experts=lambda a: a[:0], sequence=lambda a: a[:0]), "experts has no rows"),
    "id too high": (
        with_arrays(experts=put((5, 1, 1), 8)),
        r"experts\[5, 1, 1\] = 8; expert ids lie in \[-1, 8\)",
    ),
    "id too low": (with_arrays(experts=put((5, 1, 1), -2)), r"experts\[5, 1, 1\] = -2"),
    "id beyond int16": (
        with_arrays(experts=lambda a: put((0, 0, 0), 65536)(a.astype(np.int64))),
        r"experts\[0, 0, 0\] = 65536",
    ),
    "unsigned 64-bit id": (
        with_arrays(experts=lambda a: put((0, 0, 0), 2**64 - 1)(a.astype(np.uint64))),
        r"experts\[0, 0, 0\] = 18446744073709551615",
    ),
    "lookahead id": (with_arrays(lookahead=put((0, 7, 2, 1), 8)), r"lookahead\[0, 7, 2, 1\] = 8"),
    "expert twice": (with_arrays(experts=duplicate), r"experts\[4, 2, 1\] = 5 is already in slot 0"),
    "NaN weight": (with_arrays(weights=put((2, 0, 1), np.nan)), r"weights\[2, 0, 1\] = nan"),
    "negative weight": (with_arrays(weights=put((2, 0, 1), -0.5)), r"weights\[2, 0, 1\] = -0.5"),
    "infinite weight": (with_arrays(weights=put((2, 0, 1), np.inf)), r"weights\[2, 0, 1\] = inf"),
    "NaN logit": (with_arrays(logits=put((2, 0, 7), np.nan)), r"logits\[2, 0, 7\] = nan"),
    "position gap": (with_arrays(position=put((11,), 40)), r"position\[11\] = 40 follows"),
    "position overflow": (
        with_arrays(sequence=np.zeros(12, np.int32), position=put((1,), -(2**31))),
        r"position\[1\] = -2147483648",
    ),
    "position negative": (with_arrays(position=put((0,), -1)), r"position\[0\] = -1; positions are >= 0"),
    "request comes back": (
        with_arrays(sequence=put((11,), 0), position=np.r_[0:11, 0].astype(np.int32)),
        r"sequence\[11\] = 0 comes back",
    ),
    "prompt after decode": (
        with_arrays(
            sequence=np.zeros(12, np.int32),
            position=np.arange(12, dtype=np.int32),
            prefill=np.arange(12) == 3,
        ),
        r"prefill\[3\] = True follows a generated token",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_in_one_line(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build, message = HOSTILE[kind]
    path = tmp_path / "hostile.npz"
    build(path)
    tracemalloc.start()
    with pytest.raises(TraceError, match=message) as refused:
        npz.read(path)
    assert tracemalloc.get_traced_memory()[1] < 16e6
    tracemalloc.stop()
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(str(path))
    assert main(["info", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert os.listdir(tmp_path) == ["hostile.npz"]


def test_the_base_of_the_hostile_files_is_valid(tmp_path: Path) -> None:
    with_arrays()(tmp_path / "t.npz")
    assert same(npz.read(tmp_path / "t.npz"), base())


def test_missing_file_folder_and_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "none.npz", "No such file"),
        (tmp_path, "not a regular"),
        (tmp_path / "pipe", "not"),
    ):
        with pytest.raises(TraceError, match=message):
            npz.read(path)
    with pytest.raises(TraceError, match="not a regular file"):
        npz.write(tmp_path / "pipe", base())


@REUSING_FOLDER
@given(data=st.data())
def test_damage_anywhere_is_refused_or_harmless(data: st.DataObject, tmp_path: Path) -> None:
    """Random bytes changed or cut: a TraceError, or a trace that is valid; never another exception."""
    path = tmp_path / "t.npz"
    npz.write(path, base())
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    try:
        validate(npz.read(path))
    except TraceError as error:
        assert "\n" not in str(error)


def test_many_slots_are_checked_for_duplicates() -> None:
    """Above 16 slots another way of looking is taken."""
    trace = random_trace(np.random.default_rng(0), 30, 2, 64, 20, missing=0.3)
    validate(trace)
    experts = np.array(trace.experts)
    experts[17, 1, :] = -1
    experts[17, 1, [3, 18]] = 9
    with pytest.raises(TraceError, match=r"experts\[17, 1, 18\] = 9 is already in slot 3"):
        validate(RoutingTrace(**parts(trace, experts=experts)))


@given(trace=traces(max_k=8), seed=st.integers(0, 2**32))
def test_duplicates_against_sets(trace: RoutingTrace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    experts = rng.integers(-1, trace.n_experts, trace.experts.shape).astype(np.int16)
    rows = experts.reshape(-1, trace.top_k)
    clash = any(len({e for e in row if e >= 0}) < sum(e >= 0 for e in row) for row in rows.tolist())
    changed = RoutingTrace(**parts(trace, experts=experts))
    if clash:
        with pytest.raises(TraceError, match="already in slot"):
            validate(changed)
    else:
        validate(changed)


def test_a_fault_in_a_late_chunk_is_named_by_its_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("layout", "check"):
        monkeypatch.setattr(f"traces.format.{module}.CHUNK_ELEMENTS", 7)
    trace = random_trace(np.random.default_rng(0), 50, 2, 8, 2, lookahead=2, distances=(1, 2), requests=1, prompt=0)
    validate(trace)
    for name, index, value in (
        ("experts", (41, 1, 0), 9),
        ("lookahead", (1, 41, 1, 0), 9),
        ("weights", (41, 1, 0), -1),
        ("position", (41,), 3),
        ("prefill", (41,), True),
    ):
        array = np.array(trace.arrays()[name])
        array[index] = value
        at = ", ".join(map(str, index))
        with pytest.raises(TraceError, match=rf"t\.npz: {name}\[{at}\] = "):
            validate(RoutingTrace(**parts(trace, **{name: array})), "t.npz")


@pytest.mark.parametrize("name", ["mixtral-8x7b", "gpt-oss-20b", "olmoe-1b-7b", "qwen1.5-moe", "granite-3.0-1b"])
def test_captures_open(name: str, tmp_path: Path) -> None:
    path = CAPTURES / f"{name}.npz"
    if not path.exists():
        pytest.skip("the real captures are not beside this project")
    trace = npz.read(path)
    assert trace.real
    npz.write(tmp_path / "t.npz", trace)
    assert npz.content_hash(npz.read(tmp_path / "t.npz")) == npz.content_hash(trace)


@pytest.mark.parametrize("mode", ["r+", "c"])
def test_pages_given_back_come_from_the_file_again(mode: str, tmp_path: Path) -> None:
    """What is written to a shared map stays, and so does what a private one holds, which no file has."""
    (tmp_path / "f").write_bytes(bytes(4 * 4096))
    mapped = np.memmap(tmp_path / "f", np.uint8, mode, shape=(4, 4096))  # type: ignore[call-overload]
    mapped[:] = np.arange(4, dtype=np.uint8)[:, None]
    for view in (mapped, mapped[1:], mapped.view(np.ndarray).reshape(-1), np.zeros(3)):
        give_back(view)
    assert np.array_equal(mapped[:, 7], [0, 1, 2, 3])
