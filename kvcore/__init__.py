"""kvcore: an embedded, persistent, ordered key-value store. `kvcore.open(path)` is the way in."""

from kvcore._version import __version__
from kvcore.errors import (
    ClosedError,
    CorruptionError,
    KVError,
    LockedError,
    ReadOnlyError,
    StorageError,
    UsageError,
)
from kvcore.library import Store

__all__ = [
    "ClosedError",
    "CorruptionError",
    "KVError",
    "LockedError",
    "ReadOnlyError",
    "StorageError",
    "Store",
    "UsageError",
    "__version__",
    "open",
]


def open(path, **options):
    """Open the store in directory `path` (str, bytes or path-like), making it when it is not there; return a Store.

    Options: fsync ("always", "everysec" or "no"; default "everysec"), autoflush (bool, default True: every write reaches
    the kernel before it returns; False: only flush() does that), segment_size and max_value_size (bytes), compression
    (bool: whether compaction compresses values), executor (callable given each background Job; who passes one also
    drives maintenance() and the periodic sync. Default: the store looks after itself).

    Raises UsageError, StorageError, CorruptionError, LockedError. A directory that is refused is left as it was.
    """
    return Store(path, **options)
