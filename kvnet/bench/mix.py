"""Sizes of keys and values: what the load generator and `benchmarks/` share."""

from typing import NamedTuple

KEY_LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-:"


class Span(NamedTuple):
    """So many percent of the items have a size between `shortest` and `longest`, both included, all equally often."""

    percent: int
    shortest: int
    longest: int


class Mix(NamedTuple):
    """The sizes of the keys, whose percents make 100, and of the values."""

    keys: tuple[Span, ...]
    values: Span


MIXES = {
    # That of the challenge.
    "pizzaria": Mix((Span(70, 8, 1024), Span(20, 1025, 10_240), Span(10, 10_241, 102_400)), Span(100, 100, 1000)),
}


def fixed(key_size: int, value_size: int) -> Mix:
    """All keys of one size, and all values."""
    return Mix((Span(100, key_size, key_size),), Span(100, value_size, value_size))
