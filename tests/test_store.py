"""The store as a library: what is put is there, through rotation, reopening, refusals and a disk without space."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

import kvcore
from kvcore import manifest
from kvcore.crashfs import CrashFiles
from tests.support import StoreCase, at_once

SMALL = 64 << 10  # the smallest segment size


class BasicTest(StoreCase):
    def test_put_get_delete(self):
        store = self.open()
        self.assertIsNone(store.get(b"a"))
        self.assertEqual(store.get(b"a", b"?"), b"?")
        store.put(b"a", b"1")
        store.put(b"b", b"")
        self.assertEqual(store.get(b"a"), b"1")
        self.assertEqual(store.get(b"b"), b"")
        store.put(b"a", b"22")
        self.assertEqual(store.get(b"a"), b"22")
        self.assertEqual(len(store), 2)
        self.assertTrue(store.delete(b"a"))
        self.assertFalse(store.delete(b"a"))
        self.assertIsNone(store.get(b"a"))
        self.assertEqual(len(store), 1)

    def test_any_bytes_are_keys_and_values(self):
        store = self.open()
        pairs = {bytes([i]): bytes(range(256)) * i for i in range(256)}
        for key, value in pairs.items():
            store.put(key, value)
        store.close()
        self.assertEqual(self.contents(), pairs)

    def test_largest_key_and_value(self):
        store = self.open(max_value_size=1 << 20, segment_size=SMALL)
        key, value = os.urandom(102_400), os.urandom(1 << 20)
        store.put(key, value)
        self.assertEqual(store.get(key), value)
        self.assertRaises(kvcore.UsageError, store.put, key + b"x", b"")
        self.assertRaises(kvcore.UsageError, store.put, b"", b"")
        self.assertRaises(kvcore.UsageError, store.put, b"k", value + b"x")
        self.assertIsNone(store.get(key + b"x"))
        store.close()
        self.assertEqual(self.contents(), {key: value})

    def test_keys_and_items_by_prefix_in_byte_order(self):
        store = self.open()
        keys = [b"b", b"a", b"ab", b"a\xff", b"a\0", b"aa", b"\xff", b"\xff\xff"]
        for key in keys:
            store.put(key, b"<" + key + b">")
        self.assertEqual(list(store.keys()), sorted(keys))
        self.assertEqual(list(store.keys(b"a")), sorted(key for key in keys if key.startswith(b"a")))
        self.assertEqual(list(store.items(b"\xff")), [(b"\xff", b"<\xff>"), (b"\xff\xff", b"<\xff\xff>")])
        self.assertEqual(list(store.keys(b"zz")), [])

    def test_key_deleted_during_a_scan_does_not_come(self):
        store = self.open()
        for key in (b"a", b"b", b"c"):
            store.put(key, b"1")
        items = store.items()
        self.assertEqual(next(items), (b"a", b"1"))
        store.delete(b"b")
        store.put(b"c", b"2")
        self.assertEqual(list(items), [(b"c", b"2")])

    def test_closed_store(self):
        store = self.open()
        store.put(b"a", b"1")
        scan = store.items()
        next(scan)
        store.close()
        store.close()
        self.assertEqual(store.state, "closed")
        for call in (lambda: store.get(b"a"), lambda: store.put(b"a", b""), lambda: store.delete(b"a"), store.flush,
                     store.sync, store.stats, lambda: len(store), lambda: next(store.keys()), lambda: next(scan),
                     lambda: store.unsynced):
            self.assertRaises(kvcore.ClosedError, call)

    def test_wrong_types_are_refused(self):
        store = self.open()
        for call in (lambda: store.get("a"), lambda: store.put("a", b""), lambda: store.put(b"a", None),
                     lambda: store.delete(None), lambda: store.get(None)):
            self.assertRaises(TypeError, call)

    def test_bad_options(self):
        for options in ({"fsync": "sometimes"}, {"segment_size": 10}, {"max_value_size": 0}, {"max_value_size": 1 << 31}):
            self.assertRaises(kvcore.UsageError, kvcore.open, self.dir, **options)
        self.assertFalse(os.path.exists(self.dir))

    def test_without_autoflush_only_flush_reaches_the_kernel(self):
        store = self.open(autoflush=False)
        store.put(b"a", b"1")
        self.assertEqual(store.get(b"a"), b"1")
        size = os.path.getsize(self.segment_paths()[0])
        store.flush()
        self.assertGreater(os.path.getsize(self.segment_paths()[0]), size)
        self.assertEqual(store.get(b"a"), b"1")

    def test_fsync_words_leave_nothing_unsynced_that_they_promise(self):
        always = self.open(fsync="always")
        always.put(b"a", b"1")
        self.assertEqual(always.unsynced, 0)
        always.close()
        never = self.open(fsync="no")
        never.put(b"a", b"2")
        self.assertGreater(never.unsynced, 0)
        never.sync()
        self.assertEqual(never.unsynced, 0)

    def test_sealed_while_a_sync_is_under_way(self):
        store = self.open(segment_size=SMALL)
        store.put(b"first", b"1")
        job = store.sync_job()
        for i in range(200):
            store.put(b"k%d" % i, bytes(1000))
        job.run()
        job.finish()
        store.sync()
        self.assertEqual(store.unsynced, 0)
        self.assertEqual(store.get(b"first"), b"1")


class ModelTest(StoreCase):
    def check(self, store, model):
        self.assertEqual(dict(store.items()), model)
        self.assertEqual(len(store), len(model))
        stats = store.stats()
        self.assertEqual(stats["live_bytes"], sum(20 + len(k) + len(v) for k, v in model.items()))

    def test_agrees_with_a_dict_through_rotation_and_reopening(self):
        rng = random.Random(3)
        model = {}
        for reopening in range(6):
            store = self.open(segment_size=SMALL, autoflush=reopening % 2 == 0)
            self.check(store, model)
            for _ in range(1500):
                key = b"key%d" % rng.randrange(300)
                if rng.random() < 0.3:
                    self.assertEqual(store.delete(key), model.pop(key, None) is not None)
                else:
                    value = rng.randbytes(rng.choice((0, 10, 300, 3000)))
                    store.put(key, value)
                    model[key] = value
                probe = b"key%d" % rng.randrange(300)
                self.assertEqual(store.get(probe), model.get(probe))
            self.check(store, model)
            self.assertGreater(store.stats()["segments"], 3)
            store.close()
        self.assertEqual(self.contents(), model)

    def test_dead_bytes_agree_with_what_a_replay_counts(self):
        store = self.open(segment_size=SMALL)
        for i in range(3000):
            store.put(b"k%d" % (i % 100), bytes(i % 200))
            if i % 7 == 0:
                store.delete(b"k%d" % (i % 50))
        before = store.stats()
        copy = os.path.abspath(self.mktemp())
        shutil.copytree(self.dir, copy)
        replayed = kvcore.open(copy, fsync="no")
        after = replayed.stats()
        replayed.close()
        for name in ("keys", "live_bytes", "dead_bytes"):
            self.assertEqual(after[name], before[name], name)

    @settings(max_examples=40, deadline=None)
    @given(st.lists(
        st.tuples(st.sampled_from("pdfr"), st.binary(min_size=1, max_size=3), st.binary(max_size=400)), max_size=60))
    def test_any_history_survives_reopening(self, history):
        self.dir = os.path.abspath(self.mktemp())
        store = self.open(segment_size=SMALL, autoflush=False)
        model = {}
        for step, key, value in history:
            if step == "p":
                store.put(key, value)
                model[key] = value
            elif step == "d":
                self.assertEqual(store.delete(key), model.pop(key, None) is not None)
            elif step == "f":
                store.flush()
            else:
                store.close()
                store = self.open(segment_size=SMALL, autoflush=False)
        self.assertEqual(dict(store.items()), model)
        store.close()
        self.assertEqual(self.contents(), model)


class DirectoryTest(StoreCase):
    def listing(self):
        return {name: open(os.path.join(self.dir, name), "rb").read() for name in os.listdir(self.dir)
                if os.path.isfile(os.path.join(self.dir, name))}

    def refused(self, error, words):
        before = self.listing()
        message = str(self.assertRaises(error, kvcore.open, self.dir))
        self.assertIn(words, message)
        self.assertNotIn("\n", message)
        self.assertEqual(self.listing(), before)

    def test_second_opening_is_refused_and_names_the_holder(self):
        self.open()
        self.refused(kvcore.LockedError, f"process {os.getpid()}")

    def test_directory_of_another_process(self):
        holder = subprocess.Popen(
            [sys.executable, "-c",
             "import kvcore, sys; s = kvcore.open(sys.argv[1], executor=[].append); print('open', flush=True); "
             "sys.stdin.read()", self.dir],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.addCleanup(holder.wait)
        self.addCleanup(holder.stdout.close)
        self.addCleanup(holder.stdin.close)
        self.assertEqual(holder.stdout.readline(), b"open\n")
        self.refused(kvcore.LockedError, f"process {holder.pid}")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        self.open().put(b"a", b"1")

    def test_foreign_files(self):
        os.mkdir(self.dir)
        with open(os.path.join(self.dir, "notes.txt"), "w") as f:
            f.write("mine")
        self.refused(kvcore.StorageError, "notes.txt")
        os.unlink(os.path.join(self.dir, "notes.txt"))
        self.open().close()
        with open(os.path.join(self.dir, "notes.txt"), "w") as f:
            f.write("mine")
        self.refused(kvcore.StorageError, "notes.txt")

    def test_hidden_files_and_lost_and_found_are_no_matter(self):
        os.mkdir(self.dir)
        os.mkdir(os.path.join(self.dir, "lost+found"))
        with open(os.path.join(self.dir, ".keep"), "w"):
            pass
        self.open().put(b"a", b"1")

    def test_another_format_version(self):
        self.open().close()
        path = os.path.join(self.dir, manifest.NAME)
        with open(path, "rb") as f:
            store_id, secret, next_id, segments = manifest.decode(f.read(), path)
        self.patch(manifest, "FORMAT", 2)
        content = manifest.encode(store_id, secret, next_id, segments)
        self.patch(manifest, "FORMAT", 1)
        with open(path, "wb") as f:
            f.write(content)
        self.refused(kvcore.StorageError, "format 2")

    def test_damaged_manifest(self):
        self.open().close()
        path = os.path.join(self.dir, manifest.NAME)
        with open(path, "rb") as f:
            good = f.read()
        for damaged in (b"", b"\n", good[:-1], good[:40], good[:-20], good.replace(b"open", b"shut"), b"x" + good,
                        good + good, b"\xff" * 50, good[:30] + bytes([good[30] ^ 1]) + good[31:]):
            with open(path, "wb") as f:
                f.write(damaged)
            if damaged == good[:-1]:
                self.open().close()  # only the last line end is missing: the checksum holds
            else:
                self.refused(kvcore.CorruptionError, "MANIFEST is damaged")

    def test_missing_manifest(self):
        self.open().close()
        os.unlink(os.path.join(self.dir, manifest.NAME))
        self.refused(kvcore.CorruptionError, "no MANIFEST")

    def test_not_a_directory(self):
        with open(self.dir, "w"):
            pass
        self.assertIn(self.dir, str(self.assertRaises(kvcore.StorageError, kvcore.open, self.dir)))

    def test_parent_is_missing(self):
        message = str(self.assertRaises(kvcore.StorageError, kvcore.open, os.path.join(self.dir, "below")))
        self.assertIn("No such file or directory", message)

    def test_unreadable_directory(self):
        script = ("import os, sys, kvcore\n"
                  "os.setuid(65534)\n"
                  "try: kvcore.open(sys.argv[1])\n"
                  "except kvcore.StorageError as e: print(e)")
        if os.getuid() != 0:
            self.skipTest("only root can become somebody who may not read")
        os.mkdir(self.dir, 0o700)
        for directory in (self.dir, os.path.join(self.dir, "below")):
            said = subprocess.run([sys.executable, "-c", script, directory], capture_output=True, text=True)
            self.assertIn("Permission denied", said.stdout, said.stderr)
            self.assertEqual(said.stdout.count("\n"), 1)
        self.assertEqual(os.listdir(self.dir), [])

    def test_segment_of_another_store(self):
        self.open().close()
        mine, self.dir = self.dir, os.path.abspath(self.mktemp())
        self.open().close()
        with open(self.segment_paths()[0], "rb") as f:
            theirs = f.read()
        self.dir = mine
        with open(os.path.join(self.dir, "0000000099.seg"), "wb") as f:
            f.write(theirs)
        self.refused_after_lock("0000000099.seg")

    def refused_after_lock(self, words):
        names = set(os.listdir(self.dir))
        self.assertIn(words, str(self.assertRaises(kvcore.CorruptionError, kvcore.open, self.dir)))
        self.assertEqual(set(os.listdir(self.dir)), names)

    def test_missing_segment_is_refused(self):
        store = self.open(segment_size=SMALL)
        for i in range(300):
            store.put(b"k%d" % i, bytes(1000))
        store.close()
        for path in self.segment_paths():
            with open(path, "rb") as f:
                content = f.read()
            os.unlink(path)
            self.refused_after_lock(f"{path} is missing")
            with open(path, "wb") as f:
                f.write(content)
        self.assertEqual(len(self.contents()), 300)

    def test_sealed_segment_cut_short_is_refused(self):
        store = self.open(segment_size=SMALL)
        for i in range(100):
            store.put(b"k%d" % i, bytes(1000))
        store.close()
        path = self.segment_paths()[0]
        size = os.path.getsize(path)
        for cut in (size - 1, size // 2, 64, 63, 10, 0):
            os.truncate(path, cut)
            self.refused_after_lock("cut short")


class NoSpaceTest(StoreCase):
    """RLIMIT_FSIZE makes writes fail with EFBIG, after a short write, as a full disk does."""

    def limit(self, size):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard))

    def free(self):
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    def test_refused_write_changes_nothing_and_writing_goes_on_when_there_is_space(self):
        store = self.open()
        store.put(b"a", b"old")
        store.put(b"gone", b"x")
        self.limit(os.path.getsize(self.segment_paths()[0]) + 100)
        error = self.assertRaises(kvcore.StorageError, store.put, b"a", bytes(1000))
        self.assertIn("File too large", str(error))
        self.assertRaises(kvcore.StorageError, store.put, b"new", bytes(1000))
        self.assertEqual(store.state, "full")
        self.assertEqual(dict(store.items()), {b"a": b"old", b"gone": b"x"})
        self.assertTrue(store.delete(b"gone"))
        self.free()
        store.put(b"new", bytes(1000))
        self.assertEqual(store.state, "ok")
        store.close()
        self.assertEqual(self.contents(), {b"a": b"old", b"new": bytes(1000)})

    def test_failed_flush_takes_back_everything_since_the_last_one(self):
        store = self.open(autoflush=False)
        model = {b"k%d" % i: b"v%d" % i for i in range(50)}
        for key, value in model.items():
            store.put(key, value)
        store.flush()
        before = store.stats()
        for i in range(0, 50, 2):
            store.put(b"k%d" % i, bytes(100))
            store.put(b"k%d" % i, bytes(200))
            store.delete(b"k%d" % (i + 1))
            store.put(b"n%d" % i, b"new")
            store.delete(b"n%d" % (i - 2))
        self.limit(os.path.getsize(self.segment_paths()[0]) + 500)
        self.assertRaises(kvcore.StorageError, store.flush)
        self.assertEqual(dict(store.items()), model)
        after = store.stats()
        # The index's tables may have grown meanwhile.
        self.assertEqual({**after, "index_bytes": 0}, {**before, "index_bytes": 0})
        self.free()
        store.put(b"more", b"1")
        store.close()
        self.assertEqual(self.contents(), {**model, b"more": b"1"})

    def test_no_space_to_make_a_store_leaves_nothing_behind(self):
        self.limit(0)
        self.assertRaises(kvcore.StorageError, kvcore.open, self.dir)
        self.assertFalse(os.path.exists(self.dir))
        os.mkdir(self.dir)
        self.assertRaises(kvcore.StorageError, kvcore.open, self.dir)
        self.assertEqual(os.listdir(self.dir), [])
        self.free()
        self.open().put(b"a", b"1")

    def test_rotation_without_space_refuses_and_goes_on_later(self):
        store = self.open(segment_size=SMALL)
        model = {}
        self.limit(SMALL - 1000)
        refused = 0
        for i in range(200):
            try:
                store.put(b"k%d" % i, bytes(1000))
                model[b"k%d" % i] = bytes(1000)
            except kvcore.StorageError:
                refused += 1
        self.assertGreater(refused, 0)
        self.free()
        for i in range(200, 300):
            store.put(b"k%d" % i, bytes(1000))
            model[b"k%d" % i] = bytes(1000)
        self.assertEqual(dict(store.items()), model)
        store.close()
        self.assertEqual(self.contents(), model)


class BrokenDiskTest(StoreCase):
    def break_segment(self):
        """Writing and syncing the active segment fails from now on, as on a broken disk; reading goes on."""
        path = self.segment_paths()[0]
        fd = next(fd for fd in map(int, os.listdir("/proc/self/fd"))
                  if os.path.realpath(f"/proc/self/fd/{fd}") == path)
        # A pipe can be neither written at an offset (ESPIPE) nor synced (EINVAL).
        read_end, write_end = os.pipe()
        os.dup2(write_end, fd)
        os.close(read_end)
        os.close(write_end)

    def test_failed_write_is_taken_back_and_ends_the_writing(self):
        for autoflush in (True, False):
            store = self.open(autoflush=autoflush)
            store.put(b"a", b"1")
            store.flush()
            self.break_segment()
            if not autoflush:
                store.put(b"a", b"2")
                store.put(b"b", b"2")
            self.assertRaises(kvcore.StorageError, *((store.put, b"a", b"2") if autoflush else (store.flush,)))
            self.assertEqual(store.state, "read-only")
            self.assertIn("is read-only until it is opened again", store.reason)
            self.assertRaises(kvcore.ReadOnlyError, store.put, b"a", b"3")
            self.assertRaises(kvcore.ReadOnlyError, store.delete, b"a")
            self.assertRaises(kvcore.ReadOnlyError, store.sync)
            store.flush()
            self.assertEqual(dict(store.items()), {b"a": b"1"})
            store.close()
            self.assertEqual(self.contents(), {b"a": b"1"})

    def test_failed_sync_ends_the_writing_and_is_not_tried_again(self):
        store = self.open(autoflush=False)
        store.put(b"a", b"1")
        store.flush()
        self.break_segment()
        self.assertRaises(kvcore.ReadOnlyError, store.sync)
        self.assertRaises(kvcore.ReadOnlyError, store.sync_job)
        self.assertEqual((store.state, store.get(b"a")), ("read-only", b"1"))
        self.assertRaises(kvcore.ReadOnlyError, store.put, b"b", b"1")


class WindowTest(SynchronousTestCase):
    def test_small_flushes_are_stored_but_for_the_first_of_a_page(self):
        """Whoever is the first to touch a mapped page waits for it as for the disk."""
        files = CrashFiles()
        store = kvcore.open("/store", fsync="no", files=files, executor=at_once)
        for i in range(300):
            store.put(b"k%d" % i, b"v" * 1000)
        before = dict(files.calls)
        for i in range(300):
            store.put(b"k%04d" % i, b"v" * 75)  # 100 bytes
        made = {call: files.calls[call] - before.get(call, 0) for call in ("store", "pwrite")}
        store.close()
        self.assertEqual(sum(made.values()), 300)
        self.assertLess(made["pwrite"], 300 * 100 / 4096 + 10)
