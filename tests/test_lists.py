"""Lists in a session: complete, in order, in parts, with others' turns in between."""

import os
import random

from tests.support import resume
from tests.test_session import STATUS, SessionCase


def maintain(store):
    """Do all that is due."""
    while (steps := store.maintenance()) is not None:
        store.drive(steps)


class ListTest(SessionCase):
    def fill(self, count, size):
        store = self.open(autoflush=False)
        for i in range(count):
            store.put(b"k%06d" % i, b"%06d" % i + b"v" * size)
        store.flush()
        return store

    def test_what_is_moved_while_a_list_begins_is_in_it(self):
        """With many orders to search it begins in parts, and others have their turn between these."""
        store = self.open(segment_size=65536)
        keys = [b"key%04d" % (i * 7919 % 3000) for i in range(3000)]
        for key in keys:
            store.put(key, bytes(1000))
        maintain(store)
        session = self.session(store)
        session.feed(b"keys\r")
        turns = 0
        while session.unfinished and not (replies := session.take()):
            turns += 1
            for key in keys[turns::7]:
                store.put(key, b"moved")
            store.delete(b"key%04d" % turns)
            store.put(b"key%04d" % (5000 + turns), b"")
            store.compact()
            maintain(store)
            resume(session)
        self.assertGreater(turns, 1)
        while session.unfinished:
            resume(session)
            replies += session.take()
        found = replies.rstrip(b"\r").split(b"\r")
        self.assertEqual(found, sorted(set(found)))
        gone, new = ({b"key%04d" % (first + i) for i in range(1, turns + 1)} for first in (0, 5000))
        self.assertLessEqual(set(keys) - gone, set(found))
        self.assertLessEqual(set(found), set(keys) | new)

    def parts(self, session):
        """What goes out at a time."""
        parts = [session.take()]
        while session.unfinished:
            resume(session)
            parts.append(session.take())
        return [part for part in parts if part]

    def test_a_small_list_is_one_send(self):
        session = self.session(self.fill(1000, 10))
        session.feed(b"keys\r")
        (part,) = self.parts(session)
        self.assertEqual(len(part.split(b"\r")), 1001)

    def test_what_is_sent_at_a_time_is_not_little(self):
        session = self.session(self.fill(5000, 10))
        session.feed(b"keys\r")
        *parts, last = self.parts(session)
        self.assertEqual(len(parts), 2)
        for part in parts:
            self.assertTrue(16384 <= len(part) < 16384 + 10, len(part))
        self.assertLess(len(last), 16384)

    def test_what_comes_before_a_list_does_not_wait_for_it(self):
        session = self.session(self.fill(5000, 10))
        session.feed(b"status\rkeys\r")
        self.assertTrue(session.take().startswith(STATUS))
        self.drain(session)

    def test_what_was_made_of_a_list_stays_behind_writes_that_wait(self):
        session = self.session(self.fill(5000, 10))
        session.hold = True
        session.feed(b"write a|1\rkeys\r")
        for _ in range(20):
            resume(session)
            self.assertEqual(session.take(), b"")
        self.assertTrue(session.held)
        session.release(session.mark)
        self.assertFalse(session.held)
        replies = b"".join(self.parts(session)).split(b"\r")
        self.assertEqual(replies, [b"success", b"a", *(b"k%06d" % i for i in range(5000)), b""])

    def test_the_beginning_of_a_list_is_whole_when_the_writes_before_it_are_answered(self):
        for answered, answer in (
            (lambda session: session.release(session.mark), b"success\r"),
            (lambda session: session.fail("the disk is broken"), b"error\r"),
        ):
            session = self.session(self.fill(5000, 10))
            session.hold = True
            session.feed(b"write a|1\rkeys\r")
            resume(session)
            answered(session)
            listed = len(session.take()) - len(answer)
            self.assertTrue(listed == 0 or listed >= 16384, listed)
            self.drain(session)
            self.store.close()

    def test_what_was_made_of_a_list_stays_behind_writes_that_fail(self):
        session = self.session(self.fill(5000, 10))
        session.hold = True
        session.feed(b"write a|1\rkeys\r")
        resume(session)
        session.fail("the disk is broken")
        replies = b"".join(self.parts(session)).split(b"\r")
        self.assertEqual(replies, [b"error", b"a", *(b"k%06d" % i for i in range(5000)), b""])

    def test_a_large_list_comes_in_parts_and_later_commands_wait(self):
        session = self.session(self.fill(5000, 1000))
        session.feed(b"reads k\rstatus\r")
        session.feed(b"read k000001\r")
        self.assertTrue(session.unfinished)
        parts = self.parts(session)
        self.assertGreater(len(parts), 3)
        self.assertLess(max(map(len, parts)), 1_200_000)
        values = b"".join(parts).split(b"\r")
        self.assertEqual(values[:5000], [b"%06d" % i + b"v" * 1000 for i in range(5000)])
        self.assertEqual(values[5000:], [STATUS[:-1], b"000001" + b"v" * 1000, b""])

    def test_what_is_new_is_sorted_elsewhere_while_others_are_served(self):
        store = self.fill(3000, 100)
        session, other = self.session(store), self.session(store)
        session.feed(b"keys\rstatus\r")
        self.assertEqual(session.take(), b"")
        self.assertEqual(self.talk(other, b"read k000001\r"), b"000001" + b"v" * 100 + b"\r")
        self.assertTrue(session.unfinished)
        self.assertEqual(self.drain(session).split(b"\r"), [b"k%06d" % i for i in range(3000)] + [STATUS[:-1], b""])
        # A little more is sorted on the way.
        self.assertEqual(self.talk(other, b"write new|1\r"), b"success\r")
        session.feed(b"reads new\r")
        self.assertIsNone(session.job)
        self.assertEqual(session.take(), b"1\r")

    def test_what_is_written_while_it_is_sorted_is_sorted_then_but_not_for_ever(self):
        store = self.fill(3000, 100)
        session = self.session(store)
        session.feed(b"keys\r")
        jobs = 0
        while session.job is not None:
            jobs += 1
            for i in range(3000):
                store.put(b"w%06d" % (jobs * 3000 + i), bytes(100))
            store.flush()
            resume(session)
        self.assertEqual(jobs, 4)
        found = (session.take() + self.drain(session)).split(b"\r")
        self.assertEqual(found, [b"k%06d" % i for i in range(3000)] + [b"w%06d" % (3000 + i) for i in range(12000)] + [b""])

    def test_two_that_list_wait_for_one_sorting(self):
        store = self.fill(3000, 100)
        sessions = [self.session(store) for _ in range(2)]
        for session in sessions:
            session.feed(b"keys\r")
        first, second = (session.job.orders for session in sessions)
        self.assertEqual(len(first), 1)
        self.assertEqual(first, second)
        for session in sessions:
            self.assertEqual(self.drain(session).count(b"k"), 3000)

    def test_a_store_just_opened_has_its_orders_read_elsewhere(self):
        store = self.open(segment_size=65536)
        for i in range(3000):
            store.put(b"k%06d" % i, bytes(100))
        store.close()
        session = self.session(self.open(segment_size=65536))
        session.feed(b"keys\r")
        self.assertGreater(len(session.job.orders), 3)
        self.assertEqual(self.drain(session).count(b"k"), 3000)

    def test_a_segment_that_is_being_sealed_is_listed_by_the_orders_it_has(self):
        late = []
        store = self.open(segment_size=1 << 19, executor=late.append, autoflush=False)
        session = self.session(store)
        count = 0
        while len(self.segment_paths()) < 4:
            for _ in range(500):
                store.put(b"k%06d" % count, bytes(100))
                count += 1
            self.assertEqual(self.talk(session, b"keys\r").count(b"k"), count)
            while seals := [job for job in late if type(job).__name__ == "SealJob"]:
                late.remove(seals[0])
                seals[0].run()
                seals[0].finish()
        self.assertEqual(late, [])
        session.feed(b"keys\r")
        self.assertIsNone(session.job)
        self.assertEqual(self.drain(session).count(b"k"), count)
        self.assertFalse(any(name.endswith(".ord") for name in os.listdir(self.dir)))
        maintain(store)
        orders = [name for name in os.listdir(self.dir) if name.endswith(".ord")]
        self.assertEqual(len(orders), len(store.sealed_ids()))
        self.assertEqual(self.talk(session, b"keys\r").count(b"k"), count)

    def test_segments_that_are_sealed_and_dropped_while_they_are_sorted(self):
        """Jobs of lists and of the store end in any order, and too late; each list holds what was there throughout."""
        rng = random.Random(12)
        late = []
        store = self.open(segment_size=1 << 19, executor=late.append, autoflush=False)

        def end(job):
            late.remove(job)
            job.run()
            job.finish()

        def maintenance():
            while True:
                for job in store.maintenance() or ():
                    if job not in late:
                        late.append(job)
                    while job in late:
                        yield True
                yield False

        busy, due = False, maintenance()
        sessions = []
        model = {}
        for _step in range(400):
            for _ in range(rng.randrange(400)):
                key = b"key%04d" % rng.randrange(4000)
                if rng.random() < 0.8:
                    store.put(key, model.setdefault(key, rng.randbytes(200).replace(b"\r", b"")))
                else:
                    store.delete(key)
                    model.pop(key, None)
                    for _, there, _ in sessions:
                        there.discard(key)
            store.flush()
            if rng.random() < 0.3 and len(sessions) < 4:
                session = self.session(store)
                session.feed(b"keys\r")
                sessions.append((session, set(model), []))
            if busy or rng.random() < 0.5:
                busy = next(due)
            elif rng.random() < 0.1:
                store.compact()
            if late and rng.random() < 0.5:
                end(rng.choice(late))
            if sessions and rng.random() < 0.6:
                session, there, parts = rng.choice(sessions)
                if session.unfinished:
                    resume(session)
                parts.append(session.take())
                if not session.unfinished:
                    sessions.remove((session, there, parts))
                    found = b"".join(parts).split(b"\r")
                    self.assertEqual(found.pop(), b"")
                    self.assertEqual(found, sorted(set(found)))
                    self.assertLessEqual(there, set(found))
        while late or next(due):
            end(late[0])
        self.assertEqual(list(store.keys()), sorted(model))

    def test_replies_that_nobody_takes_stop_the_execution(self):
        """A few bytes of input can ask for gigabytes of replies."""
        store = self.open()
        store.put(b"big", b"v" * 500_000)
        session = self.session(store)
        session.feed(b"read big\r" * 1000 + b"write after|1\r")
        self.assertLess(session.mark, 2_000_000)
        self.assertIsNone(store.get(b"after"))
        self.assertEqual(self.drain(session).count(b"v"), 500_000_000)
        self.assertEqual(store.get(b"after"), b"1")
