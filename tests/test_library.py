"""The engine as a library: a mapping, its documented examples, and its refusal of other threads and forked children."""

import doctest
import os
import pickle
import threading
from collections.abc import MutableMapping
from pathlib import Path

import kvcore
from tests.support import StoreCase

PAGE = Path(__file__).resolve().parent.parent / "docs" / "library.md"


class ExamplesTest(StoreCase):
    def test_examples_of_the_documentation_are_true(self):
        os.mkdir(self.dir)
        before = os.getcwd()
        os.chdir(self.dir)
        self.addCleanup(os.chdir, before)
        flags = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
        result = doctest.testfile(str(PAGE), module_relative=False, optionflags=flags, globs={})
        self.assertGreater(result.attempted, 15)
        self.assertEqual(result.failed, 0)


class MappingTest(StoreCase):
    def test_it_is_a_mutable_mapping(self):
        store = self.open()
        self.assertIsInstance(store, MutableMapping)
        store.update({b"a": b"1", b"b": b"2"})
        self.assertEqual(store, {b"a": b"1", b"b": b"2"})
        self.assertEqual(store.setdefault(b"a", b"9"), b"1")
        self.assertEqual(store.setdefault(b"c", b"3"), b"3")
        self.assertEqual(store.pop(b"c"), b"3")
        self.assertEqual(store.pop(b"c", b"?"), b"?")
        self.assertRaises(KeyError, store.pop, b"c")
        self.assertEqual((list(store), list(store.values()), list(store.values(b"b"))), ([b"a", b"b"], [b"1", b"2"], [b"2"]))
        self.assertEqual(store.popitem(), (b"a", b"1"))
        self.assertTrue(b"b" in store and b"a" not in store)
        store.clear()
        self.assertEqual((len(store), dict(store)), (0, {}))

    def test_absent_keys(self):
        store = self.open()
        with self.assertRaises(KeyError):
            store[b"a"]
        with self.assertRaises(KeyError):
            del store[b"a"]

    def test_a_store_is_neither_hashed_nor_pickled(self):
        store = self.open()
        self.assertRaises(TypeError, hash, store)
        self.assertRaises(TypeError, pickle.dumps, store)


class OwnerTest(StoreCase):
    def test_another_thread_is_refused(self):
        store = self.open()
        store[b"a"] = b"1"
        errors = []

        def use():
            for call in (lambda: store.get(b"a"), lambda: store.put(b"a", b"2"), lambda: list(store), store.flush,
                         store.stats, store.close, lambda: len(store)):
                try:
                    call()
                except kvcore.UsageError as error:
                    errors.append(str(error))

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        self.assertEqual(len(errors), 7)
        self.assertIn("thread", errors[0])
        self.assertEqual(dict(store), {b"a": b"1"})

    def test_a_forked_child_is_refused_and_the_parent_goes_on(self):
        store = self.open()
        store[b"a"] = b"1"
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            said = b"?"
            try:
                try:
                    store.put(b"a", b"child")
                except kvcore.UsageError as error:
                    said = str(error).encode()
            finally:
                os.write(write_end, said)
                os._exit(0)
        os.close(write_end)
        os.waitpid(pid, 0)
        with open(read_end, "rb") as pipe:
            self.assertIn(b"process", pipe.read())
        store[b"b"] = b"2"
        store.close()
        self.assertEqual(self.contents(), {b"a": b"1", b"b": b"2"})
