"""Backup and restore: a copy equals one moment of history, whoever writes meanwhile; one that fails leaves nothing."""

import contextlib
import errno
import os
import random
import shutil
import sys
import threading

import kvcore
from kvcore.backup import backup
from kvcore.check import check
from kvcore.crashfs import CrashFiles
from kvcore.restore import restore
from tests.daemon import run
from tests.probe import HandFiles, HookedFiles
from tests.support import StoreCase, at_once
from tests.test_check import snapshot
from tests.test_faults import file_of
from tests.test_recovery import HEADER, SMALL, CrashCase, records

KEYS = 40  # of the counter below
NOTE = "LAST_BACKUP"


def key_of(number):
    return b"k%02d" % (number % KEYS)


def state_at(count):
    """What the store holds after `count` steps of the writer below."""
    state = {}
    for number in range(max(0, count - KEYS), count):
        state[key_of(number)] = number
    # Each step also deletes what the one before it put beside, in one batch.
    if count:
        state[b"pair a %d" % (count - 1)] = state[b"pair b %d" % (count - 1)] = count - 1
    return state


class Writer:
    """Writes a counter: step n puts it under one of some keys, and, in a batch, moves a pair of keys on."""

    def __init__(self, store):
        self.store = store
        self.count = 0

    def step(self):
        n = self.count
        value = b"%d " % n + bytes(n % 3000)
        with self.store.batch() as b:
            b.put(key_of(n), value)
            b.put(b"pair a %d" % n, value)
            if n:
                b.delete(b"pair a %d" % (n - 1))
                b.delete(b"pair b %d" % (n - 1))
            b.put(b"pair b %d" % n, value)
        self.count += 1


class BackupCase(CrashCase):
    def setUp(self):
        super().setUp()
        self.target = os.path.abspath(self.mktemp())

    def opened(self, path=None):
        """What a store that is opened there holds; nothing was found wrong with it."""
        with kvcore.open(path or self.target, fsync="no") as store:
            self.assertEqual((store.recovery["messages"], store.recovery["torn_bytes"]), ([], 0))
            return dict(store)

    def assertMoment(self, path, low, high):
        """The store at `path` holds the state after so many steps of a Writer, from low to high. Returns how many."""
        report = check(path)
        self.assertEqual((report.damage, report.notes), ([], []))
        contents = self.opened(path)
        for key, value in contents.items():
            number = int(value.split()[0])
            self.assertEqual(value, b"%d " % number + bytes(number % 3000), key)
        found = {key: int(value.split()[0]) for key, value in contents.items()}
        count = max(found.values(), default=-1) + 1
        self.assertEqual(found, state_at(count))
        self.assertTrue(low <= count <= high, (low, count, high))
        return count


class QuietTest(BackupCase):
    """Nobody writes meanwhile."""

    def setUp(self):
        super().setUp()
        # The last byte is no zero: zeros at the end of an open segment are not copied, and no progress.
        self.pairs = {b"k%03d" % i: os.urandom(999) + b"." for i in range(150)}
        self.write(self.pairs.items(), segment_size=SMALL)

    def test_closed_store(self):
        done = backup(self.dir, self.target)
        names = sorted(os.listdir(self.target))
        self.assertEqual(names, ["0000000001.seg", "0000000002.seg", "0000000003.seg", "MANIFEST"])
        self.assertEqual((check(self.target).damage, check(self.target).notes), ([], []))
        self.assertEqual((done.segments, done.unnoted), (3, None))
        self.assertEqual(done.bytes, sum(os.path.getsize(os.path.join(self.target, name)) for name in names[:3]))
        self.assertEqual(self.opened(), self.pairs)

    def test_sealed_segments_are_links_and_the_one_being_written_is_a_copy(self):
        done = backup(self.dir, self.target)
        links = [os.stat(os.path.join(self.target, os.path.basename(path))).st_nlink for path in self.segment_paths()[:3]]
        self.assertEqual(links, [2, 2, 1])
        self.assertEqual(done.linked_bytes, sum(os.path.getsize(path) for path in self.segment_paths()[:2]))

    def test_working_with_the_copy_does_not_touch_the_original(self):
        before = [self.read(path) for path in self.segment_paths()]
        backup(self.dir, self.target)
        with kvcore.open(self.target, segment_size=SMALL, fsync="no") as store:
            for key in store:
                store[key] = b"other"
            store.compact()
        self.assertEqual([self.read(path) for path in self.segment_paths()], before)
        self.assertEqual(self.contents(), self.pairs)

    def test_without_links_everything_is_copied_and_synced(self):
        calls = []

        def hook(call, what):
            calls.append((call, file_of(what) if isinstance(what, int) else os.path.basename(what.decode())))
            return -errno.EXDEV if call == "link" else None

        done = backup(self.dir, self.target, files=HookedFiles(hook))
        self.assertEqual(done.linked_bytes, 0)
        self.assertEqual(self.opened(), self.pairs)
        published = calls.index(("rename", "MANIFEST"))
        for name in ("0000000001.seg", "0000000002.seg", "0000000003.seg", "MANIFEST.tmp"):
            self.assertIn(("fdatasync", name), calls[:published])
        self.assertIn(("fsync_dir", os.path.basename(self.target)), calls[:published])
        self.assertIn(("fsync_dir", os.path.basename(self.target)), calls[published:])

    def test_links_are_durable_before_the_manifest(self):
        calls = []
        backup(self.dir, self.target, files=HookedFiles(lambda call, what: calls.append((call, what))))
        linked = [call for call, _ in calls].index("link")
        synced = calls.index(("fsync_dir", self.target.encode()), linked)
        self.assertLess(synced, calls.index(("rename", os.path.join(self.target, "MANIFEST").encode())))

    def test_progress(self):
        told = []
        backup(self.dir, self.target, told.append)
        self.assertEqual(sum(told), sum(os.path.getsize(path) for path in self.segment_paths()))

    def test_store_without_records(self):
        self.dir = os.path.abspath(self.mktemp())
        self.write([])
        self.assertEqual(backup(self.dir, self.target).segments, 0)
        self.assertEqual(self.opened(), {})

    def test_backup_of_a_backup(self):
        backup(self.dir, self.target)
        again = os.path.abspath(self.mktemp())
        backup(self.target, again)
        self.assertEqual(self.opened(again), self.pairs)

    def test_a_link_in_the_place_of_a_segment_is_followed(self):
        elsewhere = os.path.abspath(self.mktemp())
        os.rename(self.segment_paths()[0], elsewhere)
        os.symlink(elsewhere, os.path.join(self.dir, "0000000001.seg"))
        backup(self.dir, self.target)
        self.assertFalse(os.path.islink(os.path.join(self.target, "0000000001.seg")))
        self.assertEqual(self.opened(), self.pairs)


class TailTest(BackupCase):
    """What stands at the end of the log of a store that was killed, or is writing."""

    def setUp(self):
        super().setUp()
        self.pairs = [(b"key%d" % i, b"value%d" % i) for i in range(20)]
        self.write(self.pairs)
        self.path = self.segment_paths()[0]
        self.content = self.read(self.path)

    def check_copy(self, content, pairs):
        self.damage(self.path, content)
        shutil.rmtree(self.target, ignore_errors=True)
        backup(self.dir, self.target)
        self.assertEqual((check(self.target).damage, check(self.target).notes), ([], []))
        self.assertEqual(self.opened(), dict(pairs))

    def test_record_that_is_half_written_is_cut(self):
        found = records(self.content)
        for cut in [*range(found[-2][0], len(self.content), 3), len(self.content)]:
            whole = [(key, value) for offset, size, _, key, value in found if offset + size <= cut]
            self.check_copy(self.content[:cut] + bytes(3000), whole)

    def test_value_that_ends_in_zeros_is_whole(self):
        store = self.open()
        store.put(b"zeros", bytes(5000))
        store.close()
        self.check_copy(self.read(self.path) + bytes(3000), [*self.pairs, (b"zeros", bytes(5000))])
        self.check_copy(self.read(self.path)[:-3001], self.pairs)

    def test_batch_that_is_half_written_is_cut(self):
        store = self.open()
        with store.batch() as b:
            for i in range(5):
                b.put(b"batch%d" % i, b"x")
        store.close()
        content = self.read(self.path)
        # The count in the commit ends in three zeros.
        for cut in range(len(self.content), len(content) - 3, 7):
            self.check_copy(content[:cut] + bytes(100), self.pairs)
        self.check_copy(content, [*self.pairs, *((b"batch%d" % i, b"x") for i in range(5))])

    def test_cutting_the_copy_short_is_noticed(self):
        backup(self.dir, self.target)
        os.truncate(os.path.join(self.target, "0000000001.seg"), len(self.content) - 1)
        self.assertRaises(kvcore.CorruptionError, kvcore.open, self.target)

    def test_damage_in_what_is_being_written_is_refused(self):
        content = bytearray(self.content)
        content[HEADER + 10] ^= 1
        self.damage(self.path, bytes(content))
        error = self.assertRaises(kvcore.CorruptionError, backup, self.dir, self.target)
        self.assertIn("0000000001.seg, which is being written, is damaged from byte 64", str(error))
        self.assertFalse(os.path.exists(self.target))
        self.assertFalse(os.path.exists(os.path.join(self.dir, NOTE)))


class NoteTest(BackupCase):
    """When the last good backup was taken."""

    def test_time_is_noted_and_seen_by_the_open_store(self):
        files = HandFiles()
        files.now = 1_900_000_000_123
        store = self.open(files=files)
        store.put(b"a", b"1")
        self.assertEqual(store.last_backup, 0)
        self.assertEqual(store.backup(self.target).taken_at, 1_900_000_000)
        self.assertEqual(store.last_backup, 1_900_000_000)
        store.close()
        self.assertEqual(self.contents(), {b"a": b"1"})
        self.assertRaises(kvcore.ClosedError, getattr, store, "last_backup")

    def test_a_copy_does_not_inherit_it(self):
        self.write([(b"a", b"1")])
        backup(self.dir, self.target)
        restored = os.path.abspath(self.mktemp())
        restore(self.target, restored)
        for path in (self.target, restored):
            self.assertNotIn(NOTE, os.listdir(path))
        self.assertIn(NOTE, os.listdir(self.dir))

    def test_when_it_cannot_be_noted_the_backup_stands(self):
        self.write([(b"a", b"1")])
        files = HookedFiles(lambda call, what: -errno.ENOSPC if call == "open" and b"LAST_" in what else None)
        done = backup(self.dir, self.target, files=files)
        self.assertIn("LAST_BACKUP.tmp: No space left on device", done.unnoted)
        self.assertEqual(self.opened(), {b"a": b"1"})

    def test_what_is_no_time_is_none(self):
        store = self.open()
        with open(os.path.join(self.dir, NOTE), "w") as f:
            f.write("yesterday")
        self.assertEqual(store.last_backup, 0)


class MomentTest(BackupCase):
    """Somebody writes meanwhile: new segments, batches, deletes, compactions."""

    def test_between_any_two_calls_of_the_backup(self):
        writer = Writer(self.open(segment_size=SMALL))
        links = True
        most = 0

        def hook(call, what):
            for _ in range(rng.randrange(most)):
                writer.step()
            if rng.random() < compactions:
                writer.store.drive(writer.store.compaction_of(writer.store.sealed_ids()))
            return -errno.EXDEV if call == "link" and not links else None

        refused = 0
        for seed in range(30):
            rng = random.Random(seed)
            links, most, compactions = seed % 2 == 0, rng.choice((2, 5, 15)), rng.choice((0, 0.02, 0.2))
            before = writer.count
            try:
                backup(self.dir, self.target, files=HookedFiles(hook))
            except kvcore.StorageError as error:
                # It can be made too hard.
                self.assertEqual((error.errno, compactions), (errno.ENOENT, 0.2))
                refused += 1
                continue
            self.assertMoment(self.target, before, writer.count)
            shutil.rmtree(self.target)
            writer.store.drive(writer.store.compaction_of(writer.store.sealed_ids()))
        self.assertLess(refused, 10)

    def test_beside_a_thread_that_writes(self):
        stop, begun = threading.Event(), threading.Event()
        writer = Writer(None)
        failures = []

        def write():
            try:
                with kvcore.open(self.dir, segment_size=SMALL, fsync="no") as writer.store:
                    while not stop.is_set() or writer.count < 200:
                        writer.step()
                        begun.set()
            except BaseException as error:
                failures.append(error)
                begun.set()

        thread = threading.Thread(target=write)
        thread.start()
        try:
            begun.wait(60)
            for _ in range(5):
                before = writer.count
                backup(self.dir, self.target)
                self.assertMoment(self.target, before, writer.count + 1)
                shutil.rmtree(self.target)
        finally:
            stop.set()
            thread.join()
        self.assertEqual(failures, [])

    def test_from_inside_all_that_was_written_is_there(self):
        writer = Writer(self.open(segment_size=SMALL, autoflush=False))
        for _ in range(100):
            writer.step()
        writer.store.backup(self.target)
        self.assertEqual(self.assertMoment(self.target, 100, 100), 100)


class PowerLossTest(StoreCase):
    def test_what_is_there_after_a_loss_of_power(self):
        """Before the end nothing that opens, however much of it reached the disk; after it all, however little else did."""
        files = CrashFiles()
        writer = Writer(kvcore.open("/data", segment_size=SMALL, fsync="no", executor=at_once, files=files))
        self.addCleanup(writer.store.close)
        for _ in range(250):
            writer.step()
        writer.store.flush()
        rng = random.Random(7)
        lost = []

        def progress(done):
            lost.append(files.after_power_loss(lambda count: 0))
            lost.extend(files.after_power_loss(rng.getrandbits) for _ in range(5))

        backup("/data", "/copy", progress, files=files)
        self.assertGreater(len(lost), 20)
        for state in lost:
            self.assertNotIn(b"/copy/MANIFEST", state.paths())
            if any(path.startswith(b"/copy/") for path in state.paths()):
                self.assertRaises(kvcore.StorageError, kvcore.open, "/copy", files=state)
        for keep in (lambda count: 0, rng.getrandbits, lambda count: (1 << count) - 1):
            with kvcore.open("/copy", fsync="no", executor=at_once, files=files.after_power_loss(keep)) as store:
                self.assertEqual(store.recovery["messages"], [])
                self.assertEqual({key: int(value.split()[0]) for key, value in store.items()}, state_at(250))


class FailureTest(BackupCase):
    """Whatever fails, nothing is left, or nothing that opens."""

    def setUp(self):
        super().setUp()
        self.pairs = {b"k%03d" % i: os.urandom(999) + b"." for i in range(150)}
        self.write(self.pairs.items(), segment_size=SMALL)

    def test_every_call_that_changes_something_fails_in_turn(self):
        for links in (True, False):
            point = 0
            while self.fails_at(point, links):
                point += 1
            self.assertGreater(point, 12)

    def fails_at(self, point, links):
        """Let the call with this number find no space. False: there is none, and the backup is good."""
        count = 0

        def hook(call, what):
            nonlocal count
            if call == "link" and not links:
                return -errno.EXDEV
            if call in ("open", "list", "unlink", "lock"):
                return None
            count += 1
            return -errno.ENOSPC if count == point + 1 else None

        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.dir, NOTE))
        failed = None
        try:
            done = backup(self.dir, self.target, files=HookedFiles(hook))
        except kvcore.StorageError as error:
            failed = error
        if failed is None:
            # A link that cannot be made is a copy, and a time that cannot be noted is told.
            self.assertEqual(self.opened(), self.pairs)
            shutil.rmtree(self.target)
            return count > point or done.unnoted is not None
        self.assertEqual(failed.errno, errno.ENOSPC)
        self.assertFalse(os.path.exists(self.target), point)
        self.assertNotIn(NOTE, os.listdir(self.dir))
        return True

    def test_killed_at_every_call(self):
        point = 0
        while True:
            script = (
                "import os, sys\n"
                "from kvcore.backup import backup\n"
                "from tests.probe import HookedFiles\n"
                "left = int(sys.argv[3])\n"
                "def hook(call, what):\n"
                "    global left\n"
                "    left -= call not in ('list', 'lock')\n"
                "    if left < 0: os._exit(9)\n"
                "backup(sys.argv[1], sys.argv[2], files=HookedFiles(hook))\n"
            )
            status, _, err = run(os.getcwd(), sys.executable, "-c", script, self.dir, self.target, str(point))
            self.assertIn(status, (0, 9), err)
            if "MANIFEST" in os.listdir(self.target) if os.path.exists(self.target) else False:
                self.assertEqual(self.opened(), self.pairs)
            elif os.path.exists(self.target) and os.listdir(self.target):
                self.assertRaises(kvcore.StorageError, kvcore.open, self.target)
            shutil.rmtree(self.target, ignore_errors=True)
            if status == 0:
                return
            point += 1

    def test_targets_that_are_refused(self):
        os.mkdir(self.target)
        open(os.path.join(self.target, "mine"), "w").close()
        before = snapshot(self.dir)
        inside = os.path.join(self.dir, "copy")
        for target, part in ((self.target, "is not empty"), (inside, "is inside"), (self.dir, "is inside")):
            self.assertIn(part, str(self.assertRaises(kvcore.UsageError, backup, self.dir, target)))
        self.assertEqual(os.listdir(self.target), ["mine"])
        self.assertEqual(snapshot(self.dir), before)

    def test_sources_that_hold_no_store(self):
        empty = os.path.abspath(self.mktemp())
        os.mkdir(empty)
        for path in (empty, empty + "-not"):
            self.assertRaises(kvcore.StorageError, backup, path, self.target)
            self.assertFalse(os.path.exists(self.target))

    def test_sealed_segment_that_is_missing_or_short(self):
        os.truncate(self.segment_paths()[0], 1000)
        self.assertIn("cut short", str(self.assertRaises(kvcore.CorruptionError, backup, self.dir, self.target)))
        os.unlink(self.segment_paths()[0])
        self.assertRaises(kvcore.StorageError, backup, self.dir, self.target)
        self.assertFalse(os.path.exists(self.target))
