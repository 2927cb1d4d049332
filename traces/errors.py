"""What a user gets wrong: one line on stderr, exit status 2."""


class UserError(ValueError):
    """Bad input of any kind: the message is one line that names what is wrong and what would be right."""

    def __init__(self, message: str = "") -> None:
        super().__init__(" ".join(message.split()))


class TraceError(UserError):
    """Of a trace: the line names file, array, index and value."""
