import os
from collections import Counter, namedtuple

from libc.errno cimport EIO, ENOENT
from libc.stdint cimport int64_t

from kvcore.checkpoint cimport checkpoint_covered, checkpoint_load
from kvcore.expiry cimport deadlines_sweep
from kvcore.files cimport files_list, files_read, files_read_all
from kvcore.hashindex cimport index_find, index_hash
from kvcore.log cimport log_add_segment
from kvcore.order cimport order_load, order_path
from kvcore.record cimport RECORD_COMPRESSED, RECORD_HEADER, RECORD_KIND, RECORD_TOMBSTONE, record_decode
from kvcore.replay cimport replay_finish, replay_note_covered, replay_plan, replay_segment
from kvcore.segment cimport (
    SEGMENT_HEADER, SEGMENT_LIMIT, segment_header_holds, segment_map, segment_name, segment_open_readonly)
from kvcore.store cimport Store, store_put
from kvcore.types cimport slice_of, uint8_t
from kvcore.walk cimport (
    SPAN_BROKEN, SPAN_DAMAGED, SPAN_GOOD, Span, SpanKind, walk_begin, walk_data_end, walk_fetch, walk_find_seed,
    walk_finds_record, walk_step)

from kvcore import manifest
from kvcore.compress import decompress
from kvcore.errors import CorruptionError, StorageError
from kvcore.recovery import ORDER_NAME, OUR_NAMES, SEGMENT_NAME
from kvcore.replay import DAMAGED, HALF_BATCH, MISSING, TORN


cdef enum:
    ATTEMPTS = 10               # to see a directory at rest that a server is changing
    SWEPT = 1024                # deadlines gone through at a time

# file (str, in the directory), offset and length in bytes, what is wrong (str), keys (list of bytes) known to be hit;
# lost (bool): something may be gone, False: everything could be read all the same; hides (bool): newer values or deletions
# of keys that are not known may be among it.
Damage = namedtuple("Damage", ("file", "offset", "length", "what", "keys", "lost", "hides"))

WHAT = {
    DAMAGED: "no good records: checksums or lengths do not hold",
    HALF_BATCH: "a batch that is not whole",
    MISSING: "was on the disk once and is missing",
}


cdef class Survey:
    """A data directory (path: str, bytes or path-like) as it is found; nothing is changed in it.

    Raises StorageError when it cannot be read at all, or holds no store.
    """

    def __init__(self, path, *, Files files=None):
        self.files = files or Files()
        self.path = os.fsdecode(path)
        for _ in range(ATTEMPTS):
            open_all(self)
            # A server may have dropped a segment after we read the manifest that lists it.
            if not is_missing_any(self) or self.content == read_manifest_bytes(self):
                break

    def read(self, progress=None):
        """Read all records, verifying each. progress: called with the number of bytes (int) read since the last call.

        Afterwards `damage` and `notes` are complete. Raises StorageError, MemoryError.
        """
        cdef Segment s
        cdef Replay p = self.replay
        replay_note_covered(p, checkpoint_covered(self.log) if self.listed else {})
        for slot, data_end, last in replay_plan(p):
            s = self.log.segments[slot]
            replay_segment(p, slot, SEGMENT_HEADER, data_end, last)
            if progress is not None:
                progress(s.allocated)
        replay_finish(p)
        self.log.last_version = max(self.log.last_version, p.newest)
        while deadlines_sweep(self.deadlines, self.index, self.log, SWEPT) == SWEPT:
            pass
        lost = set(self.lost_keys())
        for path, start, end, what, keys in p.ranges:
            add_range(self, os.fsdecode(os.path.basename(path)), start, end, what, keys, lost)
        compare_counts(self)
        if p.unreadable:
            self.notes.append("the disk could not read all bytes; those that it could not were taken for zeros")

    def lost_keys(self):
        """Keys (list of bytes) whose newest record is damaged: opened, the store answers an error for them."""
        return [key for (slot, offset), key in self.replay.lost.items()
                if index_find(self.index, hash_of(self.index, key), slot, offset) != NULL]

    def check_caches(self):
        """Note the orders and the checkpoint that do not match; they are made anew when they are needed. After read()."""
        cdef Segment s
        for s in self.log.segments:
            path = order_path(s)
            if s.sealed and os.path.exists(path) and order_load(s) is None:
                self.notes.append(f"{os.fsdecode(os.path.basename(path))} does not match its segment; it will be made anew")
        if self.listed and os.path.exists(os.path.join(self.log.path, b"index.ckpt")) and checkpoint_load(
                self.log, HashIndex(self.log.hash_secret), Deadlines()) is None:
            self.notes.append("index.ckpt is not one to be believed; the next opening reads all records instead")

    def totals(self):
        """Counts (dict of str to int) after read(): segments, records, live_keys, bytes of the segment files."""
        return {"segments": len(self.log.segments), "records": self.replay.records,
                "live_keys": self.index.count - len(self.lost_keys()), "bytes": sum(self.sizes.values())}

    def items(self):
        """Iterate over (key, value, deadline: unix milliseconds or 0) in the order of the log. After read()."""
        cdef Live live = Live(self)
        while True:
            item = live_item(live)
            if item is None:
                return
            yield item

    def segments(self):
        """The segments (list of Segment) that can be read."""
        return [segment for segment in self.log.segments if segment is not None]

    def refresh(self):
        """Look again at a directory that is in use: open segments that are new, learn which ones are sealed by now.

        Raises StorageError.
        """
        cdef Segment s
        content = read_manifest_bytes(self)
        if content is None or content == self.content:
            return
        _, _, _, lines = manifest.decode(content, os.path.join(self.path, "MANIFEST"))
        self.content = content
        present = {segment.id: segment for segment in self.segments()}
        for line in lines:
            s = present.get(line["id"])
            if s is None and os.fsdecode(segment_name(line["id"])) not in self.sizes:
                s = open_segment(self, line["id"])
            if s is not None and line["state"] == "sealed":
                s.allocated = line["bytes"]
                s.sealed = True

    def forget(self, Segment segment not None):
        """Close a segment that is not needed any more; refresh() does not open it again."""
        self.log.segments[segment.slot] = None

    def copy_into(self, Store target not None, progress=None):
        """Put every live key with its value and deadline into `target`; return how many (int). After read().

        progress: called with the number of bytes of records copied since the last call, now and then.
        Raises StorageError when the target cannot be written.
        """
        cdef Live live = Live(self)
        cdef Record r
        cdef bytes value
        cdef uint64_t count = 0, copied = 0
        while live_next(live, &r):
            copied += r.size
            if r.flags & RECORD_COMPRESSED:
                value = live_value(live, &r)
                if value is None:
                    continue
                r.value = slice_of(<const uint8_t*><const char*>value, len(value))
            store_put(target, r.key, r.value, r.expires_at)
            count += 1
            if progress is not None and copied >= 1 << 20:
                progress(copied)
                copied = 0
        return count


# ---- opening

# Start over: read the manifest and open the segments.
cdef int open_all(Survey v) except -1:
    cdef bytes path = os.path.abspath(os.fsencode(v.path))
    cdef list names = files_list(v.files, path)
    cdef list ids = sorted(int(name[:10]) for name in names if SEGMENT_NAME.fullmatch(name))
    v.damage, v.notes, v.lines, v.sizes = [], [], {}, {}
    if not ids and b"MANIFEST" not in names:
        raise StorageError(f"{v.path} holds no store: there is neither a MANIFEST nor a segment in it")
    v.log = Log()
    v.log.files = v.files
    v.log.path = path
    v.log.segments = []
    v.content = read_manifest(v, ids)
    v.index = HashIndex(v.log.hash_secret)
    v.deadlines = Deadlines()
    v.replay = Replay(v.log, v.index, v.deadlines)
    v.replay.ranges = []
    v.replay.lenient = True
    for id in sorted(v.lines):
        open_listed(v, id)
    for id in ids:
        if id not in v.lines:
            open_unlisted(v, id)
    for name in sorted(names):
        note_other(v, name)
    return 0


cdef bytes read_manifest_bytes(Survey v):
    try:
        return files_read_all(v.files, os.path.join(v.log.path, b"MANIFEST"))
    except StorageError as error:
        if error.errno not in (ENOENT, EIO):
            raise
        return None


cdef bytes read_manifest(Survey v, list ids):
    cdef bytes content = read_manifest_bytes(v)
    v.listed = False
    v.log.hash_secret = bytes(16)
    if content is None:
        add(v, "MANIFEST", 0, 0, "is missing, or cannot be read", False)
    else:
        try:
            v.log.store_id, v.log.hash_secret, v.log.next_id, lines = manifest.decode(
                content, os.path.join(v.path, "MANIFEST"))
            v.lines = {line["id"]: line for line in lines}
            v.listed = True
        except CorruptionError:
            add(v, "MANIFEST", 0, len(content), "its checksum does not hold", False)
    if not v.listed:
        v.log.store_id = commonest_store(v, ids)
    return content


# The store that most of the segments say they belong to.
cdef bytes commonest_store(Survey v, list ids):
    headers = [header_of(segment_open_readonly(v.files, v.log.path, id)) for id in ids]
    stores = Counter(header[24:40] for header in headers if is_header(header))
    return stores.most_common(1)[0][0] if stores else bytes(16)


cdef bytes header_of(Segment s):
    cdef uint8_t header[SEGMENT_HEADER]
    cdef ssize_t got = files_read(s.files, s.fd, header, SEGMENT_HEADER, 0)
    return header[:max(got, 0)]


cdef int add(Survey v, str file, uint64_t offset, uint64_t length, str what, bint lost) except -1:
    v.damage.append(Damage(file, offset, length, what, [], lost, lost))
    return 0


cdef int open_listed(Survey v, uint32_t id) except -1:
    cdef Segment s
    cdef str name = os.fsdecode(segment_name(id))
    cdef dict line = v.lines[id]
    s = open_segment(v, id)
    if name not in v.sizes:
        size = f"is missing: {line['bytes']} bytes, {line['records']} records" if "bytes" in line else "is missing"
        add(v, name, 0, line.get("bytes", 0), size, True)
    if s is None:
        return 0
    line = v.lines.get(s.id, line)
    if line["state"] != "sealed":
        return 0
    if s.allocated < <uint64_t>line["bytes"]:
        add(v, name, s.allocated, line["bytes"] - s.allocated, f"is cut short: {s.allocated} of {line['bytes']} bytes", True)
    s.allocated = min(s.allocated, <uint64_t>line["bytes"])
    s.sealed = True
    s.min_version = line["min_version"]
    s.max_version = line["max_version"]
    return 0


# What the manifest does not list was dropped by a compaction, or not listed yet; or the manifest is an old one.
cdef int open_unlisted(Survey v, uint32_t id) except -1:
    cdef Segment s
    cdef str name = os.fsdecode(segment_name(id))
    if not v.listed:
        open_segment(v, id)
        return 0
    if id < v.log.next_id:
        v.notes.append(f"{name} is not listed in the manifest: left over, it is removed at the next opening")
        return 0
    s = open_segment(v, id)
    if s is None:
        return 0
    if not s.compacted and walk_finds_record(Walk(), s):
        add(v, name, 0, s.allocated, "is younger than the manifest: was an old MANIFEST put back?", False)
    else:
        v.notes.append(f"{name} is not listed in the manifest yet")
    return 0


# Open one file and take it into the log; None when it is not there (it has no size then), or nothing of it can be read.
cdef Segment open_segment(Survey v, uint32_t id):
    cdef Segment s
    cdef str name = os.fsdecode(segment_name(id))
    cdef bytes header
    cdef int64_t seed
    try:
        s = segment_open_readonly(v.files, v.log.path, id)
    except StorageError as error:
        if error.errno != ENOENT:
            raise
        return None
    v.sizes[name] = s.allocated
    header = header_of(s)
    if s.allocated > SEGMENT_LIMIT:
        add(v, name, SEGMENT_LIMIT, s.allocated - SEGMENT_LIMIT, "is longer than a segment can be", True)
        s.allocated = SEGMENT_LIMIT
    if s.allocated < SEGMENT_HEADER and v.listed and id not in v.lines:
        v.notes.append(f"{name} is only just being made, or was left over by a crash")
        return None
    if s.allocated < SEGMENT_HEADER:
        add(v, name, s.allocated, SEGMENT_HEADER - s.allocated, "is cut short: not even its header is there", True)
        return None
    if is_header(header):
        if header[24:40] != v.log.store_id:
            add(v, name, 0, s.allocated, "belongs to another store", not v.listed or id in v.lines)
            return None
        s.id = int.from_bytes(header[16:24], "little")
        if s.id != id:
            add(v, name, 16, 8, f"has the header of segment {s.id}", False)
        s.compacted = header[12] & 1
        seed = int.from_bytes(header[40:44], "little")
    else:
        seed = find_seed(v, s, header, name)
        if seed < 0:
            return None
    s.seed = <uint32_t>seed
    segment_map(s, s.allocated)
    log_add_segment(v.log, s)
    return s


# The header is damaged: what its records say must do. -1 when they do not.
cdef int64_t find_seed(Survey v, Segment s, bytes header, str name) except? -2:
    cdef set hints = {int.from_bytes(header[40:44], "little")}
    cdef int64_t seed
    try:
        hints.add(int.from_bytes(files_read_all(v.files, order_path(s))[12:16], "little"))
    except StorageError:
        pass
    seed = walk_find_seed(v.replay, s, hints)
    if seed >= 0:
        add(v, name, 0, SEGMENT_HEADER, "the header is damaged; the records can be read all the same", False)
    elif walk_data_end(v.replay, s) == SEGMENT_HEADER:
        add(v, name, 0, SEGMENT_HEADER, "the header is damaged; there are no records", False)
    else:
        add(v, name, 0, s.allocated, "the header is damaged, and no records tell the seed of their checksums", True)
    return seed


cdef bint is_missing_any(Survey v) except -1:
    return any(item.what.startswith("is missing") for item in v.damage)


cdef int note_other(Survey v, bytes name) except -1:
    cdef str text = os.fsdecode(name)
    if name == b"quarantine":
        kept = files_list(v.files, os.path.join(v.log.path, name))
        for item in sorted(kept):
            v.notes.append(f"quarantine/{os.fsdecode(item)} was kept aside by an earlier opening")
    elif not (name in OUR_NAMES or name.startswith(b".") or SEGMENT_NAME.fullmatch(name) or ORDER_NAME.fullmatch(name)):
        add(v, text, 0, 0, "is not kvstore's: the store does not open with it", False)
    return 0


cdef int add_range(Survey v, str file, uint64_t start, uint64_t end, str what, list keys, set lost) except -1:
    if what == TORN:
        v.notes.append(
            f"{file} ends in a torn write, never known to be on the disk: {end - start} bytes from {start} on, cut off at "
            "the next opening")
        return 0
    # A damaged record whose key is known, and was written again since, is no loss.
    hides = not all(certain for _, certain in keys)
    gone = hides or what != DAMAGED or any(key in lost for key, _ in keys)
    v.damage.append(Damage(file, start, end - start, WHAT[what], [key for key, _ in keys if key], gone, hides))
    return 0


# Does the manifest say the same as the records?
cdef int compare_counts(Survey v) except -1:
    cdef Segment s
    hit = {item.file for item in v.damage}
    for s in v.log.segments:
        line = v.lines.get(s.id)
        name = os.fsdecode(os.path.basename(s.path))
        if s.sealed and name not in hit and line["records"] != s.records:
            add(v, "MANIFEST", 0, 0, f"says that {name} has {line['records']} records; it has {s.records}", True)
    return 0


cdef bint is_header(bytes header) except -1:
    cdef const char* raw = header
    return len(header) == SEGMENT_HEADER and segment_header_holds(<const uint8_t*>raw)


cdef uint64_t hash_of(HashIndex index, bytes key) except? 0:
    cdef const char* raw = key
    return index_hash(index, <const uint8_t*>raw, len(key))


# ---- what is alive

cdef class Live:
    def __cinit__(self, Survey survey not None):
        self.survey = survey
        self.walk = Walk()
        self.walk.lenient = True
        self.walk.newest = survey.replay.newest
        self.walk.latest_version = survey.replay.latest_version
        self.walk.synced_id = survey.replay.synced_id
        self.walk.synced_offset = survey.replay.synced_offset
        self.plan = iter(replay_plan(survey.replay))


# Go on to the next span of good records, if need be of the next segment.
cdef bint next_span(Live live) except -1:
    cdef Span span
    cdef SpanKind kind
    while True:
        if live.segment is not None:
            kind = walk_step(live.walk, live.segment, live.data_end, live.last, &span)
            if kind == SPAN_GOOD:
                live.at = span.start
                live.end = span.end
                return True
            if kind in (SPAN_BROKEN, SPAN_DAMAGED):
                continue
        item = next(live.plan, None)
        if item is None:
            return False
        slot, live.data_end, live.last = item
        live.segment = live.survey.log.segments[slot]
        walk_begin(live.walk, SEGMENT_HEADER)


cdef bint live_next(Live live, Record* r) except -1:
    cdef Survey survey = live.survey
    cdef Segment s
    cdef uint64_t offset, hash
    while True:
        while live.at < live.end:
            s = live.segment
            offset = live.at
            record_decode(walk_fetch(live.walk, s, offset, RECORD_HEADER, s.allocated), s.allocated - offset, r)
            record_decode(walk_fetch(live.walk, s, offset, r.size, s.allocated), s.allocated - offset, r)
            live.at += r.size
            if r.flags & (RECORD_KIND | RECORD_TOMBSTONE):
                continue
            hash = index_hash(survey.index, r.key.ptr, r.key.len)
            if index_find(survey.index, hash, s.slot, <uint32_t>offset) != NULL:
                return True
        if not next_span(live):
            return False


# The value of a live record; None when it is a compressed one that cannot be restored, which is then told as damage.
cdef bytes live_value(Live live, const Record* r):
    cdef bytes value = r.value.ptr[:r.value.len]
    if r.flags & RECORD_COMPRESSED == 0:
        return value
    try:
        return decompress(value)
    except CorruptionError:
        name = os.fsdecode(os.path.basename(live.segment.path))
        live.survey.damage.append(Damage(
            name, live.at - r.size, r.size, "the compressed value cannot be restored", [r.key.ptr[:r.key.len]], True, False))
        return None


cdef tuple live_item(Live live):
    cdef Record r
    while live_next(live, &r):
        value = live_value(live, &r)
        if value is not None:
            return r.key.ptr[:r.key.len], value, r.expires_at
    return None
