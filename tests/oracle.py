"""What a store has to hold after a crash: which state of each key was promised, and which others it may be in.

A state is (number of the operation, value or None, deadline or None). For each key the states that may be found are kept in
the order in which they were written:

    states    [ on the disk | unsynced ... | acknowledged | in flight or refused ... ]
                0                            self.acknowledged[key]

After a kill, the acknowledged state or a later one must be found: a write that was in flight, or refused, may be there or
not. After a loss of power it may be any of them, each key by itself, but nothing older than the synced one; and where there
are unsynced ones, the key may answer an error, when what the disk has of them cannot be told from damage. A batch is there
for all of its keys or for none.
"""

import kvcore
from tests.support import at_once

PATH = b"/store"
SMALL = 64 << 10
NEVER = (0, None, None)


class WrongError(AssertionError):
    """The store broke a promise."""


def open_store(files, **options):
    """A store in the file table, with small segments, that opens no thread."""
    return kvcore.open(PATH, **{"fsync": "no", "segment_size": SMALL, "files": files, "executor": at_once, **options})


def seen(state, now):
    """What a reader gets at `now` (unix milliseconds) of a key in this state."""
    _, value, deadline = state
    return None if deadline is not None and deadline <= now else value


class Oracle:
    def __init__(self):
        self.states = {}  # key to list of states
        self.acknowledged = {}  # key to the place of the acknowledged state
        self.batches = {}  # number to the keys of a batch
        self.unsynced = set()  # keys with more than one state
        self.damaged = set()  # keys that a loss of power made unreadable, until they are written
        self.scarred = False  # may there be damage in the log from a loss of power?
        self.number = 0

    def copy(self):
        other = Oracle()
        other.states = {key: list(states) for key, states in self.states.items()}
        other.acknowledged = dict(self.acknowledged)
        other.batches = dict(self.batches)
        other.unsynced = set(self.unsynced)
        other.damaged = set(self.damaged)
        other.scarred = self.scarred
        other.number = self.number
        return other

    def begin(self, operations):
        """An operation is about to be tried. operations: dict of key to (value or None, deadline or None)."""
        self.number += 1
        for key, (value, deadline) in operations.items():
            self.states.setdefault(key, [NEVER]).append((self.number, value, deadline))
            self.acknowledged.setdefault(key, 0)
            self.unsynced.add(key)
        if len(operations) > 1:
            self.batches[self.number] = list(operations)

    def acknowledge(self, keys):
        """What was tried last for these keys has returned, and is in the kernel."""
        for key in keys:
            self.acknowledged[key] = len(self.states[key]) - 1
            self.damaged.discard(key)

    def synced(self, number=None):
        """What was acknowledged up to the operation with this number, or now, is on the disk."""
        for key in self.unsynced - self.damaged:
            states, last = self.states[key], self.acknowledged[key]
            while number is not None and last > 0 and states[last][0] > number:
                last -= 1
            del states[:last]
            self.acknowledged[key] -= last
            if len(states) == 1:
                self.unsynced.discard(key)
        self.batches = {batch: keys for batch, keys in self.batches.items() if not self.unsynced.isdisjoint(keys)}

    def newest(self, key):
        """The state of the key for a reader of the store that is open."""
        return self.states[key][self.acknowledged[key]] if key in self.states else NEVER

    def possible(self, key, power):
        return self.states[key][0 if power else self.acknowledged[key]:]

    def settle(self, found, power):
        """The store that was opened after a crash is what counts from now on. found: as from check."""
        for key, states in self.states.items():
            if key in found:
                last = states.index(found[key][-1])
                del states[last + 1:]
                if power:
                    del states[:last]
                self.acknowledged[key] = len(states) - 1
                self.damaged.discard(key)
            else:
                self.acknowledged[key] = 0
                self.damaged.add(key)
        self.unsynced = {key for key, states in self.states.items() if len(states) > 1}
        if power:
            self.batches.clear()
            self.scarred = True

    def check(self, store, files, power):
        """Compare the store, just opened, with what is possible. Returns key to the states that it may be in now; a key
        whose record is damaged, which only power can do to one that had unsynced states, is left out. Raises WrongError.
        """
        if store.recovery["damaged_ranges"] and not power and not self.scarred:
            raise WrongError(f"damage without a loss of power: {store.recovery['messages']}")
        found, values = {}, {}
        for key in self.states:
            possible = self.possible(key, power)
            try:
                value = store.get(key)
            except kvcore.CorruptionError as error:
                if key in self.damaged or (power and len(possible) > 1):
                    continue
                raise WrongError(f"{key}: {error}; possible: {shown(possible)}") from error
            found[key] = [state for state in possible if seen(state, files.now) == value]
            if not found[key]:
                raise WrongError(f"{key} is {shown([(0, value, None)])}; possible: {shown(possible)}")
            if value is not None:
                values[key] = value
        self._check_batches(found, power)
        if len(found) == len(self.states):
            self._check_scan(store, values)
        return found

    def _check_scan(self, store, values):
        damaged = self.scarred or store.recovery["damaged_ranges"]
        if len(store) != len(values) and not damaged:
            raise WrongError(f"len is {len(store)}, not {len(values)}")
        try:
            scanned = list(store.items())
        except kvcore.CorruptionError:
            if damaged:
                return  # it has to say that there is a record whose key is not known
            raise
        if scanned != sorted(values.items()):
            raise WrongError(f"a scan shows {[key for key, _ in scanned]}, reading {sorted(values)}")

    def _check_batches(self, found, power):
        for number, keys in self.batches.items():
            there = set()
            for key in keys:
                numbers = [state[0] for state in self.possible(key, power)]
                matching = [state[0] for state in found.get(key, ())]
                if number not in numbers or not matching:
                    continue
                if all(n < number for n in matching):
                    there.add(False)
                elif all(n == number for n in matching):
                    there.add(True)
            if len(there) > 1:
                raise WrongError(f"batch {number} is there in part: {keys}")


def shown(states):
    """States in few words."""
    return [(number, value if value is None else f"{value[:12]!r}.. of {len(value)}", deadline)
            for number, value, deadline in states]


def use(oracle, files, found, power):
    """Go on with a store that was checked: write, close, open again, and look at it all once more. Raises WrongError."""
    oracle = oracle.copy()
    oracle.settle(found, power)
    store = open_store(files, fsync="always")
    for key, value in ((b"used", b"1"), (next(iter(oracle.states), b"used"), b"2")):
        oracle.begin({key: (value, None)})
        store.put(key, value)
        oracle.acknowledge([key])
    oracle.synced()
    store.close()
    oracle.check(open_store(files), files, False)
