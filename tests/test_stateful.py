"""Everything that can be done to a store, in any order, against a dict.

KVSTORE_STATEFUL_STEPS: how many steps (default 20,000). KVSTORE_STATEFUL_SEED: the number that a failed run printed.
KVSTORE_STATEFUL_SHRINK: look for the shortest way to a failure, which may take minutes.
"""

import contextlib
import itertools
import os
import random
import shutil
import sys
import tempfile
from unittest import mock

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

import kvcore
from tests.probe import HandFiles
from tests.support import HandWorker, StoreCase, at_once
from tests.test_recovery import SMALL

START = 1_800_000_000_000
STEPS = int(os.environ.get("KVSTORE_STATEFUL_STEPS", "20000"))
EACH = 200  # steps with one store
PHASES = [Phase.generate, Phase.shrink] if os.environ.get("KVSTORE_STATEFUL_SHRINK") else [Phase.generate]
HEADER, DEADLINE = 20, 8  # bytes of a record beside key and value

KEYS = [
    b"a", b"ab", b"abc", b"abd", b"b", b"\0", b"\0\0", b"\xff", b"\xff\xff", b"\xff\xfe\xff",
    *(b"key:%d" % i for i in range(40)), *(b"longer key " * 30 + b"%d" % i for i in range(6))]
PREFIXES = [b"", b"a", b"ab", b"key:", b"key:1", b"\xff", b"\xff\xff", b"\0", b"longer key ", b"none"]
SIZES = (0, 1, 8, 20, 130, 600, 4000, 9000, 20000)

keys = st.integers(0, len(KEYS) - 1).map(KEYS.__getitem__)
sizes = st.integers(0, len(SIZES) - 1).map(SIZES.__getitem__)
ttls = st.sampled_from((None, None, None, 0.5, 3, 10, 1000))
seeds = st.integers(0, 2 ** 20)


class InsideBatchError(Exception):
    pass


class Walk:
    """A cursor, and what it owes."""

    def __init__(self, cursor, prefix, owed, values):
        self.cursor = cursor
        self.prefix = prefix
        self.owed = owed  # keys that exist since it began and have not come
        self.values = values
        self.last = None


class StoreMachine(RuleBasedStateMachine):
    """The store, and the model: `current`, and `flushed`, which is what the end of the process leaves.

    Both are dicts of key: (value, deadline or None), with a version time: the clock at the newest write, behind which the
    store's own idea of now never falls.
    """

    case = None  # the TestCase
    steps = 0  # over all machines
    seen = {}  # how often each thing was done

    def __init__(self):
        super().__init__()
        self.files = HandFiles()
        self.files.now = START
        self.store = self.worker = None
        self.current, self.time = {}, 0
        self.flushed, self.flushed_time = {}, 0
        self.used = set()
        self.walks = []
        self.queue = []  # jobs that an executor was given and has not begun
        self.task = self.job = None  # checkpoint or compaction under way
        self.ran = False
        self.count = 0
        self.handled = sys.exc_info()[1]
        self.written = 0

    def saw(self, what):
        self.seen[what] = self.seen.get(what, 0) + 1

    # ---- the store and its model

    @initialize(number=seeds, compression=st.booleans(), autoflush=st.booleans(), executor=st.integers(0, 2))
    def begin(self, number, compression, autoflush, executor):
        self.compression = compression
        self.dir = self.case.new_path()
        # The secret of the hash decides which keys share a partition: it has to be the same when a failure is repeated.
        with mock.patch("os.urandom", random.Random(number).randbytes):
            self.open(autoflush, executor)
        self.many(number, True)

    def open(self, autoflush, executor):
        self.autoflush = autoflush
        self.executor = executor
        inline = (None, at_once, self.queue.append)[executor]
        with mock.patch("kvcore.store.Worker", self.new_worker):
            self.store = kvcore.open(
                self.dir, fsync="no", segment_size=SMALL, autoflush=autoflush, executor=inline,
                compression=self.compression, files=self.files)
        assert self.store.recovery["messages"] == [], self.store.recovery

    def new_worker(self, store, syncing):
        self.worker = HandWorker(store, syncing)
        return self.worker

    @property
    def by_itself(self):
        """Does the store look after itself? Then nobody else compacts it."""
        return self.executor == 0

    def now(self):
        return max(self.files.now, self.time)

    def alive(self):
        now = self.now()
        return {key: value for key, (value, deadline) in self.current.items() if deadline is None or deadline > now}

    def all_flushed(self):
        self.flushed, self.flushed_time = dict(self.current), self.time

    @contextlib.contextmanager
    def doing(self, writes=False):
        """Around a call of the store: find out whether it flushed what was written before."""
        before = (self.store.unsynced, len(self.store.sealed_ids()))
        was = (dict(self.current), self.time)
        yield
        if self.autoflush:
            self.all_flushed()
        elif (self.store.unsynced, len(self.store.sealed_ids())) != before:
            self.flushed, self.flushed_time = was if writes else (dict(self.current), self.time)

    def flush_now(self):
        self.store.flush()
        self.all_flushed()

    def make(self, size, pattern):
        self.written += 1
        content = b"%d" % self.written
        if pattern:
            return (content + b" pizza margherita" * (size // 16 + 1))[:size]
        return (content + random.Random(self.written).randbytes(size))[:size]

    def wrote(self, key, value, ttl, now):
        self.used.add(key)
        self.time = max(self.time, self.files.now)
        if value is not None:
            self.current[key] = (value, None if ttl is None else now + int(ttl * 1000))
            return
        self.current.pop(key, None)
        for walk in self.walks:
            walk.owed.discard(key)

    def do_put(self, key, value, ttl=None):
        with self.doing(writes=True):
            self.store.put(key, value, ttl=ttl)
            self.wrote(key, value, ttl, self.now())

    def do_delete(self, key):
        there = key in self.alive()
        with self.doing(writes=True):
            assert self.store.delete(key) == there
            if there:
                self.wrote(key, None, None, self.now())

    # ---- writing

    @rule(key=keys, size=sizes, pattern=st.booleans())
    def put(self, key, size, pattern):
        self.do_put(key, self.make(size, pattern))

    @rule(key=keys, size=sizes, ttl=ttls)
    def put_with_deadline(self, key, size, ttl):
        self.do_put(key, self.make(size, False), ttl)

    @rule(key=keys)
    def delete(self, key):
        self.do_delete(key)

    @rule(number=seeds, large=st.booleans())
    def many(self, number, large):
        """As many writes as begin a new segment, or nearly."""
        rng = random.Random(number)
        for _ in range(rng.randrange(4, 40)):
            key = rng.choice(KEYS)
            if rng.random() < 0.3:
                self.do_delete(key)
            else:
                size = rng.choice(SIZES[-4:] if large else SIZES)
                self.do_put(key, self.make(size, rng.random() < 0.5), rng.choice((None, None, None, 2, 20)))

    @rule(operations=st.lists(st.tuples(keys, sizes, st.sampled_from((None, 4, "delete"))), max_size=5),
          trouble=st.sampled_from((None, None, "raised", "refused")))
    def batch(self, operations, trouble):
        operations = [(key, None if ttl == "delete" else self.make(size, True), None if ttl == "delete" else ttl)
                      for key, size, ttl in operations]
        expected = {None: (), "raised": InsideBatchError, "refused": kvcore.UsageError}[trouble]
        self.saw(f"batch {trouble}")
        with self.doing(writes=True):
            was = dict(self.current), self.time
            with contextlib.suppress(expected), self.store.batch() as batch:
                for key, value, ttl in operations:
                    if value is None:
                        batch.delete(key)
                    else:
                        batch.put(key, value, ttl)
                if trouble == "raised":
                    raise InsideBatchError
                if trouble == "refused":
                    batch.put(b"", b"a key has at least one byte")
            if trouble is None:
                now = self.now()
                for operation in operations:
                    self.wrote(*operation, now)
        if trouble is None and operations and not self.autoflush:
            self.flushed, self.flushed_time = was

    @rule()
    def flush(self):
        self.flush_now()

    # ---- time

    @rule(seconds=st.sampled_from((0.001, 0.5, 1, 3, 10, 100, 200_000)))
    def time_passes(self, seconds):
        self.files.now += int(seconds * 1000)
        alive = self.alive()
        for walk in self.walks:
            walk.owed.intersection_update(alive)

    @rule(seconds=st.sampled_from((0.001, 1, 10, 1000, 200_000)), write=st.booleans())
    def clock_jumps_back(self, seconds, write):
        if write:
            self.do_put(KEYS[0], b"dates what has gone before")
        before = self.now()
        self.files.now -= int(seconds * 1000)
        self.earlier(before)

    def earlier(self, before):
        """What was gone when nothing was written afterwards may be back, or not. It is written anew."""
        now = self.now()
        if now >= before:
            return
        for key, (value, deadline) in list(self.current.items()):
            if deadline is not None and now < deadline <= before:
                self.saw("back in time")
                assert self.store.get(key) in (None, value), key
                self.do_put(key, self.make(20, False))
        self.flush_now()

    # ---- scans

    @rule(prefix=st.sampled_from(PREFIXES), values=st.booleans())
    def scan(self, prefix, values):
        expected = sorted(item for item in self.alive().items() if item[0].startswith(prefix))
        with self.doing():
            if values:
                assert list(self.store.items(prefix)) == expected
            else:
                assert list(self.store.keys(prefix)) == [key for key, _ in expected]

    @precondition(lambda self: len(self.walks) < 4)
    @rule(prefix=st.sampled_from(PREFIXES[:5]), values=st.booleans(), steps=st.integers(1, 10))
    def begin_scan(self, prefix, values, steps):
        cursor = self.store.items(prefix) if values else self.store.keys(prefix)
        owed = {key for key in self.alive() if key.startswith(prefix)}
        self.walks.append(Walk(cursor, prefix, owed, values))
        self.saw("cursor")
        self.walk(len(self.walks) - 1, steps)

    @precondition(lambda self: self.walks)
    @rule(which=st.integers(0, 3), steps=st.sampled_from((1, 2, 5, 20, 1000)))
    def walk(self, which, steps):
        walk = self.walks[which % len(self.walks)]
        alive = self.alive()
        for _ in range(steps):
            with self.doing():
                got = next(walk.cursor, None)
            if got is None:
                assert not walk.owed, ("missing at the end", walk.owed)
                self.walks.remove(walk)
                return
            key = got[0] if walk.values else got
            assert key.startswith(walk.prefix)
            assert walk.last is None or walk.last < key, ("order", walk.last, key)
            assert key in alive, ("not there", key)
            assert not walk.values or got[1] == alive[key], ("value", key)
            walk.last = key
            walk.owed.discard(key)
            missed = {owed for owed in walk.owed if owed < key}
            assert not missed, ("missed", missed)

    # ---- maintenance

    @precondition(lambda self: self.task is None)
    @rule()
    def checkpoint(self):
        self.saw("checkpoint")
        self.store.checkpoint()
        self.all_flushed()

    def chosen(self, number):
        rng = random.Random(number)
        sealed = self.store.sealed_ids()
        self.saw(f"segments {min(len(sealed), 10)}")
        return rng.sample(sealed, rng.randrange(len(sealed) + 1))

    @precondition(lambda self: self.task is None and not self.by_itself)
    @rule(number=seeds)
    def compact_some(self, number):
        self.saw("compaction of some")
        self.store.drive(self.store.compaction_of(self.chosen(number)))
        self.all_flushed()

    @precondition(lambda self: self.task is None)
    @rule()
    def compact_all(self):
        if not self.by_itself:
            self.rest()
        with self.doing():
            self.store.compact()
        self.all_flushed()

    @precondition(lambda self: self.task is None and not self.by_itself)
    @rule(idle=st.booleans())
    def maintenance(self, idle):
        with self.doing():
            steps = self.store.maintenance(idle=idle)
        if steps is not None:
            self.saw("maintenance")
            self.store.drive(steps)
            self.all_flushed()

    @precondition(lambda self: self.task is None and not self.by_itself)
    @rule()
    def rest(self):
        """Left alone, it comes to an end."""
        for _ in range(30):
            with self.doing():
                steps = self.store.maintenance(idle=True)
            if steps is None:
                return
            self.store.drive(steps)
            self.all_flushed()
        raise AssertionError("compaction does not end")

    @precondition(lambda self: self.task is None and not self.by_itself)
    @rule(number=seeds, compaction=st.booleans(), steps=st.sampled_from((0, 1, 3, 8, 20, 1000)))
    def begin_task(self, number, compaction, steps):
        with self.doing():
            if compaction:
                self.task = self.store.compaction_of(self.chosen(number))
            else:
                self.task = self.store.checkpoint_steps()
        self.saw("compaction in steps" if compaction else "checkpoint in steps")
        self.go_on(steps)

    @precondition(lambda self: self.task is not None)
    @rule(halves=st.sampled_from((1, 2, 3, 5, 9, 15, 30, 1000)))
    def go_on(self, halves):
        """Each job is run in one half step, and finished in the other: then the next is asked for."""
        for _ in range(halves):
            if self.job is not None and not self.ran:
                self.job.run()
                self.ran = True
                continue
            self.flush_now()
            if self.job is not None:
                self.job.finish()
            self.job = next(self.task, None)
            self.ran = False
            if self.job is None:
                self.task = None
                self.saw("task done")
                return

    @precondition(lambda self: self.queue)
    @rule(jobs=st.integers(1, 4))
    def executor_works(self, jobs):
        for _ in range(jobs):
            if self.queue:
                job = self.queue.pop(0)
                job.run()
                job.finish()

    @precondition(lambda self: self.worker is not None and self.worker.jobs)
    @rule(jobs=st.integers(1, 4))
    def worker_works(self, jobs):
        self.worker.work(jobs)
        self.saw("worker works")

    # ---- ends

    def let_go(self):
        self.walks = []
        self.task = self.job = self.store = self.worker = None
        self.queue.clear()

    def lose_caches(self, which):
        for name in os.listdir(self.dir):
            if (which & 1 and name == "index.ckpt") or (which & 2 and name.endswith(".ord")):
                os.unlink(os.path.join(self.dir, name))

    @rule(caches=st.integers(0, 3), autoflush=st.booleans(), executor=st.integers(0, 2))
    def reopen(self, caches, autoflush, executor):
        self.saw("reopen in the middle of a task" if self.task else "reopen")
        self.store.close()
        self.all_flushed()
        walks = self.walks
        for walk in walks:
            with contextlib.suppress(kvcore.ClosedError):
                raise AssertionError(f"from a closed store: {next(walk.cursor)}")
        self.let_go()
        self.lose_caches(caches)
        self.open(autoflush, executor)

    @rule(caches=st.sampled_from((0, 0, 0, 1, 2, 3)), autoflush=st.booleans(), executor=st.integers(0, 2))
    def kill(self, caches, autoflush, executor):
        """The end of the process: what is in the kernel goes on in a copy of the directory."""
        self.saw("kill in the middle of a task" if self.task else "kill")
        if self.current != self.flushed:
            self.saw("kill that loses writes")
        copy = self.case.new_path()
        shutil.copytree(self.dir, copy)
        self.let_go()
        shutil.rmtree(self.dir)
        self.dir = copy
        self.lose_caches(caches)
        before = self.now()
        self.current, self.time = dict(self.flushed), self.flushed_time
        self.open(autoflush, executor)
        self.earlier(before)

    def teardown(self):
        if self.store is None:
            return
        try:
            if sys.exc_info()[1] is not self.handled:
                return  # a step has failed: that is what shall be seen
            self.store.close()
            self.let_go()
            for caches in (0, 3):
                self.lose_caches(caches)
                self.open(False, 1)
                assert dict(self.store.items()) == self.alive(), ("at the end", caches)
                self.store.close()
        finally:
            self.let_go()
            shutil.rmtree(self.dir)

    # ---- what holds after every step

    @invariant()
    def agrees(self):
        if self.store is None:
            return
        type(self).steps += 1
        self.count += 1
        alive = self.alive()
        store = self.store
        for key in self.used:
            assert store.get(key) == alive.get(key), ("get", key)
        if self.current != self.flushed and self.count % 8:
            return  # the rest would flush
        with self.doing():
            count, stats = len(store), store.stats()  # in this order: len() sweeps
            assert (count, stats["keys"]) == (len(alive), len(alive)), ("len", count, stats["keys"], len(alive))
            if not self.compression:
                assert stats["live_bytes"] == sum(
                    HEADER + len(key) + len(value) + (self.current[key][1] is not None) * DEADLINE
                    for key, value in alive.items())
            assert list(store.items()) == sorted(alive.items()), "items"


class StatefulTest(StoreCase):
    def setUp(self):
        super().setUp()
        # Nothing here depends on what a sync does, so it need not take time.
        memory = "/dev/shm"
        self.base = tempfile.mkdtemp(prefix="kvstore-", dir=memory if os.access(memory, os.W_OK) else None)
        self.addCleanup(shutil.rmtree, self.base)
        self.numbers = itertools.count(1)

    def new_path(self):
        return os.path.join(self.base, f"{next(self.numbers)}")

    def test_any_order_of_everything_agrees_with_a_dict(self):
        number = int(os.environ.get("KVSTORE_STATEFUL_SEED") or random.SystemRandom().randrange(1 << 32))

        class Machine(StoreMachine):
            case = self
            steps = 0
            seen = {}

        # Hypothesis also counts machines that it gives up early, so it may take more than one round.
        while Machine.steps < STEPS:
            left = STEPS - Machine.steps
            try:
                run_state_machine_as_test(seed(number)(Machine), settings=settings(
                    max_examples=-(-left // EACH), stateful_step_count=EACH, deadline=None,
                    database=None, phases=PHASES, suppress_health_check=list(HealthCheck)))
            except BaseException:
                print(f"\nKVSTORE_STATEFUL_SEED={number} KVSTORE_STATEFUL_STEPS={left} repeats this")
                raise
            number += 1
        if os.environ.get("KVSTORE_STATEFUL_STEPS"):
            print(f"\n{Machine.steps} steps, last seed {number - 1}: {dict(sorted(Machine.seen.items()))}")
