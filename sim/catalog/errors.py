"""The catalog's error, apart so that it can be caught without importing pydantic."""

from traces.errors import UserError


class CatalogError(UserError):
    """A name or a file that does not describe what it should; the message is always one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
