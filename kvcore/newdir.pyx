"""A directory that is being filled with a store: not there before, or empty; left as it was when that fails."""
import os
from contextlib import contextmanager

from libc.errno cimport EEXIST

from kvcore.files cimport Files, files_check, files_list, files_sync_directory, files_unlink

from kvcore.errors import UsageError


@contextmanager
def filling(str target not None, str source not None, Files files not None):
    """Have the directory `target` there and empty for a `with` block; take its files away again when that raises.

    Raises UsageError when it is not empty, or lies inside `source`, StorageError when it cannot be made.
    """
    made = prepare(target, source, files)
    try:
        yield
    except BaseException:
        take_away(os.path.abspath(os.fsencode(target)), made, files)
        raise


# Make sure that the directory is there and empty. Was it made?
cdef bint prepare(str target, str source, Files files) except -1:
    cdef bytes path = os.path.abspath(os.fsencode(target))
    cdef int status
    if is_inside(target, source):
        raise UsageError(f"{target} is inside {source}, where nothing is changed; name a directory elsewhere")
    status = files.call.mkdir(files.ctx, path)
    if status != -EEXIST:
        files_check(status, "create directory", path)
        status = files_sync_directory(files, os.path.dirname(path))
        if status < 0:
            files.call.rmdir(files.ctx, path)
        files_check(status, "sync directory", os.path.dirname(path))
        return True
    if names_in(files, path):
        raise UsageError(f"{target} is not empty; name a directory that is, or one that is not there yet")
    return False


# Remove the files, and the directory itself when it was made. What cannot be removed stays.
cdef int take_away(bytes path, bint made, Files files) except -1:
    # The manifest first: without it nothing there opens as a store.
    for name in sorted(names_in(files, path), key=is_no_manifest):
        files_unlink(files, os.path.join(path, name))
    if made:
        files.call.rmdir(files.ctx, path)
    return 0


cdef bint is_inside(str target, str source) except -1:
    inner, outer = os.path.realpath(target), os.path.realpath(source)
    return os.path.commonpath([inner, outer]) == outer


# What stands in a directory but for what a file system or a desktop puts there.
cdef list names_in(Files files, bytes path):
    return [name for name in files_list(files, path) if name != b"lost+found" and not name.startswith(b".")]


def is_no_manifest(bytes name not None):
    return name != b"MANIFEST"
