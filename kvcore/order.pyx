import os

cimport cython
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy
from posix.fcntl cimport O_RDONLY

from kvcore.bytebuf cimport bytebuf_append, bytebuf_clear, bytebuf_reserve
from kvcore.files cimport files_open, files_read, files_replace
from kvcore.pace cimport pace
from kvcore.record cimport RECORD_KIND, Record, crc32c_of
from kvcore.segment cimport SEGMENT_HEADER, segment_compare, segment_copy_from, segment_header
from kvcore.types cimport MAX_KEY_SIZE

from kvcore.errors import StorageError


cdef enum:
    ORDER_HEADER = 40
    CHUNK = 1 << 16
    MOST_RUNS = 8
    FEW = 12                    # items up to which they are sorted by insertion

cdef bytes MAGIC = b"kvord\r\n\x1a"


# A key while it is sorted. chunk: 8 bytes of it, big endian, padded with zeros.
cdef struct Item:
    uint64_t chunk
    const uint8_t* key
    uint32_t len
    uint32_t offset


@cython.no_gc_clear             # __dealloc__ needs the file table
cdef class Order:
    """Offsets of records, ascending by key. Made by the engine only."""

    def __dealloc__(self):
        if self.map != NULL:
            self.files.call.unmap(self.files.ctx, self.map, self.mapped)


cdef bytes order_path(Segment s):
    return s.path[:len(s.path) - 4] + b".ord"


cdef int order_offsets(Order o, size_t i, size_t n, uint32_t* dst) noexcept nogil:
    if o.map == NULL:
        memcpy(dst, <uint32_t*>o.owned.data + i, n * sizeof(uint32_t))
        return 0
    return segment_copy_from(o.map + ORDER_HEADER + i * sizeof(uint32_t), dst, n * sizeof(uint32_t))


cdef size_t order_seek(Order o, Segment s, Slice key) noexcept nogil:
    cdef size_t low = 0, high = o.count, middle
    cdef uint32_t offset
    while low < high:
        middle = (low + high) // 2
        if order_offsets(o, middle, 1, &offset) == 0 and segment_compare(s, offset, key.ptr, key.len) < 0:
            low = middle + 1
        else:
            high = middle
    return low


# ---- sorting: three-way radix quicksort (Bentley, Sedgewick: "Fast algorithms for sorting and searching strings", 1997),
# eight bytes at a time. What is in order already, as when keys are counted up, is only looked through; what is not is split
# at places that nobody can foresee, or whoever writes the keys could have each split cut off next to nothing.

cdef inline uint64_t chunk_of(const Item* item, size_t depth) noexcept nogil:
    cdef uint8_t raw[8]
    cdef uint64_t chunk = 0
    cdef int i
    cdef size_t left = item.len - depth if item.len > depth else 0
    if left >= 8:
        memcpy(raw, item.key + depth, 8)
        left = 8
    else:
        memcpy(raw, item.key + min(depth, <size_t>item.len), left)
    for i in range(8):
        chunk = chunk << 8 | (raw[i] if <size_t>i < left else 0)
    return chunk


# Equal in every byte that both have: the shorter one first, and of one key the older record.
cdef inline bint ends_first(const Item* a, const Item* b) noexcept nogil:
    return a.offset < b.offset if a.len == b.len else a.len < b.len


cdef inline bint is_less(const Item* a, const Item* b, size_t depth) noexcept nogil:
    cdef int order
    if a.chunk != b.chunk:
        return a.chunk < b.chunk
    if a.len > depth and b.len > depth:
        order = memcmp(a.key + depth, b.key + depth, min(a.len, b.len) - depth)
        if order:
            return order < 0
    return ends_first(a, b)


# The chunk of one of n items. The state goes on by xorshift (Marsaglia, 2003); it is never 0.
cdef inline uint64_t any_chunk(const Item* items, size_t n, uint64_t* state) noexcept nogil:
    state[0] ^= state[0] << 13
    state[0] ^= state[0] >> 7
    state[0] ^= state[0] << 17
    return items[state[0] % n].chunk


# The middle one of three chunks.
cdef uint64_t choose_pivot(const Item* items, size_t n, uint64_t* state) noexcept nogil:
    cdef uint64_t a = any_chunk(items, n, state), b = any_chunk(items, n, state), c = any_chunk(items, n, state)
    return max(min(a, b), min(max(a, b), c))


cdef bint is_ascending(const Item* items, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(1, n):
        if items[i].chunk < items[i - 1].chunk:
            return False
    return True


cdef void sort_few(Item* items, size_t n, size_t depth) noexcept nogil:
    cdef size_t i, j
    cdef Item moved
    for i in range(1, n):
        moved = items[i]
        j = i
        while j > 0 and is_less(&moved, &items[j - 1], depth):
            items[j] = items[j - 1]
            j -= 1
        items[j] = moved


# Sort items whose keys agree in their first `depth` bytes and whose chunks are those at `depth`.
cdef void sort_items(Item* items, size_t n, size_t depth, uint64_t* state) noexcept nogil:
    cdef size_t below, above, ended
    while n > FEW:
        pace(n // 8)            # looking at a key takes about as long as moving eight
        if not is_ascending(items, n):
            split(items, n, choose_pivot(items, n, state), &below, &above)
            sort_equal(items + below, above - below, depth, state)
            # The smaller side by recursion, the larger by going on: the stack stays logarithmic.
            if below < n - above:
                sort_items(items, below, depth, state)
                items += above
                n -= above
            else:
                sort_items(items + above, n - above, depth, state)
                n = below
        elif items[0].chunk == items[n - 1].chunk:
            ended = next_chunks(items, n, depth)
            items += ended
            n -= ended
            depth += 8
        else:
            sort_runs(items, n, depth, state)
            return
    sort_few(items, n, depth)


# Move items with chunks less than the pivot to the front, up to *below, and those with greater ones to the end, from *above.
cdef void split(Item* items, size_t n, uint64_t pivot, size_t* below, size_t* above) noexcept nogil:
    cdef size_t i = 0
    cdef Item swap
    below[0] = 0
    above[0] = n
    while i < above[0]:
        if items[i].chunk < pivot:
            swap = items[i]
            items[i] = items[below[0]]
            items[below[0]] = swap
            below[0] += 1
            i += 1
        elif items[i].chunk > pivot:
            above[0] -= 1
            swap = items[i]
            items[i] = items[above[0]]
            items[above[0]] = swap
        else:
            i += 1


# Sort items in ascending order of their chunks: only those with equal ones are left.
cdef void sort_runs(Item* items, size_t n, size_t depth, uint64_t* state) noexcept nogil:
    cdef size_t start = 0, end
    while start < n:
        end = start + 1
        while end < n and items[end].chunk == items[start].chunk:
            end += 1
        sort_equal(items + start, end - start, depth, state)
        start = end


# Sort items whose chunks at `depth` are equal.
cdef void sort_equal(Item* items, size_t n, size_t depth, uint64_t* state) noexcept nogil:
    cdef size_t ended
    if n > 1:
        ended = next_chunks(items, n, depth)
        sort_items(items + ended, n - ended, depth + 8, state)


# Of items whose chunks at `depth` are equal those that end within it come first: move them there, in order, and give the
# others their next chunks. How many have ended.
cdef size_t next_chunks(Item* items, size_t n, size_t depth) noexcept nogil:
    cdef size_t ended = 0, i
    cdef Item swap
    for i in range(n):
        if items[i].len <= depth + 8:
            swap = items[i]
            items[i] = items[ended]
            items[ended] = swap
            ended += 1
    sort_ended(items, ended)
    for i in range(ended, n):
        pace(1)
        items[i].chunk = chunk_of(&items[i], depth + 8)
    return ended


# Many records of one key: a heap sort, for no order they come in makes it slow.
cdef void sort_ended(Item* items, size_t n) noexcept nogil:
    cdef size_t start = n // 2, end = n, i, child
    cdef Item moved
    while end > 1:
        if start > 0:
            start -= 1
            moved = items[start]
        else:
            end -= 1
            moved = items[end]
            items[end] = items[0]
        i = start
        while 2 * i + 1 < end:
            child = 2 * i + 1
            if child + 1 < end and ends_first(&items[child], &items[child + 1]):
                child += 1
            if not ends_first(&moved, &items[child]):
                break
            items[i] = items[child]
            i = child
        items[i] = moved


cdef Order sorted_order(Segment s, Item* items, size_t n):
    cdef Order o = Order()
    cdef uint32_t* dst
    cdef uint64_t state = <uint64_t>s.seed << 1 | 1     # the seed was drawn at random, and nobody is told it
    cdef size_t i
    o.owned = ByteBuf()
    o.count = n
    dst = <uint32_t*>bytebuf_reserve(o.owned, n * sizeof(uint32_t))
    with nogil:
        for i in range(n):
            pace(1)
            items[i].chunk = chunk_of(&items[i], 0)
        sort_items(items, n, 0, &state)
        for i in range(n):
            dst[i] = items[i].offset
    o.owned.len = n * sizeof(uint32_t)
    return o


# ---- building

# Walk the records in [start, end): count those that have a key, and the bytes of their keys. -1 at a gap.
cdef int survey(Segment s, uint64_t start, uint64_t end, size_t* records, size_t* key_bytes) noexcept nogil:
    cdef Record r
    records[0] = 0
    key_bytes[0] = 0
    while start < end:
        if segment_header(s, start, end, &r) < 0:
            return -1
        if r.flags & RECORD_KIND == 0:
            records[0] += 1
            key_bytes[0] += r.key.len
        start += r.size
        pace(1)
    return 0


# Fill items and copy their keys. -1 when a page cannot be read.
cdef int gather(Segment s, uint64_t start, uint64_t end, Item* items, uint8_t* arena) noexcept nogil:
    cdef Record r
    cdef size_t i = 0
    while start < end:
        if segment_header(s, start, end, &r) < 0:
            return -1
        if r.flags & RECORD_KIND == 0:
            if segment_copy_from(r.key.ptr, arena, r.key.len) < 0:
                return -1
            items[i].key = arena
            items[i].len = <uint32_t>r.key.len
            items[i].offset = <uint32_t>start
            arena += r.key.len
            i += 1
        start += r.size
        pace(1)
    return 0


cdef Order order_build(Segment s, uint64_t start, uint64_t end):
    cdef size_t n = 0, key_bytes = 0
    cdef Item* items
    cdef uint8_t* arena
    cdef int result
    with nogil:
        result = survey(s, start, end, &n, &key_bytes)
    if result < 0:
        return None
    items = <Item*>malloc(n * sizeof(Item) + 1)
    arena = <uint8_t*>malloc(key_bytes + 1)
    try:
        if items == NULL or arena == NULL:
            raise MemoryError(f"no memory to sort {n} keys")
        with nogil:
            result = gather(s, start, end, items, arena)
        return None if result < 0 else sorted_order(s, items, n)
    finally:
        with nogil:         # milliseconds for a whole segment
            free(items)
            free(arena)


cdef Order order_of(Segment s, ByteBuf offsets):
    cdef size_t n = offsets.len // sizeof(uint32_t), i
    cdef uint32_t* at = <uint32_t*>offsets.data
    cdef Item* items = <Item*>malloc(n * sizeof(Item) + 1)
    cdef ByteBuf keys = ByteBuf()
    cdef Record r
    cdef size_t kept = 0, used = 0
    try:
        if items == NULL:
            raise MemoryError(f"no memory to sort {n} keys")
        for i in range(n):
            if segment_header(s, at[i], s.flushed, &r) < 0:
                continue
            bytebuf_reserve(keys, r.key.len)
            if segment_copy_from(r.key.ptr, keys.data + keys.len, r.key.len) < 0:
                continue
            items[kept].len = <uint32_t>r.key.len
            items[kept].offset = at[i]
            kept += 1
            keys.len += r.key.len
        for i in range(kept):
            items[i].key = keys.data + used
            used += items[i].len
        return sorted_order(s, items, kept)
    finally:
        free(items)
        bytebuf_clear(offsets, 0)


# Merge two runs of one segment.
cdef Order merged(Segment s, Order a, Order b):
    cdef Order o = Order()
    cdef uint8_t* key = <uint8_t*>malloc(MAX_KEY_SIZE)
    o.owned = ByteBuf()
    try:
        if key == NULL:
            raise MemoryError("no memory to merge two orders")
        bytebuf_reserve(o.owned, (a.count + b.count) * sizeof(uint32_t))
        with nogil:
            merge(s, a, b, key, <uint32_t*>o.owned.data)
    finally:
        free(key)
    o.count = a.count + b.count
    o.owned.len = o.count * sizeof(uint32_t)
    return o


# `key` has room for any key: one side's is copied there, the other's compared in place.
cdef void merge(Segment s, Order a, Order b, uint8_t* key, uint32_t* dst) noexcept nogil:
    cdef uint32_t* x = <uint32_t*>a.owned.data
    cdef uint32_t* y = <uint32_t*>b.owned.data
    cdef size_t i = 0, j = 0
    cdef Record r
    while i < a.count and j < b.count:
        if segment_header(s, x[i], s.flushed, &r) < 0 or segment_copy_from(r.key.ptr, key, r.key.len) < 0:
            r.key.len = 0
        while j < b.count and segment_compare(s, y[j], key, r.key.len) < 0:
            dst[i + j] = y[j]
            j += 1
            pace(1)
        dst[i + j] = x[i]
        i += 1
        pace(1)
    memcpy(dst + i + j, x + i, (a.count - i) * sizeof(uint32_t))
    i = a.count
    memcpy(dst + i + j, y + j, (b.count - j) * sizeof(uint32_t))


cdef uint64_t order_start(Segment s) noexcept:
    if s.runs is not None:
        return s.ordered
    return 0 if s.sealed else SEGMENT_HEADER


cdef list order_make(Segment s, list runs, uint64_t start, uint64_t end):
    cdef Order run
    if start == 0:
        run = final_order(s)
        return None if run is None else [run]
    if start == end:
        return runs or []
    run = order_build(s, start, end)
    if run is None:
        return None
    made = [*(runs or ()), run]
    # A few runs more cost a scan less than merging them beforehand; the cheapest merge first.
    if len(made) > MOST_RUNS:
        i = min(range(len(made) - 1), key=lambda i: made[i].count + made[i + 1].count)
        made[i:i + 2] = [merged(s, made[i], made[i + 1])]
    return made


# The one order of a sealed segment, from its file, if that can be.
cdef Order final_order(Segment s):
    cdef Order o
    read_through(s.files, order_path(s))
    o = order_load(s)
    if o is None:
        o = order_build(s, SEGMENT_HEADER, s.flushed)
        if o is not None:
            try:
                order_save(s, o)
            except StorageError:
                return o            # on a full disk, say: it serves as long as the store is open
            # Saved, it is better read from the file: those pages can be dropped.
            o = order_load(s) or o
    return o


# Bring a file into memory, without the GIL.
cdef int read_through(Files files, bytes path) except -1:
    cdef ByteBuf chunk = ByteBuf()
    cdef uint8_t* dst = bytebuf_reserve(chunk, CHUNK)
    cdef uint64_t at = 0
    cdef ssize_t got = 1
    cdef int fd = files_open(files, path, O_RDONLY)
    if fd < 0:
        return 0
    with nogil:
        while got > 0:
            got = files_read(files, fd, dst, CHUNK, at)
            at += got
        files.call.close(files.ctx, fd)
    return 0


cdef list order_runs(Segment s):
    cdef list made
    cdef uint64_t start
    # A saved order says where the keys were before the damage: nothing can be searched by it, or merged.
    if s.damaged and s.sealed:
        return None
    if s.sorting is not None and order_start(s) == 0:
        job = s.sorting
        job.run()           # or waits for the thread that is at it
        job.finish()
    start = order_start(s)
    made = order_make(s, s.runs, start, s.flushed)
    if start == 0:
        s.unsorted = False
    if made is not None:
        order_settle(s, made, s.flushed)
        made = list(made)
    return made


cdef void order_settle(Segment s, list runs, uint64_t end) noexcept:
    s.runs = runs
    s.ordered = end


# ---- the file

cdef int order_save(Segment s, Order o) except -1:
    cdef ByteBuf content = ByteBuf()
    cdef uint8_t* head = bytebuf_reserve(content, ORDER_HEADER)
    fill_header(head, s, <uint32_t>o.count)
    content.len = 36
    cdef uint32_t checksum = <uint32_t>crc32c_of(head, 36, 0)
    checksum = <uint32_t>crc32c_of(o.owned.data, o.owned.len, checksum)
    bytebuf_append(content, &checksum, 4)
    bytebuf_append(content, o.owned.data, o.owned.len)
    directory, name = os.path.split(order_path(s))
    return files_replace(s.files, directory, name, bytes(content))


cdef void fill_header(uint8_t* head, Segment s, uint32_t count) noexcept:
    cdef uint32_t format = 1
    cdef uint64_t id = s.id
    memcpy(head, <const char*>MAGIC, 8)
    memcpy(head + 8, &format, 4)
    memcpy(head + 12, &s.seed, 4)
    memcpy(head + 16, &id, 8)
    memcpy(head + 24, &s.flushed, 8)
    memcpy(head + 32, &count, 4)


cdef Order order_load(Segment s):
    cdef Order o = Order()
    cdef uint8_t expected[ORDER_HEADER]
    cdef uint8_t head[ORDER_HEADER]
    cdef uint32_t count
    cdef int64_t size
    cdef int fd = files_open(s.files, order_path(s), O_RDONLY)
    if fd < 0:
        return None
    size = s.files.call.size(s.files.ctx, fd)
    o.files = s.files
    if size >= ORDER_HEADER:
        o.map = s.files.call.map(s.files.ctx, fd, size)
        o.mapped = size
    s.files.call.close(s.files.ctx, fd)
    if o.map == NULL or segment_copy_from(o.map, head, ORDER_HEADER) < 0:
        return None
    memcpy(&count, head + 32, 4)
    fill_header(expected, s, count)
    if memcmp(head, expected, 36) != 0 or <uint64_t>size != ORDER_HEADER + <uint64_t>count * sizeof(uint32_t):
        return None
    o.count = count
    return o if checksum_holds(o, head) else None


cdef bint checksum_holds(Order o, const uint8_t* head) except -1:
    cdef uint8_t chunk[CHUNK]
    cdef size_t at = ORDER_HEADER, n
    cdef uint32_t stored, checksum = <uint32_t>crc32c_of(head, 36, 0)
    memcpy(&stored, head + 36, 4)
    while at < o.mapped:
        n = min(o.mapped - at, <size_t>CHUNK)
        if segment_copy_from(o.map + at, chunk, n) < 0:
            return False
        checksum = <uint32_t>crc32c_of(chunk, n, checksum)
        at += n
    return checksum == stored
