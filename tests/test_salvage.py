"""`kvstore salvage`: what can be read arrives in the new store, what cannot is told, and the old one is not touched."""

import base64
import json
import os
import shutil
import signal
import struct
import subprocess
import sys

import kvcore
from kvcore.salvage import UNFINISHED, is_whole, salvage, salvaged_dict, salvaged_lines
from kvcore.survey import Survey
from tests.daemon import environment, run
from tests.test_check import OfflineCase, snapshot
from tests.test_recovery import HEADER, SMALL, forge, records, seed_of


class SalvageCase(OfflineCase):
    def setUp(self):
        super().setUp()
        self.target = os.path.abspath(self.mktemp())

    def salvaged(self):
        """(contents of the new store, what salvage() returned)"""
        shutil.rmtree(self.target, ignore_errors=True)
        before = snapshot(self.dir)
        done = salvage(self.dir, self.target)
        self.assertEqual(snapshot(self.dir), before)
        with kvcore.open(self.target, fsync="no") as store:
            contents = dict(store.items())
            self.assertEqual(store.recovery["messages"], [])
        self.assertEqual(len(contents), done.keys)
        return contents, done

    def without(self, *keys):
        return {key: value for key, value in self.pairs.items() if key not in keys}


class WholeTest(SalvageCase):
    """Nothing is lost."""

    def check_all(self, pairs=None):
        contents, done = self.salvaged()
        self.assertEqual(contents, self.pairs if pairs is None else pairs)
        self.assertTrue(is_whole(done), done.damage)
        return done

    def test_healthy_store(self):
        done = self.check_all()
        self.assertEqual((done.damage, done.hidden), ([], False))
        self.assertEqual(list(salvaged_lines(done)), [f"{self.COUNT} keys saved in {self.target}, complete"])

    def test_deleted_keys_replaced_values_and_deadlines(self):
        store = self.open(segment_size=SMALL)
        store.delete(b"k001")
        store.put(b"k002", b"new")
        store.put(b"k003", b"3", ttl=3600)
        store.put(b"k004", b"4", ttl=0.001)
        with store.batch() as batch:
            batch.put(b"k005", b"5")
            batch.delete(b"k006")
        store.close()
        # Beyond any deadline of a millisecond: the time of a store is never before its last record.
        path = self.segment_paths()[2]
        content = self.read(path)
        version = max(struct.unpack_from("<Q", content, offset + 4)[0] for offset, *_ in records(content))
        self.damage(path, content + forge(seed_of(content), version + (60_000 << 20), b"last", b"1"))
        self.check_all({**self.without(b"k001", b"k004", b"k006"), b"k002": b"new", b"k003": b"3", b"k005": b"5",
                        b"last": b"1"})
        old = {key: deadline for key, _, deadline in self.items_of(self.dir)}
        new = {key: deadline for key, _, deadline in self.items_of(self.target)}
        self.assertEqual(old, new)
        self.assertGreater(new[b"k003"], version >> 20)

    def items_of(self, directory):
        survey = Survey(directory)
        survey.read()
        return list(survey.items())

    def test_after_compaction_with_compressed_values(self):
        pairs = dict.fromkeys(self.pairs, b"compressible " * 100)
        store = self.open(segment_size=SMALL)
        for key, value in pairs.items():
            store.put(key, value)
        store.compact()
        self.assertGreater(store.stats()["compressed_from_bytes"], 0)
        store.close()
        self.check_all(pairs)

    def test_without_a_manifest(self):
        store = self.open(segment_size=SMALL)
        store.delete(b"k001")
        store.close()
        os.unlink(os.path.join(self.dir, "MANIFEST"))
        done = self.check_all(self.without(b"k001"))
        self.assertTrue(done.hidden)
        self.assertTrue(any(line.startswith("caution:") for line in salvaged_lines(done)))

    def test_damaged_headers_of_all_segments(self):
        """Also without the manifest: the seeds are worked out from the records alone."""
        for path in self.segment_paths()[:3]:
            self.damage(path, os.urandom(HEADER) + self.read(path)[HEADER:])
        self.check_all()
        for name in os.listdir(self.dir):
            if not name.endswith(".seg"):
                os.unlink(os.path.join(self.dir, name))
        self.check_all()

    def test_two_segments_in_each_others_place(self):
        first, second = self.segment_paths()[:2]
        one, two = self.read(first), self.read(second)
        self.damage(first, two)
        self.damage(second, one)
        self.check_all()

    def test_damaged_caches(self):
        for name in ("index.ckpt", "0000000001.ord"):
            with open(os.path.join(self.dir, name), "wb") as f:
                f.write(b"?" * 1000)
        self.check_all()

    def test_target_that_is_there_and_empty(self):
        os.mkdir(self.target)
        os.mkdir(os.path.join(self.target, "lost+found"))
        salvage(self.dir, self.target)
        self.assertEqual(len(self.items_of(self.target)), self.COUNT)

    def test_torn_tail_is_no_loss(self):
        with open(self.segment_paths()[2], "ab") as f:
            f.write(b"torn")
        self.check_all()

    def test_progress(self):
        seen = []
        salvage(self.dir, self.target, seen.append)
        self.assertGreaterEqual(sum(seen), sum(os.path.getsize(path) for path in self.segment_paths()))


class LossTest(SalvageCase):
    def check_loss(self, pairs, hidden):
        contents, done = self.salvaged()
        self.assertEqual(contents, pairs)
        self.assertEqual((is_whole(done), done.hidden), (False, hidden), done.damage)
        return done

    def test_one_wrong_bit_anywhere_in_a_record(self):
        offset, size, _, key, _ = self.found[5]
        for position in (*range(25), size // 2, size - 1):
            self.replace(offset + position, bytes([self.content[offset + position] ^ 4]))
            done = self.check_loss(self.without(key), hidden=False)
            self.assertEqual([item[:3] for item in done.damage], [("0000000001.seg", offset, size)])
            self.assertEqual(done.damage[0].keys, [key])

    def test_older_value_of_a_damaged_key_does_not_come_back(self):
        store = self.open(segment_size=SMALL)
        store.put(b"k000", b"n" * 300)
        store.close()
        path = self.segment_paths()[2]
        offset, _, _, key, _ = records(self.read(path))[-1]
        self.assertEqual(key, b"k000")
        with open(path, "r+b") as f:        # the checkpoint stays: it proves that the record was on the disk
            f.seek(offset + 60)
            f.write(b"o")
        self.check_loss(self.without(b"k000"), hidden=False)

    def test_damaged_tombstone(self):
        """One wrong bit: the key stays deleted. More of them: that deleted keys may be back is told."""
        store = self.open(segment_size=SMALL)
        store.delete(b"k000")
        store.put(b"last", b"1")
        store.close()
        path = self.segment_paths()[2]
        good = self.read(path)
        offset = records(good)[-2][0]
        self.flip(path, offset + 9)
        self.check_loss({**self.without(b"k000"), b"last": b"1"}, hidden=False)
        self.damage(path, good[:offset] + b"\xff" * 20 + good[offset + 20:])
        done = self.check_loss({**self.pairs, b"last": b"1"}, hidden=True)
        self.assertIn("older value", "\n".join(salvaged_lines(done)))

    def test_lengths_that_cannot_be(self):
        offset, size, _, key, _ = self.found[5]
        for length in (0, 1 << 31, (1 << 32) - 1):
            self.replace(offset + 12, struct.pack("<I", length))
            self.check_loss(self.without(key), hidden=True)

    def test_missing_segment(self):
        os.unlink(self.first)
        self.check_loss(self.without(*[record[3] for record in self.found]), hidden=True)

    def test_truncated_segment_at_many_lengths(self):
        for cut in (0, 10, HEADER, HEADER + 1, *range(HEADER + 100, len(self.content), 10_007), len(self.content) - 1):
            self.damage(self.first, self.content[:cut])
            gone = [key for offset, size, _, key, _ in self.found if offset + size > cut]
            self.check_loss(self.without(*gone), hidden=True)

    def test_header_and_first_block_are_gone(self):
        for name in os.listdir(self.dir):
            if name.endswith(".ord"):
                os.unlink(os.path.join(self.dir, name))
        self.replace(0, bytes(4096))
        gone = [key for offset, _, _, key, _ in self.found if offset < 4096]
        self.check_loss(self.without(*gone), hidden=True)

    def test_header_of_a_segment_with_one_record(self):
        """A single record fits any seed; its header's own, or that of the order, is needed to believe it."""
        other = self.mktemp()
        with kvcore.open(other, fsync="no") as store:
            store.put(b"a", b"1")
        path = os.path.join(other, "0000000001.seg")
        content = self.read(path)
        self.damage(path, b"?" * 8 + content[8:])
        self.assertEqual(salvage(other, self.mktemp()).keys, 1)
        self.damage(path, b"?" * HEADER + content[HEADER:])
        done = salvage(other, self.mktemp())
        self.assertEqual((done.keys, is_whole(done)), (0, False))

    def test_segment_of_another_store(self):
        other = self.mktemp()
        with kvcore.open(other, fsync="no") as store:
            store.put(b"k000", b"foreign")
        shutil.copy(os.path.join(other, "0000000001.seg"), self.first)
        self.check_loss(self.without(*[record[3] for record in self.found]), hidden=True)

    def test_crafted_false_starts_where_a_header_is_damaged_hold_nothing_up(self):
        """Then the seed is looked for in the records: what looks like one and claims much is not tried for ever."""
        lie = struct.pack("<IQI", 0, 1700000000000 << 20, 20_000) + (5).to_bytes(3, "little") + b"\0"
        self.damage(self.first, os.urandom(HEADER) + lie * 2500 + self.content[HEADER:])
        contents, done = self.salvaged()
        lost = {key for *_, key, _ in self.found}
        self.assertEqual(contents, self.without(*lost))
        self.assertFalse(is_whole(done))

    def test_half_a_batch_is_left_out(self):
        path = self.segment_paths()[2]
        content = self.read(path)
        version, seed = 1900000000000 << 20, seed_of(content)
        half = forge(seed, version, b"k000", b"1", flags=8) + forge(seed, version + 1, b"two", b"2", flags=8)
        self.damage(path, content + half + forge(seed, version + 2, b"three", b"3"))
        done = self.check_loss({**self.pairs, b"three": b"3"}, hidden=False)
        self.assertEqual(done.damage[0].keys, [b"k000", b"two"])


class RefusalTest(SalvageCase):
    def test_target_that_is_not_empty(self):
        os.mkdir(self.target)
        self.damage(os.path.join(self.target, "mine"), b"1")
        before = snapshot(self.target)
        self.assertIn("is not empty", str(self.assertRaises(kvcore.UsageError, salvage, self.dir, self.target)))
        self.assertEqual(snapshot(self.target), before)
        self.assertIn("is inside", str(self.assertRaises(kvcore.UsageError, salvage, self.dir, self.dir)))

    def test_target_inside_the_damaged_store(self):
        before = snapshot(self.dir)
        error = self.assertRaises(kvcore.UsageError, salvage, self.dir, os.path.join(self.dir, "new"))
        self.assertIn("is inside", str(error))
        self.assertEqual(snapshot(self.dir), before)

    def test_target_that_cannot_be_made(self):
        target = os.path.join(self.target, "not", "there")
        self.assertIn("cannot create", str(self.assertRaises(kvcore.StorageError, salvage, self.dir, target)))

    def test_error_on_the_way_leaves_nothing(self):
        def fail(done):
            self.assertFalse(os.path.exists(os.path.join(self.target, "MANIFEST")))
            raise KeyboardInterrupt

        for there in (False, True):
            if there:
                os.mkdir(self.target)
            self.assertRaises(KeyboardInterrupt, salvage, self.dir, self.target, fail)
            self.assertEqual(os.path.exists(self.target), there)
        self.assertEqual(os.listdir(self.target), [])

    def test_unfinished_store_does_not_open(self):
        salvage(self.dir, self.target)
        os.mkdir(os.path.join(self.target, UNFINISHED))
        self.assertRaises(kvcore.StorageError, kvcore.open, self.target)
        os.rmdir(os.path.join(self.target, UNFINISHED))
        os.unlink(os.path.join(self.target, "MANIFEST"))
        self.assertRaises(kvcore.StorageError, kvcore.open, self.target)


class CommandTest(SalvageCase):
    def command(self, *words):
        return run(".", sys.executable, "-m", *words)

    def test_complete(self):
        for module in ("kvnet", "kvcore"):
            status, out, err = self.command(module, "salvage", self.dir, self.target)
            self.assertEqual((status, out, err), (0, f"{self.COUNT} keys saved in {self.target}, complete\n", ""))
            shutil.rmtree(self.target)

    def test_loss(self):
        self.flip(self.first, self.found[5][0] + 30)
        for module in ("kvnet", "kvcore"):
            status, out, err = self.command(module, "salvage", self.dir, self.target)
            self.assertEqual((status, err), (1, ""))
            self.assertIn(f"key {self.found[5][3].decode()}\n", out)
            self.assertTrue(out.endswith("incomplete: 1 damaged ranges took the rest\n"), out)
            shutil.rmtree(self.target)
            status, out, err = self.command(module, "salvage", self.dir, self.target, "--json")
            shutil.rmtree(self.target)
            self.assertEqual((status, json.loads(out)), (1, salvaged_dict(salvage(self.dir, self.target))))
            shutil.rmtree(self.target)

    def test_refusals_are_status_2_and_a_line(self):
        for module in ("kvnet", "kvcore"):
            status, out, err = self.command(module, "salvage", self.dir, os.path.dirname(self.dir))
            self.assertEqual((status, out), (2, ""))
            self.assertRegex(err, r"\Akv(store|core): .*is not empty.*\n\Z")

    def test_interrupted(self):
        """By a signal to itself, so that it comes while the new store is being made."""
        program = (
            "import os, signal, sys, kvcore.salvage\n"
            "def stop(*arguments): os.kill(os.getpid(), signal.SIGINT)\n"
            "kvcore.salvage._move_up = stop\n"
            "from kvnet.cli import main\n"
            "main(prog_name='kvstore')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, "salvage", self.dir, self.target],
            env=environment(), capture_output=True, text=True, timeout=60)
        self.assertEqual((done.returncode, done.stdout), (128 + signal.SIGINT, ""))
        self.assertEqual(done.stderr, f"kvstore: interrupted; nothing is left of the new store in {self.target}\n")
        self.assertFalse(os.path.exists(self.target))

    def test_dump(self):
        store = self.open()
        store.put(b"late", b"\xff\0", ttl=3600)
        store.close()
        status, out, err = self.command("kvcore", "dump", self.dir)
        self.assertEqual((status, err), (0, ""))
        lines = [json.loads(line) for line in out.splitlines()]
        contents = {base64.b64decode(line["key"]): base64.b64decode(line["value"]) for line in lines}
        self.assertEqual(contents, {**self.pairs, b"late": b"\xff\0"})
        self.assertEqual([base64.b64decode(line["key"]) for line in lines if "expires_at" in line], [b"late"])
        self.flip(self.first, self.found[5][0] + 30)
        status, out, err = self.command("kvcore", "dump", self.dir)
        self.assertEqual((status, len(out.splitlines())), (1, self.COUNT))
        self.assertIn("0000000001.seg", err)
