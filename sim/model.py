"""python -m sim.model SOURCE FILE.toml: write what is known of a model as a file for --model.

SOURCE is a trace whose meta describes its model (`python -m traces capture` writes that), or a Hugging Face config.json
of a Mixture-of-Experts model, which transformers then lays out without its weights. What nobody knows is left out of
the file and named, so that it can be written there by hand: docs/models.md. Exit status 0 written, 2 bad input.
"""

import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.catalog.files import FACTS
from sim.catalog.writing import toml
from sim.errors import CatalogError
from traces.command import Parser, guarded, write_bytes
from traces.format import npz

if TYPE_CHECKING:
    from sim.catalog.model_spec import ModelSpec


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> None:
    parser = Parser(prog="python -m sim.model", description="Write what is known of a model as a file for --model.")
    parser.add_argument("source", metavar="SOURCE", help="a trace (.npz) that says it, or a Hugging Face config.json")
    parser.add_argument("out", metavar="FILE.toml", help="the file to write")
    args = parser.parse_args(argv)
    if not args.out.lower().endswith(".toml"):
        raise CatalogError(f"{args.out}: a name that ends in .toml is required: --model takes it for a file by that")
    facts, source = _told(args.source)
    text = _text(facts | {"source": source})
    said = _said(args.out, text)
    write_bytes(args.out, text.encode())
    print(f"{args.out}: {said}")


def _told(source: str) -> tuple[dict[str, Any], str]:
    """Facts by key, and where they are from. Raises UserError where there are none."""
    if source.lower().endswith(".json"):
        from traces.capturing.command import facts_of_config

        return facts_of_config(source), f"{Path(source).name}, laid out by transformers"
    path = npz.find(source)
    facts = npz.read(path).meta.get(FACTS)
    if not isinstance(facts, dict) or not facts:
        raise CatalogError(
            f"{path.name}: its meta has no {FACTS}; a trace of `python -m traces capture`, or a config.json"
        )
    return facts, f"meta of {path.name}"


def _text(facts: Mapping[str, Any]) -> str:
    """As TOML, in the order of docs/models.md; what is no key stands last, and is refused."""
    from sim.catalog.model_spec import ModelSpec

    known = {key: facts[key] for key in ModelSpec.model_fields if key in facts}
    other = {toml(key): value for key, value in facts.items() if key not in known}
    return "".join(f"{key} = {toml(value)}\n" for key, value in (known | other).items())


def _said(name: str, text: str) -> str:
    """What the file comes to, or what is missing in it. Raises CatalogError for what is wrong in another way."""
    from sim.catalog.model_spec import ModelSpec
    from sim.catalog.parts import build

    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CatalogError(f"{name}: cannot be written as TOML: {error}") from None
    pattern = str(table.get("attention_pattern", "f"))
    wanted = [key for key, field in ModelSpec.model_fields.items() if field.is_required()]
    wanted += ["window"] * bool(set("ws") & set(pattern)) + ["linear_state_bytes"] * ("l" in pattern)
    missing = [key for key in wanted if key not in table]
    if missing:
        build(ModelSpec, name, dict.fromkeys(missing, 1) | table)
        return f"incomplete; to be said by hand: {', '.join(missing)}"
    return _sizes(build(ModelSpec, name, table))


def _sizes(model: "ModelSpec") -> str:
    total, active = model.total_params / 1e9, model.active_params / 1e9
    return f"{total:.3g} B parameters, {active:.3g} B of them active; {model.n_moe_layers} MoE layers"


if __name__ == "__main__":
    sys.exit(main())
