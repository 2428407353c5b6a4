"""Opening after a crash or damage: the torn tail is cut, everything else is kept, damage is told and never served.

Records are taken apart and forged here by hand, from docs/format.md, not with the engine's own code.
"""

import errno
import os
import random
import struct

import crc32c

import kvcore
from kvcore import manifest
from tests.probe import HookedFiles
from tests.support import StoreCase

SMALL = 64 << 10
HEADER = 64


def seed_of(content):
    """The checksum seed in a segment's header."""
    return struct.unpack_from("<I", content, 40)[0]


def records(content):
    """(offset, size, flags, key, value) of each record of a segment."""
    found = []
    offset = HEADER
    while offset < len(content) and any(content[offset:offset + 20]):
        crc, _, value_len = struct.unpack_from("<IQI", content, offset)
        key_len = int.from_bytes(content[offset + 16:offset + 19], "little")
        start = offset + (28 if content[offset + 19] & 2 else 20)
        end = start + key_len + value_len
        assert crc32c.crc32c(content[offset + 4:end], seed_of(content)) == crc
        key = content[start:start + key_len]
        found.append((offset, end - offset, content[offset + 19], key, content[start + key_len:end]))
        offset = end
    return found


def forge(seed, version, key, value, flags=0):
    """One record, by the book."""
    body = struct.pack("<QI", version, len(value)) + len(key).to_bytes(3, "little") + bytes([flags]) + key + value
    return struct.pack("<I", crc32c.crc32c(body, seed)) + body


class CrashCase(StoreCase):
    def write(self, pairs, **options):
        """A store that was killed after writing `pairs`: closed, its log's bytes as they were."""
        store = self.open(**options)
        for key, value in pairs:
            store.put(key, value)
        store.close()

    def read(self, path):
        with open(path, "rb") as f:
            return f.read()

    def damage(self, path, content):
        with open(path, "wb") as f:
            f.write(content)
        self.forget_checkpoint()

    def reopened(self, **options):
        """(contents, damaged keys, recovery report) after opening."""
        store = self.open(**options)
        contents, damaged = {}, set()
        for key in self.keys_written:
            try:
                value = store.get(key)
                if value is not None:
                    contents[key] = value
            except kvcore.CorruptionError:
                damaged.add(key)
        store.close()
        return contents, damaged, store.recovery


class TornTailTest(CrashCase):
    def setUp(self):
        super().setUp()
        self.pairs = [(b"key%d" % i, b"value%d" % i * (i % 5)) for i in range(20)]
        self.keys_written = [key for key, _ in self.pairs]
        self.write(self.pairs)
        self.path = self.segment_paths()[0]
        self.content = self.read(self.path)
        self.records = records(self.content)
        self.assertEqual([(key, value) for _, _, _, key, value in self.records], self.pairs)

    def check_each_cut(self, tail):
        first = self.records[-3][0]
        for cut in range(first, len(self.content)):
            self.damage(self.path, self.content[:cut] + tail(len(self.content) - cut))
            contents, damaged, report = self.reopened()
            whole = {key: value for offset, size, _, key, value in self.records if offset + size <= cut}
            self.assertEqual(contents, whole, cut)
            self.assertEqual((damaged, report["damaged_ranges"]), (set(), 0), cut)
            # Cut back to whole records, and written on from there.
            self.assertEqual(records(self.read(self.path)), [r for r in self.records if r[0] + r[1] <= cut])

    def test_truncated_at_every_byte(self):
        self.check_each_cut(lambda lost: b"")

    def test_tail_of_zeros_at_every_byte(self):
        # A record may itself end in zeros; these do not, so that "whole" above is exact.
        self.check_each_cut(lambda lost: bytes(lost + 1000))

    def test_random_tail_at_every_byte(self):
        rng = random.Random(4)
        self.check_each_cut(lambda lost: bytes([self.content[-lost] ^ 0xFF]) + rng.randbytes(lost + 50))

    def test_writing_goes_on_behind_the_cut(self):
        self.damage(self.path, self.content[:-5] + b"garbage")
        store = self.open()
        self.assertEqual(store.recovery["torn_bytes"], self.records[-1][1] - 5 + 7)
        self.assertEqual(len(store.recovery["messages"]), 1)
        store.put(b"new", b"1")
        store.close()
        self.assertEqual(self.contents(), dict([*self.pairs[:-1], (b"new", b"1")]))

    def test_zeros_taken_ahead_are_nothing_at_all(self):
        self.damage(self.path, self.content + bytes(100_000))
        store = self.open()
        self.assertEqual((store.recovery["torn_bytes"], store.recovery["messages"]), (0, []))
        store.close()
        self.assertEqual(self.read(self.path), self.content)

    def test_value_that_ends_in_zeros_is_whole(self):
        store = self.open()
        store.put(b"zeros", bytes(5000))
        store.close()
        self.damage(self.path, self.read(self.path) + bytes(3000))
        self.assertEqual(self.contents()[b"zeros"], bytes(5000))

    def test_bytes_before_a_mark_are_never_a_torn_tail(self):
        """A mark says up to where the log was on the disk: what is bad before that is damage, even at the very end."""
        end = len(self.content)
        mark = forge(seed_of(self.content), 1900000000000 << 20, b"", struct.pack("<QI", 1, end + 500), flags=0x10)
        tail = b"not a record" * 20
        self.damage(self.path, self.content + mark + tail)
        contents, _, report = self.reopened()
        self.assertEqual(contents, dict(self.pairs))
        self.assertEqual(report["torn_bytes"], 0)
        self.assertEqual(report["damaged_bytes"], len(tail))
        self.assertEqual(self.read(self.path), self.content + mark + tail)
        self.assertTrue(any("missing" in message for message in report["messages"]), report)

    def test_mark_of_another_length_says_nothing(self):
        mark = forge(seed_of(self.content), 1900000000000 << 20, b"", struct.pack("<QIB", 1, 2**31, 0), flags=0x10)
        self.damage(self.path, self.content + mark + b"not a record")
        contents, _, report = self.reopened()
        self.assertEqual((contents, report["damaged_ranges"], report["torn_bytes"]), (dict(self.pairs), 0, 12))

    def test_each_sync_is_followed_by_a_mark(self):
        store = self.open()
        store.sync()
        store.put(b"after", b"1")
        store.close()
        found = records(self.read(self.path))
        marks = [struct.unpack("<QI", value) for _, _, flags, _, value in found if flags == 0x10]
        self.assertEqual(marks, [(1, len(self.content))])
        self.assertNotIn(b"", dict(self.open().items()))


class DamageTest(CrashCase):
    def setUp(self):
        super().setUp()
        rng = random.Random(5)
        self.pairs = [(b"key%02d" % i, rng.randbytes(40)) for i in range(30)]
        self.keys_written = [key for key, _ in self.pairs]
        self.write(self.pairs)
        self.path = self.segment_paths()[0]
        self.content = self.read(self.path)
        self.records = records(self.content)

    def flip(self, offset, bit=0):
        changed = bytearray(self.content)
        changed[offset] ^= 1 << bit
        self.damage(self.path, bytes(changed))

    def check(self, hit, contents, damaged, report):
        """The key that was hit answers an error, every other one is as it was; the bytes are kept aside."""
        offset, size, _, key, value = self.records[hit]
        expected = dict(self.pairs)
        del expected[key]
        self.assertEqual((damaged, contents), ({key}, expected))
        self.assertEqual((report["damaged_ranges"], report["torn_bytes"], report["lost_keys"]), (1, 0, 1))
        kept = os.path.join(self.dir, "quarantine", f"0000000001-{offset}.bin")
        self.assertEqual(self.read(kept), self.read(self.path)[offset:offset + size])

    def test_every_bit_of_a_record_in_the_middle(self):
        start, size = self.records[10][:2]
        for offset in range(start, start + size):
            for bit in range(8):
                self.flip(offset, bit)
                self.check(10, *self.reopened())

    def test_a_damaged_newer_record_does_not_let_the_older_value_through(self):
        store = self.open()
        store.put(b"key05", b"newer")
        store.put(b"last", b"1")
        store.close()
        content = self.read(self.path)
        offset, size, *_ = next(r for r in records(content) if r[4] == b"newer")
        self.damage(self.path, content[:offset + size - 1] + b"?" + content[offset + size:])
        _, damaged, _ = self.reopened()
        self.assertEqual(damaged, {b"key05"})

    def test_writing_or_deleting_a_damaged_key_heals_it(self):
        self.flip(self.records[3][0] + 30)
        self.content = self.read(self.path)
        self.flip(self.records[4][0] + 30)
        store = self.open()
        self.assertRaises(kvcore.CorruptionError, store.get, b"key03")
        self.assertRaises(kvcore.CorruptionError, store.get, b"key04")
        self.assertEqual(store.stats()["damaged_reads"], 2)
        store.put(b"key03", b"healed")
        self.assertTrue(store.delete(b"key04"))
        self.assertEqual(store.get(b"key03"), b"healed")
        self.assertIsNone(store.get(b"key04"))
        store.close()
        contents, damaged, _ = self.reopened()
        self.assertEqual((contents[b"key03"], b"key04" in contents, damaged), (b"healed", False, set()))

    def test_damage_under_an_open_store(self):
        """Any damaged byte of a key's record answers an error for it, a damaged key included, never `not there`."""
        store = self.open()
        offset, size, _, key, value = self.records[7]
        for at in range(offset, offset + size):
            self.flip(at)
            self.assertRaises(kvcore.CorruptionError, store.get, key)
            self.assertEqual(store.get(b"key08"), dict(self.pairs)[b"key08"])
        self.damage(self.path, self.content)
        self.assertEqual(store.get(key), value)

    def test_segment_cut_under_an_open_store(self):
        """The pages are gone from under the mapping: an error for each key on them, not the end of the process."""
        store = self.open()
        os.truncate(self.path, 0)
        self.assertRaises(kvcore.CorruptionError, store.get, b"key07")
        self.assertRaises(kvcore.CorruptionError, list, store.keys())
        self.damage(self.path, self.content)
        self.assertEqual(store.get(b"key07"), dict(self.pairs)[b"key07"])

    def test_lengths_are_not_believed(self):
        offset = self.records[10][0]
        for field, width in ((12, 4), (16, 3)):
            for lie in (0, 1, 2**31 - 1, 2**31, 2**32 - 1):
                changed = bytearray(self.content)
                changed[offset + field:offset + field + width] = lie.to_bytes(4, "little")[:width]
                self.damage(self.path, bytes(changed))
                contents, damaged, report = self.reopened()
                self.assertEqual(contents, {k: v for k, v in self.pairs if k != b"key10"})
                self.assertEqual((report["damaged_ranges"], report["torn_bytes"]), (1, 0))

    def test_stretch_of_zeros_or_noise_over_several_records(self):
        start, end = self.records[5][0] + 7, self.records[9][0] + 3
        for filling in (bytes(end - start), random.Random(6).randbytes(end - start)):
            self.damage(self.path, self.content[:start] + filling + self.content[end:])
            contents, damaged, report = self.reopened()
            expected = {key: value for key, value in self.pairs if not b"key05" <= key <= b"key09"}
            self.assertEqual({k: v for k, v in contents.items() if k in expected}, expected)
            self.assertEqual(set(contents), set(expected))
            self.assertEqual(report["damaged_ranges"], 1)

    def test_record_inside_a_value_is_not_taken_for_one(self):
        """A copy of another segment, stored as a value, must not come to life when the value's record is damaged."""
        inner = forge(12345, 1900000000000 << 20, b"ghost", b"boo") * 3
        store = self.open()
        store.put(b"backup", b"x" * 50 + inner)
        store.put(b"last", b"1")
        store.close()
        self.content = self.read(self.path)
        offset = next(r[0] for r in records(self.content) if r[3] == b"backup")
        self.flip(offset + 13)
        self.assertEqual(self.listed(self.open()), sorted([*self.keys_written, b"last"]))

    def listed(self, store):
        """All keys that a listing names before it tells of damage."""
        scan = store.keys()
        found = []
        with self.assertRaises(kvcore.CorruptionError):
            for key in scan:
                found.append(key)
        return found

    def test_listing_names_a_key_whose_value_is_damaged(self):
        self.flip(self.records[3][0] + 30)
        for _ in range(2):
            store = self.open()
            self.assertEqual(list(store.keys()), self.keys_written)
            items = store.items()
            self.assertEqual(len([next(items) for _ in range(3)]), 3)
            self.assertRaises(kvcore.CorruptionError, next, items)
            store.close()

    def test_listing_without_a_key_that_is_damaged_tells_at_the_end(self):
        expected = [key for key in self.keys_written if key != b"key03"]
        store = self.open()
        self.flip(self.records[3][0] + 22)
        self.assertEqual(self.listed(store), expected)
        store.close()
        self.assertEqual(self.listed(self.open()), expected)

    def test_crafted_false_starts_do_not_hold_up_the_opening(self):
        """Headers that look plausible and claim large records: the search for the next good record is bounded."""
        lie = struct.pack("<IQI", 0, 1900000000000 << 20, 200_000) + (5).to_bytes(3, "little") + b"\0"
        store = self.open()
        store.put(b"lies", lie * 20_000)
        store.put(b"last", b"1")
        store.close()
        self.content = self.read(self.path)
        offset = next(r[0] for r in records(self.content) if r[3] == b"lies")
        self.flip(offset + 13)
        contents, _, report = self.reopened()
        self.assertEqual(contents, dict(self.pairs))
        self.assertEqual((report["damaged_ranges"], report["torn_bytes"]), (1, 0))

    def test_search_behind_half_a_batch_is_given_up_too(self):
        """None of the batch counts, and the lies behind it hold nothing up."""
        version = 1900000000000 << 20
        lie = struct.pack("<IQI", 0, version, 100_000) + (5).to_bytes(3, "little") + b"\0"
        half = forge(seed_of(self.content), version, b"half", b"1", flags=0x08)
        self.damage(self.path, self.content + half + lie * 20_000)
        self.keys_written.append(b"half")
        contents, damaged, report = self.reopened()
        self.assertEqual((contents, damaged), (dict(self.pairs), set()))
        self.assertEqual((report["damaged_ranges"], report["torn_bytes"]), (2, 0))

    def test_damaged_mark_is_no_key_that_is_lost(self):
        store = self.open()
        store.sync()
        store.put(b"last", b"1")
        store.close()
        self.content = self.read(self.path)
        (mark,) = (offset for offset, _, flags, _, _ in records(self.content) if flags == 0x10)
        self.flip(mark + 25)
        contents, damaged, report = self.reopened()
        self.assertEqual((contents, damaged), (dict(self.pairs), set()))
        self.assertEqual((report["damaged_ranges"], report["lost_keys"]), (1, 0))

    def test_wrong_bit_in_bytes_that_are_more_than_one_record_names_no_key(self):
        """Their checksum would hold without it, but their lengths do not lead to their end."""
        offset, size, *_ = self.records[10]
        for lie in (-1, 1):
            body = bytearray(self.content[offset + 4:offset + size])
            body[8] += lie
            checksum = struct.pack("<I", crc32c.crc32c(bytes(body), seed_of(self.content)))
            body[-1] ^= 1
            self.damage(self.path, self.content[:offset] + checksum + bytes(body) + self.content[offset + size:])
            contents, damaged, report = self.reopened()
            self.assertEqual((contents, damaged), ({key: value for key, value in self.pairs if key != b"key10"}, set()))
            self.assertEqual((report["damaged_ranges"], report["lost_keys"]), (1, 0))

    def test_copy_that_cannot_be_made_is_told(self):
        for call, number in (("open", 10), ("pwrite", 20)):
            self.flip(self.records[number][0] + 30)

            def hook(name, what, call=call):
                where = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else os.fsdecode(what)
                return -errno.EIO if name == call and where.endswith(".bin") else None

            store = self.open(files=HookedFiles(hook))
            self.assertEqual(len(store.recovery["messages"]), 2)
            self.assertIn("could not be made: Input/output error", store.recovery["messages"][1])
            self.assertRaises(kvcore.CorruptionError, store.get, b"key%d" % number)
            store.close()

    def test_damage_of_more_than_a_mebibyte_is_kept_aside_whole(self):
        store = self.open()
        store.put(b"large", os.urandom(3 << 19))
        store.put(b"last", b"1")
        store.close()
        self.content = self.read(self.path)
        self.keys_written.append(b"large")
        self.pairs.append((b"large", b""))
        self.records = records(self.content)
        offset = next(r[0] for r in self.records if r[3] == b"large")
        self.flip(offset + (1 << 20))
        self.check(len(self.pairs) - 1, *self.reopened())

    def test_segment_that_is_longer_than_one_can_be(self):
        os.truncate(self.path, 5 << 30)
        self.assertIn("more than a segment can", str(self.assertRaises(kvcore.CorruptionError, self.open)))

    def test_damage_in_a_sealed_segment(self):
        store = self.open(segment_size=SMALL)
        more = [(b"more%03d" % i, os.urandom(1000)) for i in range(200)]
        for key, value in more:
            store.put(key, value)
        store.close()
        self.keys_written = [key for key, _ in more]
        path = self.segment_paths()[1]
        content = self.read(path)
        found = records(content)
        for hit in (1, len(found) // 2, len(found) - 2):
            offset, size, _, key, _ = found[hit]
            last = offset + size - 1
            self.damage(path, content[:last] + bytes([content[last] ^ 1]) + content[last + 1:])
            contents, damaged, report = self.reopened(segment_size=SMALL)
            self.assertEqual(damaged, {key})
            self.assertEqual(contents, {k: v for k, v in more if k != key})
            self.assertEqual(report["torn_bytes"], 0)


class HistoryTest(CrashCase):
    def test_deleted_stays_deleted_whatever_the_order_of_segments(self):
        """The version decides, not the place: an older put that is read after its tombstone stays dead."""
        self.write([(b"a", b"1")])
        path = self.segment_paths()[0]
        content = self.read(path)
        seed = seed_of(content)
        base = 1900000000000 << 20
        self.damage(path, content[:HEADER] + b"".join([
            forge(seed, base + 5, b"k", b"", flags=1), forge(seed, base + 3, b"k", b"older"),
            forge(seed, base + 9, b"m", b"newest"), forge(seed, base + 8, b"m", b"older"),
            forge(seed, base + 2, b"n", b"", flags=1), forge(seed, base + 4, b"n", b"back"),
        ]))
        store = self.open()
        self.assertEqual(dict(store.items()), {b"m": b"newest", b"n": b"back"})
        self.assertEqual(store.stats()["live_bytes"], (20 + 1 + 6) + (20 + 1 + 4))
        store.put(b"k", b"later")
        store.close()
        self.assertEqual(self.contents()[b"k"], b"later")

    def test_versions_go_on_above_the_highest_found(self):
        """A clock that jumps back changes nothing."""
        self.write([(b"a", b"1")])
        path = self.segment_paths()[0]
        content = self.read(path)
        ahead = 2**63
        self.damage(path, content + forge(seed_of(content), ahead, b"a", b"from the future"))
        store = self.open()
        store.put(b"a", b"now")
        store.close()
        last = self.read(path)[-24:]
        self.assertEqual(struct.unpack_from("<Q", last, 4)[0], ahead + 1)
        self.assertEqual(self.contents(), {b"a": b"now"})

    def test_unlisted_segment_is_removed_and_its_number_not_used_again(self):
        """Left over by a crash between making a segment and the manifest that lists it."""
        self.write([(b"a", b"1")])
        mine = self.read(self.segment_paths()[0])
        header = bytearray(mine[:60])
        header[16:24] = (9).to_bytes(8, "little")
        leftover = bytes(header) + crc32c.crc32c(bytes(header)).to_bytes(4, "little")
        path = os.path.join(self.dir, "0000000009.seg")
        for content in (
                leftover, leftover[:30], b"", bytes(len(leftover)), leftover + bytes(1000), leftover + b"garbage" * 100):
            self.damage(path, content)
            store = self.open()
            self.assertEqual((dict(store.items()), store.recovery["messages"]), ({b"a": b"1"}, []))
            store.close()
            self.assertFalse(os.path.exists(path))
            self.assertFalse(os.path.exists(os.path.join(self.dir, "quarantine")))

    def unlisted(self, id, compacted=False):
        """A segment of the test's store that its manifest does not list, with one record."""
        header = bytearray(self.read(self.segment_paths()[0])[:60])
        header[12] = compacted
        header[16:24] = id.to_bytes(8, "little")
        header += crc32c.crc32c(bytes(header)).to_bytes(4, "little")
        return bytes(header) + forge(seed_of(header), 1900000000000 << 20, b"a", b"old")

    def test_unlisted_segment_with_records_is_moved_aside_and_told(self):
        """One that is younger than the manifest: an old MANIFEST was put back."""
        self.write([(b"a", b"1")])
        for number, damage in ((9, b""), (19, b"?" * 50)):
            whole = self.unlisted(number)
            content = whole[:HEADER] + damage + whole[HEADER:]
            path = os.path.join(self.dir, f"{number:010}.seg")
            self.damage(path, content)
            store = self.open()
            self.assertEqual(dict(store.items()), {b"a": b"1"})
            (message,) = store.recovery["messages"]
            self.assertIn("quarantine", message)
            store.close()
            self.assertFalse(os.path.exists(path))
            self.assertEqual(self.read(os.path.join(self.dir, "quarantine", f"{number:010}.seg")), content)

    def test_source_of_a_compaction_that_a_crash_left_is_removed_without_a_word(self):
        """The manifest knows its number and does not list it."""
        self.write([(b"a", b"1")])
        path = os.path.join(self.dir, manifest.NAME)
        store_id, secret, _, segments = manifest.decode(self.read(path), path)
        self.damage(path, manifest.encode(store_id, secret, 50, segments))
        left = os.path.join(self.dir, "0000000009.seg")
        self.damage(left, self.unlisted(9))
        store = self.open()
        self.assertEqual((dict(store.items()), store.recovery["messages"]), ({b"a": b"1"}, []))
        self.assertFalse(os.path.exists(left))

    def test_the_manifest_is_durable_before_what_it_does_not_list_is_removed(self):
        """Killed behind the rename, whoever wrote it may have left it to a loss of power."""
        self.write([(b"a", b"1")])
        path = os.path.join(self.dir, manifest.NAME)
        store_id, secret, _, segments = manifest.decode(self.read(path), path)
        self.damage(path, manifest.encode(store_id, secret, 50, segments))
        self.damage(os.path.join(self.dir, "0000000009.seg"), self.unlisted(9))
        calls = []
        store = self.open(files=HookedFiles(lambda call, what: calls.append((call, what))))
        removed = calls.index(("unlink", os.fsencode(os.path.join(self.dir, "0000000009.seg"))))
        self.assertIn(("fsync_dir", os.fsencode(self.dir)), calls[:removed])
        store.close()

    def test_number_of_a_removed_segment_is_not_used_again_after_a_second_crash(self):
        """The checkpoint may name it, and would be believed of another segment with that number."""
        self.write([(b"a", b"1")])
        self.damage(os.path.join(self.dir, "0000000009.seg"), self.unlisted(9, compacted=True))
        self.open()
        path = os.path.join(self.dir, manifest.NAME)
        self.assertGreaterEqual(manifest.decode(self.read(path), path)[2], 10)

    def test_number_is_not_used_again_when_there_is_no_space_to_write_it_down(self):
        """Then what may name it goes: the checkpoint."""
        self.write([(b"a", b"1")])
        with open(os.path.join(self.dir, "0000000009.seg"), "wb") as f:
            f.write(self.unlisted(9, compacted=True))
        refusals = [-errno.ENOSPC]

        def hook(call, what):
            return refusals.pop() if refusals and call == "open" and what.endswith(b"MANIFEST.tmp") else None

        store = self.open(files=HookedFiles(hook))
        self.assertEqual(refusals, [])
        self.assertFalse(store.recovery["checkpoint"])
        self.assertFalse(os.path.exists(os.path.join(self.dir, "index.ckpt")))
        self.assertFalse(os.path.exists(os.path.join(self.dir, "0000000009.seg")))
        self.assertEqual(dict(store.items()), {b"a": b"1"})

    def test_segments_of_one_number_that_are_moved_aside_keep_each_other(self):
        """An old MANIFEST is put back again and again."""
        self.write([(b"a", b"1")])
        path = os.path.join(self.dir, manifest.NAME)
        old = self.read(path)
        left = self.unlisted(9)
        for tail in (b"1", b"2", b"3"):
            self.damage(path, old)
            self.damage(os.path.join(self.dir, "0000000009.seg"), left + tail)
            self.assertEqual(self.contents(), {b"a": b"1"})
        for name, tail in (("", b"1"), ("-2", b"2"), ("-3", b"3")):
            self.assertEqual(self.read(os.path.join(self.dir, "quarantine", f"0000000009{name}.seg")), left + tail)

    def test_what_a_compaction_left_over_is_removed_without_a_word(self):
        """Copies that were not listed yet, or listed no longer."""
        self.write([(b"k%d" % i, bytes(1000)) for i in range(200)], segment_size=SMALL)
        path = os.path.join(self.dir, manifest.NAME)
        store_id, secret, _, segments = manifest.decode(self.read(path), path)
        self.damage(path, manifest.encode(store_id, secret, 50, segments))
        for id in (60, 40):
            left_over = os.path.join(self.dir, f"{id:010d}.seg")
            self.damage(left_over, self.unlisted(id, compacted=True))
            store = self.open(segment_size=SMALL)
            self.assertEqual((len(store), store.recovery["messages"]), (200, []))
            store.close()
            self.assertFalse(os.path.exists(left_over))

    def test_refusal_of_a_store_with_a_missing_segment_removes_no_other(self):
        self.write([(b"k%d" % i, bytes(1000)) for i in range(100)], segment_size=SMALL)
        left_over = os.path.join(self.dir, "0000000040.seg")
        self.damage(left_over, self.unlisted(40, compacted=True))
        os.unlink(self.segment_paths()[1])
        self.assertIn("missing", str(self.assertRaises(kvcore.CorruptionError, kvcore.open, self.dir)))
        self.assertTrue(os.path.exists(left_over))

    def test_crash_while_the_directory_was_made(self):
        """Killed between the steps of the first opening: the next one completes it."""
        self.open().close()
        for gone in ((), (0,), (0, 1), (1,)):
            paths = self.segment_paths()
            manifest_path = os.path.join(self.dir, "MANIFEST")
            content = self.read(manifest_path).splitlines(keepends=True)
            first = content[0]
            # The manifest that is published first lists no segments; whatever files there are were not listed yet.
            self.damage(manifest_path, first + b'{"crc32c": "%08x"}\n' % crc32c.crc32c(first))
            for index in gone:
                os.unlink(paths[index])
            store = self.open()
            store.put(b"a", b"1")
            store.close()
            self.assertEqual(self.contents(), {b"a": b"1"})

    def test_left_over_temporary_manifest_is_ignored(self):
        self.write([(b"a", b"1")])
        self.damage(os.path.join(self.dir, "MANIFEST.tmp"), b"half a manif")
        self.assertEqual(self.contents(), {b"a": b"1"})
