"""`salvage`: what can still be read of a data directory, written into a new one.

The new store is made in NEWDIR/salvage-unfinished, a name with which NEWDIR does not open as a store; when it is whole
and on the disk, its files move up, the manifest last.
"""

import os
import shutil
from typing import NamedTuple

from kvcore import newdir
from kvcore.check import damage_dicts, found_lines, holder_of
from kvcore.errors import StorageError
from kvcore.files import Files
from kvcore.library import Store
from kvcore.survey import Survey

UNFINISHED = "salvage-unfinished"
LONGEST_VALUE = 1 << 30


class Salvaged(NamedTuple):
    """What salvage() did. `damage` is what was met; all was saved when none of it is `lost`."""

    directory: str
    holder: str | None
    target: str
    keys: int  # keys saved
    damage: list  # of kvcore.survey.Damage
    notes: list  # of str
    hidden: bool  # newer values or deletions of keys that are not named may be among what is lost


def salvage(path, target, progress=None):
    """Write every live, undamaged key of the data directory `path` into a new store at `target`; return a Salvaged.

    path, target: str, bytes or path-like. progress: called with bytes done since the last call; in all, twice what
    Survey.totals() says at the most. Raises UsageError when target is not empty, StorageError when path cannot be read
    or target not be written; nothing is left in target then.
    """
    path, target = os.fsdecode(path), os.fsdecode(target)
    holder = holder_of(path)
    survey = Survey(path)
    building = os.path.join(target, UNFINISHED)
    with newdir.filling(target, path, Files()):
        try:
            survey.read(progress)
            with Store(building, fsync="no", autoflush=False, max_value_size=LONGEST_VALUE) as store:
                keys = survey.copy_into(store, progress)
            _move_up(building, target)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
    hidden = any(item.hides for item in survey.damage) or not survey.listed
    return Salvaged(path, holder, target, keys, survey.damage, survey.notes, hidden)


def _move_up(building, target):
    """Give the files of the finished store their place. Until the last step, `target` does not open as a store."""
    names = [name for name in os.listdir(building) if name not in ("LOCK", "MANIFEST")]
    try:
        for name in [*names, "MANIFEST"]:
            os.rename(os.path.join(building, name), os.path.join(target, name))
        os.unlink(os.path.join(building, "LOCK"))
        _sync(target)
        os.rmdir(building)
        _sync(target)
    except OSError as error:
        raise StorageError(error.errno, f"cannot move the new store to {target}: {error.strerror}") from error


def _sync(directory):
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def is_whole(done):
    """Was everything saved? (bool)"""
    return not any(item.lost for item in done.damage)


def salvaged_lines(done):
    """Lines of text (str) for a Salvaged; the last one sums up."""
    yield from found_lines(done)
    if done.hidden:
        yield (
            "caution: newer values or deletions of keys that are not named here may be among what is lost; of such keys "
            f"{done.target} holds an older value"
        )
    lost = sum(item.lost for item in done.damage)
    saved = f"{done.keys} keys saved in {done.target}, "
    yield saved + (f"incomplete: {lost} damaged ranges took the rest" if lost else "complete")


def salvaged_dict(done):
    """The same for JSON: a dict."""
    return {
        "directory": done.directory,
        "in_use_by": done.holder,
        "target": done.target,
        "keys_saved": done.keys,
        "all_saved": is_whole(done),
        "older_values_possible": done.hidden,
        "damage": damage_dicts(done.damage),
        "notes": done.notes,
    }
