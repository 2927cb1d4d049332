"""docs/models.md: its files describe a model, its commands run, its errors are what one reads, every key is on it."""

import re
from pathlib import Path

import numpy as np
import pytest

from sim import catalog, run
from sim.catalog.model_spec import ModelSpec
from tests.forked import Forks
from tests.pages import DocPage
from tests.pages import run as call
from traces.format import npz
from traces.format.trace import RoutingTrace

pytestmark = pytest.mark.machine
PAGE = DocPage("models.md")


def written(folder: Path, name: str = "granite-9", **meta: object) -> Path:
    """The page's files, and `my.npz`: 12 tokens of a model of 32 layers, 40 experts, top-8."""
    rng = np.random.default_rng(0)
    experts = rng.random((12, 32, 40)).argsort(axis=2)[:, :, :8].astype(np.int16)
    shape = {"format_version": 1, "n_experts": 40, "top_k": 8, "n_layers": 32, "moe_layers": list(range(32))}
    rows = {"sequence": np.zeros(12, np.int32), "position": np.arange(12, dtype=np.int32)}
    trace = RoutingTrace(
        experts, prefill=np.arange(12) < 4, meta={**shape, "model": name, "real": True, **meta}, **rows
    )
    npz.write(folder / "my.npz", trace)
    return PAGE.write(folder)


def test_a_file_by_hand_is_the_model_of_its_config(tmp_path: Path, commands: Forks) -> None:
    pytest.importorskip("transformers", reason="Hugging Face transformers is not installed (extra: hf)")
    assert set(PAGE.files) == {"config.json", "granite.toml"} and len(PAGE.blocks) == 1
    PAGE.check(written(tmp_path), commands)
    by_hand, laid_out = (catalog.model(str(tmp_path / name)) for name in ("granite.toml", "laid-out.toml"))
    told = {"name", "source"}
    assert by_hand.model_dump(exclude=told) == laid_out.model_dump(exclude=told)
    assert by_hand.total_params == pytest.approx(3.3e9, rel=0.01)


def test_the_other_commands_run(tmp_path: Path, commands: Forks) -> None:
    written(tmp_path)
    own = [line for line in PAGE.commands if "granite.toml" in line]
    said = [call(line, tmp_path, commands) for line in own]
    assert len(said) == 2 and "n_layers = 32" in said[0] and "tokens/s" in said[1]


def test_every_key_is_on_the_page_once_with_its_default() -> None:
    rows = re.findall(r"^\| (`.*?) \|", PAGE.text, re.M)
    keys = [key for row in rows for key in re.findall(r"`(\w+)`", row)]
    assert sorted(keys) == sorted(ModelSpec.model_fields)
    marked = re.findall(r"`(\w+)`\*", " ".join(rows))
    assert sorted(marked) == sorted(name for name, field in ModelSpec.model_fields.items() if field.is_required())


@pytest.mark.parametrize("file", ["missing", "misspelt", "other", "facts", "unknown"])
def test_the_errors_are_those_of_the_page(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    facts = {"model_facts": {"n_layers": 32}} if file == "facts" else {}
    written(tmp_path, **facts)
    text = PAGE.files["granite.toml"]
    without = "".join(line for line in text.splitlines(True) if not line.startswith(("attn", "vocab", "n_heads")))
    texts = {"missing": without, "misspelt": text.replace("n_heads", "n_heds")}
    (tmp_path / "my.toml").write_text(texts.get(file, text))
    if file == "other":
        (tmp_path / "granite.toml").write_text(text.replace("n_experts = 40", "n_experts = 64"))
    model = {"other": ["--model", "granite.toml"], "facts": [], "unknown": []}.get(file, ["--model", "my.toml"])
    assert run.main(["--trace", "my.npz", "--cache", "4", *model]) == 2
    line = capsys.readouterr().err
    begins = {
        "missing": "error: model: my.toml: attn_params_per_layer: missing, and there is no default (and 2 more)",
        "misspelt": "error: model: my.toml: n_heds: unknown key; did you mean n_heads?",
        "other": "error: model: granite.toml does not match my.npz: granite has 64 experts, top-8; the trace has 40",
        "facts": "error: model: my.npz: meta.model_facts: ",
        "unknown": "error: model: model 'granite-9': not in the catalog; ",
    }
    assert line.startswith(begins[file]) and line.count("\n") == 1
    assert begins[file].split(" (and")[0].split(" granite has")[0].strip() in PAGE.text
