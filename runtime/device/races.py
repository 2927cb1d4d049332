"""Whether two operations that touch the same thing are ordered, whatever order they run in.

A kernel that runs beside a copy into the slot that it reads gives a wrong result only in some orders, and
seldom. So what is checked is not the order that happened, but that every other one were as good: whether two
operations that touch the same thing (one of them writing) are *ordered*, by the rules of streams and events alone. The
rules are kept as vector clocks (Mattern 1989; the check of each access is FastTrack's, Flanagan and Freund, PLDI
2009): a stream's operations follow one another; `wait` takes over what stood behind the event; a launch follows what
the host has done. An event that the host waited for orders the host, and by `trust_host` also what it launches
afterwards. Without it (the default) the device's own events must order everything: the stronger law, which holds when
the host does not wait. Everything is known when an operation is queued, so a race is found there, in whatever order
things run.
"""

from collections.abc import Sequence
from typing import Any

from runtime.device.port import Access, Buffer, DeviceError

Clock = dict[str, int]  # how far each thread of execution is known


class Race(DeviceError):
    """Two accesses that nothing orders, or memory that is used when it may be gone."""


def join(clock: Clock, other: Clock) -> None:
    """What `other` knows, `clock` now knows too."""
    for name, n in other.items():
        clock[name] = max(clock.get(name, 0), n)


class Races:
    """Every access so far. The host is the thread `program`; each stream is one of its name."""

    def __init__(self, trust_host: bool) -> None:
        self.trust_host = trust_host
        self.known: Clock = {"program": 1}  # what the host knows
        self.written: dict[tuple[Buffer, Any], tuple[str, int]] = {}
        self.read: dict[tuple[Buffer, Any], Clock] = {}

    def queued(self, stream: str, clock: Clock, reads: Sequence[Access], writes: Sequence[Access]) -> Clock:
        """An operation is put into a stream whose clock this is; returns its own. Raises Race."""
        join(clock, self.known if self.trust_host else {"program": self.known["program"]})
        clock[stream] = clock.get(stream, 0) + 1
        self._access(stream, clock, reads, writes)
        return dict(clock)

    def host_touches(self, reads: Sequence[Access], writes: Sequence[Access]) -> None:
        """The host itself reads or writes. Raises Race."""
        self.known["program"] += 1
        self._access("program", self.known, reads, writes)

    def learn(self, clock: Clock) -> None:
        """The host has seen that what this clock knows has run."""
        join(self.known, clock)
        self.known["program"] += 1

    def freed(self, buffer: Buffer) -> None:
        """The host gives a buffer back: whatever touched it must be known to have run. Raises Race."""
        if not buffer.freed:
            for key in [key for key in (self.written.keys() | self.read.keys()) if key[0] is buffer]:
                self._check("free", self.known, key, writing=True)

    def _access(self, who: str, clock: Clock, reads: Sequence[Access], writes: Sequence[Access]) -> None:
        for key in reads:
            self._check(who, clock, key, writing=False)
            self.read.setdefault(key, {})[who] = clock[who]
        for key in writes:
            self._check(who, clock, key, writing=True)
            self.written[key] = (who, clock[who])
            self.read.pop(key, None)

    def _check(self, who: str, clock: Clock, key: tuple[Buffer, Any], writing: bool) -> None:
        buffer, part = key
        if buffer.freed:
            raise Race(f"{who} uses {buffer.what} ({part}) after it was freed")
        last, n = self.written.get(key, ("", 0))
        if n > clock.get(last, 0):
            raise Race(f"{who} {'writes' if writing else 'reads'} {buffer.what} ({part}), which {last} may still write")
        if writing:
            for reader, n in self.read.get(key, {}).items():
                if n > clock.get(reader, 0):
                    raise Race(f"{who} writes {buffer.what} ({part}), which {reader} may still read")
