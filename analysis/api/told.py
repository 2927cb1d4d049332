"""A summary that nobody changes by accident."""

from collections.abc import Mapping
from typing import Any, NoReturn


class Told(dict[str, Any]):
    """A dict to be read, the dicts in it too: in JSON, comparisons and copies (`dict(told)`) like any other."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        super().__init__({k: Told(v) if isinstance(v, Mapping) else v for k, v in given.items()})

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a result does not change; dict(summary) gives a copy that does")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        return Told, (dict(self),)  # pickle and copy would set the items one by one
