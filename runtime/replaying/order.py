"""In which order what a device completes takes effect."""

from typing import Protocol

VISIT, GROUP, HOST, STEP, END = range(5)  # kinds of turn; END: of a visit for which the host computed nothing


class Order(Protocol):
    """In which order completions take effect: as they come, or as a record says (runtime.replaying.lockstep)."""

    def begin(self) -> None:
        """Time 0 (with the lock held): what a plan has queued by then may go on the link."""

    def arrive(self, g: int, started_ns: int, landed_ns: int) -> None:
        """The copy of expert g has ended (with the lock held, from any thread)."""

    def begin_again(self) -> None:
        """A reset (with the lock held): as at time 0, and what has arrived and not landed is nobody's."""

    def turn(self, kind: int) -> None:
        """The host waits until it may let this take effect."""

    def done(self, kind: int) -> None:
        """It has taken effect (with the lock held)."""

    def take(self) -> int:
        """How many experts the free GPU takes now; 0: it stalls (with the lock held)."""
