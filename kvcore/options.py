"""The options of kvcore.open: what is allowed."""

import os

from kvcore.errors import UsageError

FSYNC_WORDS = ("always", "everysec", "no")
SEGMENT_SIZES = (64 << 10, 1 << 30)  # bytes, from and to
LARGEST_VALUE = 1 << 30  # bytes; kvcore/types.pxd has it too


def check_options(path, fsync, segment_size, max_value_size):
    """Raise UsageError for what can never work."""
    if fsync not in FSYNC_WORDS:
        raise UsageError(f"fsync is one of {', '.join(FSYNC_WORDS)}, not {fsync!r}")
    smallest, largest = SEGMENT_SIZES
    if not smallest <= segment_size <= largest:
        raise UsageError(f"segment_size is from {smallest} to {largest} bytes, not {segment_size}")
    if not 0 < max_value_size <= LARGEST_VALUE:
        raise UsageError(f"max_value_size is from 1 to {LARGEST_VALUE} bytes, not {max_value_size}")
    if b"\0" in os.fsencode(path):
        raise UsageError("a path cannot hold a NUL byte")
