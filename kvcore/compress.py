"""Values as zstd frames. Made by compaction only, read by everybody. docs/format.md ("Record", flag *compressed*)."""

import threading

import zstandard

from kvcore.errors import CorruptionError

LEVEL = 3  # zstd's default: beyond it time grows faster than the saving
SMALLEST = 128  # bytes of a value below which a frame saves next to nothing
SAVING = 10  # a frame is kept when it saves at least one part in so many

# A (de)compressor must not be used by two threads at a time.
_own = threading.local()


def compress(value):
    """Return a frame for `value` (bytes), or None when it does not save a tenth. Any thread; gives up the GIL."""
    if len(value) < SMALLEST:
        return None
    try:
        compressor = _own.compressor
    except AttributeError:
        compressor = _own.compressor = zstandard.ZstdCompressor(level=LEVEL)
    frame = compressor.compress(value)
    return frame if len(frame) <= len(value) - len(value) // SAVING else None


def decompress(frame):
    """Return the value (bytes) of a frame. Raises CorruptionError. Any thread."""
    try:
        decompressor = _own.decompressor
    except AttributeError:
        decompressor = _own.decompressor = zstandard.ZstdDecompressor()
    try:
        return decompressor.decompress(frame)
    except zstandard.ZstdError as error:
        raise CorruptionError(f"a compressed value cannot be restored: {error}") from error
