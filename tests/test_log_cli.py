"""`kvstore log`: every operation once, in order, whatever compaction does to the files; and following a running store."""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading

import crc32c

import kvcore
from kvcore.history import History
from tests.daemon import PATIENCE, environment, run
from tests.test_check import snapshot
from tests.test_recovery import SMALL, CrashCase, forge, records, seed_of


def told(operations):
    """What the tests compare: (key, deleted, size of the value)."""
    return [(operation.key, operation.deleted, operation.value_size) for operation in operations]


class HistoryCase(CrashCase):
    def ascending(self, operations):
        """The list of them; fails when one is not younger than the one before."""
        operations = list(operations)
        versions = [operation.version for operation in operations]
        self.assertEqual(versions, sorted(set(versions)))
        return operations


class PastTest(HistoryCase):
    def test_every_kind_of_operation(self):
        store = self.open()
        store.put(b"a", b"123")
        store.put(b"b", b"", ttl=60)
        store.delete(b"a")
        with store.batch() as batch:
            batch.put(b"c", b"1")
            batch.delete(b"b")
        store.sync()
        store.put(b"d", b"4")
        store.close()
        found = self.ascending(History(self.dir).past())
        self.assertEqual(told(found), [
            (b"a", False, 3), (b"b", False, 0), (b"a", True, 0), (b"c", False, 1), (b"b", True, 0), (b"d", False, 1)])
        self.assertEqual([(o.number, o.batch_size) for o in found], [(0, 0), (0, 0), (0, 0), (1, 2), (2, 2), (0, 0)])
        self.assertEqual([bool(o.deadline) for o in found], [False, True, False, False, False, False])
        self.assertEqual(found[1].deadline - (found[1].version >> 20) - 60_000, 0)

    def test_across_segments(self):
        pairs = [(b"k%03d" % i, os.urandom(1000)) for i in range(200)]
        self.write(pairs, segment_size=SMALL)
        before = snapshot(self.dir)
        found = self.ascending(History(self.dir).past())
        self.assertEqual(told(found), [(key, False, 1000) for key, _ in pairs])
        self.assertGreater(len({operation.segment for operation in found}), 2)
        self.assertEqual(snapshot(self.dir), before)

    def test_since(self):
        self.write([(b"k%03d" % i, os.urandom(1000)) for i in range(200)], segment_size=SMALL)
        found = list(History(self.dir).past())
        for place in (0, 1, 70, 150, 199):
            self.assertEqual(list(History(self.dir).past(found[place].version)), found[place:])
        self.assertEqual(list(History(self.dir).past(found[-1].version + 1)), [])

    def compacted(self):
        """A store that was compacted twice, the second time from several segments with overlapping times."""
        store = self.open(segment_size=SMALL)
        for turn in range(3):
            for i in range(turn, 200, turn + 1):
                store.put(b"k%03d" % i, os.urandom(1000))
            store.drive(store.compaction_of(store.sealed_ids()[turn % 2::2]))
        return store

    def test_after_compaction(self):
        store = self.compacted()
        alive = {key: len(value) for key, value in store.items()}
        store.close()
        self.assertTrue(any(self.read(path)[12] & 1 for path in self.segment_paths()))
        found = self.ascending(History(self.dir).past())
        last = {operation.key: operation for operation in found}
        self.assertEqual({key for key, operation in last.items() if not operation.deleted}, set(alive))

    def test_compacted_segment_whose_times_go_back(self):
        """As one that was made of two sources, the younger one first."""
        self.write([(b"k%03d" % i, os.urandom(1000)) for i in range(120)], segment_size=SMALL)
        expected = told(History(self.dir).past())
        path = self.segment_paths()[0]
        content = self.read(path)
        middle = records(content)[20][0]
        head = content[:12] + b"\1" + content[13:60]
        self.damage(path, head + struct.pack("<I", crc32c.crc32c(head)) + content[middle:] + content[64:middle])
        self.assertEqual(told(self.ascending(History(self.dir).past())), expected)

    def test_copies_beside_their_originals(self):
        store = self.open(segment_size=SMALL)
        for i in range(200):
            store.put(b"k%03d" % (i % 120), os.urandom(1000))
        store.close()
        originals = {path: self.read(path) for path in self.segment_paths()}
        expected = told(History(self.dir).past())
        with self.open(segment_size=SMALL) as store:
            store.drive(store.compaction_of(store.sealed_ids()))
        self.assertNotEqual(told(History(self.dir).past()), expected)
        for path, content in originals.items():
            self.damage(path, content)
        os.unlink(os.path.join(self.dir, "MANIFEST"))
        found = self.ascending(History(self.dir).past())
        self.assertEqual(told(found), expected)

    def test_damage(self):
        self.write([(b"k%d" % i, b"value") for i in range(20)])
        path = self.segment_paths()[0]
        content = self.read(path)
        offset, size, *_ = records(content)[7]
        self.damage(path, content[:offset + 8] + b"??" + content[offset + 10:])
        history = History(self.dir)
        self.assertEqual([key for key, _, _ in told(history.past())], [b"k%d" % i for i in range(20) if i != 7])
        self.assertEqual([item[:3] for item in history.damage], [("0000000001.seg", offset, size)])

    def test_half_a_batch_is_no_operation(self):
        self.write([(b"a", b"1")])
        path = self.segment_paths()[0]
        content = self.read(path)
        self.damage(path, content + forge(seed_of(content), 1900000000000 << 20, b"b", b"1", flags=8))
        self.assertEqual([key for key, _, _ in told(History(self.dir).past())], [b"a"])


class FollowTest(HistoryCase):
    def setUp(self):
        super().setUp()
        self.store = self.open(segment_size=SMALL)
        self.store.put(b"before", b"1")
        self.history = History(self.dir)
        self.addCleanup(delattr, self, "history")
        self.assertEqual(told(self.history.past()), [(b"before", False, 1)])

    def test_nothing_new(self):
        self.assertEqual(list(self.history.new()), [])

    def test_new_operations_once(self):
        self.store.put(b"a", b"1")
        self.store.delete(b"a")
        self.assertEqual(told(self.history.new()), [(b"a", False, 1), (b"a", True, 0)])
        self.assertEqual(list(self.history.new()), [])
        with self.store.batch() as batch:
            batch.put(b"b", b"1")
            batch.put(b"c", b"1")
        self.assertEqual([(o.key, o.number, o.batch_size) for o in self.history.new()], [(b"b", 1, 2), (b"c", 2, 2)])

    def test_rotation(self):
        keys = []
        for i in range(300):
            keys.append(b"k%03d" % i)
            self.store.put(keys[-1], os.urandom(1000))
            if i % 37 == 0:
                self.assertEqual([key for key, _, _ in told(self.history.new())], keys)
                keys.clear()
        self.assertEqual([key for key, _, _ in told(self.history.new())], keys)
        self.assertGreater(len(self.segment_paths()), 4)
        self.assertEqual(self.history.damage, [])

    def test_compaction(self):
        """Copies are no new operations; and what was written before its segment went is told all the same."""
        seen = []
        for turn in range(4):
            for i in range(100):
                self.store.put(b"k%03d" % i, os.urandom(1000))
            seen += told(self.history.new())
            self.store.put(b"turn%d" % turn, b"1")
            self.store.compact()
            seen += told(self.history.new())
        expected = [(b"k%03d" % i, False, 1000) for i in range(100)]
        self.assertEqual(seen, [item for turn in range(4) for item in [*expected, (b"turn%d" % turn, False, 1)]])

    def test_store_that_is_closed_and_opened_again(self):
        self.store.put(b"a", b"1")
        self.store.close()
        self.assertEqual(told(self.history.new()), [(b"a", False, 1)])
        with self.open(segment_size=SMALL) as store:
            store.put(b"b", b"1")
            self.assertEqual(told(self.history.new()), [(b"b", False, 1)])

    def test_record_that_is_half_written(self):
        self.store.close()
        list(self.history.new())
        path = self.segment_paths()[0]
        content = self.read(path)
        records_of = [forge(seed_of(content), (1900000000000 << 20) + i, key, b"v" * 50, flags)
                      for i, (key, flags) in enumerate(((b"a", 0), (b"b", 8), (b"c", 8), (b"", 0x20)))]
        records_of[-1] = forge(seed_of(content), (1900000000000 << 20) + 3, b"", b"\2\0\0\0", 0x20)
        whole = b"".join(records_of)
        seen = []
        for end in range(0, len(whole) + 1, 5):
            with open(path, "r+b") as f:
                f.seek(len(content))
                f.write(whole[:end])
            seen += self.history.new()
        with open(path, "r+b") as f:
            f.seek(len(content))
            f.write(whole)
        seen += self.history.new()
        self.assertEqual([key for key, _, _ in told(seen)], [b"a", b"b", b"c"])
        self.assertEqual(self.history.damage, [])


class CommandTest(CrashCase):
    def command(self, *words):
        return run(".", sys.executable, "-m", "kvnet", "log", self.dir, *words)

    def test_lines(self):
        with self.open() as store:
            store.put(b"a key\n", b"123")
            with store.batch() as batch:
                batch.put(b"b", b"1", ttl=60)
                batch.delete(b"a key\n")
        status, out, err = self.command()
        self.assertEqual((status, err), (0, ""))
        time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
        self.assertRegex(out, (
            rf"\A{time}  put            3  a\\x20key\\x0a\n"
            rf"{time}  put            1  b  until={time}  batch=1/2\n"
            rf"{time}  delete         0  a\\x20key\\x0a  batch=2/2\n\Z"))

    def test_key_since_and_json(self):
        self.write([(b"a", b"1"), (b"b", b"22"), (b"a", b"333")])
        status, out, err = self.command("--key", "a", "--json")
        lines = [json.loads(line) for line in out.splitlines()]
        self.assertEqual((status, err), (0, ""))
        self.assertEqual([(line["key"], line["value_size"], line["operation"]) for line in lines],
                         [("a", 1, "put"), ("a", 3, "put")])
        self.assertEqual(len(self.command("--since", "10m")[1].splitlines()), 3)
        self.assertEqual(len(self.command("--since", lines[0]["time"])[1].splitlines()), 3)
        self.assertEqual(self.command("--since", "9999-01-01"), (0, "", ""))

    def test_wrong_command_lines_are_status_2(self):
        self.write([(b"a", b"1")])
        for words in (("--since", "yesterday"), ("--limit", "3"), ("--since", "")):
            status, out, err = self.command(*words)
            self.assertEqual((status, out), (2, ""), words)
        os.unlink(self.segment_paths()[0])
        shutil.rmtree(self.dir)
        os.mkdir(self.dir)
        status, out, err = self.command()
        self.assertEqual((status, out), (2, ""))
        self.assertRegex(err, r"\Akvstore: .*holds no store.*\n\Z")

    def test_damage_is_status_1(self):
        self.write([(b"a", b"1"), (b"b", b"22"), (b"c", b"333")])
        path = self.segment_paths()[0]
        content = self.read(path)
        offset, size, *_ = records(content)[1]
        self.damage(path, content[:offset + 12] + b"????" + content[offset + 16:])
        status, out, err = self.command()
        self.assertEqual((status, re.findall(r"  (\w)\n", out)), (1, ["a", "c"]))
        self.assertEqual(err, f"kvstore: 0000000001.seg: {size} bytes from {offset} on: operations may be missing\n")

    def test_follow(self):
        store = self.open()
        store.put(b"a", b"1")
        process = subprocess.Popen(
            [sys.executable, "-m", "kvnet", "log", self.dir, "--follow"],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        watchdog = threading.Timer(PATIENCE, process.kill)
        watchdog.start()
        self.addCleanup(watchdog.cancel)
        self.assertTrue(process.stdout.readline().endswith("  a\n"))
        for i in range(5):
            store.put(b"k%d" % i, b"1")
            self.assertTrue(process.stdout.readline().endswith(f"  k{i}\n"))
        process.send_signal(signal.SIGINT)
        self.assertEqual((process.communicate(), process.returncode), (("", ""), 0))

    def test_reader_that_goes_away(self):
        with self.open(autoflush=False) as store:
            for i in range(20_000):
                store.put(b"k%d" % i, b"1")
        process = subprocess.Popen(
            [sys.executable, "-m", "kvnet", "log", self.dir],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        process.stdout.readline()
        process.stdout.close()
        self.assertEqual(process.stderr.read(), "")
        process.stderr.close()
        process.wait(PATIENCE)


class MissingTest(CrashCase):
    def test_what_is_no_store(self):
        self.assertRaises(kvcore.StorageError, History, self.dir)
