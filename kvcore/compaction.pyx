import time

from libc.stdint cimport uint32_t

from kvcore.bytebuf cimport ByteBuf, bytebuf_append, bytebuf_clear, bytebuf_reserve, bytebuf_swap
from kvcore.checkpoint cimport checkpoint_drop
from kvcore.files cimport files_check, files_unlink, files_write
from kvcore.hashindex cimport Entry, index_find, index_hash, index_prefetch, index_remove
from kvcore.log cimport (
    Job, job_check, log_add_segment, log_break, log_bury, log_manifest, log_now, log_publish, log_submit_seal,
    log_sync_job)
from kvcore.order cimport order_path
from kvcore.pace cimport pace
from kvcore.record cimport (
    RECORD_COMPRESSED, RECORD_KIND, RECORD_MORE, RECORD_TOMBSTONE, Record, record_decode, record_encode,
    record_of, record_size, record_verify)
from kvcore.segment cimport (
    NO_SLOT, SEGMENT_HEADER, Segment, segment_copy, segment_create, segment_map, segment_seal, segment_sync)
from kvcore.types cimport Location, slice_of, uint8_t

from kvcore.checkpoint import checkpoint_steps
from kvcore.compress import compress
from kvcore.errors import StorageError, UsageError
from kvcore.log import NO_SPACE, PASSING


cdef enum:
    CHUNK = 4 << 20             # bytes of a source in one job, unless a record is longer,
    MOST = 8192                 # and records: what is done with them on the owner's thread takes about a millisecond
    PIECE = 1 << 19             # bytes read at a time
    KEPT = 2 * CHUNK            # bytes of room that a buffer keeps between jobs


# One record of a chunk that may have to be kept.
cdef struct Copy:
    uint64_t hash
    uint32_t source             # offset in the source segment
    uint32_t chunk              # offset in the chunk
    uint32_t length             # of the record there
    uint32_t target             # offset in the output segment, and length, once it is encoded
    uint32_t target_length
    uint32_t alive              # the index points at it; else it hides older records: a tombstone, or one past its deadline


cdef class Compaction:
    """The compaction of one store: its counts, and whether values are compressed."""

    def __cinit__(self):
        self.chunk = ByteBuf()
        self.encoded = ByteBuf()

    def steps(self, Log log not None, HashIndex index not None, Deadlines deadlines not None, list sources not None):
        """Compact `sources` (list of Segment, emptied at the end): a generator of Jobs, see compaction.pxd. Raises
        StorageError, and UsageError while another one is under way.
        """
        if self.running:
            raise UsageError("a compaction is under way: let it come to its end, or drop it, before the next")
        self.running = True
        started = time.perf_counter()
        try:
            leave_out_dropped(sources)
            yield from self.run(log, index, deadlines, sources)
        finally:
            self.running = False
            self.seconds += time.perf_counter() - started

    def run(self, Log log not None, HashIndex index not None, Deadlines deadlines not None, list sources not None):
        """What steps() does."""
        cdef Segment source, output = None
        cdef ReadJob reading
        cdef CopyJob copying
        cdef Job making
        cdef uint64_t offset, floor = lowest_outside(log, sources)
        cdef list outputs = []
        cdef bint complete = False
        failure = None
        self.runs += 1
        try:
            for source in sources:
                if is_useless(source):
                    continue
                offset = SEGMENT_HEADER
                while offset < source.flushed and not source.damaged:
                    reading = read_job(self, log, index, source, offset)
                    yield reading
                    job_check(reading)
                    # A damaged one stays as it is, to be read as far as it goes; what was copied is moved already.
                    source.damaged = reading.damaged
                    copying = select_live(self, log, index, reading, floor)
                    offset += reading.consumed
                    self.read_bytes += reading.consumed
                    if copying.bound == 0:
                        give_back(self, copying)
                        continue
                    if output is None or output.flushed + copying.bound > log.segment_size:
                        making = CreateJob(log)
                        yield making
                        job_check(making)
                        output = (<CreateJob>making).made
                        self.unlisted = True
                        outputs.append(output)
                    copying.output = output
                    yield copying
                    job_check(copying)
                    give_back(self, copying)
            complete = all_whole(sources)
        except Exception as error:
            failure = error
        source = reading = copying = None
        # Also what was copied before an error stands in the index, so it has to be published.
        yield from self.publish(log, index, deadlines, sources if complete else [], outputs)
        if failure is not None:
            raise failure

    def publish(self, Log log not None, HashIndex index not None, Deadlines deadlines not None, list sources not None,
                list outputs not None):
        """The end of a run: outputs in, sources out. Sources of a run that is not complete must stay, all of them: a
        tombstone that was left out may still be needed.
        """
        cdef Segment segment
        for segment in outputs:
            job = output_sync(log, segment)
            yield job
            job_check(job)
        everything = len(sources) > 0 and set(sources) == set(compactable(log))
        for segment in outputs:
            segment.hidden = False
            segment_seal(segment)
            segment.unsorted = True
        try:
            yield from checkpoint_steps(log, index, deadlines)
        except StorageError as error:
            # An older checkpoint may be believed: over it copies only replace their originals, so these have to stay. On a
            # full disk that would be for ever: rather no checkpoint. But what replaced the dead must be on the disk.
            if error.errno not in NO_SPACE or not checkpoint_drop(log):
                sources = []
            job = log_sync_job(log) if sources else None
            if job is not None:
                yield job
        log.drop_waits = True
        try:
            while log.seal_job is not None:
                yield log.seal_job
        finally:
            log.drop_waits = False
        # Only now, for the same reason: a manifest without the sources must not come before the checkpoint.
        job = drop_job(self, log, sources, everything)
        yield job
        job_check(job)
        segment = None
        job = release_job(log, sources)
        yield job


# In functions of their own: what a loop in a generator went through last it keeps, and with it a mapping.
cdef int leave_out_dropped(list sources) except -1:
    sources[:] = [s for s in sources if (<Segment>s).slot != NO_SLOT]
    return 0


cdef bint all_whole(list sources) except -1:
    return not any([(<Segment>s).damaged for s in sources])


cdef list compactable(Log log):
    cdef Segment s
    return [s for s in log.segments if s is not None and s.sealed and not s.damaged and not s.hidden]


cdef list unfinished(Log log):
    cdef Segment s
    return [s for s in log.segments if s is not None and s.hidden and not s.sealed]


cdef bint is_useless(Segment s) noexcept:
    return not s.hides and s.dead == s.flushed - SEGMENT_HEADER


cdef uint64_t lowest_outside(Log log, list sources) except? 0:
    cdef Segment s
    cdef uint64_t lowest = <uint64_t>-1
    for s in log.segments:
        if s is not None and s not in sources:
            lowest = min(lowest, s.min_version)
    return lowest


# ---- reading

cdef class ReadJob(Job):
    """Read whole records of a source and verify them."""

    cdef HashIndex index        # for the hashes of the keys
    cdef Segment source
    cdef uint64_t offset
    cdef ByteBuf chunk
    cdef ByteBuf found          # of Copy: the records with a key
    cdef uint64_t consumed
    cdef bint damaged

    cdef int work(self) except -1:
        cdef uint64_t left = self.source.flushed - self.offset
        cdef size_t wanted = min(<uint64_t>CHUNK, left)
        self.found = ByteBuf()
        bytebuf_reserve(self.found, MOST * sizeof(Copy))
        while True:
            bytebuf_reserve(self.chunk, wanted - self.chunk.len)
            with nogil:
                self.read(wanted)
            if self.consumed or self.damaged:
                return 0
            wanted = self.first_size()      # one record that is longer than a chunk should be
            if wanted <= self.chunk.len:
                self.damaged = True
                return 0

    # Up to so many bytes of the chunk, in pieces: of short records less is enough.
    cdef int read(self, size_t wanted) except -1 nogil:
        cdef size_t n
        while self.chunk.len < wanted and self.found.len < MOST * sizeof(Copy) and not self.damaged:
            n = min(wanted - self.chunk.len, <size_t>PIECE)
            self.damaged = segment_copy(self.source, self.offset + self.chunk.len, self.chunk.data + self.chunk.len, n) < 0
            if not self.damaged:
                self.chunk.len += n
                self.verify()
        return 0

    # The size that the first record claims; 0 when it claims what cannot be.
    cdef size_t first_size(self) noexcept:
        cdef Record r
        record_decode(self.chunk.data, self.source.flushed - self.offset, &r)
        return r.size

    cdef int verify(self) except -1 nogil:
        cdef Record r
        cdef Copy* copy = <Copy*>(self.found.data + self.found.len)
        cdef uint8_t* data
        cdef bint at_end = self.offset + self.chunk.len == self.source.flushed
        while self.consumed < self.chunk.len and self.found.len < MOST * sizeof(Copy):
            data = self.chunk.data + self.consumed
            if record_decode(data, self.chunk.len - self.consumed, &r) < 0:
                # Cut by the chunk's end, or bad.
                self.damaged = at_end
                return 0
            if not record_verify(data, &r, self.source.seed):
                self.damaged = True
                return 0
            if r.flags & RECORD_KIND == 0:
                copy.hash = index_hash(self.index, r.key.ptr, r.key.len)
                copy.source = <uint32_t>(self.offset + self.consumed)
                copy.chunk = <uint32_t>self.consumed
                copy.length = <uint32_t>r.size
                copy += 1
                self.found.len += sizeof(Copy)
            self.consumed += r.size
            pace(1)
        return 0


cdef ReadJob read_job(Compaction owner, Log log, HashIndex index, Segment source, uint64_t offset):
    cdef ReadJob job = ReadJob(log)
    job.chunk = taken(owner.chunk)
    job.index = index
    job.source = source
    job.offset = offset
    return job


# Large buffers go from job to job: freed, what each of the threads has had of them would stay with it. A job has its buffer
# to itself, as it may still run when its run was dropped, and the next one has begun.
cdef ByteBuf taken(ByteBuf kept):
    cdef ByteBuf buf = ByteBuf()
    bytebuf_swap(buf, kept)
    return buf


# The job is over.
cdef int give_back(Compaction c, CopyJob job) except -1:
    bytebuf_clear(job.chunk, KEPT)
    bytebuf_clear(job.encoded, KEPT)
    bytebuf_swap(job.chunk, c.chunk)
    bytebuf_swap(job.encoded, c.encoded)
    return 0


# What of a chunk has to be kept.
cdef CopyJob select_live(Compaction owner, Log log, HashIndex index, ReadJob reading, uint64_t floor):
    cdef CopyJob job = CopyJob(log)
    cdef uint64_t now = log_now(log)
    cdef Copy* copy = <Copy*>reading.found.data
    cdef Copy* end = copy + reading.found.len // sizeof(Copy)
    cdef Copy* kept = copy
    cdef Record r
    cdef Entry* entry
    job.owner = owner
    job.index = index
    job.source = reading.source
    job.chunk = reading.chunk
    job.encoded = taken(owner.encoded)
    job.copies = reading.found
    index_prefetch_all(index, copy, end)
    while copy < end:
        record_decode(reading.chunk.data + copy.chunk, copy.length, &r)
        entry = index_find(index, copy.hash, reading.source.slot, copy.source)
        copy.alive = entry != NULL
        if entry != NULL and 0 < r.expires_at <= now:
            log_bury(log, entry.at)
            index_remove(index, copy.hash, entry)
            copy.alive = False
        # Without an entry it matters only if it hides something older that may be left somewhere.
        if copy.alive or (r.version >= floor and (r.flags & RECORD_TOMBSTONE or 0 < r.expires_at <= now)):
            kept[0] = copy[0]
            kept += 1
            job.bound += r.size
        copy += 1
    job.copies.len = <uint8_t*>kept - job.copies.data
    return job


cdef void index_prefetch_all(HashIndex index, const Copy* copy, const Copy* end) noexcept:
    while copy < end:
        index_prefetch(index, copy.hash)
        copy += 1


# ---- writing

cdef class CreateJob(Job):
    """Make an output segment."""

    cdef Segment made
    cdef uint32_t id

    def __cinit__(self, Log log not None):
        self.id = log.next_id
        log.next_id += 1

    cdef int work(self) except -1:
        self.made = segment_create(self.log.files, self.log.path, self.id, self.log.store_id, True)
        segment_map(self.made, self.log.segment_size)
        return 0

    cdef int settle(self) except -1:
        if self.error is None:
            self.made.hidden = True
            log_add_segment(self.log, self.made)
        return 0


cdef class CopyJob(Job):
    """Encode the live records of a chunk for the output, write them, and move the index over."""

    cdef Compaction owner
    cdef HashIndex index
    cdef Segment source
    cdef Segment output
    cdef ByteBuf chunk
    cdef ByteBuf copies         # of Copy
    cdef ByteBuf encoded
    cdef size_t bound           # bytes that the encoded records have at most
    cdef uint64_t min_version
    cdef uint64_t max_version
    cdef uint64_t buried
    cdef uint64_t packed
    cdef uint64_t frames
    cdef ByteBuf frame          # scratch

    cdef int work(self) except -1:
        cdef Copy* copy = <Copy*>self.copies.data
        cdef size_t i
        cdef int result
        self.frame = ByteBuf()
        bytebuf_reserve(self.encoded, self.bound)
        self.min_version = <uint64_t>-1
        with nogil:
            for i in range(self.copies.len // sizeof(Copy)):
                pace(1)
                self.encode(&copy[i])
        segment_map(self.output, self.output.flushed + self.encoded.len)
        with nogil:
            result = files_write(
                self.log.files, self.output.fd, self.encoded.data, self.encoded.len, self.output.flushed)
        files_check(result, "write", self.output.path)
        return 0

    cdef int encode(self, Copy* copy) except -1 nogil:
        cdef Record r = record_of(0, slice_of(NULL, 0), slice_of(NULL, 0), 0)
        record_decode(self.chunk.data + copy.chunk, copy.length, &r)    # it was verified
        r.flags &= ~RECORD_MORE
        if not self.owner.off and r.flags & (RECORD_COMPRESSED | RECORD_TOMBSTONE) == 0 and r.value.len >= 128:
            self.squeeze(&r)
        copy.target = <uint32_t>(self.output.flushed + self.encoded.len)
        copy.target_length = <uint32_t>record_size(r.key.len, r.value.len, r.expires_at != 0)
        record_encode(self.encoded.data + self.encoded.len, &r, self.output.seed)
        self.encoded.len += copy.target_length
        self.min_version = min(self.min_version, r.version)
        self.max_version = max(self.max_version, r.version)
        if not copy.alive:
            # A tombstone, or a record past its deadline that hides older ones: compacting it again gains nothing.
            self.buried += copy.target_length
        return 0

    # Replace the value by a frame, if that saves enough. It lives until the next one.
    cdef int squeeze(self, Record* r) except -1 with gil:
        cdef bytes frame = compress(r.value.ptr[:r.value.len])
        if frame is None:
            return 0
        self.packed += r.value.len
        self.frames += len(frame)
        bytebuf_clear(self.frame, PIECE)
        bytebuf_append(self.frame, <const char*>frame, len(frame))
        r.flags |= RECORD_COMPRESSED
        r.value = slice_of(self.frame.data, self.frame.len)
        return 0

    cdef int settle(self) except -1:
        cdef Copy* copy = <Copy*>self.copies.data
        cdef size_t i, n = self.copies.len // sizeof(Copy)
        cdef Segment output = self.output
        cdef Entry* entry
        if self.error is not None:
            return 0
        index_prefetch_all(self.index, copy, copy + n)
        output.flushed += self.encoded.len
        output.allocated = output.flushed
        output.records += n
        output.min_version = min(output.min_version, self.min_version)
        output.max_version = max(output.max_version, self.max_version)
        output.buried += self.buried
        for i in range(n):
            entry = index_find(self.index, copy[i].hash, self.source.slot, copy[i].source) if copy[i].alive else NULL
            if entry == NULL:
                # Replaced or deleted while it was copied, or a record that only hides others.
                output.dead += copy[i].target_length
                continue
            log_bury(self.log, entry.at)
            entry.at = Location(output.slot, copy[i].target, copy[i].target_length)
        self.owner.written_bytes += self.encoded.len
        self.owner.packed_bytes += self.packed
        self.owner.frame_bytes += self.frames
        return 0


cdef class OutputSyncJob(Job):
    """Put an output on the disk."""

    cdef Segment output

    cdef int work(self) except -1:
        return segment_sync(self.output)

    cdef int settle(self) except -1:
        if self.error is not None:
            log_break(self.log, str(self.error))
        else:
            self.output.synced = self.output.flushed
        return 0


cdef Job output_sync(Log log, Segment output):
    cdef OutputSyncJob job = OutputSyncJob(log)
    job.output = output
    return job


# ---- dropping

cdef class DropJob(Job):
    """Publish the manifest without the sources, then unlink them. Like a SealJob it is the only one to write a manifest."""

    cdef Compaction owner
    cdef list sources
    cdef bytes manifest
    cdef bint everything        # the run had all sealed segments: tombstones that are left cannot go yet
    cdef bint published

    cdef int work(self) except -1:
        cdef Segment s
        log_publish(self.log, self.manifest)
        self.published = True
        for s in self.sources:
            for path in (s.path, order_path(s)):
                # Left behind, a file that is not listed is removed by the next opening.
                files_unlink(self.log.files, path)
        return 0

    cdef int settle(self) except -1:
        cdef Segment s
        self.log.seal_job = None
        if self.published:
            self.owner.unlisted = False
            if self.everything:
                self.owner.stuck = sum([(<Segment>s).buried for s in compactable(self.log)])
            for s in self.sources:
                self.owner.reclaimed_bytes += s.flushed
                self.log.segments[s.slot] = None
                s.slot = NO_SLOT
        else:
            for s in self.sources:
                s.hidden = False
        if self.error is not None and self.error.errno not in PASSING:
            log_break(self.log, str(self.error))
        elif self.log.full or self.log.spare is None:
            log_submit_seal(self.log)
        return 0


cdef class ReleaseJob(Job):
    """Let go of the sources: unmapping them takes milliseconds each, and is done by whoever is the last to hold one."""

    cdef list sources

    cdef int work(self) except -1:
        self.sources.clear()
        return 0


cdef Job release_job(Log log, list sources):
    cdef ReleaseJob job = ReleaseJob(log)
    job.sources = sources
    return job


cdef Job drop_job(Compaction owner, Log log, list sources, bint everything):
    cdef DropJob job = DropJob(log)
    cdef Segment s
    for s in sources:
        # Nothing keeps an entry in a source any more.
        s.hidden = s.dead == s.flushed - SEGMENT_HEADER
    job.everything = everything
    job.owner = owner
    job.sources = [s for s in sources if (<Segment>s).hidden]
    job.manifest = log_manifest(log, [], 0)
    log.seal_job = job
    return job
