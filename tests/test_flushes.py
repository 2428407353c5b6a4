"""Connections that are served together share a flush: what they hear of it, and of its failure."""

import errno
import os
import random

from tests.probe import HookedFiles
from tests.test_faults import FaultCase
from tests.test_recovery import SMALL
from tests.test_transport import TransportCase

OK, ERROR = b"success\r", b"error\r"


class SharedFlushTest(FaultCase, TransportCase):
    def setUp(self):
        super().setUp()
        self.watched = ()
        self.answered = []  # at each write to a file: which of those watched have been

    def hook(self, call, what):
        if self.watched and call in ("pwrite", "store"):
            self.answered.append([client.readable() for client in self.watched])
        return super().hook(call, what)

    def crowd(self, count, **options):
        """So many clients of one server, in the order in which it will serve them."""
        self.server = self.serve(store={"files": HookedFiles(self.hook), "segment_size": SMALL}, **options)
        self.store = self.server.store
        clients = [self.server.connect() for _ in range(count)]
        for client in clients:
            client.send(b"status\r")
            client.expect(1)
        return clients

    def together(self, *talk):
        """Have what each client says come in one turn; what each of them hears."""
        for client, data in talk:
            self.assertEqual(client.offer(data), len(data))
        self.loop.turn()
        for client, _ in talk:
            client.receive()
        heard = [bytes(client.received) for client, _ in talk]
        for client, _ in talk:
            client.received.clear()
        return heard

    def refuse_once(self, number):
        """There is no space for the next write to this segment."""
        place = "pwrite", f"{number:010}.seg"
        self.fail_at[place] = errno.ENOSPC
        self.once.add(place)

    def without_space(self, number, *talk):
        """The same, when there is none for the next write to this segment."""
        self.refuse_once(number)
        heard = self.together(*talk)
        self.assertEqual(self.fail_at, {})
        return heard

    def lines(self, client, count):
        """The next so many, without the last end."""
        self.loop.until(lambda: client.receive() or client.received.count(b"\r") >= count)
        *lines, rest = bytes(client.received).split(b"\r", count)
        client.received[:] = rest
        return b"\r".join(lines)

    def flushes(self):
        return self.store.stats()["flushes"]

    def active(self):
        """The number of the segment that was written last."""
        return next(int(name[:10]) for call, name in reversed(self.calls) if call in ("pwrite", "store") and ".seg" in name)

    def fill(self):
        """Leave room for small records only in a segment that is not the first; its number."""
        self.store.put(b"first", b"1")
        self.store.flush()
        first = self.active()
        while self.active() == first:
            self.store.put(b"first", bytes(1000))
            self.store.flush()
        for _ in range((SMALL - 5000) // 1050):
            self.store.put(b"first", bytes(1000))
            self.store.flush()
        return self.active()

    def test_one_flush_for_all(self):
        clients = self.crowd(5)
        before = self.flushes()
        self.assertEqual(self.together(*((client, b"write a|%d\rread a\r" % i) for i, client in enumerate(clients))),
                         [b"success\r%d\r" % i for i in range(5)])
        self.assertEqual(self.flushes(), before + 1)

    def test_one_flush_for_more_where_replies_wait_for_a_sync(self):
        for fsync, flushes in (("always", 1), ("everysec", 3)):
            clients = self.crowd(40, name=fsync, fsync=fsync)
            before = self.flushes()
            for client in clients:
                client.offer(b"write a|1\r")
            for client in clients:
                self.assertEqual(client.expect(1), OK)
            self.assertEqual(self.flushes() - before, flushes)

    def test_none_goes_out_before_the_flush(self):
        """Not even that of a client that only reads: it may have read what somebody wrote just before."""
        first, second = self.watched = self.crowd(2)
        self.assertEqual(self.together((first, b"write a|1\r"), (second, b"read a\r")), [OK, b"1\r"])
        self.assertEqual(self.answered, [[False, False]])

    def test_who_waits_is_answered_when_somebody_else_has_flushed(self):
        """Who has much to answer does not wait itself."""
        first, second, third = self.crowd(3)
        self.store.put(b"big", bytes(5000))
        self.store.flush()
        self.watched = first, second
        self.together((first, b"write a|1\r"), (second, b"read big\r"), (third, b"write a|2\rread big\r"))
        self.assertEqual(self.answered, [[False, False], [True, True]])

    def test_when_it_fails_all_are_refused_and_nobody_has_read_what_was_taken_back(self):
        first, second, third = self.crowd(3)
        self.store.put(b"b", b"old")
        self.store.flush()
        heard = self.without_space(
            1, (first, b"write a|1\rread a\r"), (second, b"read a\rread b\r"), (third, b"write b|2\rread b\r"))
        self.assertEqual(heard, [ERROR + ERROR, ERROR + b"old\r", ERROR + b"old\r"])
        self.assertEqual(dict(self.store.items()), {b"b": b"old"})
        self.assertEqual(self.together((first, b"write a|1\r"), (second, b"write b|2\r")), [OK, OK])

    def test_bug_in_the_flush_of_one_acknowledges_nothing_of_another(self):
        """Who flushes is cut, the others are told that what they did was taken back."""
        first, second = self.crowd(2)

        def no_memory(name):
            raise MemoryError

        usual = os.fsdecode
        self.fail_at["pwrite", "0000000001.seg"] = errno.EIO
        self.patch(os, "fsdecode", no_memory)
        for client, data in ((first, b"write a|1\r"), (second, b"write b|1\r")):
            client.offer(data)
        self.loop.turn()
        self.patch(os, "fsdecode", usual)
        self.fail_at.clear()
        self.assertEqual(second.expect(1), ERROR)
        self.assertRaises(ConnectionResetError, first.rest)
        self.assertEqual(dict(self.store.items()), {})
        self.assertEqual(len(self.flushLoggedErrors(MemoryError)), 1)

    def test_what_another_client_flushed_in_between_stands(self):
        """Were it done again, there would be nothing to delete any more."""
        first, second, third = self.crowd(3)
        self.store.put(b"gone", b"1")
        heard = self.without_space(
            self.fill() + 1, (first, b"delete gone\r"), (second, b"write big|%s\r" % bytes(8000)), (third, b"write c|1\r"))
        self.assertEqual(heard, [OK, ERROR, ERROR])
        self.assertEqual(sorted(self.store), [b"first"])

    def test_failure_that_another_client_meets_in_between(self):
        """A list has to flush before it begins."""
        first, second, third = self.crowd(3)
        heard = self.without_space(1, (first, b"write a|1\r"), (second, b"keys\r"), (third, b"write c|1\r"))
        self.assertEqual(heard, [ERROR, b"\r", OK])
        self.assertEqual(dict(self.store.items()), {b"c": b"1"})

    def test_list_is_not_begun_again(self):
        first, second = self.crowd(2)
        self.store.put(b"a", b"1")
        self.store.flush()
        heard = self.without_space(1, (first, b"keys\r"), (second, b"write b|1\r"))
        self.assertEqual(heard, [b"a\r", ERROR])

    def test_rest_of_a_command_is_kept(self):
        first, second = self.crowd(2)
        self.assertEqual(self.together((first, b"write a|1\rwrite b|"), (second, b"write c|1\r")), [OK, OK])
        heard = self.without_space(1, (second, b"write c|2\rrea"), (first, b"2\rread b"))
        self.assertEqual(heard, [ERROR, ERROR])
        self.assertEqual(self.together((second, b"d c\r"), (first, b"\r")), [b"1\r", ERROR])

    def test_at_random(self):
        """Each client's replies and what the store has agree, whatever fails."""
        for seed in range(3):
            self.at_random(random.Random(seed), self.crowd(8, name=f"random{seed}"))

    def test_at_random_with_syncs_in_between(self):
        for seed, typical in enumerate((1e-5, 1.0, 1e-5)):
            clients = self.crowd(21, name=f"random{seed}", fsync="always")
            self.server.commit.typical = typical
            self.at_random(random.Random(seed), clients)

    def at_random(self, chance, clients):
        model = {}
        for _ in range(150):
            said = [[] for _ in clients]
            for _ in range(chance.choice((1, 2))):
                if chance.random() < 0.5:
                    for number in self.active(), self.active() + 1:
                        self.refuse_once(number)
                self.loop.later += 1  # for the store to look for space again
                for number, client in enumerate(clients):
                    commands = [self.command(chance, number) for _ in range(chance.choice((0, 1, 1, 1, 3)))]
                    client.offer(b"".join(word + b" " + rest + b"\r" for word, rest in commands))
                    said[number] += commands
                self.loop.turn()
                self.fail_at.clear()
            for client, commands in zip(clients, said, strict=True):
                for command in commands:
                    self.follow(model, client, *command)
                self.assertEqual(client.received, b"")
        self.assertEqual(dict(self.store.items()), model)

    def command(self, chance, number):
        """(word, rest) of something about one of this client's keys."""
        key = b"%d.%d" % (number, chance.randrange(3))
        value = bytes([97 + chance.randrange(26)]) * chance.choice((1, 300, 3000))
        return chance.choice(((b"write", key + b"|" + value), (b"delete", key), (b"read", key), (b"reads", key[:-1])))

    def follow(self, model, client, word, rest):
        """Take the reply to this command; it may be an error only where something is changed. The model follows."""
        found = [value for key, value in sorted(model.items()) if key.startswith(rest)]
        reply = self.lines(client, max(1, len(found)) if word == b"reads" else 1)
        if word == b"reads":
            self.assertEqual(reply, b"\r".join(found))
        elif word == b"read":
            self.assertEqual(reply, model.get(rest, b"error"))
        elif reply != b"error":
            self.assertEqual(reply, b"success")
            key, _, value = rest.partition(b"|")
            if word == b"write":
                model[key] = value
            else:
                self.assertIsNotNone(model.pop(key, None))
