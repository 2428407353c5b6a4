import os
import re
import time

from libc.errno cimport EACCES, EAGAIN, EEXIST, ENOENT
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memset
from posix.fcntl cimport O_CREAT, O_RDONLY, O_RDWR

from kvcore.ahead cimport ahead_new
from kvcore.bytebuf cimport ByteBuf, bytebuf_reserve
from kvcore.checkpoint cimport checkpoint_covered, checkpoint_load
from kvcore.expiry cimport Deadlines
from kvcore.files cimport files_check, files_list, files_read, files_read_all, files_sync_directory, files_write
from kvcore.hashindex cimport PARTITIONS, Partition
from kvcore.log cimport log_add_segment, log_manifest, log_publish, log_submit_seal, log_take_reserve
from kvcore.replay cimport Replay, replay_finish, replay_note_covered, replay_plan, replay_segment
from kvcore.segment cimport (
    SEGMENT_HEADER, Segment, segment_create, segment_map, segment_name, segment_open, segment_seal)
from kvcore.types cimport Location, uint8_t
from kvcore.walk cimport Walk, walk_finds_record, walk_note_synced

from kvcore import manifest
from kvcore.errors import CorruptionError, LockedError, StorageError

# Ids fit 32 bits.
SEGMENT_NAME = re.compile(rb"([0-3]\d{9})\.seg")
ORDER_NAME = re.compile(rb"([0-3]\d{9})\.ord(\.tmp)?")
OUR_NAMES = (
    b"LOCK", b"MANIFEST", b"MANIFEST.tmp", b"index.ckpt", b"index.ckpt.tmp", b"RESERVE", b"quarantine",
    b"LAST_BACKUP", b"LAST_BACKUP.tmp", b"lost+found")


# What the index names of one segment.
cdef struct Named:
    uint64_t size               # bytes of the records
    uint64_t end                # where the last of them ends


cdef class Recovered:
    pass


cdef Recovered recover(Files files, bytes path, uint64_t segment_size, object executor):
    cdef Recovered result = Recovered()
    cdef double started = time.perf_counter()
    cdef bint made = False, fresh = False
    cdef int64_t status = files.call.mkdir(files.ctx, path)
    cdef set found
    result.lock_fd = -1
    if status != -EEXIST:
        files_check(status, "create directory", path)
        made = True
    found = look_around(files, path)
    try:
        take_lock(result, files, path)
        # Looked at again: another process may have made the store, and gone, before the lock was ours.
        fresh = b"MANIFEST" not in look_around(files, path)
        note_holder(result, files, path)
        if fresh:
            sync_parent(files, os.path.dirname(path), made)
            publish_first(files, path)
        open_log(result, files, path, segment_size, executor)
    except BaseException:
        if result.lock_fd >= 0:
            try:
                if fresh:
                    undo_creation(files, path, found, made)
            finally:
                files.call.close(files.ctx, result.lock_fd)
        raise
    result.log.lock_fd = result.lock_fd
    result.report["seconds"] = time.perf_counter() - started
    return result


# The names in the directory, all of them ours, and the manifest, if there is one, readable. Changes nothing.
cdef set look_around(Files files, bytes path):
    cdef set names = set(files_list(files, path))
    where = os.fsdecode(path)
    foreign = sorted(
        name for name in names
        if name not in OUR_NAMES and not name.startswith(b".") and not SEGMENT_NAME.fullmatch(name)
        and not ORDER_NAME.fullmatch(name))
    if foreign:
        raise StorageError(
            f"{where} holds files that are not kvstore's ({os.fsdecode(foreign[0])!r}); use an empty directory, or move "
            "them elsewhere; nothing was changed")
    if b"MANIFEST" in names:
        read_manifest(files, path)
    elif any(SEGMENT_NAME.fullmatch(name) for name in names):
        raise CorruptionError(
            f"{where} holds segments but no MANIFEST; restore it, or salvage what is left into a new directory")
    return names


cdef tuple read_manifest(Files files, bytes path):
    cdef bytes name = os.path.join(path, b"MANIFEST")
    return manifest.decode(files_read_all(files, name), os.fsdecode(name))


cdef int take_lock(Recovered result, Files files, bytes path) except -1:
    cdef bytes name = os.path.join(path, b"LOCK")
    cdef char holder[32]
    cdef ssize_t got
    cdef int fd, status = 0
    while status == 0:
        fd = <int>files_check(files.call.open(files.ctx, name, O_RDWR | O_CREAT, 0o600), "open", name)
        status = files.call.lock(files.ctx, fd)
        if status == -EAGAIN:
            got = files_read(files, fd, holder, sizeof(holder), 0)
            files.call.close(files.ctx, fd)
            owner = holder[:max(got, 0)].decode("ascii", "replace").strip() or "unknown"
            raise LockedError(
                f"{os.fsdecode(path)} is already open by process {owner}; stop it, or use another directory")
        if status == 0:
            # An opening that failed may have removed the file since: a lock on it is worth nothing, another is tried.
            status = files.call.is_at(files.ctx, fd, name)
        if status <= 0:
            files.call.close(files.ctx, fd)
    files_check(status, "lock", name)
    result.lock_fd = fd
    return 0


# Write down who holds the lock.
cdef int note_holder(Recovered result, Files files, bytes path) except -1:
    cdef bytes pid = b"%d\n" % os.getpid()
    cdef const char* text = pid
    cdef size_t n = len(pid)
    cdef int status = files_write(files, result.lock_fd, text, n, 0)
    if status == 0:
        # Written over, then cut: on a full disk the block that is there already is all it takes.
        status = files.call.ftruncate(files.ctx, result.lock_fd, n)
    files_check(status, "lock", os.path.join(path, b"LOCK"))
    return 0


# Make the name of a new store's directory durable; not only of one just `made`, for who made it may have been killed.
cdef int sync_parent(Files files, bytes path, bint made) except -1:
    cdef int status = files.call.fsync_dir(files.ctx, path)
    # One that was made for us, where we may not even look, is in the care of who made it.
    if made or status != -EACCES:
        files_check(status, "sync directory", path)
    return 0


# A store without segments: opening it makes the first one, as it would after a crash at this point.
cdef int publish_first(Files files, bytes path) except -1:
    cdef Log log = Log()
    log.files = files
    log.path = path
    log.segments = []
    log.next_id = 1
    log.store_id = os.urandom(16)
    log.hash_secret = os.urandom(16)
    return log_publish(log, log_manifest(log, [], 0))


# Remove what this opening made: nothing whose name was `found` before it.
cdef int undo_creation(Files files, bytes path, set found, bint made) except -1:
    for name in files_list(files, path):
        ours = name in (b"LOCK", b"MANIFEST", b"MANIFEST.tmp", b"RESERVE") or SEGMENT_NAME.fullmatch(name)
        if ours and name not in found:
            files.call.unlink(files.ctx, os.path.join(path, name))
    if made:
        files.call.rmdir(files.ctx, path)
    return 0


cdef int open_log(Recovered result, Files files, bytes path, uint64_t segment_size, object executor) except -1:
    cdef Log log = Log()
    cdef list lines
    cdef Segment first
    cdef Replay replay
    cdef list told
    log.files = files
    log.path = path
    log.segment_size = segment_size
    log.executor = executor
    log.buf = ByteBuf()
    log.ahead = ahead_new(files)
    log.segments = []
    log.full = []
    log.store_id, log.hash_secret, log.next_id, lines = read_manifest(files, path)
    # Who published it may have been killed before its name was durable: an older one must not come back once files that it
    # lists are removed, and records acknowledged in one that it does not.
    files_check(files_sync_directory(files, path), "sync directory", path)
    result.log = log
    result.index = HashIndex(log.hash_secret)
    for line in lines:
        log.next_id = max(log.next_id, <uint32_t>line["id"] + 1)
        open_segment(log, line)
    told = settle_unlisted(log, lines, {line["id"] for line in lines})
    if not any(line["state"] == "open" for line in lines):
        first = segment_create(files, path, log.next_id, log.store_id, False)
        segment_map(first, segment_size)
        log_add_segment(log, first)
        log.next_id += 1
        log_publish(log, log_manifest(log, [], 0))
    result.deadlines = Deadlines()
    covered = checkpoint_load(log, result.index, result.deadlines)
    if covered is None:
        covered = {}
        result.index = HashIndex(log.hash_secret)
        result.deadlines = Deadlines()
    replay = Replay(log, result.index, result.deadlines)
    # A checkpoint is published only when the log is synced beyond what it covers and names, whatever became of either since.
    replay_note_covered(replay, checkpoint_covered(log))
    walk_note_synced(replay, log.synced_id, log.synced_offset)
    replay_all(replay, covered)
    count_dead(log, result.index)
    cut_tails(log)
    choose_active(log)
    log.last_version = max(log.last_version, replay.newest, *(line.get("max_version", 0) for line in lines))
    log.synced_id = replay.synced_id
    log.synced_offset = <uint32_t>replay.synced_offset
    result.report = {
        "records": replay.records, "bytes": replay.bytes, "checkpoint": bool(covered), "segments": len(log.segments),
        "torn_bytes": replay.torn_bytes, "damaged_bytes": replay.damaged_bytes, "damaged_ranges": replay.damaged_ranges,
        "lost_keys": len(replay.lost), "messages": told + replay.messages}
    log_take_reserve(log)
    if log.spare is None or log.full:
        log_submit_seal(log)
    return 0


# Settle what is in the directory but not in the manifest: `listed` are the ids of `lines`. Returns what there is to tell.
cdef list settle_unlisted(Log log, list lines, set listed):
    cdef uint32_t known = log.next_id
    cdef Segment segment
    cdef list told = [], doomed = []
    for name in files_list(log.files, log.path):
        path = os.path.join(log.path, name)
        match = ORDER_NAME.fullmatch(name)
        if match is not None and (match[2] or int(match[1]) not in listed):
            log.files.call.unlink(log.files.ctx, path)
        match = SEGMENT_NAME.fullmatch(name)
        if match is None or int(match[1]) in listed:
            continue
        log.next_id = max(log.next_id, <uint32_t>int(match[1]) + 1)
        if has_header(log.files, path):
            # Refuses when it is another store's: only what this store left behind is touched.
            segment = segment_open(log.files, log.path, int(match[1]), log.store_id)
            # What the manifest knew of and does not list was dropped on purpose; what is younger never held records, unless
            # it is a compaction's.
            if segment.id >= known and not segment.compacted and walk_finds_record(Walk(), segment):
                told.append(set_aside(log, name))
                continue
        doomed.append(path)
    if log.next_id != known:
        keep_ids_used(log, lines)
    for path in doomed:
        files_check(log.files.call.unlink(log.files.ctx, path), "remove", path)
    return told


# No number is used twice, also when its file is about to go and the next opening does not see it: a checkpoint may name it.
cdef int keep_ids_used(Log log, list lines) except -1:
    try:
        log_publish(log, manifest.encode(log.store_id, log.hash_secret, log.next_id, lines))
    except StorageError:
        # No space, say: without the checkpoint a number may be used again.
        log.files.call.unlink(log.files.ctx, os.path.join(log.path, b"index.ckpt"))
    return 0


# Move a segment that is younger than the manifest, and holds records, into the quarantine. Returns what there is to tell.
cdef str set_aside(Log log, bytes name):
    cdef Files f = log.files
    cdef bytes directory = os.path.join(log.path, b"quarantine")
    cdef bytes source = os.path.join(log.path, name)
    cdef bytes target
    cdef int64_t status = f.call.mkdir(f.ctx, directory)
    if status != -EEXIST:
        files_check(status, "create directory", directory)
    taken = files_list(f, directory)
    kept, number = name, 1
    while kept in taken:
        number += 1
        kept = name.replace(b".seg", b"-%d.seg" % number)
    target = os.path.join(directory, kept)
    files_check(f.call.rename(f.ctx, source, target), "move", source)
    files_check(f.call.fsync_dir(f.ctx, directory), "sync directory", directory)
    files_check(f.call.fsync_dir(f.ctx, log.path), "sync directory", log.path)
    return (f"{os.fsdecode(source)} holds records, but the manifest is older than it: moved to {os.fsdecode(target)}; "
            "was an old MANIFEST put back?")


# Is it more than the beginning of making a segment? What was written of it may not have reached the disk: then the file is
# short, or all zeros.
cdef bint has_header(Files files, bytes path) except -1:
    cdef uint8_t content[SEGMENT_HEADER + 1]
    cdef int fd = <int>files_check(files.call.open(files.ctx, path, O_RDONLY, 0), "open", path)
    cdef int64_t got = files_read(files, fd, content, sizeof(content), 0)
    files.call.close(files.ctx, fd)
    files_check(got, "read", path)
    return got > SEGMENT_HEADER or (got == SEGMENT_HEADER and any(content[:SEGMENT_HEADER]))


cdef int open_segment(Log log, dict line) except -1:
    cdef bytes name = os.path.join(log.path, segment_name(line["id"]))
    cdef Segment s
    try:
        s = segment_open(log.files, log.path, line["id"], log.store_id)
    except StorageError as error:
        if error.errno != ENOENT:
            raise
        raise CorruptionError(
            f"{os.fsdecode(name)} is missing; restore it, or salvage what is left into a new directory") from None
    if line["state"] == "sealed":
        s.sealed = True
        if s.allocated < <uint64_t>line["bytes"]:
            raise CorruptionError(
                f"{os.fsdecode(name)} is cut short: {s.allocated} of {line['bytes']} bytes; restore it, or salvage what is "
                "left into a new directory")
        s.allocated = line["bytes"]
        s.synced = line["bytes"]
        s.min_version = line["min_version"]
        s.max_version = line["max_version"]
    log_add_segment(log, s)
    segment_map(s, s.allocated if s.sealed else max(s.allocated, log.segment_size))
    return 0


cdef int replay_all(Replay replay, dict covered) except -1:
    cdef Log log = replay.log
    cdef Segment s
    cdef uint64_t start
    for slot, data_end, last in replay_plan(replay):
        s = log.segments[slot]
        start = covered.get(s.id, SEGMENT_HEADER)
        s.flushed = start
        replay.moving = s.compacted and s.id not in covered and len(covered) > 0
        replay_segment(replay, slot, start, max(<uint64_t>data_end, start), last)
        if s.sealed:
            segment_seal(s)
    return replay_finish(replay)


# What no entry of the index points at is dead.
cdef int count_dead(Log log, HashIndex index) except -1:
    cdef ByteBuf sums = ByteBuf()
    cdef Named* named = <Named*>bytebuf_reserve(sums, len(log.segments) * sizeof(Named))
    cdef Partition* part
    cdef Location* at
    cdef Segment s
    cdef uint32_t i
    cdef int p
    memset(named, 0, len(log.segments) * sizeof(Named))
    for p in range(PARTITIONS):
        part = &index.partitions[p]
        for i in range(part.places):
            at = &part.entries[i].at
            if at.length:
                named[at.segment].size += at.length
                named[at.segment].end = max(named[at.segment].end, at.offset + <uint64_t>at.length)
    for s in log.segments:
        if named[s.slot].end > s.flushed:
            # The image knows of records that the log has lost. Their keys answer an error, also after the next opening: so
            # the zeros in their place stay, and nothing else is written there.
            s.flushed = named[s.slot].end
            s.damaged = True
        s.dead = s.flushed - SEGMENT_HEADER - named[s.slot].size
    return 0


# Cut off what stands behind the last record of an open segment: a torn tail, or space that was taken ahead.
cdef int cut_tails(Log log) except -1:
    cdef Segment s
    for s in log.segments:
        if not s.sealed and s.allocated > s.flushed:
            files_check(s.files.call.ftruncate(s.files.ctx, s.fd, s.flushed), "cut", s.path)
            s.allocated = s.flushed
        log.flushed_total += s.flushed
    return 0


# The newest open segment with records is written on; older ones are full; an empty one behind it is the spare.
cdef int choose_active(Log log) except -1:
    cdef Segment s
    cdef list opened = sorted((s for s in log.segments if not s.sealed), key=lambda s: s.id)
    cdef list written = [s for s in opened if s.flushed > SEGMENT_HEADER]
    log.active = written[len(written) - 1] if written else opened[0]
    log.active_slot = log.active.slot
    for s in opened:
        if s.id > log.active.id and log.spare is None:
            log.spare = s
        elif s is not log.active:
            log.full.append(s)
    return 0
