"""The text protocol over a Session: every command, bad input, chunks cut anywhere, and what a failing disk answers."""

import os
import random
import resource

from hypothesis import given, settings
from hypothesis import strategies as st

import kvcore
from kvnet.commands.text import COMMANDS
from kvnet.metrics import Metrics
from kvnet.session import Session, command_rows
from tests.support import StoreCase, resume

STATUS = b"well going our operation\r"
KEY_BYTES = bytes(sorted({*range(65, 123), *range(48, 58), *b".-:"}))

# One conversation in which every command, every error and every odd end of a command occurs.
SCRIPT = [
    (b"read a\r", b"error\r"),
    (b"write a|1\r", b"success\r"),
    (b"read a\r", b"1\r"),
    (b"write a|\r", b"success\r"),
    (b"read a\r", b"\r"),
    (b"write b|x|y||z \n\r", b"success\r"),
    (b"read b\r", b"x|y||z \n\r"),
    (b"write  c:.-_^[]\\`| lead and trail \r", b"success\r"),
    (b"read   c:.-_^[]\\`\r", b" lead and trail \r"),
    (b"\r", b"error\r"),
    (b"\r\n", b"error\r"),
    (b"\n\r", b"error\r"),
    (b"write d\r", b"error\r"),
    (b"write |v\r", b"error\r"),
    (b"write d v|\r", b"error\r"),
    (b"write\r", b"error\r"),
    (b"read\r", b"error\r"),
    (b"read \r", b"error\r"),
    (b"read a b\r", b"error\r"),
    (b"read a \r", b"error\r"),
    (b"read \xc3\xa9\r", b"error\r"),
    (b"READ a\r", b"error\r"),
    (b"reada\r", b"error\r"),
    (b" read a\r", b"error\r"),
    (b"keys all\r", b"error\r"),
    (b"status \r", b"error\r"),
    (b"nonsense\r", b"error\r"),
    (b"\x00\xff\xfe\r", b"error\r"),
    (b"keys\r\n", b"a\rb\rc:.-_^[]\\`\r"),
    (b"status\r\n", STATUS),
    (b"write bb|2\r\n", b"success\r"),
    (b"reads b\r", b"x|y||z \n\r2\r"),
    (b"reads zzz\r", b"\r"),
    (b"delete b\r", b"success\r"),
    (b"delete b\r", b"error\r"),
    (b"delete nothere\r", b"error\r"),
    (b"read b\r", b"error\r"),
    (b"delete a\rdelete bb\rdelete c:.-_^[]\\`\r", b"success\r" * 3),
    (b"keys\r", b"\r"),
    (b"status", STATUS),  # the last command lacks its end
]
TALK = b"".join(said for said, _ in SCRIPT)
ANSWERS = b"".join(answer for _, answer in SCRIPT)


class SessionCase(StoreCase):
    def session(self, store=None, **options):
        metrics = Metrics()
        self.metrics = metrics
        self.store = self.open() if store is None else store
        return Session(self.store, metrics, command_rows(metrics), **options)

    def talk(self, session, *chunks):
        """All replies to the chunks; what is held for a sync not included."""
        replies = []
        for chunk in chunks:
            session.feed(chunk)
            replies.append(self.drain(session))
        return b"".join(replies)

    def drain(self, session):
        replies = [session.take()]
        while session.unfinished and not session.held:
            resume(session)
            replies.append(session.take())
        return b"".join(replies)

    def whole(self, session, *chunks):
        """All replies when the client sends the chunks and ends."""
        replies = self.talk(session, *chunks)
        session.finish()
        return replies + self.drain(session)


class ReplyTest(SessionCase):
    def test_each_step_of_the_script(self):
        session = self.session()
        for said, answer in SCRIPT[:-1]:
            self.assertEqual(self.talk(session, said), answer, said)

    def test_table_names_every_command(self):
        self.assertEqual(dict(COMMANDS), {
            "read": "key", "write": "key|value", "delete": "key", "status": "", "keys": "", "reads": "key"})

    def test_exactly_the_key_bytes_of_the_grammar(self):
        session = self.session()
        for byte in range(256):
            said = self.talk(session, b"write " + bytes([byte]) + b"|v\r")
            if byte == 13:
                self.assertEqual(said, b"error\rerror\r")
            else:
                self.assertEqual(said, b"success\r" if byte in KEY_BYTES else b"error\r", byte)

    def test_key_length_limit(self):
        session = self.session()
        key = b"k" * 102_400
        self.assertEqual(self.talk(session, b"write " + key + b"|v\r"), b"success\r")
        self.assertEqual(self.talk(session, b"read " + key + b"\r"), b"v\r")
        for command in (b"write %sk|v\r", b"read %sk\r", b"delete %sk\r", b"reads %sk\r"):
            self.assertEqual(self.talk(session, command % key), b"error\r")
        self.assertEqual(self.talk(session, b"status\r"), STATUS)

    def test_value_limit(self):
        session = self.session(self.open(max_value_size=1000), max_value_size=1000)
        self.assertEqual(self.talk(session, b"write k|" + b"v" * 1000 + b"\r"), b"success\r")
        self.assertEqual(self.talk(session, b"write k|" + b"w" * 1001 + b"\r"), b"error\r")
        self.assertEqual(self.talk(session, b"read k\r"), b"v" * 1000 + b"\r")

    def test_largest_value_by_default(self):
        session = self.session()
        value = b"0123456789abcdef" * (4 << 20)
        chunks = [value[i:i + (1 << 16)] for i in range(0, len(value), 1 << 16)]
        self.assertEqual(self.talk(session, b"write k|", *chunks, b"\r"), b"success\r")
        self.assertTrue(self.talk(session, b"read k\r") == value + b"\r")
        self.assertEqual(self.talk(session, b"write k|", *chunks, b"!\rstatus\r"), b"error\r" + STATUS)
        self.store.close()
        self.assertTrue(self.contents() == {b"k": value})

    def test_what_this_protocol_cannot_carry_is_an_error(self):
        store = self.open()
        store.put(b"k", b"a\rb")
        store.put(b"k2", b"fine")
        store.put(b"odd\rkey", b"v")
        session = self.session(store)
        self.assertEqual(self.talk(session, b"read k\r"), b"error\r")
        self.assertEqual(self.talk(session, b"keys\r"), b"k\rk2\rerror\r")
        self.assertEqual(self.talk(session, b"reads k\r"), b"error\rfine\r")

    def test_damaged_record(self):
        store = self.open()
        session = self.session(store)
        self.talk(session, b"write aa|first\rwrite ab|second\rwrite ac|third\r")
        with open(self.segment_paths()[0], "r+b") as f:
            content = f.read()
            f.seek(content.index(b"second"))
            f.write(b"S")
        self.assertEqual(self.talk(session, b"read ab\rread aa\r"), b"error\rfirst\r")
        self.assertEqual(self.talk(session, b"reads a\r"), b"first\rerror\rthird\r")
        self.assertEqual(self.metrics.count("text", "read", "error"), 1)

    def test_escabelo_dialect(self):
        session = self.session(dialect="escabelo")
        said = self.talk(session, b"read a\rnope\rwrite a|1\rread a\r")
        self.assertEqual(said, b"error: no such key\rerror: no such command\rsuccess\r1\r")
        self.assertEqual(
            self.talk(session, b"status\r"), b"well going our operation\nkeys=1 read=2 write=1 delete=0\r")

    def test_lf_dialect(self):
        session = self.session(dialect="lf")
        self.talk(session, b"write a|1\rwrite b|2\r")
        self.assertEqual(self.talk(session, b"keys\rreads a\r"), b"a\nb\r1\r")

    def test_outcomes_are_counted(self):
        session = self.session()
        self.whole(session, TALK)
        counted = {
            (command, outcome): self.metrics.count("text", command, outcome)
            for command in ("read", "write", "delete", "status", "keys", "reads", "invalid")
            for outcome in ("ok", "miss", "error")
        }
        self.assertEqual({key: n for key, n in counted.items() if n}, {
            ("read", "ok"): 4, ("read", "miss"): 2, ("write", "ok"): 5, ("delete", "ok"): 4, ("delete", "miss"): 2,
            ("status", "ok"): 2, ("keys", "ok"): 2, ("reads", "ok"): 2, ("invalid", "error"): 19})
        self.assertEqual(self.metrics.total("text", "write"), 5)


class ChunkTest(SessionCase):
    def test_every_chunk_size(self):
        store = self.open()
        for size in [*range(1, 10), 16, 100, 1000]:
            session = self.session(store)
            chunks = [TALK[i:i + size] for i in range(0, len(TALK), size)]
            self.assertEqual(self.whole(session, *chunks), ANSWERS, size)

    def test_every_split_point(self):
        store = self.open()
        for cut in range(len(TALK) + 1):
            session = self.session(store)
            self.assertEqual(self.whole(session, TALK[:cut], TALK[cut:]), ANSWERS, cut)

    def test_pipelined_commands_arrive_in_order(self):
        session = self.session()
        count = 5000
        said = b"".join(b"write k%d|%d\rread k%d\r" % (i, i, i) for i in range(count))
        self.assertEqual(self.talk(session, said), b"".join(b"success\r%d\r" % i for i in range(count)))

    def test_large_values_in_many_chunks(self):
        session = self.session()
        value = os.urandom(3_000_000).replace(b"\r", b"?")
        said = b"write big|" + value + b"\r"
        replies = self.talk(session, *[said[i:i + 65536] for i in range(0, len(said), 65536)])
        self.assertEqual(replies, b"success\r")
        self.assertEqual(self.talk(session, b"read big\rstatus\r"), value + b"\r" + STATUS)

    def test_end_without_a_command(self):
        store = self.open()
        for last in (b"", b"status\r", b"status\r\n"):
            session = self.session(store)
            self.assertEqual(self.whole(session, last), STATUS if last else b"")


class HostileTest(SessionCase):
    def test_over_long_command_is_one_error_and_the_connection_goes_on(self):
        session = self.session(self.open(max_value_size=1000), max_value_size=1000)
        for start in (b"", b"write k|", b"read ", b"garbage"):
            replies = self.talk(session, start + b"x" * 5000, *[b"y" * 60_000] * 10, b"tail\rstatus\r")
            self.assertEqual(replies, b"error\r" + STATUS, start)

    def test_over_long_command_at_the_end_of_input(self):
        session = self.session(self.open(max_value_size=1000), max_value_size=1000)
        self.assertEqual(self.whole(session, b"z" * 300_000), b"error\r")

    def test_input_without_an_end_takes_no_memory(self):
        session = self.session()
        chunk = b"\xa5" * (1 << 20)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(1024):
            session.feed(chunk)
        self.assertEqual(session.take(), b"error\r")
        self.assertLess(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, 8 << 10)
        self.assertEqual(self.talk(session, b"\rstatus\r"), STATUS)

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.one_of(
        st.binary(max_size=40),
        st.sampled_from([b"\r", b"\n", b" ", b"|", b"write a|", b"read a", b"reads a", b"keys", b"delete a", b"status"]),
    ), max_size=30))
    def test_any_bytes_get_one_reply_a_command(self, pieces):
        if not hasattr(self, "shared"):
            self.shared = self.open()
        session = self.session(self.shared)
        said = b"".join(pieces)
        replies = self.whole(session, *pieces)
        self.assertEqual(self.whole(self.session(self.shared), b"status\r"), STATUS)
        if b"keys" not in said and b"reads" not in said:
            # As many replies as commands; a "\n" behind a "\r" belongs to it.
            commands = said.replace(b"\r\n", b"\r").split(b"\r")
            expected = len(commands) - (commands[-1] in (b"", b"\n") and (len(commands) > 1 or not commands[-1]))
            self.assertIn(replies.count(b"\r") - expected, (0, 1) if commands[-1] == b"\n" else (0,))

    def test_seeded_noise(self):
        rng = random.Random(7)
        words = [b"write ", b"read ", b"reads ", b"delete ", b"keys", b"status"]
        words += [b"|", b"\r", b"\r\n", b" ", b"a", b"k" * 300]
        session = self.session()
        for _ in range(3000):
            noise = b"".join(rng.choice(words) if rng.random() < 0.8 else rng.randbytes(5) for _ in range(rng.randrange(20)))
            self.talk(session, noise)
        self.assertEqual(self.talk(session, b"\r\rstatus\r")[-len(STATUS):], STATUS)


class LongRecordTest(SessionCase):
    """Long records are read in two parts: what precedes the value, and the value, to where it is sent from."""

    def records(self):
        for size in (*range(4090, 4104), 70_000, 200_000):
            for key in (b"k%d" % size, b"long" * 1000 + b"%d" % size):
                for ttl in (None, 1000):
                    if size - 28 > len(key):
                        yield key + b"t" * (ttl is not None), os.urandom(size - 20 - len(key)).replace(b"\r", b"\n"), ttl

    def test_are_read_as_they_were_written_flushed_or_not(self):
        store = self.open(autoflush=False)
        contents = {}
        for flushed in (False, True):
            for key, value, ttl in self.records():
                store.put(key, value, ttl)
                contents[key] = value
                self.assertEqual(store.get(key), value)
            session = self.session(store)
            asked = b"".join(b"read %s\rstatus\r" % key for key in contents)
            self.assertEqual(self.talk(session, asked), b"".join(value + b"\r" + STATUS for value in contents.values()))
            store.flush()
            self.assertEqual({key: store.get(key) for key in contents}, contents, flushed)

    def test_any_byte_of_one_that_is_damaged_makes_it_an_error(self):
        store = self.open()
        for ttl in (None, 1000):
            store.put(b"key", b"v" * 10_000, ttl)
            (path, *_), end = self.segment_paths(), store.stats()["written_bytes"]
            start = end - 10_000 - (23 if ttl is None else 31)
            with open(path, "r+b") as file:
                session = self.session(store)
                for at in (*range(start, start + 40), start + 5000, end - 1):
                    file.seek(at)
                    byte = file.read(1)
                    for bit in range(8):
                        os.pwrite(file.fileno(), bytes([byte[0] ^ 1 << bit]), at)
                        self.assertRaises(kvcore.CorruptionError, store.get, b"key")
                        self.assertEqual(self.talk(session, b"read key\r"), b"error\r", (at - start, bit))
                    os.pwrite(file.fileno(), byte, at)
                self.assertEqual(self.talk(session, b"read key\r"), b"v" * 10_000 + b"\r")


class DurabilityTest(SessionCase):
    def limit(self, size):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    def on_disk(self):
        return b"".join(open(path, "rb").read() for path in self.segment_paths())

    def test_success_means_in_the_kernel(self):
        session = self.session(self.open(autoflush=False))
        session.feed(b"write a|value-one\rwrite b|value-two\r")
        self.assertIn(b"value-two", self.on_disk())
        self.assertEqual(session.take(), b"success\r" * 2)

    def test_no_space_every_write_of_the_chunk_is_refused_and_reads_see_the_old_values(self):
        session = self.session(self.open(segment_size=1 << 20))
        self.talk(session, b"write a|old\rwrite b|here\r")
        self.limit(os.path.getsize(self.segment_paths()[0]) + 10)
        said = b"read a\rwrite a|newer and longer\rread a\rdelete b\rread b\rwrite c|1\rnope\rkeys\r"
        self.assertEqual(
            self.talk(session, said), b"old\rerror\rold\rerror\rhere\rerror\rerror\ra\rb\r")
        self.assertEqual(self.store.state, "full")
        self.assertEqual(self.metrics.count("text", "write", "ok"), 2)
        self.assertEqual(self.metrics.count("text", "write", "error"), 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        self.assertEqual(self.talk(session, b"write a|new\rread a\r"), b"success\rnew\r")
        self.assertEqual(self.store.state, "ok")

    def test_no_space_in_the_middle_of_a_long_chunk(self):
        """Every `success` is kept and every `error` changed nothing, though the chunk is flushed in several parts."""
        session = self.session(self.open(segment_size=4 << 20))
        said = b"".join(b"write k%d|%s\r" % (i, b"v" * 1000) for i in range(6000))
        self.limit(2_500_000)
        replies = self.talk(session, said).split(b"\r")[:-1]
        self.assertEqual(set(replies), {b"success", b"error"})
        kept = {b"k%d" % i for i, reply in enumerate(replies) if reply == b"success"}
        self.assertEqual(set(self.store.keys()), kept)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        self.assertEqual(self.talk(session, b"write k0|again\r"), b"success\r")
        self.store.close()
        self.assertEqual(set(self.contents()), kept | {b"k0"})

    def test_held_replies_wait_for_their_sync_and_keep_their_order(self):
        session = self.session()
        session.hold = True
        self.assertEqual(self.talk(session, b"read a\rwrite a|1\rread a\r"), b"error\r")
        self.assertTrue(session.held)
        first = session.mark
        self.assertEqual(self.talk(session, b"read a\rwrite b|2\r"), b"")
        second = session.mark
        self.assertEqual(self.talk(session, b"status\r"), b"")
        session.release(first)
        self.assertEqual(session.take(), b"success\r1\r1\r")
        self.assertTrue(session.held)
        session.release(second)
        self.assertEqual(session.take(), b"success\r" + STATUS)
        self.assertFalse(session.held)
        self.assertEqual(self.talk(session, b"status\r"), STATUS)

    def test_failed_sync_turns_held_successes_into_errors(self):
        session = self.session()
        session.hold = True
        self.assertEqual(self.talk(session, b"write a|success\rread a\rdelete a\rread a\rwrite b|2\rwrite |\r"), b"")
        session.fail("the disk broke")
        self.assertEqual(session.take(), b"error\rsuccess\rerror\rerror\rerror\rerror\r")
        self.assertFalse(session.held)

    def test_reads_and_refused_writes_are_not_held(self):
        session = self.session()
        session.hold = True
        self.assertEqual(self.talk(session, b"read a\rdelete a\rwrite |\rkeys\r"), b"error\r" * 3 + b"\r")
        self.assertFalse(session.held)
