"""The engines behind one face, so that every workload runs the same lines against each.

An adapter has `get`, `put` and `delete` as attributes that hold the engine's own bound method wherever that is possible (a
wrapper in Python would be measured with it), `keys(prefix)` and `items(prefix)` in byte order, commit() and close().

How it is opened:
    READ        for reads alone
    BUFFERED    writes are kept after commit()
    KERNEL      every write is in the kernel when it returns; nothing waits for the disk
"""

import hashlib
import importlib.metadata
import importlib.util

READ, BUFFERED, KERNEL = "read", "buffered", "kernel"


class Adapter:
    """What the engines share. `directory` is where the data is; a persistent engine finds it there again."""

    name = ""
    module = ""             # what has to be importable
    settings = ""           # one line for the report
    persistent = True
    caches = ()             # patterns of files that may be deleted at the cost of a slower opening

    def __init__(self, directory, mode):
        self.directory = directory
        self.open(directory, mode)

    def commit(self):
        """Hand every write so far to the kernel."""

    def close(self):
        """Put everything on the disk and let the directory go."""

    def again(self, mode):
        """An adapter with the same data. This one is closed."""
        return type(self)(self.directory, mode)

    def tighten(self):
        """Give back dead space now, where the engine can; return whether it can."""
        return False

    def index_bytes(self):
        """Bytes of index in memory as the engine counts them; 0 when it does not say."""
        return 0

    @classmethod
    def version(cls):
        """The version (str), or None when the engine is not installed."""
        if importlib.util.find_spec(cls.module) is None:
            return None
        return importlib.metadata.version(cls.module)


class Kvcore(Adapter):
    name = module = "kvcore"
    settings = 'fsync="no"; buffered: autoflush=False and a flush at the end'
    caches = ("*.ckpt", "*.ord")

    def open(self, directory, mode):
        import kvcore

        self.store = store = kvcore.open(directory, fsync="no", autoflush=mode != BUFFERED)
        self.get, self.put, self.delete = store.get, store.put, store.delete
        self.keys, self.items = store.keys, store.items
        self.commit, self.close = store.flush, store.close

    def tighten(self):
        compact = getattr(self.store, "compact", None)
        if compact is not None:
            compact()
        return compact is not None

    def index_bytes(self):
        return self.store.stats()["index_bytes"]

    @classmethod
    def version(cls):
        import kvcore

        return kvcore.__version__


class Lmdb(Adapter):
    name = module = "lmdb"
    settings = "sync=False, metasync=False, no writemap; one transaction, for puts in the kernel one each"

    def open(self, directory, mode):
        import lmdb

        self.env = lmdb.open(directory, map_size=64 << 30, sync=False, metasync=False, writemap=False)
        self.txn = None
        if mode == KERNEL:
            self.get, self.put, self.delete = self.get_alone, self.put_alone, self.delete_alone
        else:
            self.txn = txn = self.env.begin(write=mode == BUFFERED)
            self.get, self.put, self.delete = txn.get, txn.put, txn.delete

    def get_alone(self, key):
        with self.env.begin() as txn:
            return txn.get(key)

    def put_alone(self, key, value):
        with self.env.begin(write=True) as txn:
            txn.put(key, value)

    def delete_alone(self, key):
        with self.env.begin(write=True) as txn:
            txn.delete(key)

    def keys(self, prefix=b""):
        return self._walk(prefix, False)

    def items(self, prefix=b""):
        return self._walk(prefix, True)

    def _walk(self, prefix, values):
        cursor = self.txn.cursor()
        if not prefix:
            return cursor.iternext(keys=True, values=values)
        return self._matching(cursor, prefix, values)

    def _matching(self, cursor, prefix, values):
        if not cursor.set_range(prefix):
            return
        for found in cursor.iternext(keys=True, values=values):
            if not (found[0] if values else found).startswith(prefix):
                return
            yield found

    def commit(self):
        if self.txn is not None:
            self.txn.commit()
            self.txn = None

    def close(self):
        self.commit()
        self.env.sync(True)
        self.env.close()


class HashedLmdb(Lmdb):
    """LMDB for long keys. It takes 511 bytes; a longer key is stored as its BLAKE2b, and itself before its value.

    That is what a program with such keys has to do; the keys are then no longer in order.
    """

    limit = 511

    def open(self, directory, mode):
        super().open(directory, mode)
        self.plain_get, self.plain_put = self.get, self.put
        self.get, self.put = self.get_hashed, self.put_hashed

    def get_hashed(self, key):
        if len(key) <= self.limit:
            return self.plain_get(key)
        found = self.plain_get(hashlib.blake2b(key, digest_size=32).digest())
        return found[len(key):] if found is not None and found.startswith(key) else None

    def put_hashed(self, key, value):
        if len(key) <= self.limit:
            self.plain_put(key, value)
        else:
            self.plain_put(hashlib.blake2b(key, digest_size=32).digest(), key + value)


class Rocksdict(Adapter):
    name = module = "rocksdict"
    settings = "raw mode, default options: log on, no sync, no bloom filter; no buffered put, each one is in the kernel"

    def open(self, directory, mode):
        import rocksdict

        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        self.db = db = rocksdict.Rdict(directory, options=options)
        self.get, self.put, self.delete = db.get, db.put, db.delete

    def keys(self, prefix=b""):
        if not prefix:
            return self.db.keys()
        return self._keys(prefix)

    def _keys(self, prefix):
        for key in self.db.keys(from_key=prefix):
            if not key.startswith(prefix):
                return
            yield key

    def items(self, prefix=b""):
        for item in self.db.items(from_key=prefix):
            if not item[0].startswith(prefix):
                return
            yield item

    def commit(self):
        self.db.flush_wal(False)

    def tighten(self):
        self.db.compact_range(None, None)
        return True

    def close(self):
        self.db.flush_wal(True)
        self.db.close()


class Dict(Adapter):
    """A dict: nothing is kept. The floor of what a call from Python costs."""

    name = "dict"
    settings = "the floor: in memory only, nothing is kept; its scans sort"
    persistent = False

    def open(self, directory, mode):
        self.data = data = {}
        self.get, self.put, self.delete = data.get, data.__setitem__, data.__delitem__

    def again(self, mode):
        return self

    def keys(self, prefix=b""):
        return sorted([key for key in self.data if key.startswith(prefix)] if prefix else self.data)

    def items(self, prefix=b""):
        return [(key, self.data[key]) for key in self.keys(prefix)]

    @classmethod
    def version(cls):
        import platform

        return platform.python_version()


ENGINES = {adapter.name: adapter for adapter in (Kvcore, Lmdb, Rocksdict, Dict)}
