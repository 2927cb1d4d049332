"""What writers of counts share."""

import numpy as np
import numpy.typing as npt

from traces.format.profile import Profile, of_trace
from traces.format.trace import RoutingTrace


def counts_of(source: RoutingTrace | Profile) -> tuple[npt.NDArray[np.int64] | npt.NDArray[np.float64], Profile]:
    """(counts [L, E], the profile): int64 where every count is whole, as the tools themselves write, else float64."""
    profile = of_trace(source) if isinstance(source, RoutingTrace) else source
    whole = bool((profile.counts == np.floor(profile.counts)).all() and profile.counts.max() < 2**53)
    return (profile.counts.astype(np.int64) if whole else profile.counts), profile
