"""The error tree of the engine. Each class says when it is raised; every message is one line: what, where, what to do."""


class KVError(Exception):
    """Base of every error that kvcore raises on purpose."""


class UsageError(KVError, ValueError):
    """The caller asked for something that can never work: a key or value too long, an option out of range."""


class StorageError(KVError, OSError):
    """The disk or the operating system refused: no space, no permission, an I/O error, a directory that is not a store."""

    def __str__(self):
        return self.strerror or super().__str__()


class CorruptionError(StorageError):
    """Stored bytes are not what was written: the checksum of a record, segment or manifest does not hold."""


class LockedError(StorageError):
    """Another process, or this one, already has the directory open."""


class ReadOnlyError(StorageError):
    """The store refuses writes until it is opened again, because a durability step failed."""


class ClosedError(KVError, ValueError):
    """The store, or a cursor of it, was used after close."""
