"""The one place where errors become reply bytes, and where those are told that are news for the operator, too."""

from twisted.logger import Logger

from kvcore.errors import CorruptionError

log = Logger()


def text_error(reason, verbose):
    """Return the reply to a text command that failed: bytes ending in a carriage return.

    reason: str or exception. verbose: whether the dialect carries reasons (`--dialect escabelo`).
    """
    if isinstance(reason, CorruptionError):
        log.error("a command met damage: {reason}", reason=str(reason))
    elif isinstance(reason, MemoryError):
        log.error("a command found no memory")
    if not verbose:
        return b"error\r"
    words = " ".join(str(reason).split())
    return b"error: " + words.encode("utf-8", "replace") + b"\r"
