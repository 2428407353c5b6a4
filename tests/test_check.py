"""`kvstore check`: every kind of damage is found and told, and nothing is changed. The damage is forged by hand."""

import json
import os
import shutil
import struct
import sys

import crc32c

import kvcore
from kvcore import manifest
from kvcore.check import check, printable, report_dict, report_lines
from kvcore.survey import Survey
from tests.daemon import run
from tests.probe import BadBlocks
from tests.test_recovery import HEADER, SMALL, CrashCase, forge, records, seed_of


def snapshot(directory):
    """Names, sizes, times of change and bytes of everything in a directory."""
    found = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(folder, name)
            info = os.stat(path)
            with open(path, "rb") as f:
                found[path] = (info.st_size, info.st_mtime_ns, info.st_ctime_ns, f.read())
        found[folder] = os.stat(folder).st_mtime_ns
    return found


class OfflineCase(CrashCase):
    """A store of several sealed segments, closed. Keys k000..., values of 1,000 bytes."""

    COUNT = 150

    def setUp(self):
        super().setUp()
        self.pairs = {b"k%03d" % i: os.urandom(1000) for i in range(self.COUNT)}
        self.write(self.pairs.items(), segment_size=SMALL)
        self.first = self.segment_paths()[0]
        self.content = self.read(self.first)
        self.found = records(self.content)

    def flip(self, path, offset, mask=1):
        content = bytearray(self.read(path))
        content[offset] ^= mask
        self.damage(path, bytes(content))

    def replace(self, offset, with_bytes):
        """Put the first segment back as it was, but for these bytes."""
        self.damage(self.first, self.content[:offset] + with_bytes + self.content[offset + len(with_bytes):])

    def manifest(self):
        return manifest.decode(self.read(os.path.join(self.dir, "MANIFEST")), "MANIFEST")


class HealthyTest(OfflineCase):
    def test_counts(self):
        report = check(self.dir)
        self.assertEqual((report.damage, report.notes, report.holder), ([], [], None))
        sizes = sum(os.path.getsize(path) for path in self.segment_paths())
        total = sum(len(records(self.read(path))) for path in self.segment_paths())
        self.assertEqual(report.totals, {"segments": 4, "records": total, "live_keys": self.COUNT, "bytes": sizes})

    def test_deleted_and_expired_keys_are_not_alive(self):
        store = self.open()
        store.delete(b"k001")
        store.put(b"k002", b"1", ttl=3600)
        store.close()
        self.assertEqual(check(self.dir).totals["live_keys"], self.COUNT - 1)
        # The time of a store never goes back behind its last record.
        path = self.segment_paths()[2]
        content = self.read(path)
        self.damage(path, content + forge(seed_of(content), 4000000000000 << 20, b"k003", b"1"))
        self.assertEqual(check(self.dir).totals["live_keys"], self.COUNT - 2)

    def test_nothing_is_changed(self):
        """Whatever is damaged, and also what opening would remove."""
        self.flip(self.first, HEADER + 30)
        self.flip(self.segment_paths()[1], 5)
        self.damage(os.path.join(self.dir, "0000000002.ord"), b"?")
        self.damage(os.path.join(self.dir, "0000000077.seg"), b"?")
        self.damage(os.path.join(self.dir, "MANIFEST.tmp"), b"?")
        with open(self.segment_paths()[3], "ab") as f:
            f.write(b"torn" + bytes(1000))
        before = snapshot(self.dir)
        self.assertNotEqual(check(self.dir).damage, [])
        self.assertEqual(snapshot(self.dir), before)

    def test_after_compaction(self):
        store = self.open(segment_size=SMALL)
        for key in list(self.pairs)[::2]:
            store.put(key, b"short")
        store.compact()
        store.close()
        report = check(self.dir)
        self.assertEqual((report.damage, report.notes, report.totals["live_keys"]), ([], [], self.COUNT))

    def test_store_in_use(self):
        store = self.open()
        report = check(self.dir)
        self.assertEqual((report.holder, report.damage), (str(os.getpid()), []))
        self.assertIn(f"in use by process {os.getpid()}", next(report_lines(report)))
        store.close()
        self.assertIsNone(check(self.dir).holder)

    def test_what_is_no_store(self):
        for path in (self.dir + "-not-there", os.path.dirname(self.dir), self.first):
            error = str(self.assertRaises(kvcore.StorageError, check, path))
            self.assertNotIn("\n", error)

    def test_other_format(self):
        path = os.path.join(self.dir, "MANIFEST")
        text = self.read(path).replace(b'"format": 1', b'"format": 2').rpartition(b'{"crc32c')[0]
        self.damage(path, text + b'{"crc32c": "%08x"}\n' % crc32c.crc32c(text))
        self.assertIn("format 2", str(self.assertRaises(kvcore.StorageError, check, self.dir)))


class RecordDamageTest(OfflineCase):
    def check_first(self, keys):
        """One damaged range, that of the sixth record, with these keys."""
        offset, size, _, key, _ = self.found[5]
        report = check(self.dir)
        self.assertEqual(
            [item[:3] for item in report.damage], [("0000000001.seg", offset, size)], report.damage)
        self.assertIn(report.damage[0].keys, keys)
        self.assertEqual(report.totals["live_keys"], self.COUNT - 1)

    def test_bit_flips_at_every_position_of_a_header(self):
        offset, _, _, key, _ = self.found[5]
        for position in range(20):
            for bit in (0, 3, 7):
                self.replace(offset + position, bytes([self.content[offset + position] ^ 1 << bit]))
                self.check_first([[key]])

    def test_bit_flips_in_key_and_value(self):
        offset, size, _, key, _ = self.found[5]
        for position in (20, 23, 24, size - 1):
            self.replace(offset + position, bytes([self.content[offset + position] ^ 0x10]))
            self.check_first([[key]])

    def test_lengths_that_cannot_be(self):
        """The key is not known then, and that newer values may be hidden is told."""
        offset, _, _, key, _ = self.found[5]
        for length in (0, 1 << 31, (1 << 32) - 1):
            self.replace(offset + 12, struct.pack("<I", length))
            report = check(self.dir)
            self.assertEqual([item[1:3] for item in report.damage], [(offset, self.found[5][1])])
            self.assertEqual((report.damage[0].keys, report.damage[0].hides), ([], True))
        for length in (b"\0\0\0", b"\xff\xff\xff"):
            self.replace(offset + 16, length)
            self.assertEqual([item[1:3] for item in check(self.dir).damage], [(offset, self.found[5][1])])

    def test_many_bytes_wrong_and_lengths_right(self):
        offset, _, _, key, _ = self.found[5]
        self.replace(offset + 100, b"?" * 300)
        report = check(self.dir)
        self.assertEqual((report.damage[0].keys, report.damage[0].hides), ([key], True))

    def test_several_records_in_one_range(self):
        first, last = self.found[5], self.found[7]
        for offset, *_ in self.found[5:8]:
            self.content = self.content[:offset] + bytes([self.content[offset] ^ 1]) + self.content[offset + 1:]
        self.replace(0, b"")
        report = check(self.dir)
        self.assertEqual(
            [item[:3] for item in report.damage], [("0000000001.seg", first[0], last[0] + last[1] - first[0])])
        self.assertEqual(report.damage[0].keys, [record[3] for record in self.found[5:8]])

    def test_key_written_again_is_no_loss(self):
        offset, _, _, key, _ = self.found[5]
        store = self.open()
        store.put(key, b"new")
        store.close()
        self.flip(self.first, offset + 30)
        report = check(self.dir)
        self.assertEqual((report.damage[0].keys, report.damage[0].lost), ([key], False))
        self.assertEqual(report.totals["live_keys"], self.COUNT)

    def test_zeros_over_a_block(self):
        self.replace(4096, bytes(4096))
        report = check(self.dir)
        self.assertEqual(len(report.damage), 1)
        item = report.damage[0]
        self.assertLessEqual(item.offset, 4096)
        self.assertGreaterEqual(item.offset + item.length, 8192)

    def test_blocks_of_the_disk_that_cannot_be_read(self):
        survey = Survey(self.dir, files=BadBlocks(8192, 12288))
        survey.read()
        hit = [key for offset, size, _, key, _ in self.found if offset < 12288 and offset + size > 8192]
        self.assertEqual([item.file for item in survey.damage], [
            "0000000001.seg", "0000000002.seg", "0000000003.seg"])
        self.assertEqual(survey.totals()["live_keys"], self.COUNT - 3 * len(hit))
        self.assertIn("the disk could not read all bytes", survey.notes[0])

    def test_torn_tail_is_a_note(self):
        with open(self.segment_paths()[3], "ab") as f:
            f.write(b"torn")
        self.forget_checkpoint()
        report = check(self.dir)
        self.assertEqual(report.damage, [])
        self.assertIn("torn write", report.notes[0])
        self.assertIn("4 bytes", report.notes[0])

    def test_last_record_of_a_store_that_was_closed(self):
        """Its checkpoint proves that the record was on the disk: bad or gone, it is no torn write."""
        path = self.segment_paths()[2]
        content = self.read(path)
        offset, size, _, key, _ = records(content)[-1]
        for bad, found in (
            (content[:-1] + bytes([content[-1] ^ 1]), (offset, size, [key])),
            (content[:offset], (offset, size, [])),
        ):
            with open(path, "wb") as f:
                f.write(bad)
            self.assertEqual([(*item[1:3], item.keys) for item in check(self.dir).damage], [found])

    def test_half_a_batch(self):
        path = self.segment_paths()[3]
        content = self.read(path)
        version = 1900000000000 << 20
        half = b"".join(forge(seed_of(content), version + i, key, b"1", flags=8) for i, key in enumerate((b"one", b"two")))
        self.damage(path, content + half)
        self.assertEqual(check(self.dir).damage, [])        # at the very end it is a torn write
        self.damage(path, content + half + forge(seed_of(content), version + 2, b"three", b"3"))
        report = check(self.dir)
        self.assertEqual([item[1:3] for item in report.damage], [(len(content), len(half))])
        self.assertEqual((report.damage[0].what, report.damage[0].keys), ("a batch that is not whole", [b"one", b"two"]))

    def test_bytes_that_a_mark_proves_and_that_are_gone(self):
        path = self.segment_paths()[3]
        content = self.read(path)
        mark = forge(seed_of(content), 1900000000000 << 20, b"", struct.pack("<QI", 4, len(content) + 500), flags=0x10)
        self.damage(path, content + mark)
        item = check(self.dir).damage[0]
        self.assertEqual((item.offset, item.length), (len(content) + len(mark), 500 - len(mark)))
        self.assertIn("missing", item.what)


class FileDamageTest(OfflineCase):
    def whats(self):
        return [f"{item.file} {item.what}" for item in check(self.dir).damage]

    def test_missing_segment(self):
        os.unlink(self.first)
        line = self.manifest()[3][0]
        self.assertEqual(
            self.whats(), [f"0000000001.seg is missing: {line['bytes']} bytes, {line['records']} records"])

    def test_truncated_sealed_segment(self):
        cut = self.found[-1][0] + 7
        self.damage(self.first, self.content[:cut])
        damage = check(self.dir).damage
        self.assertEqual(damage[0][:3], ("0000000001.seg", cut, len(self.content) - cut))
        self.assertIn("is cut short", damage[0].what)
        self.assertEqual(damage[1][:3], ("0000000001.seg", self.found[-1][0], 7))

    def test_truncated_header(self):
        for size in (0, 1, 63):
            self.damage(self.first, self.content[:size])
            self.assertIn("not even its header", self.whats()[0])

    def test_damaged_header_does_not_hide_the_records(self):
        for position in range(HEADER):
            self.replace(position, bytes([self.content[position] ^ 0x10]))
            report = check(self.dir)
            self.assertEqual([item[:3] for item in report.damage], [("0000000001.seg", 0, HEADER)])
            self.assertFalse(report.damage[0].lost)
            self.assertEqual(report.totals["live_keys"], self.COUNT)

    def test_damaged_header_of_an_empty_segment(self):
        path = self.segment_paths()[3]
        self.assertEqual(os.path.getsize(path), HEADER)
        self.flip(path, 3)
        self.assertEqual([item.lost for item in check(self.dir).damage], [False])

    def test_manifest_missing_or_damaged(self):
        path = os.path.join(self.dir, "MANIFEST")
        good = self.read(path)
        for content in (b"", b"\0" * len(good), good[:-1] + b"?", good[:50] + b"?" + good[51:]):
            self.damage(path, content)
            self.assertEqual(self.whats(), ["MANIFEST its checksum does not hold"])
            self.assertEqual(check(self.dir).totals["live_keys"], self.COUNT)
        os.unlink(path)
        self.assertIn("MANIFEST is missing", self.whats()[0])
        self.assertEqual(check(self.dir).totals["live_keys"], self.COUNT)

    def test_manifest_that_counts_otherwise(self):
        store_id, secret, next_id, lines = self.manifest()
        lines[1]["records"] += 1
        self.damage(os.path.join(self.dir, "MANIFEST"), manifest.encode(store_id, secret, next_id, lines))
        self.assertIn("says that 0000000002.seg has", self.whats()[0])

    def test_old_manifest_put_back(self):
        store_id, secret, _, lines = self.manifest()
        self.damage(os.path.join(self.dir, "MANIFEST"), manifest.encode(store_id, secret, 3, lines[:2]))
        self.assertIn("0000000003.seg is younger than the manifest", self.whats()[0])

    def test_segment_of_another_store(self):
        other = self.mktemp()
        with kvcore.open(other, fsync="no") as store:
            store.put(b"foreign", b"1")
        shutil.copy(os.path.join(other, "0000000001.seg"), self.first)
        report = check(self.dir)
        self.assertEqual([(item.what, item.lost) for item in report.damage], [("belongs to another store", True)])
        self.assertEqual(report.totals["live_keys"], self.COUNT - len(self.found))

    def test_two_segments_in_each_others_place(self):
        second = self.segment_paths()[1]
        one, two = self.read(self.first), self.read(second)
        self.damage(self.first, two)
        self.damage(second, one)
        self.assertEqual(self.whats(), [
            "0000000001.seg has the header of segment 2", "0000000002.seg has the header of segment 1"])
        self.assertEqual(check(self.dir).totals["live_keys"], self.COUNT)

    def test_foreign_file(self):
        self.damage(os.path.join(self.dir, "notes.txt"), b"?")
        self.assertIn("notes.txt is not kvstore's", self.whats()[0])

    def test_caches_are_notes(self):
        store = self.open(segment_size=SMALL)
        list(store.keys())
        store.close()
        for name, offset in (("0000000001.ord", 60), ("index.ckpt", 20)):
            with open(os.path.join(self.dir, name), "r+b") as f:
                f.seek(offset)
                f.write(b"????")
        report = check(self.dir)
        self.assertEqual(report.damage, [])
        self.assertEqual([note.split()[0] for note in report.notes], ["0000000001.ord", "index.ckpt"])

    def test_left_over_segment_and_quarantine_are_notes(self):
        store_id, secret, next_id, lines = self.manifest()
        self.damage(os.path.join(self.dir, "MANIFEST"), manifest.encode(store_id, secret, 99, lines))
        shutil.copy(self.first, os.path.join(self.dir, "0000000050.seg"))
        os.mkdir(os.path.join(self.dir, "quarantine"))
        self.damage(os.path.join(self.dir, "quarantine", "0000000001-64.bin"), b"?")
        report = check(self.dir)
        self.assertEqual(report.damage, [])
        self.assertIn("0000000050.seg is not listed", " ".join(report.notes))
        self.assertIn("quarantine/0000000001-64.bin", " ".join(report.notes))


class CommandTest(OfflineCase):
    def command(self, *words):
        return run(".", sys.executable, "-m", *words)

    def test_clean(self):
        for module in ("kvnet", "kvcore"):
            status, out, err = self.command(module, "check", self.dir)
            self.assertEqual((status, err), (0, ""))
            self.assertRegex(out, r"\A4 segments, \d+ records, 150 live keys, \d+ bytes, 0 damaged ranges\n\Z")

    def test_damage(self):
        self.flip(self.first, self.found[5][0] + 30)
        before = snapshot(self.dir)
        for module in ("kvnet", "kvcore"):
            status, out, err = self.command(module, "check", self.dir)
            self.assertEqual((status, err), (1, ""))
            offset, size, _, key, _ = self.found[5]
            self.assertIn(f"0000000001.seg: {size} bytes from {offset} on", out)
            self.assertIn(f"key {key.decode()}\n", out)
            self.assertRegex(out, r"1 damaged ranges\n\Z")
            status, out, err = self.command(module, "check", "--json", self.dir)
            self.assertEqual((status, json.loads(out)), (1, report_dict(check(self.dir))))
        self.assertEqual(snapshot(self.dir), before)

    def test_what_cannot_be_read_is_status_2_and_a_line(self):
        os.mkdir(os.path.join(self.dir, "empty"))
        for module in ("kvnet", "kvcore"):
            status, out, err = self.command(module, "check", os.path.join(self.dir, "empty"))
            self.assertEqual((status, out), (2, ""))
            self.assertRegex(err, r"\Akv(store|core): .*holds no store.*\n\Z")
            self.assertEqual(self.command(module, "check", self.dir + "-not-there")[0], 2)
            self.assertEqual(self.command(module, "check")[0], 2)


class PrintableTest(OfflineCase):
    def test_every_byte(self):
        self.assertEqual(printable(b"a:b ~\\\x00\xff\n"), r"a:b\x20~\x5c\x00\xff\x0a")
