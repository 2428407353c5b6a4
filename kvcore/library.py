"""The Store as Python programs see it: a mutable mapping of bytes over the engine's handle."""

from collections.abc import MutableMapping

from kvcore.backup import backup_open, last_backup
from kvcore.scrub import Scrub
from kvcore.store import Store as Handle


class Store(Handle, MutableMapping):
    """A persistent mapping of bytes to bytes, in byte order of its keys. Opened by kvcore.open.

    Belongs to the thread and the process that opened it: any other gets a UsageError. Besides the methods of a mapping
    there are put (with a ttl), batch, keys, items and values with a prefix, flush, sync, checkpoint, compact, scrub, backup,
    stats, close.
    """

    def __getitem__(self, key):
        """Return the value of `key`. Raises KeyError, CorruptionError, ClosedError."""
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key, value):
        """As put(key, value)."""
        self.put(key, value)

    def __delitem__(self, key):
        """As delete(key), but raises KeyError when it is not there."""
        if not self.delete(key):
            raise KeyError(key)

    def __contains__(self, key):
        return self.get(key) is not None

    def __iter__(self):
        return self.keys()

    def values(self, prefix=b""):
        """Iterate over the values (bytes) of keys that begin with `prefix`, by key. Raises CorruptionError, ClosedError."""
        for _, value in self.items(prefix):
            yield value

    def clear(self):
        """Delete every key. Raises as delete does."""
        for key in self.keys():
            self.delete(key)

    def backup(self, directory):
        """Copy the store, as it is now, into `directory` (str, bytes or path-like), which is empty or not there yet.

        Returns a kvcore.backup.Backup. Takes as long as it takes. Raises UsageError, StorageError, ClosedError; nothing is
        left in the directory then.
        """
        return backup_open(self, directory)

    def scrub(self):
        """Read all sealed segments and verify every record; return what is damaged, a list of kvcore.survey.Damage.

        Raises StorageError, ClosedError. kvcore.scrub.Scrub does the same step by step.
        """
        scrub = Scrub(self)
        self.drive(scrub.steps())
        return scrub.damage

    @property
    def last_backup(self):
        """Unix time (int) of the moment that the last good backup holds, whoever made it; 0: there was none."""
        return last_backup(self)

    __hash__ = None
