"""Bytes of weights at a precision. No pydantic here."""

import math

from sim.catalog.files import find, shipped


def precision_bits(precision: str) -> float:
    """Bits per weight, scales counted, of a named precision (`precisions.toml`); CatalogError if unknown."""
    return float(shipped("precision")[find("precision", precision)]["bits"])


def weight_bytes(params: int, precision: str) -> int:
    """Bytes that `params` weights take at `precision`, rounded up."""
    return math.ceil(params * precision_bits(precision) / 8)
