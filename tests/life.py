"""A store that is worked with until it is closed, or its world ends: what the campaigns do to it, told to the oracle."""

import contextlib
from unittest import mock

import kvcore
from tests.oracle import SMALL, open_store
from tests.support import PromptWorker

KEYS = [b"k%02d" % i for i in range(20)]
SIZES = (0, 10, 100, 500, 700, 3000, 9000)


class Life:
    """One opening of the store in `files`, and all that is done with it. rng: random.Random. fsync: "always" or "no".

    executor: whether the store's background jobs are queued, to be run and finished in any order, and its maintenance is
    driven from here; otherwise it looks after itself. What the store refuses with a StorageError is not acknowledged;
    everything else that it raises goes on.
    """

    def __init__(self, files, oracle, rng, fsync, executor=False):
        self.files = files
        self.oracle = oracle
        self.rng = rng
        self.fsync = fsync
        self.executor = executor
        self.jobs = []  # not run yet
        self.ran = []  # run, not finished
        with mock.patch("kvcore.store.Worker", PromptWorker):
            self.store = open_store(files, fsync=fsync, executor=self.jobs.append if executor else None)
        if fsync == "always":
            oracle.synced()

    # ---- writing

    def value(self, size):
        head = b"%d." % self.oracle.number
        filler = self.rng.randbytes(size) if self.rng.random() < 0.5 else b"v" * size
        return (head + filler)[:max(size, len(head))]

    def attempt(self, operations, act):
        """Do what `operations` (as for the oracle) say by calling act; acknowledged when that returns."""
        self.oracle.begin(operations)
        with contextlib.suppress(kvcore.StorageError):
            if act() is False and (self.store.state == "read-only" or not self.oracle.damaged.isdisjoint(operations)):
                # Nothing to delete: a deletion that was refused may be seen, and a damaged record may look expired.
                return
            self.oracle.acknowledge(operations)
            if self.fsync == "always":
                self.oracle.synced()

    def put(self, key, size, ttl=None):
        value = self.value(size)
        deadline = None if ttl is None else self.files.now + int(ttl * 1000)
        self.attempt({key: (value, deadline)}, lambda: self.store.put(key, value, ttl))

    def delete(self, key):
        self.attempt({key: (None, None)}, lambda: self.store.delete(key))

    def batch(self, keys, size):
        """Write some of the keys, delete the others, at once."""
        operations = [(key, None if self.rng.random() < 0.3 else self.value(size), None) for key in dict.fromkeys(keys)]
        self.attempt({key: (value, None) for key, value, _ in operations}, lambda: self.store.apply(operations))

    def rotate(self):
        """Fill the segment, so that the next one begins."""
        for _ in range(SMALL // 9000):
            self.put(self.rng.choice(KEYS), 9000)

    def sync(self):
        number = self.oracle.number
        with contextlib.suppress(kvcore.StorageError):
            self.store.sync()
            self.oracle.synced(number)

    def tick(self, seconds):
        self.files.now += int(seconds * 1000)

    # ---- background work

    def step_jobs(self):
        """Run a job that waits, or finish one that ran."""
        if self.jobs and (not self.ran or self.rng.random() < 0.5):
            job = self.jobs.pop(self.rng.randrange(len(self.jobs)))
            job.run()
            self.ran.append(job)
        elif self.ran:
            with contextlib.suppress(kvcore.StorageError):
                self.store.flush()
                self.ran.pop(self.rng.randrange(len(self.ran))).finish()

    def drive(self, steps):
        """Run an iterator of Jobs, or None, to its end; other things happen between run and finish."""
        for job in steps or ():
            job.run()
            self.meddle()
            self.store.flush()
            job.finish()

    def meddle(self):
        """What may happen while background work goes on."""
        if self.rng.random() < 0.3:
            self.put(self.rng.choice(KEYS), self.rng.choice(SIZES))
        elif self.rng.random() < 0.2:
            self.delete(self.rng.choice(KEYS))

    def checkpoint(self):
        with contextlib.suppress(kvcore.StorageError):
            if self.executor:
                self.drive(self.store.checkpoint_steps())
            else:
                self.store.checkpoint()

    def compact(self):
        """Some of the sealed segments, or what the store thinks is worth it."""
        with contextlib.suppress(kvcore.StorageError):
            ids = self.store.sealed_ids()
            if not self.executor:
                self.store.compact()
            elif ids and self.rng.random() < 0.7:
                self.drive(self.store.compaction_of(self.rng.sample(ids, self.rng.randint(1, len(ids)))))
            else:
                self.drive(self.store.maintenance(True))

    def close(self):
        self.ran.clear()
        number, state = self.oracle.number, self.store.state
        with contextlib.suppress(kvcore.StorageError):
            self.store.close()
            if state != "read-only":  # such a one is only let go
                self.oracle.synced(number)


def everything(life):
    """Each thing that a store does, once or twice: what the kill and fault campaigns go through call by call."""
    for i in range(6):
        life.put(KEYS[i], 100 * i)
    life.put(KEYS[6], 700, ttl=5)
    life.delete(KEYS[0])
    life.batch(KEYS[1:5], 500)
    life.sync()
    life.tick(1.5)
    life.put(KEYS[1], 300)  # with a mark before it
    life.rotate()
    life.step_jobs()
    life.batch(KEYS[3:9], 3000)
    life.step_jobs()
    life.checkpoint()
    life.tick(10)
    life.delete(KEYS[2])
    life.rotate()
    for _ in range(20):
        life.step_jobs()
    life.compact()
    life.put(KEYS[0], 10)
    life.compact()


def wander(life, steps):
    """So many steps of anything."""
    for _ in range(steps):
        act = life.rng.choices(
            ("put", "ttl", "delete", "batch", "sync", "tick", "jobs", "rotate", "checkpoint", "compact"),
            (50, 6, 15, 10, 6, 5, 15, 1, 1, 2))[0]
        key, size = life.rng.choice(KEYS), life.rng.choice(SIZES)
        if act == "put":
            life.put(key, size)
        elif act == "ttl":
            life.put(key, size, life.rng.choice((1, 10, 1000)))
        elif act == "delete":
            life.delete(key)
        elif act == "batch":
            life.batch(life.rng.sample(KEYS, life.rng.randint(2, 6)), life.rng.choice(SIZES[:-1]))
        elif act == "tick":
            life.tick(life.rng.choice((0.1, 1.5, 20)))
        else:
            {"sync": life.sync, "jobs": life.step_jobs, "rotate": life.rotate, "checkpoint": life.checkpoint,
             "compact": life.compact}[act]()
