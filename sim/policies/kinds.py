"""The kinds of policies, and what a parameter of one may be: all that a spec must know of them."""

KINDS = ("eviction", "prefetch", "miss", "rerank", "placement")
Value = float | int | str | bool
