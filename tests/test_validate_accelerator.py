"""Validation of a whole CUDA machine that is not there: in its simulated time, against the truth that it knows."""

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.device.accelerator import DeviceEvent
from runtime.validate import main
from tests.stand_in import StandIn
from tests.test_validate import MODEL
from traces.format import npz
from traces.synthetic import Preset, generate

SECONDS = 12.0
EXPERT_BYTES = 3 * 64 * 96 * 2  # three matrices in bf16


@pytest.fixture
def off(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The largest distance so far of a time that the port gave from the truth, in ns."""
    worst, plain = [0], DeviceEvent.time_ns

    def noted(self: Any) -> int:
        at = plain(self)
        worst[0] = max(worst[0], abs(at - self.event.at_ns))
        return at

    monkeypatch.setattr(DeviceEvent, "time_ns", noted)
    return worst


def test_a_validation_ends_in_time_with_true_times_and_within_tolerance(
    tmp_path: Path, off: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 0 within its deadline, device times within 50 us of the truth, the link's term within 20 % of it."""
    (tmp_path / "tiny.toml").write_text(MODEL)
    preset = Preset("tiny", 8, 2, 4, tuple(range(4)), noise=(0.24,), requests=8, prompt=(4, 9), generation=(20, 30))
    npz.write(tmp_path / "t.npz", generate(preset, 0))
    named = ["--trace", str(tmp_path / "t.npz"), "--model", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "out")]
    few = ["--policies", "lru,lru+gate-lookahead", "--batches", "2", "--repeats", "2", "--seconds", str(SECONDS)]
    with StandIn(link_gbps=0.05, kernel_ns=20_000, hiccups=20, yield_ns=10_000) as machine:
        began = machine.now
        status = main([*named, "--device", "cuda", "--quick", *few])
        took_s = (machine.now - began) / 1e9
    out = json.loads((tmp_path / "out/validation.json").read_text())
    said = capsys.readouterr()
    assert status == 0, said.out
    assert took_s < SECONDS and out["deadline_s"] == SECONDS and out["rounds"] == 2
    assert 0 < off[0] < 50_000 and machine.strided == []
    truth_ns = machine.copy_ns + EXPERT_BYTES / machine.link_gbps
    assert out["calibration"]["link"]["transfer_idle_ns"] == pytest.approx(truth_ns, rel=0.2)
    assert out["kind"] == "full" and out["statements"]["without_link"]["verdict"] == "within"
    assert max(case["longest_prompt"] for case in out["arms"]) > 1000
    assert max(case["longest_context"] for case in out["arms"]) > 1000
    assert "s left of" in said.err
    for case in out["arms"]:
        assert 0 < case["gpu_busy_ns"] < case["measured_ns"]["experts"]
