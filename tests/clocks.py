"""A clock that stands still until it is told that time passed."""

import time
from typing import Any


class Clock:
    """In the place of time.monotonic once installed. now: seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def tick(self, seconds: float) -> None:
        self.now += seconds

    def install(self, monkeypatch: Any) -> "Clock":
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        return self
