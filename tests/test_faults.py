"""What the disk refuses, and when it refuses it; what goes wrong around a sync."""

import errno
import fcntl
import gc
import os
import subprocess
import sys
import threading

from twisted.python.failure import Failure

import kvcore
from kvcore import worker
from tests.probe import BadBlocks, HandFiles, HookedFiles
from tests.support import StoreCase
from tests.test_protocol import ConnectionCase
from tests.test_recovery import SMALL
from tests.test_session import SessionCase


def file_of(descriptor):
    return os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))


class FaultCase(StoreCase):
    """`self.fail_at` maps (call, file name) to an errno; an entry is used up by its call when it is in `self.once`."""

    def setUp(self):
        super().setUp()
        self.fail_at = {}
        self.once = set()
        self.calls = []

    def hook(self, call, what):
        name = file_of(what) if isinstance(what, int) else os.path.basename(what.decode())
        self.calls.append((call, name))
        code = self.fail_at.get((call, name))
        if (call, name) in self.once:
            self.fail_at.pop((call, name), None)
        return None if code is None else -code

    def open_hooked(self, **options):
        return self.open(files=HookedFiles(self.hook), **options)


class FailedWriteTest(FaultCase):
    def test_a_write_that_fails_for_another_reason_than_space_ends_the_writing(self):
        store = self.open_hooked()
        store.put(b"a", b"1")
        self.fail_at["pwrite", "0000000001.seg"] = errno.EIO
        self.assertRaises(kvcore.StorageError, store.put, b"a", b"2")
        self.fail_at.clear()
        self.assertEqual(store.state, "read-only")
        self.assertRaises(kvcore.ReadOnlyError, store.put, b"a", b"3")
        store.close()
        self.assertEqual(self.contents(), {b"a": b"1"})

    def test_a_cut_that_fails_after_a_write_without_space_ends_the_writing(self):
        store = self.open_hooked()
        store.put(b"a", b"1")
        self.fail_at["pwrite", "0000000001.seg"] = errno.ENOSPC
        self.fail_at["ftruncate", "0000000001.seg"] = errno.EIO
        self.assertRaises(kvcore.StorageError, store.put, b"a", b"2")
        self.fail_at.clear()
        self.assertRaises(kvcore.ReadOnlyError, store.put, b"a", b"3")

    def test_rotation_without_space_is_told_in_the_state(self):
        store = self.open_hooked(segment_size=SMALL)
        self.fail_at["open", "MANIFEST.tmp"] = errno.ENOSPC
        while store.state == "ok":
            try:
                store.put(b"k", bytes(1000))
            except kvcore.StorageError:
                break
        self.assertEqual(store.state, "full")
        self.fail_at.clear()
        store.put(b"k", b"v")
        self.assertEqual(store.state, "ok")

    def test_rotation_without_descriptors_is_tried_again(self):
        store = self.open_hooked(segment_size=SMALL)
        for code in (errno.EMFILE, errno.ENFILE):
            self.fail_at["open", "MANIFEST.tmp"] = code
            model = {}
            for i in range(1000):
                try:
                    store.put(b"%d" % i, bytes(1000))
                except kvcore.StorageError as error:
                    self.assertEqual(error.errno, code)
                    break
                model[b"%d" % i] = bytes(1000)
            else:
                self.fail("it did not need another segment")
            self.assertEqual(store.state, "ok")
            self.fail_at.clear()
            store.put(b"again", b"1")
            self.assertEqual({key: store.get(key) for key in model}, model)

    def test_an_interrupted_write_goes_on(self):
        store = self.open_hooked()
        self.fail_at["pwrite", "0000000001.seg"] = errno.EINTR
        self.once.add(("pwrite", "0000000001.seg"))
        store.put(b"a", b"1")
        store.close()
        self.assertEqual(self.contents(), {b"a": b"1"})

    def test_space_is_not_taken_ahead_where_the_file_system_cannot(self):
        for code in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EIO):
            self.dir = os.path.abspath(self.mktemp())
            store = self.open_hooked()
            self.fail_at["fallocate", "0000000001.seg"] = code
            self.calls.clear()
            for i in range(8):
                store.put(b"k%d" % i, bytes(1 << 20))
            self.assertEqual(self.calls.count(("fallocate", "0000000001.seg")) > 1, code == errno.EIO)
            self.assertEqual((store.state, len(store)), ("ok", 8))
            store.close()


class SequenceTest(FaultCase):
    """What must be on the disk before what: the calls, in their order."""

    def after(self, first, then):
        """The position of the first `then` call behind the first `first` call."""
        return self.calls.index(then, self.calls.index(first))

    def test_a_segment_and_its_name_are_durable_before_the_manifest_that_lists_it(self):
        store = self.open_hooked(segment_size=SMALL)
        self.calls.clear()
        for i in range(100):
            store.put(b"k%d" % i, bytes(1000))
        made = self.calls.index(("open", "0000000003.seg"))
        synced = self.calls.index(("fdatasync", "0000000003.seg"), made)
        named = self.calls.index(("fsync_dir", os.path.basename(self.dir)), synced)
        content = self.calls.index(("fdatasync", "MANIFEST.tmp"), named)
        published = self.calls.index(("rename", "MANIFEST"), content)
        self.calls.index(("fsync_dir", os.path.basename(self.dir)), published)
        self.assertNotIn(("rename", "MANIFEST"), self.calls[:published])

    def test_a_full_segment_is_synced_before_the_manifest_calls_it_sealed(self):
        store = self.open_hooked(segment_size=SMALL)
        self.calls.clear()
        for i in range(100):
            store.put(b"k%d" % i, bytes(1000))
        published = self.calls.index(("rename", "MANIFEST"))
        self.assertIn(("fdatasync", "0000000001.seg"), self.calls[:published])

    def test_a_new_directory_is_durable_in_its_parent(self):
        self.open_hooked()
        parent = os.path.basename(os.path.dirname(self.dir))
        self.assertIn(("fsync_dir", parent), self.calls[:self.calls.index(("rename", "MANIFEST"))])

    def test_a_directory_that_was_there_is_durable_in_its_parent(self):
        """Who made it may have been killed before that."""
        os.mkdir(self.dir)
        parent = os.path.basename(os.path.dirname(self.dir))
        self.open_hooked().close()
        self.assertIn(("fsync_dir", parent), self.calls[:self.calls.index(("rename", "MANIFEST"))])
        self.calls.clear()
        self.open_hooked()
        self.assertNotIn(("fsync_dir", parent), self.calls)

    def test_a_directory_in_one_that_cannot_be_read(self):
        os.mkdir(self.dir)
        self.fail_at["fsync_dir", os.path.basename(os.path.dirname(self.dir))] = errno.EACCES
        store = self.open_hooked()
        store.put(b"a", b"1")
        self.assertEqual(store.get(b"a"), b"1")

    def test_sync_reaches_full_segments_that_are_not_sealed_yet(self):
        jobs = []
        store = self.open_hooked(segment_size=SMALL, executor=jobs.append)
        for job in jobs:
            job.run()
            job.finish()
        for i in range(100):
            store.put(b"k%d" % i, bytes(1000))
        self.calls.clear()
        store.sync()
        self.assertEqual({name for call, name in self.calls if call == "fdatasync"}, {"0000000001.seg", "0000000002.seg"})
        self.assertEqual(store.unsynced, 0)

    def test_close_syncs(self):
        store = self.open_hooked()
        store.put(b"a", b"1")
        self.calls.clear()
        store.close()
        self.assertIn(("fdatasync", "0000000001.seg"), self.calls)

    def test_always_syncs_what_it_finds_at_opening(self):
        """It may have been written by a process that was killed before its sync, and is served from now on."""
        store = self.open()
        store.put(b"a", b"1")
        store.close()
        store = self.open_hooked(fsync="always")
        self.assertIn(("fdatasync", "0000000001.seg"), self.calls)
        self.assertEqual(store.unsynced, 0)


class FailedSyncTest(FaultCase):
    def rotated(self):
        """A store with a full segment whose sealing waits, and the jobs that its executor was given."""
        jobs = []
        store = self.open_hooked(segment_size=SMALL, autoflush=False, executor=jobs.append)
        for job in jobs:
            job.run()
            job.finish()
        jobs.clear()
        for i in range(70):
            store.put(b"k%d" % i, bytes(1000))
        store.flush()
        return store, jobs

    def test_an_error_that_the_kernel_tells_only_once_is_heard_by_all(self):
        """fdatasync reports a lost page once for an open file: here to the sealing, and not to the sync behind it."""
        store, (seal,) = self.rotated()
        sync = store.sync_job()
        self.fail_at["fdatasync", "0000000001.seg"] = errno.EIO
        self.once.add(("fdatasync", "0000000001.seg"))
        seal.run()
        sync.run()
        self.assertRaises(kvcore.ReadOnlyError, sync.finish)
        seal.finish()
        self.assertEqual(store.state, "read-only")
        self.assertGreater(store.unsynced, 0)

    def test_sealing_that_cannot_sync_ends_the_writing_even_when_it_says_no_space(self):
        store, (seal,) = self.rotated()
        self.fail_at["fdatasync", "0000000001.seg"] = errno.ENOSPC
        self.calls.clear()
        seal.run()
        seal.finish()
        self.assertEqual(store.state, "read-only")
        self.assertNotIn(("rename", "MANIFEST"), self.calls)

    def test_error_that_a_sync_heard_stops_the_sealing_behind_it(self):
        store, (seal,) = self.rotated()
        sync = store.sync_job()
        self.fail_at["fdatasync", "0000000001.seg"] = errno.EIO
        self.once.add(("fdatasync", "0000000001.seg"))
        sync.run()
        self.calls.clear()
        seal.run()
        self.assertNotIn(("rename", "MANIFEST"), self.calls)
        seal.finish()
        self.assertEqual(store.state, "read-only")
        self.assertRaises(kvcore.ReadOnlyError, sync.finish)

    def test_sealing_that_fails_for_no_reason_of_the_disk_ends_the_writing(self):
        store, (seal,) = self.rotated()
        self.patch(os, "urandom", lambda n: 1 // 0)
        self.patch(os.path, "join", lambda *parts: 1 // 0)
        seal.run()
        seal.finish()
        self.assertEqual(store.state, "read-only")
        self.assertIn("ZeroDivisionError", store.reason)

    def test_nothing_works_in_the_directory_after_a_close_that_failed(self):
        store, (seal,) = self.rotated()
        store.put(b"last", b"1")
        self.fail_at["pwrite", "0000000002.seg"] = errno.ENOSPC
        self.assertRaises(kvcore.StorageError, store.close)
        self.assertIn(("fdatasync", "0000000001.seg"), self.calls)
        self.calls.clear()
        seal.run()
        self.assertEqual(self.calls, [])

    def test_nothing_works_in_the_directory_after_the_close_of_a_store_that_is_read_only(self):
        store, (seal,) = self.rotated()
        self.fail_at["fdatasync", "0000000002.seg"] = errno.EIO
        self.assertRaises(kvcore.ReadOnlyError, store.sync)
        store.close()
        self.calls.clear()
        seal.run()
        self.assertEqual(self.calls, [])

    def test_close_whose_sealing_fails_tells_that_it_did_not_sync(self):
        store, _ = self.rotated()
        self.fail_at["ftruncate", "0000000001.seg"] = errno.EIO
        self.calls.clear()
        self.assertRaises(kvcore.ReadOnlyError, store.close)
        self.assertNotIn(("fdatasync", "0000000002.seg"), self.calls)
        self.assertEqual(store.state, "closed")

    def test_close_syncs_what_was_written_before_a_flush_that_fails(self):
        store = self.open_hooked(autoflush=False)
        store.put(b"a", b"1")
        store.flush()
        store.put(b"b", b"2")
        self.fail_at["pwrite", "0000000001.seg"] = errno.ENOSPC
        self.calls.clear()
        self.assertRaises(kvcore.StorageError, store.close)
        self.assertIn(("fdatasync", "0000000001.seg"), self.calls)
        self.assertEqual(self.contents(), {b"a": b"1"})

    def test_full_segments_count_as_unsynced(self):
        store, _ = self.rotated()
        self.assertGreater(store.unsynced, 70_000)

    def test_a_job_that_never_ran_proves_nothing(self):
        store = self.open()
        store.put(b"a", b"1")
        self.assertRaises(kvcore.ReadOnlyError, store.sync_job().finish)
        self.assertGreater(store.unsynced, 0)


class SessionFaultTest(FaultCase, SessionCase):
    def test_commands_that_a_rotation_flushed_are_not_done_again(self):
        store = self.open_hooked(segment_size=SMALL, autoflush=False)
        session = self.session(store)
        said = b"".join(b"write k%d|%s\r" % (i, b"v" * 1000) for i in range(70))
        self.fail_at["pwrite", "0000000002.seg"] = errno.ENOSPC
        replies = self.talk(session, said).split(b"\r")[:-1]
        self.assertEqual(set(store.keys()), {b"k%d" % i for i, reply in enumerate(replies) if reply == b"success"})
        self.assertEqual((replies[0], replies[-1]), (b"success", b"error"))

    def test_going_back_goes_back_in_the_middle_of_a_line(self):
        """What was known of the unfinished command at the end does not hold at the beginning."""
        store = self.open_hooked(autoflush=False)
        session = self.session(store)
        self.talk(session, b"write a|old\r")
        self.fail_at["pwrite", "0000000001.seg"] = errno.ENOSPC
        self.assertEqual(self.talk(session, b"write a|1\rread a\rwrite " + b"b" * 50), b"error\rold\r")
        self.fail_at.clear()
        self.assertEqual(self.talk(session, b"|2\r\nread a\r"), b"success\rold\r")

    def test_going_back_keeps_what_was_known_of_the_line_end_before(self):
        store = self.open_hooked(autoflush=False)
        session = self.session(store)
        self.fail_at["pwrite", "0000000001.seg"] = errno.ENOSPC
        self.assertEqual(self.talk(session, b"\nread a\rwrite a|1\r"), b"error\rerror\r")
        self.assertEqual(self.metrics.count("text", "invalid", "error"), 1)

    def test_list_that_ended_is_not_lost_when_a_later_write_is_refused(self):
        store = self.open_hooked(autoflush=False)
        for i in range(1500):
            store.put(b"k%06d" % i, b"v" * 1000)
        store.flush()
        session = self.session(store)
        self.fail_at["pwrite", "0000000001.seg"] = errno.ENOSPC
        replies = self.talk(session, b"reads k\rwrite x|1\rstatus\r").split(b"\r")
        self.assertEqual(replies, [b"v" * 1000] * 1500 + [b"error", b"well going our operation", b""])

    def test_closed_store_is_an_error_and_no_endless_loop(self):
        session = self.session()
        self.store.close()
        self.assertRaises(kvcore.ClosedError, session.feed, b"status\r")


class OpeningTest(FaultCase):
    def listing(self):
        return sorted(os.listdir(self.dir))

    def test_store_made_by_another_process_between_the_look_and_the_lock(self):
        program = "import kvcore, sys; s = kvcore.open(sys.argv[1]); s.put(b'a', b'1'); s.close()"

        def hook(call, what):
            if call == "lock" and not os.path.exists(os.path.join(self.dir, "MANIFEST")):
                subprocess.run([sys.executable, "-c", program, self.dir], check=True)

        self.assertEqual(dict(self.open(files=HookedFiles(hook)).items()), {b"a": b"1"})

    def test_directory_held_by_somebody_who_has_not_said_who(self):
        os.mkdir(self.dir)
        with open(os.path.join(self.dir, "LOCK"), "w") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            for files in (None, BadBlocks(0, 1)):
                error = self.assertRaises(kvcore.LockedError, self.open, files=files)
                self.assertIn("already open by process unknown", str(error))
        self.open()

    def test_segment_that_becomes_shorter_while_it_is_read(self):
        store = self.open()
        store.put(b"a", bytes(10_000))
        store.close()
        os.unlink(os.path.join(self.dir, "index.ckpt"))
        error = self.assertRaises(kvcore.StorageError, self.open, files=BadBlocks(4096, 8192, 0))
        self.assertIn("became shorter while it was read", str(error))
        self.assertEqual(self.contents(), {b"a": bytes(10_000)})

    def test_directory_that_cannot_be_listed(self):
        self.open().close()
        before = self.listing()
        self.fail_at["list", os.path.basename(self.dir)] = errno.EIO
        self.assertRaises(kvcore.StorageError, self.open_hooked)
        self.assertEqual(self.listing(), before)

    def test_opening_that_fails_takes_away_only_what_it_made(self):
        os.mkdir(self.dir)
        for name in ("LOCK", ".keep"):
            open(os.path.join(self.dir, name), "w").close()
        self.fail_at["rename", "MANIFEST"] = errno.EIO
        self.assertRaises(kvcore.StorageError, self.open_hooked)
        self.assertEqual(self.listing(), [".keep", "LOCK"])

    def test_opening_that_cannot_even_clean_up_lets_the_lock_go(self):
        listed = []

        def hook(call, what):
            listed.extend([call] * (call == "list"))
            return -errno.EIO if len(listed) > 2 else None

        self.assertRaises(kvcore.StorageError, self.open, files=HookedFiles(hook))
        self.open()

    def test_directory_whose_name_is_not_durable_is_taken_away_again(self):
        self.fail_at["fsync_dir", os.path.basename(os.path.dirname(self.dir))] = errno.EIO
        self.assertRaises(kvcore.StorageError, self.open_hooked)
        self.assertFalse(os.path.exists(self.dir))

    def test_lock_on_a_file_that_was_removed_meanwhile_is_worth_nothing(self):
        self.open().close()
        gone = []

        def hook(call, what):
            if call == "lock" and not gone:
                gone.append(what)
                os.unlink(os.path.join(self.dir, "LOCK"))

        self.open(files=HookedFiles(hook))
        self.assertRaises(kvcore.LockedError, kvcore.open, self.dir)

    def test_unlisted_segment_with_records_stays_when_it_cannot_be_moved(self):
        self.open().close()
        store = self.open(segment_size=SMALL)
        with open(os.path.join(self.dir, "MANIFEST"), "rb") as f:
            old = f.read()
        for i in range(200):
            store.put(b"k%d" % i, bytes(1000))
        store.close()
        with open(os.path.join(self.dir, "MANIFEST"), "wb") as f:
            f.write(old)
        before = self.listing()
        self.fail_at["rename", "0000000003.seg"] = errno.EIO
        self.assertRaises(kvcore.StorageError, self.open_hooked)
        self.assertTrue({"0000000003.seg", "0000000004.seg"} <= set(before) & set(self.listing()))
        self.fail_at.clear()
        self.open_hooked()
        self.assertEqual(sorted(os.listdir(os.path.join(self.dir, "quarantine"))), ["0000000003.seg", "0000000004.seg"])

    def test_store_that_was_not_closed_may_be_part_of_a_cycle(self):
        program = (
            "import gc, kvcore, sys, threading\n"
            "class Holder: pass\n"
            "store = kvcore.open(sys.argv[1], fsync='no'); store.put(b'a', b'1')\n"
            "holder = Holder(); holder.itself = holder; holder.store = store\n"
            "del holder, store; gc.collect()\n"
            "[thread.join(60) for thread in threading.enumerate() if thread is not threading.main_thread()]\n"
            "gc.collect()\n"
            "from kvcore.segment import open_count; print(open_count())")
        done = subprocess.run([sys.executable, "-c", program, self.dir], capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout), (0, "0\n"), done.stderr)
        gc.collect()
        self.assertEqual(self.contents(), {b"a": b"1"})


class CommitFaultTest(ConnectionCase):
    def test_one_sync_at_a_time_when_the_clock_and_a_writer_ask_in_one_turn(self):
        self.serve(fsync="everysec")
        protocol, transport = self.connect()
        protocol.dataReceived(b"write a|1\r")
        self.commit.holding = True
        self.reactor.rightNow += 2  # the tick falls due while the reactor waits for input
        protocol.dataReceived(b"write b|1\r")
        self.reactor.advance(0)
        self.assertEqual(len(self.reactor.work), 1)
        self.reactor.run_threads()
        self.reactor.run_threads()

    def test_worker_that_fails_acknowledges_nothing(self):
        self.serve(fsync="always")
        protocol, transport = self.connect()
        protocol.dataReceived(b"write a|1\r")
        self.reactor.advance(0)
        ((done, *_),) = self.reactor.work
        self.reactor.work = []
        done(False, Failure(MemoryError()))
        self.assertEqual(transport.taken(), b"error\r")
        self.assertEqual(self.store.state, "read-only")

    def test_connection_that_fails_does_not_hold_up_the_others(self):
        self.serve(fsync="always")
        (broken, cut), (_, transport) = clients = [self.connect(), self.connect()]
        for protocol, _ in clients:
            protocol.dataReceived(b"write a|1\r")
        self.patch(broken, "released", lambda mark: 1 / 0)
        self.reactor.advance(0)
        self.reactor.run_threads()
        self.assertEqual(transport.taken(), b"success\r")
        self.assertTrue(cut.aborted)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_connection_that_cannot_be_told_of_a_failure_does_not_hold_up_the_others(self):
        self.serve(fsync="always")
        (broken, cut), (_, transport) = clients = [self.connect(), self.connect()]
        for protocol, _ in clients:
            protocol.dataReceived(b"write a|1\r")
        self.patch(broken, "failed", lambda reason: 1 / 0)
        self.reactor.advance(0)
        ((done, *_),) = self.reactor.work
        self.reactor.work = []
        done(False, Failure(MemoryError()))
        self.assertEqual(transport.taken(), b"error\r")
        self.assertTrue(cut.aborted)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_client_whose_replies_wait_for_a_sync_is_not_read_without_end(self):
        self.serve(fsync="always")
        protocol, transport = self.connect()
        chunk = b"write a|1\r" * 6000
        protocol.dataReceived(chunk)
        self.reactor.advance(0)
        for _ in range(30):
            if transport.producerState == "paused":
                break
            protocol.dataReceived(chunk)
        self.assertEqual(transport.producerState, "paused")
        while protocol.session.held or protocol.session.unfinished:
            self.reactor.run_threads()
            self.reactor.advance(0)
        self.assertEqual(transport.producerState, "producing")


class FailedGroupTest(FaultCase, ConnectionCase):
    def open(self, **options):
        return super().open(files=HookedFiles(self.hook), **options)

    def test_who_joined_while_the_failing_sync_was_under_way_is_answered_too(self):
        self.serve(fsync="always")
        (first, one), (second, two) = self.connect(), self.connect()
        first.dataReceived(b"write a|1\r")
        self.reactor.advance(0)
        second.dataReceived(b"write b|1\r")
        self.fail_at["fdatasync", "0000000001.seg"] = errno.EIO
        self.reactor.run_threads()
        self.assertEqual((one.taken(), two.taken()), (b"error\r", b"error\r"))

    def test_client_that_takes_no_replies_is_idle_too(self):
        self.serve(idle_timeout=60)
        self.store.put(b"big", b"v" * 600_000)
        protocol, transport = self.connect()
        transport.full = True
        protocol.dataReceived(b"read big\r" * 5)
        self.reactor.advance(60)
        self.reactor.advance(60)
        self.assertTrue(transport.aborted)


class EverysecTest(FaultCase):
    """`everysec` of a store used as a library."""

    def test_written_data_is_synced_without_a_call(self):
        self.patch(worker, "PERIOD", 0)
        synced = threading.Event()

        def hook(call, what):
            if call == "fdatasync" and store_is_open and file_of(what) == "0000000001.seg":
                synced.set()

        store_is_open = False
        store = self.open(fsync="everysec", executor=None, files=HookedFiles(hook))
        store_is_open = True
        store.put(b"a", b"1")
        self.assertTrue(synced.wait(60))

    def test_writers_wait_when_the_last_good_sync_is_too_old(self):
        self.patch(worker, "PERIOD", 3600)
        files = HandFiles()
        files.now = start = 1_800_000_000_000
        store = self.open(fsync="everysec", executor=None, files=files)
        for now, unsynced in ((start + 2000, True), (start + 2001, False), (start + 4001, True), (start - 1, False)):
            files.now = now
            store.put(b"a", b"1")
            self.assertEqual(store.unsynced > 0, unsynced, now)
