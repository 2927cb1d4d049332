"""What the machine costs in time and memory, each figure beside one of the same minutes: python -m tests.bench --help.

plans, arms    what is run: the captures' requests over and over, one plan for each policy of the registry
figures        one quantity with the values of all rounds; how rounds are timed; what the machine was meanwhile
peers          the same requests to libCacheSim and to an LRU as people write it in Python
throughput, policies, memory, sizes, starts, sweeps   the sections
compare        this checkout and another one, interleaved; worker is what runs in each of the two
"""

from tests.bench.plans import captures, repeated, requests_of, with_buddies

__all__ = ["captures", "repeated", "requests_of", "with_buddies"]
