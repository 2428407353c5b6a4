"""The text protocol: whatever arrives, in whatever pieces, the replies are those of a parser that is easy to read."""

import os
import random
import re
import tempfile

import kvcore
from kvnet.metrics import Metrics
from kvnet.session import Session, command_rows
from tests.support import at_once

RUNS_PER_STORE = 2000
VALUE_LIMIT = 50
KEY_LIMIT = 102_400
SHORT_LIMIT = 8 + 1024 + KEY_LIMIT  # bytes of the longest command that does not write
REPEAT = 0xFE  # in an input: the next byte says how many KiB of "x" stand here
KEY = re.compile(rb"[A-z0-9.:-]+")
WORDS = [
    b"read a\r", b"read ", b"write a|1\r", b"write b|x|y \n\r", b"write ", b"write  c:d|", b"delete a\r", b"delete ",
    b"keys\r", b"reads a\r", b"reads ", b"status\r",
    b"status", b"\r", b"\r\n", b"\n", b"|", b" ", b"a", b"b", b"ab", b"_^[]", b"\x00",
    b"\xff", bytes([REPEAT, 1]), bytes([REPEAT, 100]), bytes([REPEAT, 102]), b"v" * VALUE_LIMIT, b"READ a\r",
]


def replies_to(said):
    """What the protocol answers (bytes) to all that a client said before it closed its side, from an empty store."""
    contents, replies = {}, []
    while said:
        line, end, said = said.partition(b"\r")
        if end:
            said = said.removeprefix(b"\n")
        replies.append(reply_to(line, contents) + b"\r")
    return b"".join(replies)


def reply_to(line, contents):
    """The reply (bytes) to one command, without its end; `contents` (dict) is what is in the store."""
    if len(line) > SHORT_LIMIT + (VALUE_LIMIT if line.startswith(b"write ") else 0):
        return b"error"
    word, blank, rest = line.partition(b" ")
    if not blank:
        return {b"status": b"well going our operation", b"keys": b"\r".join(sorted(contents))}.get(word, b"error")
    key, bar, value = rest.lstrip(b" ").partition(b"|")
    if not KEY.fullmatch(key) or len(key) > KEY_LIMIT or bool(bar) != (word == b"write") or len(value) > VALUE_LIMIT:
        return b"error"
    if word == b"write":
        contents[key] = value
        return b"success"
    if word == b"read":
        return contents.get(key, b"error")
    if word == b"delete":
        return b"error" if contents.pop(key, None) is None else b"success"
    if word == b"reads":
        return b"\r".join(contents[name] for name in sorted(contents) if name.startswith(key))
    return b"error"


class TextTarget:
    """Input: a byte that says how replies are taken, eight that seed the cutting, what the client says."""

    def __init__(self, scratch):
        self._scratch = scratch
        self._store = None
        self._runs = 0

    def seeds(self):
        rng = random.Random(3)
        return [self.mutated(rng) for _ in range(100)]

    def mutated(self, rng):
        """Another input (bytes)."""
        words = [rng.choice(WORDS) for _ in range(rng.randrange(1, 20))]
        for _ in range(rng.choice((0, 0, 1, 3))):
            words.insert(rng.randrange(len(words)), rng.randbytes(1))
        return rng.randbytes(9) + b"".join(words)

    def run(self, data):
        """Feed the input (bytes) and compare the replies."""
        if self._runs % RUNS_PER_STORE == 0:
            self._renew()
        self._runs += 1
        how, seed, said = data[0] if data else 0, data[1:9], expand(data[9:])
        session = Session(self._store, self._metrics, self._row, max_value_size=VALUE_LIMIT)
        session.hold = bool(how & 1)
        replies = [self._feed(session, chunk, how) for chunk in cut(said, random.Random(seed))]
        session.finish()
        replies.append(drain(session))
        try:
            assert b"".join(replies) == replies_to(said)
        finally:
            self._store.clear()

    def close(self):
        """Close the store, if one is open."""
        if self._store is not None:
            self._store.close()

    def _feed(self, session, chunk, how):
        session.feed(chunk)
        return b"" if how & 2 else drain(session)

    def _renew(self):
        self.close()
        directory = tempfile.mkdtemp(dir=self._scratch)
        self._store = kvcore.open(
            os.path.join(directory, "data"), fsync="no", autoflush=False, executor=at_once, max_value_size=VALUE_LIMIT)
        self._metrics = Metrics()
        self._row = command_rows(self._metrics)


def expand(said):
    """What the client says (bytes), its repetitions written out."""
    return re.sub(rb"\xfe(.)", lambda match: b"x" * (match[1][0] << 10), said, flags=re.DOTALL)


def cut(said, rng):
    """Pieces (iterable of bytes) of what is said; most are short."""
    at = 0
    while at < len(said):
        size = rng.choice((1, 2, 3, 7, 50, 5000, len(said)))
        yield said[at:at + size]
        at += size


def drain(session):
    """Take all replies, as a connection does whose client reads on and whose syncs succeed."""
    taken = []
    while True:
        session.release(session.mark)
        taken.append(session.take())
        if not session.unfinished:
            return b"".join(taken)
        session.resume()
