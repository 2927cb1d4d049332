"""The catalog's error, apart so that it can be caught without importing pydantic."""


class CatalogError(ValueError):
    """A name or a file that does not describe what it should; the message is always one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
