"""Restore: a backup checked, copied to where a store shall be, and opened once."""

import os
from typing import NamedTuple

from kvcore import newdir
from kvcore.backup import copy_store
from kvcore.check import check, damage_lines
from kvcore.errors import CorruptionError
from kvcore.files import Files
from kvcore.library import Store


class Restored(NamedTuple):
    """What restore() did."""

    target: str
    keys: int
    bytes: int  # of the segments


def restore(path, target, progress=None):
    """Copy the backup in directory `path` into `target`, a directory that is empty or not there; return a Restored.

    path, target: str, bytes or path-like. Nothing is linked, so the backup stays what it is. progress: called with the bytes
    done since the last call, in all twice those of the segments. Raises CorruptionError when the backup is damaged,
    UsageError, StorageError; nothing is left in target then.
    """
    path, target = os.fsdecode(path), os.fsdecode(target)
    report = check(path, progress)
    if report.damage:
        raise CorruptionError(
            f"{path} is damaged ({next(damage_lines(report.damage))}), nothing was restored; kvstore check tells all of it, "
            "salvage saves what can be read"
        )
    with newdir.filling(target, path, Files()):
        done = copy_store(path, target, False, progress, Files())
        with Store(target, fsync="no") as store:
            keys = len(store)
            findings = store.recovery["messages"]
        if findings:
            raise CorruptionError(f"the copy of {path} does not open cleanly, nothing was restored: {findings[0]}")
    return Restored(target, keys, done.bytes)
