"""In which order what a device completes takes effect."""

from typing import TYPE_CHECKING, Protocol

from sim.core.visit import take_group

if TYPE_CHECKING:
    from runtime.replaying.machine import Machine

VISIT, GROUP, HOST, STEP = range(4)  # kinds of turn


class Order(Protocol):
    """In which order completions take effect: as they come, or as a record says (runtime.replaying.lockstep)."""

    def arrive(self, g: int, started_ns: int, landed_ns: int) -> None:
        """The copy of expert g has ended (with the lock held, from any thread)."""

    def turn(self, kind: int) -> None:
        """The host waits until it may let this take effect."""

    def done(self, kind: int) -> None:
        """It has taken effect (with the lock held)."""

    def take(self) -> int:
        """How many experts the free GPU takes now; 0: it stalls (with the lock held)."""


class AsTheyCome:
    """The order of a free run."""

    def __init__(self, machine: "Machine") -> None:
        self.machine = machine

    def arrive(self, g: int, started_ns: int, landed_ns: int) -> None:
        self.machine.landed(g, started_ns, landed_ns)
        self.machine.kick()
        self.machine.port.notify()

    def turn(self, kind: int) -> None:
        """At once."""

    def done(self, kind: int) -> None:
        if kind != STEP:
            self.machine.kick()

    def take(self) -> int:
        return int(take_group(self.machine.s, self.machine.plan.group))
