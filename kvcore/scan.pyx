from libc.string cimport memcmp

from kvcore.bytebuf cimport bytebuf_append, bytebuf_clear, bytebuf_reserve
from kvcore.expiry cimport deadline_of
from kvcore.hashindex cimport PARTITIONS, Entry, Partition, index_first, index_hash, index_next, index_prefetch
from kvcore.log cimport log_now
from kvcore.lookup cimport DAMAGED, NOT_FOUND, lookup_damaged, lookup_entry, lookup_record
from kvcore.order cimport order_of, order_offsets, order_runs, order_seek
from kvcore.segment cimport NO_SLOT, segment_copy_from, segment_header
from kvcore.types cimport kv_prefetch, slice_of


cdef enum:
    ARENA = 1 << 16             # bytes of names read ahead from an order, unless one alone is longer
    NAME = 48                   # bytes of a record that hold its header and a usual key: two cache lines, as a rule
    PREPARED = 8                # orders searched at a time, of several segments together
    VERIFIED = 4096             # bytes up to which a record that no key leads to is checked for damage


cdef class Source:
    """One order in a merge."""


cdef class Cursor:
    """A walk over keys in byte order. Made by Store.keys and Store.items."""


cdef bytes prefix_end(bytes prefix):
    cdef bytes rest = prefix.rstrip(b"\xff")
    return rest[:len(rest) - 1] + bytes([rest[len(rest) - 1] + 1]) if rest else None


cdef Cursor scan_prefix(HashIndex index, Log log, Slice prefix):
    cdef bytes end = prefix_end(prefix.ptr[:prefix.len])
    if end is None:
        return scan_range(index, log, prefix, slice_of(NULL, 0))
    return scan_range(index, log, prefix, slice_of(<const char*>end, len(end)))


# A damaged key misleads the search for a bound, and then stands beside the place that was found.
cdef bint is_proven(Cursor c, Segment segment, Order order, size_t place) except -1:
    cdef uint32_t offsets[2]
    cdef size_t first = place - 1 if place else 0, n = min(place + 1, order.count) - first, i
    if order_offsets(order, first, n, offsets) < 0:
        return False
    for i in range(n):
        if damaged_at(c, segment, offsets[i]):
            return False
    return True


# Is the record there damaged? Only a short one is looked at whole.
cdef bint damaged_at(Cursor c, Segment segment, uint32_t offset) except -1:
    cdef ByteBuf copy = ByteBuf()
    cdef Record r
    if segment_header(segment, offset, segment.flushed, &r) < 0:
        return True
    return r.size <= VERIFIED and (
        lookup_record(c.log, Location(segment.slot, offset, <uint32_t>r.size), copy, &r) == DAMAGED)


# One source for each of the orders. False when they are not to be believed (asked only with `doubt`): nothing is added then.
cdef bint add_sources(Cursor c, Segment segment, list orders, bint doubt, Slice lo, Slice hi) except -1:
    cdef Source source
    cdef Order order
    cdef list sources = []
    for order in orders:
        source = Source()
        source.segment = segment
        source.order = order
        source.next = order_seek(order, segment, lo)
        source.end = order.count if hi.ptr == NULL else order_seek(order, segment, hi)
        source.arena = ByteBuf()
        if doubt and not (is_proven(c, segment, order, source.next) and is_proven(c, segment, order, source.end)):
            segment.damaged = True
            return False
        sources.append(source)
    c.heap.extend([source for source in sources if refill(c, source)])
    return True


cdef Cursor scan_range(HashIndex index, Log log, Slice lo, Slice hi):
    cdef Cursor c = Cursor()
    cdef Segment segment
    cdef list orders
    c.index = index
    c.log = log
    c.last = ByteBuf()
    c.heap = []
    c.damaged = {}
    c.lo = lo.ptr[:lo.len]
    c.hi = None if hi.ptr == NULL else hi.ptr[:hi.len]
    # All at this moment: what is there now is found in these, wherever it is moved meanwhile.
    c.waiting = []
    for segment in log.segments:
        if segment is not None:
            orders = order_runs(segment)
            c.waiting.append((segment, [order_from_index(c, segment)] if orders is None else orders, orders is not None))
    return c


cdef bint scan_prepare(Cursor c) except -1:
    cdef Segment segment
    cdef list orders
    cdef bint doubt
    cdef size_t left = PREPARED
    cdef Slice lo, hi = slice_of(NULL, 0)
    if c.waiting is None:
        return True
    lo = slice_of(<const char*>c.lo, len(c.lo))
    if c.hi is not None:
        hi = slice_of(<const char*>c.hi, len(c.hi))
    while c.waiting and left > 0:
        segment, orders, doubt = c.waiting.pop()
        left -= min(left, <size_t>len(orders))
        # The index names no places in a segment that was dropped meanwhile.
        if not add_sources(c, segment, orders, doubt and segment.slot != NO_SLOT, lo, hi):
            add_sources(c, segment, [order_from_index(c, segment)], False, lo, hi)
    if c.waiting:
        return False
    c.waiting = None
    for i in range(len(c.heap) // 2, 0, -1):
        sink(c.heap, i - 1)
    return True


# The order of a segment whose records cannot be walked, because of damage: the index knows where those in use begin.
cdef Order order_from_index(Cursor c, Segment segment):
    cdef ByteBuf offsets = ByteBuf()
    cdef Partition* part
    cdef Location at
    cdef Record r
    cdef size_t i
    cdef int p
    for p in range(PARTITIONS):
        part = &c.index.partitions[p]
        for i in range(part.places):
            at = part.entries[i].at
            if at.length == 0 or at.segment != segment.slot:
                continue
            if segment_header(segment, at.offset, <uint64_t>at.offset + at.length, &r) < 0:
                c.damaged[at.segment, at.offset] = at.length
            else:
                bytebuf_append(offsets, &at.offset, sizeof(at.offset))
    return order_of(segment, offsets)


# Read the next names of a source. False when there are none.
cdef bint refill(Cursor c, Source source) except -1:
    cdef uint32_t offsets[BLOCK]
    cdef Segment segment = source.segment
    cdef Name* name
    cdef Record r
    cdef size_t n, i
    source.at = 0
    source.count = 0
    while source.count == 0 and source.next < source.end:
        n = min(source.end - source.next, <size_t>BLOCK)
        if order_offsets(source.order, source.next, n, offsets) < 0:
            source.next += n
            continue
        for i in range(n):
            kv_prefetch(segment.map + offsets[i])
            kv_prefetch(segment.map + offsets[i] + NAME)
        bytebuf_clear(source.arena, ARENA)
        for i in range(n):
            if source.arena.len > ARENA:
                break
            source.next += 1
            name = &source.block[source.count]
            if segment_header(segment, offsets[i], segment.flushed, &r) < 0:
                continue
            bytebuf_reserve(source.arena, r.key.len)
            if segment_copy_from(r.key.ptr, source.arena.data + source.arena.len, r.key.len) < 0:
                continue
            name.offset = offsets[i]
            name.length = <uint32_t>r.size
            name.expires_at = r.expires_at
            name.key = <uint32_t>source.arena.len
            name.key_len = <uint32_t>r.key.len
            name.hash = index_hash(c.index, source.arena.data + source.arena.len, r.key.len)
            index_prefetch(c.index, name.hash)
            source.arena.len += r.key.len
            source.count += 1
            if source.count > 1 and is_before(source, source.count - 1, source.count - 2):
                note_disorder(c, source)
    return source.count > 0


cdef inline bint is_before(Source source, int a, int b) noexcept:
    cdef Name* x = &source.block[a]
    cdef Name* y = &source.block[b]
    cdef int order = memcmp(source.arena.data + x.key, source.arena.data + y.key, min(x.key_len, y.key_len))
    return order < 0 if order else x.key_len < y.key_len


# Of the last two names one is damaged: this scan may miss what it hides, and says so at its end if a key points at it; the
# next one believes this order no more.
cdef int note_disorder(Cursor c, Source source) except -1:
    cdef Name* name = &source.block[source.count - 2]
    source.segment.damaged = True
    for i in range(2):
        if source.segment.slot != NO_SLOT and damaged_at(c, source.segment, name[i].offset):
            c.damaged[source.segment.slot, name[i].offset] = name[i].length
    return 0


cdef inline Slice current(Source source) noexcept:
    return slice_of(source.arena.data + source.block[source.at].key, source.block[source.at].key_len)


cdef inline bint comes_first(Source a, Source b) noexcept:
    cdef Slice x = current(a), y = current(b)
    cdef int order = memcmp(x.ptr, y.ptr, min(x.len, y.len))
    return order < 0 if order else x.len < y.len


cdef int sink(list heap, size_t i) except -1:
    cdef size_t n = len(heap), child
    cdef Source moved = heap[i]
    while 2 * i + 1 < n:
        child = 2 * i + 1
        if child + 1 < n and comes_first(<Source>heap[child + 1], <Source>heap[child]):
            child += 1
        if not comes_first(<Source>heap[child], moved):
            break
        heap[i] = heap[child]
        i = child
    heap[i] = moved
    return 0


# Leave the current name of the first source behind.
cdef int advance(Cursor c) except -1:
    cdef Source source = <Source>c.heap[0]
    source.at += 1
    if source.at == source.count and not refill(c, source):
        source = c.heap.pop()
        if not c.heap:
            return 0
        c.heap[0] = source
    if len(c.heap) > 1:
        sink(c.heap, 0)
    return 0


# Where the record of this name is now, if the key is there. Raises MemoryError.
cdef bint locate(Cursor c, Segment segment, const Name* name, Slice key, ByteBuf out, Location* at) except -1:
    cdef Entry* entry = index_first(c.index, name.hash)
    cdef Record r
    while entry != NULL:
        if entry.at.offset == name.offset and entry.at.segment == segment.slot:
            at[0] = entry.at
            return True
        entry = index_next(c.index, name.hash, entry)
    if lookup_entry(c.index, c.log, name.hash, key, out, &entry) != NOT_FOUND:
        at[0] = entry.at
        return True
    # Replaced or deleted long ago, as a rule; or its key is damaged, and its entry has another hash.
    at[0] = Location(segment.slot, name.offset, name.length)
    if segment.slot != NO_SLOT and name.length <= VERIFIED and lookup_record(c.log, at[0], out, &r) == DAMAGED:
        c.damaged[segment.slot, name.offset] = name.length
    return False


# One of the damaged records that some key's entry points at; length 0: there is none, all of them are dead.
cdef Location living_damage(Cursor c) except *:
    cdef uint64_t mask = 0
    cdef Entry* entry
    cdef uint32_t i
    cdef int p
    for _, offset in c.damaged:
        mask |= <uint64_t>1 << (<uint32_t>offset & 63)
    for p in range(PARTITIONS):
        for i in range(c.index.partitions[p].places):
            entry = &c.index.partitions[p].entries[i]
            if entry.at.length and mask >> (entry.at.offset & 63) & 1 and (entry.at.segment, entry.at.offset) in c.damaged:
                return entry.at
    return Location(0, 0, 0)


cdef int scan_next(Cursor c, bint values, ByteBuf out, Record* r) except -1:
    cdef Source source
    cdef Name* name
    cdef Slice key
    cdef Location at
    cdef uint64_t deadline
    while not scan_prepare(c):
        pass
    if c.begun:
        advance(c)
        c.begun = False
    while c.heap:
        source = <Source>c.heap[0]
        name = &source.block[source.at]
        key = current(source)
        if key.len == c.last.len and key.len and memcmp(key.ptr, c.last.data, key.len) == 0:
            advance(c)
            continue
        bytebuf_clear(c.last, ARENA)
        bytebuf_append(c.last, key.ptr, key.len)
        if not locate(c, source.segment, name, key, out, &at):
            advance(c)
            continue
        deadline = name.expires_at if at.offset == name.offset and at.segment == source.segment.slot else (
            deadline_of(c.log, at))
        if 0 < deadline <= log_now(c.log):
            advance(c)
            continue
        c.begun = True
        r.key = key
        if values and lookup_record(c.log, at, out, r) == DAMAGED:
            lookup_damaged(c.log, at)
        return 1
    if c.damaged:
        at = living_damage(c)
        c.damaged.clear()
        if at.length:
            lookup_damaged(c.log, at)
    return 0
