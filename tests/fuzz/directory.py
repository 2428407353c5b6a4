"""Damaged directories: opened, checked, salvaged. What is read is right, or an error; what is intact is never missing.

Each class is a target: seeds() gives inputs to begin with, run(data) raises AssertionError when the store breaks a promise.
"""

import abc
import contextlib
import os
import random
import shutil
import tempfile

import kvcore
from kvcore.check import check
from kvcore.salvage import is_whole, salvage
from tests.fuzz.images import Damager, make_image, open_image, random_program, read_files, write_files
from tests.test_recovery import HEADER

SEEDS = 60
PREFIXES = (b"", b"key", b"new", b"old")
DAMAGED = object()  # what reading a key gave: an error


def is_segment(name):
    return name.endswith(".seg")


def show(value):
    """What reading a key gave, for a message (str)."""
    return "an error" if value is DAMAGED else repr(value and value[:30])


class DirectoryTarget(abc.ABC):
    """A target that damages the files of a closed store. scratch: directory that is the target's own."""

    checkpoint = True
    removable = True
    lists_are_whole = True

    def __init__(self, scratch):
        self._scratch = tempfile.mkdtemp(dir=scratch)
        self.image = make_image(os.path.join(self._scratch, "image"), self.checkpoint)
        self._damager = Damager(self.image, filter(self.damages, self.image.files), self.removable)

    @staticmethod
    @abc.abstractmethod
    def damages(name):
        """Whether the file of this name is to be damaged (bool)."""

    def seeds(self):
        """Inputs (list of bytes) to begin with."""
        rng = random.Random(2)
        return [b"", *(random_program(rng) for _ in range(SEEDS))]

    def mutated(self, rng):
        """Another input (bytes)."""
        return random_program(rng)

    def close(self):  # noqa: B027  a choice of the subclass
        """Nothing is left open between two runs."""

    def run(self, data):
        """Damage the image as `data` (bytes) says and see what becomes of it."""
        files = self._damager.damaged(data)
        directory = os.path.join(self._scratch, "data")
        write_files(directory, files)
        try:
            self.examine(directory, files)
        finally:
            shutil.rmtree(self._scratch + "/data")

    @abc.abstractmethod
    def examine(self, directory, files):
        """Look at what is in the directory: {name: content}, and fail if it cannot have come of that."""

    def changed(self, files):
        """Names of the files that are not as they were."""
        return {name for name, content in self.image.files.items() if files.get(name) is not content}

    def intact(self, key, files):
        """Is the record that decides about the key (or its absence) where it was, under the header it had?"""
        home = self.image.homes.get(key)
        if home is None:
            return True
        was, now = self.image.files[home.file], files.get(home.file, b"")
        return all(was[start:end] == now[start:end] for start, end in ((0, HEADER), (home.start, home.end)))

    def is_repeated(self, key, files):
        """Has the damage copied the key to somewhere (bool)?"""
        return any(files.get(name, b"").count(key) > self.image.files[name].count(key) for name in self.changed(files))

    def judge(self, found, files):
        """found: {key: value, None or DAMAGED}, of every key that ever was."""
        for key, value in found.items():
            if value is DAMAGED and self.is_repeated(key, files):
                # Damage that looks like a newer, damaged record of the key: an error is all that can be said.
                continue
            if self.intact(key, files):
                assert value == self.image.current[key], f"{key} is intact and gave {show(value)}"
            else:
                assert value is DAMAGED or value in self.image.history[key], f"{key} never had the value {show(value)}"

    def wrong(self, found):
        """Keys (list) that gave something else than what was in the store."""
        return [key for key, value in found.items() if value != self.image.current[key]]

    def reopened(self, store, directory):
        """What each key gives; read twice, with a write, a compaction and an opening in between."""
        with store:
            found = self.read(store)
            store.put(b"written later", b"1")
            store.compact()
            assert self.read(store) == found, "compacting changed what is read"
        with open_image(directory) as store:
            again = self.read(store)
            assert store.get(b"written later") == b"1"
        for key, value in found.items():
            assert again[key] == value or value is DAMAGED, (
                f"{key} gave {show(value)}, and {show(again[key])} when opened again")
        return found

    def read(self, store):
        found = {}
        for key in self.image.history:
            try:
                found[key] = store.get(key)
            except kvcore.CorruptionError:
                found[key] = DAMAGED
        for prefix in PREFIXES if self.lists_are_whole else ():
            with contextlib.suppress(kvcore.CorruptionError):
                self.judge_list(list(store.keys(prefix)), prefix, found)
        return found

    def judge_list(self, listed, prefix, found):
        """A list that ends without an error is whole and in order."""
        listed = [key for key in listed if key in found]
        there = {key for key, value in found.items() if value is not None and key.startswith(prefix)}
        assert listed == sorted(set(listed)), f"keys of {prefix} out of order, or twice"
        assert set(listed) <= there, f"{set(listed) - there} are listed and not there"
        missing = {key for key in there if found[key] is not DAMAGED} - set(listed)
        assert not missing, f"{missing} are there and not listed with {prefix}"


class SegmentTarget(DirectoryTarget):
    """The log: records and headers, with no checkpoint."""

    checkpoint = False
    damages = staticmethod(is_segment)

    def examine(self, directory, files):
        try:
            store = open_image(directory)
        except kvcore.StorageError:
            return
        self.judge(self.reopened(store, directory), files)


class CoveredTarget(SegmentTarget):
    """The log below a checkpoint: its damage is met when a key is read. A list may trust a saved order before that."""

    checkpoint = True
    lists_are_whole = False


class CacheTarget(DirectoryTarget):
    """Contents with a damaged cache equal those without it, and nothing else is damaged by it."""

    def examine(self, directory, files):
        found = self.reopened(open_image(directory), directory)
        assert self.wrong(found) == [], self.wrong(found)
        report = check(directory)
        assert report.damage == [], report.damage


class OrderTarget(CacheTarget):
    """The sorted orders."""

    @staticmethod
    def damages(name):
        return name.endswith(".ord")


class CheckpointTarget(CacheTarget):
    """The image of the index."""

    @staticmethod
    def damages(name):
        return name == "index.ckpt"


class ManifestTarget(DirectoryTarget):
    """A damaged manifest refuses the start; one of another time may lose what is younger, but says so."""

    @staticmethod
    def damages(name):
        return name == "MANIFEST"

    def examine(self, directory, files):
        try:
            store = open_image(directory)
        except kvcore.StorageError:
            return
        with store:
            found, told = self.read(store), store.recovery["messages"]
        if found != self.image.current:
            assert files["MANIFEST"] == self.image.older["MANIFEST"], "a manifest was believed that nobody wrote"
            assert told, "keys are gone, and nothing is said"


class OfflineTarget(DirectoryTarget):
    """Check and salvage, over damage of every kind."""

    @staticmethod
    def damages(name):
        return True

    def examine(self, directory, files):
        target = os.path.join(self._scratch, "saved")
        try:
            report = check(directory)
            done = salvage(directory, target)
        except kvcore.StorageError:
            assert not any(files[name] for name in files if is_segment(name)), "segments that nothing was saved from"
            return
        assert read_files(directory) == files, "the directory was changed"
        try:
            assert done.damage == report.damage, (done.damage, report.damage)
            with kvcore.open(target, fsync="no") as store:
                saved = dict(store.items())
            assert len(saved) == done.keys
            self.judge_saved(saved, done, files)
        finally:
            shutil.rmtree(target)

    def judge_saved(self, saved, done, files):
        found = {key: saved.pop(key, DAMAGED if self.is_repeated(key, files) else None) for key in self.image.history}
        assert saved == {}, f"keys that never were: {sorted(saved)}"
        self.judge(found, files)
        torn = any("torn" in note for note in done.notes)
        # Files that are all of one earlier time are a good store of that time.
        older = any(files.get(name) == content for name, content in self.image.older.items() if name in self.changed(files))
        if is_whole(done) and not (done.hidden or torn or older):
            assert self.wrong(found) == [], f"complete, it says, and these are not right: {self.wrong(found)}"


TARGETS = {
    "segment": SegmentTarget,
    "covered": CoveredTarget,
    "order": OrderTarget,
    "checkpoint": CheckpointTarget,
    "manifest": ManifestTarget,
    "offline": OfflineTarget,
}
