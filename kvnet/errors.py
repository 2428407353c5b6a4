"""The one place where errors become reply bytes."""


def text_error(reason, verbose):
    """Return the reply to a text command that failed: bytes ending in a carriage return.

    reason: str or exception. verbose: whether the dialect carries reasons (`--dialect escabelo`).
    """
    if not verbose:
        return b"error\r"
    words = " ".join(str(reason).split())
    return b"error: " + words.encode("utf-8", "replace") + b"\r"
