"""Whether the host's work slows the link, and how sure that is: the record has only how long each copy took.

Where the spec names `link_share`, it says so. Where it leaves it to the hardware, the record shows it: copies of one
size, alike in whether they follow on another, last equally long on a virtual machine, but for those beside the host.
"""

import numpy as np
import numpy.typing as npt

from analysis.timelines.asked import Asked
from sim.core.plan import PLACES
from sim.machines.record import Group

Int = npt.NDArray[np.int64]
REMOTE = PLACES.index("remote")  # lasts as long as the GPU computes, too


def how_sure(asked: Asked) -> str:
    """What it rests on that the link is shown as slowed."""
    if asked.link_share is None:
        return "seen: copies last longer beside the host"
    return "asked for; what the device did is not known" if asked.measured else "exact: the spec says so"


def is_slowed(asked: Asked, sent: Group, lasts: Int, sizes: Int, place: Int, touched: npt.NDArray[np.bool_]) -> bool:
    """Of all transfers over the link, or chunks, in order, [n] each: their events (copies.pieces), ns, bytes, place,
    and whether the host computed meanwhile."""
    if asked.link_share is not None:
        return asked.link_share < 1
    if asked.measured or not touched.any() or touched.all():
        return False
    after = np.append(False, sent["event_committed"][1:] < sent["event"][:-1])
    kind = 2 * sizes + after
    alike = place != REMOTE
    order = np.unique(kind)
    longest = np.full(len(order), np.iinfo(np.int64).max)
    for i, one in enumerate(order):
        alone = lasts[alike & ~touched & (kind == one)]
        longest[i] = alone.max() if len(alone) else longest[i]
    return bool((lasts > longest[np.searchsorted(order, kind)])[alike & touched].any())
