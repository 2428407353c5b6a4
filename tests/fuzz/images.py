"""Data directories to damage, and what must be read from them; damage as a program that any bytes are.

An image is made by the engine itself, with a clock and random numbers that are always the same: the same input does the same
damage, today and when it is replayed.
"""

import os
import random
import struct
from typing import NamedTuple
from unittest import mock

import kvcore
from tests.probe import HandFiles
from tests.support import at_once
from tests.test_recovery import HEADER, SMALL, records

NOW = 1_700_000_000_000  # unix milliseconds
MOST_EDITS = 6
GRAIN = 64  # bytes between the places in a file that an edit can name without luck
PART_COUNT = 8  # bytes of the count that each part of a checkpoint begins with


class Home(NamedTuple):
    """Where the record that decides about a key stands; with it, all of its batch."""

    file: str
    start: int
    end: int


class Image(NamedTuple):
    """A closed store's directory."""

    files: dict  # name: bytes
    older: dict  # the same some time before
    current: dict  # key: value, or None: deleted
    history: dict  # key: set of the values that it has had, None among them
    homes: dict  # key: Home, of those that have a record


def make_image(directory, checkpoint=True):
    """Make a store in `directory`, which must not exist, and return it as an Image."""
    rng = random.Random(1)
    with mock.patch("os.urandom", rng.randbytes):
        history = {}
        older, current = _write(directory, rng, history)
    files = read_files(directory)
    if not checkpoint:
        del files["index.ckpt"]
    return Image(files, older, current, history, _homes(files))


def open_image(directory):
    """The Store in `directory`, at the time at which the images were made, its jobs done at once."""
    files = HandFiles()
    files.now = NOW
    return kvcore.open(directory, fsync="no", executor=at_once, segment_size=SMALL, files=files)


def read_files(directory):
    """The files of a directory as a dict of name to bytes, but for the lock and the quarantine."""
    found = {}
    for entry in os.scandir(directory):
        if entry.is_file() and entry.name not in ("LOCK", "RESERVE"):
            with open(entry.path, "rb") as f:
                found[entry.name] = f.read()
    return found


def write_files(directory, files):
    """Make `directory` with these files."""
    os.mkdir(directory)
    for name, content in files.items():
        with open(os.path.join(directory, name), "wb") as f:
            f.write(content)


def _write(directory, rng, history):
    """Return the files half-way, and what is in the store at the end."""
    current = {}

    def put(target, key, value, **options):
        target.put(key, value, **options)
        current[key] = value
        history.setdefault(key, {None}).add(value)

    def delete(target, key):
        target.delete(key)
        current[key] = None

    store = open_image(directory)
    for i in range(40):
        put(store, b"old%02d" % i, rng.randbytes(rng.randrange(60)))
    put(store, b"packed", b"text " * 100)
    for i in range(0, 40, 2):
        put(store, b"old%02d" % i, b"new value of %d" % i)
    for i in range(0, 40, 5):
        delete(store, b"old%02d" % i)
    store.compact()
    for i in range(30):
        put(store, b"key%02d" % i, rng.randbytes(rng.randrange(100)))
    put(store, b"key00", b"1", ttl=10**9)
    put(store, b"large", rng.randbytes(50_000))
    with store.batch() as batch:
        for i in range(5):
            put(batch, b"key%02d" % (5 * i), b"of a batch")
        delete(batch, b"key01")
    store.close()
    older = read_files(directory)
    store = open_image(directory)
    put(store, b"large", rng.randbytes(20_000))
    for i in range(20):
        put(store, b"new%02d" % i, rng.randbytes(rng.randrange(200)))
    with store.batch() as batch:
        put(batch, b"new00", b"of a batch")
        delete(batch, b"new01")
    for i in range(3, 30, 6):
        delete(store, b"key%02d" % i)
    put(store, b"last", b"1")
    # Asked for, the orders of the sealed segments are made.
    assert dict(store.items()) == {key: value for key, value in current.items() if value is not None}
    store.close()
    return older, current


def _homes(files):
    """{key: Home} of the newest record of each key."""
    homes, versions = {}, {}
    for name in files:
        if not name.endswith(".seg"):
            continue
        batch = []
        for offset, size, flags, key, _ in records(files[name]):
            batch.append((key, offset, flags))
            if flags & 0x08:
                continue
            end = offset + size
            for member, start, kind in batch:
                version = struct.unpack_from("<Q", files[name], start + 4)[0]
                if kind & 0xF0 == 0 and version > versions.get(member, 0):
                    versions[member] = version
                    homes[member] = Home(name, batch[0][1], end)
            batch = []
    return homes


# ---- damage

class Program:
    """Bytes (data) that are read as decisions; all are 0 when they have come to their end."""

    def __init__(self, data):
        self._data = data
        self._at = 0

    @property
    def left(self):
        """Whether there are more decisions (bool)."""
        return self._at < len(self._data)

    def number(self, limit):
        """A number (int) below `limit`."""
        size = (max(limit - 1, 1).bit_length() + 7) // 8
        return int.from_bytes(self.bytes(size), "little") % max(limit, 1)

    def bytes(self, count):
        """`count` bytes."""
        taken = self._data[self._at:self._at + count]
        self._at += count
        return taken + bytes(count - len(taken))


def pieces_of(name, content):
    """Offsets of a file at which a record, or a part, begins or ends."""
    found = [0, len(content)]
    if name.endswith(".seg") and any(content[HEADER:]):
        found += [offset for offset, _, _, _, _ in records(content)]
    elif name.endswith(".ckpt"):
        offset = 44
        for size in (48, 16, *[16] * 256):
            found.append(offset)
            offset += PART_COUNT + size * struct.unpack_from("<Q", content, offset)[0] + 4
    elif name == "MANIFEST":
        found += [i + 1 for i, byte in enumerate(content) if byte == 10]
    return sorted(set(found))


class Damager:
    """Applies programs to an image. names: of the files that may be damaged; removable: whether they may be gone."""

    def __init__(self, image, names, removable):
        self._image = image
        self._names = sorted(names)
        self._removable = removable
        self._pieces = {name: pieces_of(name, image.files[name]) for name in self._names}
        self._places = {
            name: sorted({*pieces, *range(0, len(image.files[name]), GRAIN)}) for name, pieces in self._pieces.items()}

    def damaged(self, data):
        """The files (dict) after the program `data` (bytes) has run; the changed ones are new objects."""
        files = dict(self._image.files)
        program = Program(data)
        for _ in range(MOST_EDITS):
            if not program.left:
                break
            name = self._names[program.number(len(self._names))]
            edit = EDITS[program.number(len(EDITS))]
            if name not in files:
                continue
            content = edit(self, files, name, bytearray(files[name]), self._place(program, name), program)
            if content is None:
                del files[name]
            else:
                files[name] = bytes(content)
        return files

    def _place(self, program, name):
        places = self._places[name]
        return places[program.number(len(places))] + program.number(40)

    def flip(self, files, name, content, at, program):
        mask = 1 << program.number(8)
        if at < len(content):
            content[at] ^= mask
        return content

    def overwrite(self, files, name, content, at, program):
        taken = program.bytes(1 + program.number(16))
        content[at:at + len(taken)] = taken[:max(len(content) - at, 0)]
        return content

    def zero(self, files, name, content, at, program):
        end = min(at + 1 + program.number(4096), len(content))
        content[at:end] = bytes(max(end - at, 0))
        return content

    def cut(self, files, name, content, at, program):
        return content[:at]

    def remove(self, files, name, content, at, program):
        del content[at:at + 1 + program.number(4096)]
        return content

    def insert(self, files, name, content, at, program):
        content[at:at] = program.bytes(1 + program.number(32))
        return content

    def copy(self, files, name, content, at, program):
        """Bytes from elsewhere in the same file, or in another one of the image, over those here."""
        source = self._names[program.number(len(self._names))] if program.number(4) == 0 else name
        start = self._place(program, source)
        taken = self._image.files[source][start:start + 1 + program.number(8192)]
        content[at:at + len(taken)] = taken[:max(len(content) - at, 0)]
        return content

    def exchange(self, files, name, content, at, program):
        """Whole parts of a file in each other's place. Not records: a good one may stand anywhere in its segment."""
        if name.endswith(".seg"):
            return content
        was, pieces = self._image.files[name], self._pieces[name]
        i, j = (program.number(len(pieces) - 1) for _ in range(2))
        if i > j:
            i, j = j, i
        (a, b), (c, d) = pieces[i:i + 2], pieces[j:j + 2]
        return was[:a] + was[c:d] + (was[b:c] + was[a:b] if i < j else b"") + was[d:]

    def append(self, files, name, content, at, program):
        return content + program.bytes(1 + program.number(64))

    def put_back(self, files, name, content, at, program):
        """What the file was half-way, or nothing."""
        return self._image.older.get(name, None if self._removable else content)

    def lose(self, files, name, content, at, program):
        return None if self._removable else content


EDITS = [
    Damager.flip, Damager.overwrite, Damager.zero, Damager.cut, Damager.remove, Damager.insert, Damager.copy, Damager.append,
    Damager.put_back, Damager.lose, Damager.exchange,
]


def random_program(rng):
    """A program (bytes) that does something; most do one or two things."""
    return rng.randbytes(rng.choice((8, 8, 12, 20, 40, 80)))
