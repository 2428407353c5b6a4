import os

cimport cython
from libc.errno cimport ENOENT
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcmp, memcpy
from posix.fcntl cimport O_CREAT, O_RDONLY, O_TRUNC, O_WRONLY

from kvcore.bytebuf cimport ByteBuf, bytebuf_append, bytebuf_clear, bytebuf_reserve
from kvcore.expiry cimport Deadline
from kvcore.files cimport (
    Files, files_check, files_open, files_read, files_rename, files_sync_directory, files_unlink, files_write)
from kvcore.hashindex cimport PARTITIONS, Entry, Partition, index_fill
from kvcore.log cimport Job, job_check, log_note_synced, log_segment, log_sync_job
from kvcore.record cimport RECORD_HEADER, crc32c_of
from kvcore.segment cimport NO_SLOT, SEGMENT_HEADER, Segment
from kvcore.types cimport Location, uint8_t


cdef enum:
    FORMAT = 1
    HEAD = 40                       # bytes before its checksum
    WRITTEN = 1 << 20               # bytes gathered before they are written
    LEAST = 64 << 20                # bytes of log between two checkpoints


# A segment in the image.
cdef struct Row:
    uint64_t id
    uint64_t covered                # bytes that need no replay
    uint64_t records
    uint64_t min_version
    uint64_t max_version
    uint64_t buried

cdef bytes MAGIC = b"kvckp\r\n\x1a"
cdef bytes NAME = b"index.ckpt"


cdef bint checkpoint_due(Log log, HashIndex index) noexcept:
    # An image may cost as much writing as half of the log that it saves replaying.
    return log.flushed_total - log.checkpoint_total >= max(<uint64_t>LEAST, 2 * sizeof(Entry) * index.count)


cdef class WriteJob(Job):
    """Write a piece of a file that is being made."""

    cdef int fd
    cdef ByteBuf content
    cdef uint64_t offset

    cdef int work(self) except -1:
        cdef int result
        with nogil:
            result = files_write(self.log.files, self.fd, self.content.data, self.content.len, self.offset)
        files_check(result, "write", NAME)
        return 0


cdef class PublishJob(Job):
    """Make the file durable and give it its name."""

    cdef int fd

    cdef int work(self) except -1:
        cdef Files f = self.log.files
        cdef bytes target = os.path.join(self.log.path, NAME)
        cdef bytes temporary = target + b".tmp"
        cdef int result
        with nogil:
            result = f.call.fdatasync(f.ctx, self.fd)
        files_check(result, "sync", temporary)
        files_check(files_rename(f, temporary, target), "rename", temporary)
        files_check(files_sync_directory(f, self.log.path), "sync directory", self.log.path)
        return 0


def checkpoint_steps(Log log not None, HashIndex index not None, Deadlines deadlines not None):
    """Write a checkpoint: a generator of Jobs, each to be run (anywhere) and finished before the next is asked for.

    The log's buffer must be empty when it starts. Raises StorageError; the checkpoint before it then stays.
    """
    cdef Files f = log.files
    cdef bytes temporary = os.path.join(log.path, NAME) + b".tmp"
    cdef ByteBuf content = ByteBuf()
    cdef ByteBuf places = ByteBuf()             # u32: the place in the image's list, by slot
    cdef uint64_t offset = 0, total = log.flushed_total
    cdef uint32_t seed
    cdef int p
    cdef int fd = <int>files_check(files_open(f, temporary, O_WRONLY | O_CREAT | O_TRUNC), "create", temporary)
    try:
        seed = <uint32_t>put_head(content, log)
        put_segments(content, places, log, seed)
        # Before the partitions: an entry of theirs that is swept away meanwhile must still have its deadline in the image.
        put_part(content, deadlines.heap.data, sizeof(Deadline), deadlines.heap.len // sizeof(Deadline), seed + 1)
        for p in range(PARTITIONS):
            put_partition(content, <uint32_t*>places.data, places.len // 4, &index.partitions[p], seed + 2 + p)
            if content.len >= WRITTEN or p % 32 == 31:
                job = write_job(log, fd, content, offset)
                yield job
                job_check(job)
                offset += content.len
                bytebuf_clear(content, 2 * WRITTEN)
        job = write_job(log, fd, content, offset)
        yield job
        job_check(job)
        sync = log_sync_job(log)
        if sync is not None:
            yield sync
        job = publish_job(log, fd)
        yield job
        job_check(job)
        log.checkpoint_total = total
        log.checkpoint_bytes = offset + content.len
        log.checkpoint_at = f.call.clock(f.ctx)
        log.checkpoints += 1
    except BaseException:
        files_unlink(f, temporary)
        raise
    finally:
        f.call.close(f.ctx, fd)


cdef Job write_job(Log log, int fd, ByteBuf content, uint64_t offset):
    cdef WriteJob job = WriteJob(log)
    job.fd = fd
    job.content = content
    job.offset = offset
    return job


cdef Job publish_job(Log log, int fd):
    cdef PublishJob job = PublishJob(log)
    job.fd = fd
    return job


cdef int fill_head(uint8_t* head, Log log, uint64_t last_version) except -1:
    cdef uint32_t format = FORMAT, zero = 0
    cdef const char* store_id = log.store_id
    memcpy(head, <const char*>MAGIC, 8)
    memcpy(head + 8, &format, 4)
    memcpy(head + 12, &zero, 4)
    memcpy(head + 16, store_id, 16)
    memcpy(head + 32, &last_version, 8)
    return 0


# Returns the checksum of the head: it seeds those of the parts, so that one of another image does not pass for one of this,
# nor for another of this.
cdef int64_t put_head(ByteBuf content, Log log) except -1:
    cdef uint8_t head[HEAD]
    cdef uint32_t checksum
    fill_head(head, log, log.last_version)
    checksum = <uint32_t>crc32c_of(head, HEAD, 0)
    bytebuf_append(content, head, HEAD)
    bytebuf_append(content, &checksum, sizeof(checksum))
    return checksum


# One part: a count, so many items of `size` bytes, a checksum of both.
cdef int put_part(ByteBuf content, const void* items, size_t size, uint64_t count, uint32_t seed) except -1:
    cdef size_t start = content.len
    cdef uint32_t checksum
    bytebuf_append(content, &count, sizeof(count))
    bytebuf_append(content, items, size * count)
    checksum = <uint32_t>crc32c_of(content.data + start, content.len - start, seed)
    return bytebuf_append(content, &checksum, sizeof(checksum))


cdef int put_segments(ByteBuf content, ByteBuf places, Log log, uint32_t seed) except -1:
    cdef ByteBuf rows = ByteBuf()
    cdef Segment segment
    cdef Row row
    cdef uint32_t place, count = 0
    for segment in log.segments:
        place = NO_SLOT
        if segment is not None:
            place = count
            count += 1
            row.id = segment.id
            row.covered = segment.flushed
            row.records = segment.records
            row.min_version = segment.min_version
            row.max_version = segment.max_version
            row.buried = segment.buried
            bytebuf_append(rows, &row, sizeof(Row))
        bytebuf_append(places, &place, sizeof(place))
    return put_part(content, rows.data, sizeof(Row), count, seed)


cdef int put_partition(
        ByteBuf content, const uint32_t* places, size_t slots, const Partition* part, uint32_t seed) except -1:
    cdef size_t start = content.len
    cdef uint64_t count = 0
    cdef uint32_t i, checksum
    cdef Entry* item
    bytebuf_reserve(content, 16 + <size_t>part.count * sizeof(Entry))
    item = <Entry*>(content.data + start + sizeof(count))
    for i in range(part.places):
        # A segment younger than the list is replayed as a whole.
        if part.entries[i].at.length and part.entries[i].at.segment < slots:
            item[0] = part.entries[i]
            item.at.segment = places[item.at.segment]
            item += 1
            count += 1
    memcpy(content.data + start, &count, sizeof(count))
    content.len = start + sizeof(count) + count * sizeof(Entry)
    checksum = <uint32_t>crc32c_of(content.data + start, content.len - start, seed)
    return bytebuf_append(content, &checksum, sizeof(checksum))


# ---- loading

# Reads the parts of an image one after the other.
@cython.no_gc_clear             # __dealloc__ needs the file table
cdef class Reader:
    cdef Files files
    cdef int fd
    cdef int64_t size
    cdef uint64_t offset
    cdef uint64_t last_version
    cdef uint32_t seed              # of the checksum of the next part
    cdef ByteBuf part

    def __cinit__(self):
        self.fd = -1

    def __dealloc__(self):
        if self.fd >= 0:
            self.files.call.close(self.files.ctx, self.fd)

    # n bytes into `part`. False when there are not so many.
    cdef bint read(self, uint64_t n) except -1:
        cdef int64_t got
        if n > <uint64_t>self.size - self.offset:
            return False
        self.part.len = 0
        bytebuf_reserve(self.part, n)
        with nogil:
            got = files_read(self.files, self.fd, self.part.data, n, self.offset)
        self.part.len = max(got, <int64_t>0)
        self.offset += n
        return got == <int64_t>n

    # The items of the next part: how many, or -1 when they cannot be proven right.
    cdef int64_t items(self, size_t size) except? -2:
        cdef uint64_t count
        cdef uint32_t checksum
        if not self.read(sizeof(count)):
            return -1
        memcpy(&count, self.part.data, sizeof(count))
        if count > <uint64_t>self.size // size:
            return -1
        self.offset -= sizeof(count)
        if not self.read(sizeof(count) + count * size + sizeof(checksum)):
            return -1
        self.part.len -= sizeof(checksum)
        memcpy(&checksum, self.part.data + self.part.len, sizeof(checksum))
        self.seed += 1
        return <int64_t>count if checksum == <uint32_t>crc32c_of(self.part.data, self.part.len, self.seed - 1) else -1

    cdef uint8_t* first(self) noexcept:
        return self.part.data + sizeof(uint64_t)


cdef bint checkpoint_drop(Log log) except -1:
    return files_unlink(log.files, os.path.join(log.path, NAME)) in (0, -ENOENT) and (
        files_sync_directory(log.files, log.path) == 0)


# A reader at the first part of the image; None when there is no image of this store.
cdef Reader open_image(Log log):
    cdef Files f = log.files
    cdef Reader reader = Reader()
    cdef uint8_t expected[HEAD]
    cdef uint32_t checksum
    reader.files = f
    reader.fd = files_open(f, os.path.join(log.path, NAME), O_RDONLY)
    if reader.fd < 0:
        return None
    reader.part = ByteBuf()
    reader.size = max(f.call.size(f.ctx, reader.fd), <int64_t>0)
    if not reader.read(HEAD + sizeof(checksum)):
        return None
    memcpy(&reader.last_version, reader.part.data + 32, 8)
    memcpy(&checksum, reader.part.data + HEAD, 4)
    fill_head(expected, log, reader.last_version)
    if memcmp(expected, reader.part.data, HEAD) != 0 or checksum != <uint32_t>crc32c_of(expected, HEAD, 0):
        return None
    reader.seed = checksum
    return reader


cdef dict checkpoint_covered(Log log):
    cdef Reader reader = open_image(log)
    cdef int64_t count = -1 if reader is None else reader.items(sizeof(Row))
    cdef Row* row = NULL if count < 0 else <Row*>reader.first()
    return {row[i].id: row[i].covered for i in range(count)}


cdef dict checkpoint_load(Log log, HashIndex index, Deadlines deadlines):
    cdef Reader reader = open_image(log)
    return None if reader is None else load_image(reader, log, index, deadlines)


cdef dict load_image(Reader reader, Log log, HashIndex index, Deadlines deadlines):
    cdef int64_t count
    cdef int p
    cdef ByteBuf slots = ByteBuf()              # u32: the slot, by place in the image's list
    cdef ByteBuf rows = ByteBuf()               # of Row
    covered = load_segments(reader, log, slots, rows)
    if covered is None:
        return None
    count = reader.items(sizeof(Deadline))
    if count < 0:
        return None
    bytebuf_append(deadlines.heap, reader.first(), count * sizeof(Deadline))
    for p in range(PARTITIONS):
        count = reader.items(sizeof(Entry))
        if count < 0 or not place_entries(<Entry*>reader.first(), count, slots, log):
            return None
        index_fill(index, p, <Entry*>reader.first(), <uint32_t>count)
    log.last_version = max(log.last_version, reader.last_version)
    note_rows(log, slots, rows)
    return covered


# What the image says of the segments. Only when all of it is believed: a replay would count their records once more.
cdef void note_rows(Log log, ByteBuf slots, ByteBuf rows) noexcept:
    cdef const Row* row = <const Row*>rows.data
    cdef uint32_t* slot = <uint32_t*>slots.data
    cdef Segment segment
    cdef size_t i
    for i in range(rows.len // sizeof(Row)):
        if slot[i] != NO_SLOT:
            segment = log_segment(log, slot[i])
            segment.records = row[i].records
            segment.min_version = row[i].min_version
            segment.max_version = row[i].max_version
            segment.buried = row[i].buried


# Fill in the slots and the rows. Returns {segment id: covered bytes}, or None.
cdef dict load_segments(Reader reader, Log log, ByteBuf slots, ByteBuf rows):
    cdef int64_t count = reader.items(sizeof(Row))
    cdef Row* row
    cdef Segment segment
    cdef dict covered = {}
    cdef dict present = {(<Segment>segment).id: segment for segment in log.segments}
    if count < 0:
        return None
    row = <Row*>reader.first()
    for i in range(count):
        segment = present.get(row[i].id)
        # One that is gone must not be missed: place_entries sees to that.
        slot = NO_SLOT
        if segment is not None:
            if segment.allocated < row[i].covered or row[i].covered < SEGMENT_HEADER:
                return None
            slot = segment.slot
            if row[i].covered > SEGMENT_HEADER and not segment.compacted:
                log_note_synced(log, segment.id, <uint32_t>row[i].covered)
            covered[segment.id] = row[i].covered
        place_slot(slots, slot)
    bytebuf_append(rows, row, count * sizeof(Row))
    return covered


cdef int place_slot(ByteBuf slots, uint32_t slot) except -1:
    return bytebuf_append(slots, &slot, sizeof(slot))


# Put slots in the place of the image's places. False when an entry cannot be. What the image names was on the disk before it
# was published, also beyond what it covers.
cdef bint place_entries(Entry* entries, size_t count, ByteBuf slots, Log log) except -1:
    cdef uint32_t* slot = <uint32_t*>slots.data
    cdef size_t i, n = slots.len // sizeof(uint32_t)
    cdef Location* at
    cdef Segment segment
    for i in range(count):
        at = &entries[i].at
        if at.segment >= n or slot[at.segment] == NO_SLOT or at.length < RECORD_HEADER:
            return False
        at.segment = slot[at.segment]
        segment = log_segment(log, at.segment)
        if not segment.compacted:
            log_note_synced(log, segment.id, at.offset + at.length)
        if at.offset + <uint64_t>at.length > segment.allocated:
            return False
        if i and entries[i].hash < entries[i - 1].hash:
            return False
    return True
