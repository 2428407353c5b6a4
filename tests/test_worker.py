"""A store used as a library: its thread does the disk's part of what is due, its owner the rest while writing."""

import gc
import json
import os
import threading
from unittest import mock

import kvcore
from kvcore.worker import Worker
from tests.probe import HookedFiles
from tests.support import StoreCase
from tests.test_faults import file_of
from tests.test_recovery import SMALL


def workers():
    return [thread for thread in threading.enumerate() if thread.name == "kvcore-worker"]


class Sentinel:
    """A job that tells that all before it have run."""

    def __init__(self):
        self.event = threading.Event()
        self.run = self.event.set

    def finish(self):
        pass


class WorkerTest(StoreCase):
    def setUp(self):
        super().setUp()
        self.assertEqual(workers(), [])

    def open(self, **options):
        with mock.patch("kvcore.store.Worker", self.new_worker):
            return super().open(executor=None, **options)

    def new_worker(self, *args):
        self.worker = Worker(*args)
        return self.worker

    def wait_for_worker(self):
        sentinel = Sentinel()
        self.worker.submit(sentinel)
        self.assertTrue(sentinel.event.wait(60))

    def write(self, store, count, keys=200, size=1000):
        for i in range(count):
            store.put(b"k%d" % (i % keys), bytes(size) + b"%d" % i)

    def test_sealing_is_done_in_the_thread(self):
        by = set()

        def hook(call, what):
            if call == "ftruncate" and file_of(what).endswith(".seg"):
                by.add(threading.current_thread().name)

        store = self.open(segment_size=1 << 20, files=HookedFiles(hook))
        for i in range(3000):
            if i % 100 == 0:
                self.wait_for_worker()
            store.put(b"k%d" % i, bytes(1000))
        self.assertEqual(by, {"kvcore-worker"})

    def test_no_write_waits_for_the_disk_while_a_segment_is_sealed(self):
        """A sync that does not end holds up nothing, as long as there is room in the segment begun meanwhile."""
        held, go_on = threading.Event(), threading.Event()
        self.addCleanup(go_on.set)

        def hook(call, what):
            if call == "fdatasync" and file_of(what) == "0000000001.seg" and threading.current_thread() in workers():
                held.set()
                go_on.wait(60)

        store = self.open(segment_size=1 << 20, files=HookedFiles(hook))
        self.write(store, 1100)
        self.assertTrue(held.wait(60))
        self.write(store, 500)
        self.assertEqual(store.get(b"k1"), bytes(1000) + b"401")
        self.assertFalse(go_on.is_set())
        go_on.set()

    def test_dead_space_comes_back_while_writing(self):
        for autoflush in (True, False):
            store = self.open(segment_size=SMALL, autoflush=autoflush)
            while store.stats()["compaction_reclaimed_bytes"] == 0:
                self.write(store, 100)
            self.write(store, 200)
            expected = dict(store.items())
            store.close()
            self.assertEqual(self.contents(), expected)

    def test_writing_goes_on_beside_a_compaction_that_is_driven_by_hand(self):
        store = self.open(segment_size=SMALL)
        self.write(store, 1000)
        steps = store.compaction_of(store.sealed_ids())
        job = next(steps)
        self.write(store, 1000)
        self.assertEqual(len(store), 200)
        job.run()
        store.flush()
        job.finish()
        store.drive(steps)
        expected = dict(store.items())
        store.close()
        self.assertEqual(self.contents(), expected)

    def test_close_ends_the_thread(self):
        store = self.open(segment_size=SMALL)
        self.write(store, 200)
        self.assertEqual(len(workers()), 1)
        store.close()
        self.assertEqual(workers(), [])

    def test_a_store_that_is_dropped_takes_its_thread_along(self):
        store = kvcore.open(self.dir, fsync="everysec")
        store.put(b"a", b"1")
        thread, = workers()
        del store
        thread.join(60)
        self.assertFalse(thread.is_alive())
        gc.collect()
        self.assertEqual(self.contents(), {b"a": b"1"})

    def test_orders_are_there_before_the_first_scan(self):
        store = self.open(segment_size=SMALL)
        self.write(store, 300)
        store.close()
        with open(os.path.join(self.dir, "MANIFEST")) as f:
            lines = [json.loads(line) for line in f]
        sealed = {f"{line['id']:010d}.ord" for line in lines if line.get("state") == "sealed"}
        self.assertTrue(sealed)
        self.assertEqual(sealed - set(os.listdir(self.dir)), set())
