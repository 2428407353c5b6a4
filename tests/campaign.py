"""Crash campaigns: the store is killed, loses power, is refused by the disk and damaged, at every point and in every way
that fits into the time, and has to keep what the oracle knows.

    python -m tests.campaign --minutes 10 --seed 7            all of them in turn
    python -m tests.campaign --seed 7 --only power --round 31     one round again, as a failure names it

Every campaign is a function that does one round: it takes a random.Random, from which all that happens follows, and a Tally.
"""

import argparse
import errno
import random
import sys
import time
from unittest import mock

import kvcore
from kvcore.crashfs import PAGE, SECTOR, SHORT, CrashFiles
from tests.life import Life, everything, wander
from tests.oracle import PATH, Oracle, WrongError, open_store, seen, shown, use

SHOWN = 5  # failures told in full
CHECKPOINT = PATH + b"/index.ckpt"


class Tally:
    """What a campaign has seen: `states`, `unreadable` (keys that answered an error, where that is allowed), `failures`."""

    def __init__(self):
        self.states = 0
        self.round = 0
        self.round_began = 0  # at this number of states
        self.unreadable = 0
        self.failures = []
        self.where = ""

    def check(self, files, oracle, power, using=True):
        """One state: open the store in `files`, compare it with the oracle, and go on using it now and then.

        Now and then the checkpoint is lost: it is only a cache, whatever it hides has to be hidden without it.
        """
        self.states += 1
        turn = (self.states - self.round_began) % 8
        if turn in (1, 4) and CHECKPOINT in files.paths():
            files.cut(CHECKPOINT, 0)
        try:
            found = oracle.check(open_store(files), files, power)
            self.unreadable += len(oracle.states) - len(found)
            if using and turn == 0:
                use(oracle, files, found, power)
        except Exception as error:
            self.fail(error)

    def fail(self, error):
        number = self.states - self.round_began
        self.failures.append(f"{self.where}, state {number}: {type(error).__name__}: {error}")


def any_parts(rng):
    """What of the unsynced changes reaches the disk: for after_power_loss."""

    def keep(parts):
        return rng.choice((
            0, -1, rng.getrandbits(parts), (1 << rng.randrange(parts + 1)) - 1, ~(1 << rng.randrange(parts)),
            1 << rng.randrange(parts)))

    return keep


def lose_power(files, rng):
    return files.after_power_loss(any_parts(rng), rng.choice((SECTOR, PAGE)))


def new_life(rng, files=None, oracle=None):
    return Life(files or CrashFiles(), oracle or Oracle(), rng, rng.choice(("always", "no")), rng.random() < 0.5)


# ---- the process ends

def kill(rng, tally, pairs=1.0):
    """Killed before every call that changes a file, from the first opening on, and so are `pairs` of the openings after."""
    files, oracle = CrashFiles(), Oracle()
    if rng.random() < 0.5:
        # Each write is done by halves: killed in between, the rest of it is missing.
        files.fail("pwrite", 1, SHORT, forever=True)

    def killed(_):
        left = files.after_kill()
        if rng.random() < pairs:
            again = files.after_kill()
            again.watch = lambda _: tally.check(again.after_kill(), oracle, False, using=False)
            open_store(again)
        tally.check(left, oracle, False)

    files.watch = killed
    for work in (everything, lambda life: wander(life, 20)):
        life = new_life(rng, files, oracle)
        work(life)
        life.close()


# ---- the power goes

def power(rng, tally, each=3):
    """The power goes before every call that changes something; `each` of the things that the disk may then have."""
    files, oracle = CrashFiles(), Oracle()

    def lost(_):
        for _ in range(each):
            tally.check(lose_power(files, rng), oracle, True)

    files.watch = lost
    for work in (everything, lambda life: wander(life, 20)):
        life = new_life(rng, files, oracle)
        work(life)
        life.close()


def subsets(rng, tally, most=8):
    """Every subset of the unsynced changes, wherever there are at most `most`."""
    files, oracle = CrashFiles(), Oracle()

    def lost(_):
        parts = files.unsynced()
        if 0 < parts <= most:
            for number in range(1 << parts):
                tally.check(files.after_power_loss(bits_of(number)), oracle, True)

    files.watch = lost
    life = new_life(rng, files, oracle)
    wander(life, 12)
    life.close()


def bits_of(number):
    """The bits of a number, a few for each question: for after_power_loss."""
    left = number

    def keep(parts):
        nonlocal left
        bits, left = left & (1 << parts) - 1, left >> parts
        return bits

    return keep


# ---- again and again

def lives(rng, tally, count=12):
    """One store through many lives, each ended at some call by a kill, a loss of power, or a close."""
    files, oracle = CrashFiles(), Oracle()
    for _ in range(count):
        # From some call on all fail: for the store that is what the end of the process is for everybody else.
        files.fail(None, rng.randrange(1, 150), errno.EIO, forever=True)
        try:
            life = new_life(rng, files, oracle)
            wander(life, rng.randrange(40))
            life.close()
        except kvcore.StorageError:
            pass  # it could not be opened any more
        lost = rng.random() < 0.5
        files = lose_power(files, rng) if lost else files.after_kill()
        tally.states += 1
        if rng.random() < 0.3 and CHECKPOINT in files.paths():
            files.cut(CHECKPOINT, 0)
        found = oracle.check(open_store(files), files, lost)
        tally.unreadable += len(oracle.states) - len(found)
        oracle.settle(found, lost)


# ---- the disk refuses

CODES = (errno.EIO, errno.ENOSPC, errno.EINTR)
FULL = "half, then no space"  # how a write ends that finds the disk full
LOOPING = ("pread", "pwrite")  # calls that are tried again when interrupted, and may do half of their work
MUST_RESUME = ("open", "pwrite", "fallocate")  # calls without which, for want of space, nothing was lost


def all_faults(calls):
    """(call, number, code, forever) of everything that can go wrong in a run that made so many calls."""
    for call, count in calls.items():
        for code in (*CODES, *((SHORT,) if call in LOOPING else ()), *((FULL,) if call == "pwrite" else ())):
            for forever in (False, True):
                if not (forever and code == errno.EINTR and call in LOOPING):  # that would never end
                    yield from ((call, number, code, forever) for number in range(1, count + 1))


def faults(rng, tally, share=1.0):
    """Each call of a run fails once, or from then on for ever, in each way. share: how many of these, by chance; but a disk
    that is full is tried at each write.
    """
    seed, fsync, executor = rng.random(), rng.choice(("always", "no")), rng.random() < 0.5
    files = CrashFiles()
    everything(Life(files, Oracle(), random.Random(seed), fsync, executor))
    where = tally.where
    for fault in all_faults(files.calls):
        if rng.random() < share or fault[2] == FULL:
            tally.where = f"{where}, fault {fault}"
            try:
                one_fault(random.Random(seed), tally, fsync, executor, fault)
            except Exception as error:
                tally.fail(error)


def one_fault(rng, tally, fsync, executor, fault):
    call, number, code, forever = fault
    files, oracle = CrashFiles(), Oracle()
    if code == FULL:
        files.fail(call, number, SHORT)
        files.fail(call, number + 1, errno.ENOSPC, forever)
    else:
        files.fail(*fault)
    try:
        life = Life(files, oracle, rng, fsync, executor)
    except kvcore.StorageError:
        files.heal()
        life = Life(files, oracle, rng, fsync, executor)
    everything(life)
    files.heal()
    for key in oracle.states:
        # What was refused was taken back; unless it was in the kernel already, when nothing more is written.
        visible = oracle.possible(key, False) if life.store.state == "read-only" else [oracle.newest(key)]
        if life.store.get(key) not in [seen(state, files.now) for state in visible]:
            raise WrongError(f"{key} is not {shown(visible)} before the end")
    if life.store.state == "read-only":
        read_only(life, call, code)
    else:
        life.tick(2)
        life.put(b"resumed", 10)
        if oracle.newest(b"resumed")[0] != oracle.number:
            raise WrongError("writing does not go on")
        life.close()
    tally.check(files.after_kill(), oracle, False)
    for keep in (lambda parts: 0, lambda parts: -1, any_parts(rng)):
        tally.check(files.after_power_loss(keep), oracle, True)


def read_only(life, call, code):
    """A store that is read-only stays so until it is closed, and syncs no file again where that failed."""
    if code in (SHORT, FULL) or (code == errno.ENOSPC and call in MUST_RESUME):
        raise WrongError(f"read-only: {life.store.reason}")
    for act in (lambda: life.store.put(b"more", b"1"), life.store.sync):
        try:
            act()
        except kvcore.ReadOnlyError:
            continue
        raise WrongError("a write passed although the store is read-only")
    life.checkpoint()
    life.close()
    if life.files.retries:
        raise WrongError("a sync that failed was tried again")


# ---- bits turn, files end too soon

class Damaged:
    """A store that was closed: full segments and one that is begun; `history`: (key, value, segment, end) of each write."""

    def __init__(self, rng):
        self.files = CrashFiles()
        self.values = {}
        self.history = []
        store = open_store(self.files)
        for i in range(150):
            key, value = b"key%d" % (i % 100), b"%d." % i + rng.randbytes(rng.choice((20, 600, 900))) + b"."
            store.put(key, value)
            self.values[key] = value
            newest = max(path for path in self.files.paths() if path.endswith(b".seg") and len(self.files.read(path)) > 64)
            # Behind it are zeros: space taken ahead.
            self.history.append((key, value, newest, len(self.files.read(newest).rstrip(b"\0"))))
        self.segments = sorted({segment for _, _, segment, _ in self.history})
        dict(store.items())  # makes the order of the full segment
        store.close()

    def key_at(self, path, byte):
        """The key of the record that this byte of a segment belongs to; None: that of the header."""
        ends = [(end, key) for key, _, segment, end in self.history if segment == path and end > byte]
        return min(ends)[1] if ends and byte >= 64 else None


def right_or_error(store, key, value):
    """A damaged store may refuse to read a key, but neither forget it nor read anything else."""
    try:
        got = store.get(key)
    except kvcore.CorruptionError:
        return
    if got != value:
        raise WrongError(f"{key} is {got if got is None else got[:20]}, not {value[:20]}")


def read_flips(rng, tally):
    """Every bit of the records of a full segment is turned under a store that is open."""
    damaged = Damaged(rng)
    path = damaged.segments[0]
    store = open_store(damaged.files)
    ends = [(end, key) for key, _, segment, end in damaged.history if segment == path]
    start = 64
    for end, key in ends:
        for bit in range(8 * start, 8 * end):
            tally.states += 1
            damaged.files.flip(path, bit)
            try:
                right_or_error(store, key, damaged.values[key])
            except WrongError as error:
                tally.fail(WrongError(f"bit {bit}: {error}"))
            damaged.files.flip(path, bit)
        start = end


def open_flips(rng, tally, every=61):
    """Bits of each file are turned, and the store opened: one in so many, others in the next round."""
    damaged = Damaged(rng)
    files = damaged.files
    for path, checkpoint in ((path, checkpoint) for path in files.paths() for checkpoint in (True, False)):
        if path.endswith(b"LOCK") or (not checkpoint and path not in damaged.segments[:-1]):
            continue  # the end of the log looks like a torn tail, as long as nothing proves that it was on the disk
        for bit in range(tally.round % every, 8 * len(files.read(path)), every):
            one_flip(tally, damaged, path, bit, checkpoint)


def one_flip(tally, damaged, path, bit, checkpoint):
    tally.states += 1
    files = damaged.files.after_kill()
    files.flip(path, bit)
    if not checkpoint:
        files.cut(CHECKPOINT, 0)
    try:
        store = open_store(files)
    except kvcore.CorruptionError as error:
        # Only what no other byte can make up for may refuse the start.
        if not path.endswith(b"/MANIFEST") and not (path.endswith(b".seg") and bit < 8 * 64):
            tally.fail(WrongError(f"{path} bit {bit}: {error}"))
        return
    try:
        for key, value in damaged.values.items():
            right_or_error(store, key, value)
        if path not in damaged.segments and dict(store.items()) != damaged.values:
            raise WrongError("a cache was believed")
    except Exception as error:
        tally.fail(WrongError(f"{path} bit {bit}, checkpoint {checkpoint}: {type(error).__name__}: {error}"))


def cuts(rng, tally):
    """Each file ends after any number of bytes."""
    damaged = Damaged(rng)
    for path in damaged.files.paths():
        if path.endswith(b"/LOCK"):
            continue
        sealed = path in damaged.segments[:-1]
        files = damaged.files.after_kill()
        # From the end: whoever is refused has changed nothing, and the next cut is made in the same files.
        for size in reversed(range(0, len(files.read(path)), 4093 if path.endswith(b"/RESERVE") else 1)):
            files = files if sealed else damaged.files.after_kill()
            files.cut(path, size)
            tally.states += 1
            try:
                one_cut(damaged, files, path, size, sealed)
            except Exception as error:
                tally.fail(WrongError(f"{path} cut at {size}: {type(error).__name__}: {error}"))


def one_cut(damaged, files, path, size, sealed):
    try:
        store = open_store(files)
    except kvcore.CorruptionError:
        # Only what no other byte can make up for may refuse the start.
        if sealed or path.endswith(b"/MANIFEST") or (path.endswith(b".seg") and size < 64):
            return
        raise
    if sealed:
        raise WrongError("it went unnoticed")
    expected = {key: value for key, value, segment, end in damaged.history if segment != path or end <= size}
    got = dict(store.items())
    if got != expected:
        raise WrongError(f"{len(got)} keys, not {len(expected)}, or other values")


# ---- all of them

CAMPAIGNS = {
    function.__name__: function for function in (kill, power, subsets, lives, faults, read_flips, open_flips, cuts)}


# What makes a round short enough for the ordinary suite.
QUICK = {"kill": {"pairs": 0.05}, "open_flips": {"every": 251}}


def run_round(name, seed, number, tally, quick=False):
    """One round of a campaign. The same name, seed (int), number (int) and quick (bool) do the same again."""
    options = QUICK.get(name, {}) if quick else {}
    rng = random.Random(f"{name} {seed} {number}")
    tally.where = f"{'--quick ' if quick else ''}--only {name} --seed {seed} --round {number}"
    tally.round = number
    tally.round_began = tally.states
    with mock.patch("os.urandom", random.Random(rng.random()).randbytes):
        try:
            CAMPAIGNS[name](rng, tally, **options)
        except Exception as error:
            tally.fail(error)


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description="Crash campaigns of the engine.")
    parser.add_argument("--minutes", type=float, default=10, help="how long (10)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="what to repeat (by chance)")
    parser.add_argument("--only", choices=CAMPAIGNS, help="one campaign instead of all in turn")
    parser.add_argument("--round", type=int, help="one round of it")
    parser.add_argument("--quick", action="store_true", help="short rounds, as in the ordinary suite")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    names = [options.only] if options.only else list(CAMPAIGNS)
    tallies = {name: Tally() for name in names}
    seconds = dict.fromkeys(names, 0.0)
    started = time.monotonic()
    rounds = dict.fromkeys(names, options.round or 0)
    while options.round is None or not any(seconds.values()):
        # The campaigns share the time: whose rounds are long has fewer of them.
        name = min(names, key=seconds.get)
        begun = time.monotonic()
        run_round(name, options.seed, rounds[name], tallies[name], options.quick)
        rounds[name] += 1
        seconds[name] += time.monotonic() - begun
        if time.monotonic() - started > 60 * options.minutes:
            break
    for name, tally in tallies.items():
        rate = tally.states / max(seconds[name], 1e-9) * 60
        print(f"{name:11} {tally.states:10,} states  {len(tally.failures):4} failures  {tally.unreadable:8,} keys unreadable"
              f"  {rate:10,.0f} states a minute")
        for failure in tally.failures[:SHOWN]:
            print("   ", failure)
    sys.exit(any(tally.failures for tally in tallies.values()))


if __name__ == "__main__":
    main()
