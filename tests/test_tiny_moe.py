"""The shipped checkpoint keeps what its record claims, on the held-out files that every supported Python has."""

import json
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the runtime's torch is not installed")
pytest.importorskip("safetensors", reason="the runtime's safetensors is not installed")
tokenizers = pytest.importorskip("tokenizers", reason="the train extra's tokenizers is not installed")

from runtime import train  # noqa: E402
from runtime.small_model import heldout, model, text  # noqa: E402

FILES = ("base64.py", "copy.py", "fileinput.py", "http/cookies.py", "json/__init__.py")
ONE_FAIR_SHARE_IN = 5


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((model.FOLDER / "record.json").read_text())
    return loaded


def test_the_record_claims_what_was_asked_for(record: dict[str, Any]) -> None:
    config, heldout = record["config"], record["heldout"]
    assert record["finished"] and config["num_hidden_layers"] >= 6 and config["num_experts"] >= 16
    assert 2 <= config["num_experts_per_tok"] <= 4
    assert heldout["bits_per_byte"] <= 0.75 * min(heldout["order2"].values())
    assert min(map(min, record["expert_load"])) >= 1 / ONE_FAIR_SHARE_IN
    assert (model.FOLDER / "model.safetensors").stat().st_size <= 16e6
    given = train.arguments().parse_args(record["command"].split()[3:])
    assert {n: getattr(given, n) for n in record["options"]} == record["options"]
    assert {n: getattr(given, n) for n in config} == config


def test_the_checkpoint_keeps_the_claims(record: dict[str, Any]) -> None:
    """About 80 kB of the 529 kB held out; other versions of Python have them with small changes."""
    decoder = model.load_checkpoint(model.FOLDER)
    assert train.asdict(decoder.config) == record["config"]
    tokenizer = tokenizers.Tokenizer.from_file(str(model.FOLDER / "tokenizer.json"))
    files = [f for f in text.read_corpus().heldout if f.path in FILES]
    assert len(files) == len(FILES) and all(f.path in record["data"]["heldout"] for f in files)
    n_bytes = sum(len(f.data) for f in files)
    bits, counts = heldout.evaluate(decoder, text.encode(tokenizer, files), n_bytes)
    assert bits <= 0.75 * record["heldout"]["order2"]["order2_bytes"]
    assert bits == pytest.approx(record["heldout"]["bits_per_byte"], abs=0.2)
    assert min(map(min, heldout.share_of_fair(counts))) >= 1 / ONE_FAIR_SHARE_IN
