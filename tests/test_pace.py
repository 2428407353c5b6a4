"""Threads that give way pause within long work, and no others do."""

import random
import resource
import threading
from collections import defaultdict

from twisted.trial.unittest import SynchronousTestCase

from kvcore.pace import give_way, pauses
from tests.probe import work
from tests.support import StoreCase
from tests.test_recovery import SMALL

KEYS = 4000


def in_thread(work, *portion):
    """Do the work in a new thread, one that gives way if a portion is given. How many pauses it made."""
    made = []

    def run():
        if portion:
            give_way(*portion)
        work()
        made.append(pauses())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return made[0]


def shuffled(keys):
    keys = list(keys)
    random.Random(1).shuffle(keys)
    return [b"the same%06d" % key for key in keys]


class PauseTest(SynchronousTestCase):
    def test_no_more_often_than_said(self):
        self.assertEqual(in_thread(lambda: work(3200), 0.0), 100)
        self.assertEqual(in_thread(lambda: work(3200), 1e9), 0)
        self.assertEqual(in_thread(lambda: work(3200)), 0)

    def test_a_pause_gives_up_the_processor(self):
        switches = []

        def told():
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
            work(3200)
            switches.append(resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before)

        in_thread(told, 0.0)
        self.assertGreater(switches[0], 50)

    def test_all_pause_with_the_one_whose_turn_it_is(self):
        over = threading.Event()

        def first():
            while not over.is_set():
                work(32)

        def other():
            for _ in range(100_000):
                work(32)
                if pauses():
                    break
            over.set()

        thread = threading.Thread(target=in_thread, args=(first, 0.0))
        thread.start()
        self.assertEqual(in_thread(other, 1e9), 1)
        thread.join()


class PaceTest(StoreCase):
    def put(self, store, keys):
        for key in shuffled(keys):
            store.put(key, b"v" * 20)
        store.flush()

    def maintained(self, *portion):
        """Pauses of each job, by its class, while segments are sealed, sorted and compacted."""
        made = defaultdict(list)

        def run_job(job):
            made[type(job).__name__].append(in_thread(job.run, *portion))
            job.finish()

        store = self.open(executor=run_job, autoflush=False, segment_size=SMALL)
        self.put(store, range(KEYS))
        for steps in (store.compaction_of(store.sealed_ids()), store.maintenance()):
            for job in steps:
                run_job(job)
        self.assertEqual(len(store), KEYS)
        return made

    def test_jobs_are_in_portions(self):
        made = self.maintained(0.0)
        read = made["ReadJob"]
        self.assertGreater(min(read), 30)
        self.assertEqual(made["CopyJob"], read)
        # Walked twice; of the keys eight bytes, and eight more; sorted.
        self.assertGreater(min(made["OrderJob"]), 4.5 * read[0])

    def test_others_do_not_pause(self):
        made = self.maintained()
        self.assertEqual({pauses for jobs in made.values() for pauses in jobs}, {0})
        self.assertIn("OrderJob", made)

    def test_merging_is_in_portions(self):
        made = []

        def lists():
            store = self.open()
            for part in range(9):
                self.put(store, range(part, KEYS, 9))
                before = pauses()
                self.assertEqual(len(list(store.keys())), len(store))
                made.append(pauses() - before)
            store.close()

        in_thread(lists, 0.0)
        # The ninth run makes two of the others one.
        self.assertGreater(made[8] - made[7], KEYS // 9 * 2 // 32 - 5)
