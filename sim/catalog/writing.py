"""Values as TOML, for the files that commands write."""

import json
from collections.abc import Mapping
from typing import Any


def toml(value: Any) -> str:
    """A value as TOML: JSON's spelling, but for tables."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(str(key))} = {toml(part)}" for key, part in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml(part) for part in value) + "]"
    return json.dumps(value)
