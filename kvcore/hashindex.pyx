from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove

from kvcore.regions cimport regions_bytes, regions_give, regions_take
from kvcore.types cimport kv_prefetch


cdef enum:
    SMALLEST = 16               # homes of a partition
    PAGED = 16384               # bytes from which a table is not on the heap, where growing would leave holes


cdef inline size_t table_bytes(uint32_t places) noexcept nogil:
    return <size_t>places * sizeof(Entry)


cdef Entry* table_new(HashIndex index, uint32_t places) noexcept nogil:
    if table_bytes(places) < PAGED:
        return <Entry*>calloc(places, sizeof(Entry))
    return <Entry*>regions_take(&index.regions, table_bytes(places))


cdef void table_free(HashIndex index, Entry* entries, uint32_t places) noexcept nogil:
    if table_bytes(places) < PAGED:
        free(entries)
    else:
        regions_give(&index.regions, entries, table_bytes(places))


cdef class HashIndex:
    """An index without entries, keyed by 16 secret bytes."""

    def __cinit__(self, bytes secret not None):
        if len(secret) != 16:
            raise ValueError("the secret of the hash is 16 bytes")
        cdef const char* raw = secret
        memcpy(&self.k0, raw, 8)
        memcpy(&self.k1, raw + 8, 8)

    def __dealloc__(self):
        cdef int p
        for p in range(PARTITIONS):
            if self.partitions[p].entries != NULL:
                table_free(self, self.partitions[p].entries, self.partitions[p].places)


cdef inline uint64_t rotate(uint64_t x, int bits) noexcept nogil:
    return x << bits | x >> (64 - bits)


cdef inline void sip_round(uint64_t* v) noexcept nogil:
    v[0] += v[1]
    v[2] += v[3]
    v[1] = rotate(v[1], 13) ^ v[0]
    v[3] = rotate(v[3], 16) ^ v[2]
    v[0] = rotate(v[0], 32)
    v[2] += v[1]
    v[0] += v[3]
    v[1] = rotate(v[1], 17) ^ v[2]
    v[3] = rotate(v[3], 21) ^ v[0]
    v[2] = rotate(v[2], 32)


# The last n % 8 bytes of a key, as a number.
cdef inline uint64_t tail_of(const uint8_t* key, size_t n) noexcept nogil:
    cdef uint64_t word = 0
    cdef size_t i, left = n & 7
    if n > left > 0:
        memcpy(&word, key + n - 8, 8)
        return word >> 8 * (8 - left)
    for i in range(left):
        word |= <uint64_t>key[i] << 8 * i
    return word


cdef uint64_t index_hash(HashIndex index, const uint8_t* key, size_t n) noexcept nogil:
    cdef uint64_t v[4]
    cdef uint64_t word
    cdef size_t i, whole = n & ~<size_t>7
    v[0] = index.k0 ^ 0x736F6D6570736575ULL
    v[1] = index.k1 ^ 0x646F72616E646F6DULL
    v[2] = index.k0 ^ 0x6C7967656E657261ULL
    v[3] = index.k1 ^ 0x7465646279746573ULL
    for i in range(0, whole, 8):
        memcpy(&word, key + i, 8)
        v[3] ^= word
        sip_round(v)
        v[0] ^= word
    word = tail_of(key, n) | <uint64_t>n << 56
    v[3] ^= word
    sip_round(v)
    v[0] ^= word
    v[2] ^= 0xFF
    sip_round(v)
    sip_round(v)
    sip_round(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


cdef inline Partition* partition_of(HashIndex index, uint64_t hash) noexcept nogil:
    return &index.partitions[hash >> 56]


cdef inline uint32_t home_of(uint32_t capacity, uint32_t hash) noexcept nogil:
    return <uint32_t>(<uint64_t>hash * capacity >> 32)


# From `entry` on, the first one whose stored hash is `wanted`, or NULL. The last place of a table is always empty, so
# that a search needs no bound.
cdef inline Entry* seek(Entry* entry, uint32_t wanted) noexcept nogil:
    while entry.at.length and entry.hash < wanted:
        entry += 1
    return entry if entry.at.length and entry.hash == wanted else NULL


cdef void index_prefetch(HashIndex index, uint64_t hash) noexcept nogil:
    cdef Partition* part = partition_of(index, hash)
    if part.count:
        kv_prefetch(part.entries + home_of(part.capacity, <uint32_t>hash))


cdef Entry* index_first(HashIndex index, uint64_t hash) noexcept nogil:
    cdef Partition* part = partition_of(index, hash)
    if part.count == 0:
        return NULL
    return seek(part.entries + home_of(part.capacity, <uint32_t>hash), <uint32_t>hash)


cdef Entry* index_next(HashIndex index, uint64_t hash, Entry* entry) noexcept nogil:
    return seek(entry + 1, <uint32_t>hash)


cdef Entry* index_find(HashIndex index, uint64_t hash, uint32_t segment, uint32_t offset) noexcept nogil:
    cdef Entry* entry = index_first(index, hash)
    while entry != NULL and not (entry.at.offset == offset and entry.at.segment == segment):
        entry = index_next(index, hash, entry)
    return entry


# Copy the entries in order into a table of `capacity` homes. -1 when there is no memory, -2 when a run of them would
# reach the end of the table; nothing has changed then.
cdef int resize(HashIndex index, Partition* part, uint32_t capacity) noexcept nogil:
    cdef uint32_t places = capacity + capacity // 64 + SMALLEST
    cdef Entry* entries = table_new(index, places)
    cdef uint32_t i, place, free_place = 0
    if entries == NULL:
        return -1
    for i in range(part.places):
        if part.entries[i].at.length == 0:
            continue
        place = home_of(capacity, part.entries[i].hash)
        if place < free_place:
            place = free_place
        if place >= places - 1:
            table_free(index, entries, places)
            return -2
        entries[place] = part.entries[i]
        free_place = place + 1
    if part.entries != NULL:
        table_free(index, part.entries, part.places)
    part.entries = entries
    part.capacity = capacity
    part.places = places
    return 0


cdef int grow(HashIndex index, Partition* part) except -1:
    cdef uint32_t capacity = max(part.capacity + part.capacity // 4, <uint32_t>SMALLEST)
    cdef int result = -2
    while result == -2:
        result = resize(index, part, capacity)
        capacity += capacity // 8
    if result == -1:
        raise MemoryError("no memory for the index to grow")
    return 0


cdef int index_insert(HashIndex index, uint64_t hash, Location at) except -1:
    cdef Partition* part = partition_of(index, hash)
    cdef uint32_t wanted = <uint32_t>hash
    cdef uint32_t place, gap
    if part.count * 10 >= <uint64_t>part.capacity * 9:
        grow(index, part)
    while True:
        place = home_of(part.capacity, wanted)
        while part.entries[place].at.length and part.entries[place].hash <= wanted:
            place += 1
        gap = place
        while part.entries[gap].at.length:
            gap += 1
        if gap < part.places - 1:
            break
        grow(index, part)
    memmove(part.entries + place + 1, part.entries + place, table_bytes(gap - place))
    part.entries[place].hash = wanted
    part.entries[place].at = at
    part.count += 1
    index.count += 1
    return 0


cdef int index_fill(HashIndex index, int partition, const Entry* entries, uint32_t count) except -1:
    cdef Partition* part = &index.partitions[partition]
    cdef uint32_t i, place, free_place = 0
    if count == 0:
        return 0
    if resize(index, part, count + count // 4 + SMALLEST) == -1:
        raise MemoryError("no memory for the index")
    for i in range(count):
        place = max(home_of(part.capacity, entries[i].hash), free_place)
        if place >= part.places - 1:
            # A run that reaches the end of the table: rare, and left to the ordinary way.
            index_insert(index, <uint64_t>partition << 56 | entries[i].hash, entries[i].at)
            continue
        part.entries[place] = entries[i]
        free_place = place + 1
        part.count += 1
        index.count += 1
    return 0


cdef void index_remove(HashIndex index, uint64_t hash, Entry* entry) noexcept:
    cdef Partition* part = partition_of(index, hash)
    cdef uint32_t place = <uint32_t>(entry - part.entries)
    cdef uint32_t end = place + 1
    # Those behind it that do not stand at home move up by one.
    while part.entries[end].at.length and home_of(part.capacity, part.entries[end].hash) < end:
        end += 1
    memmove(part.entries + place, part.entries + place + 1, table_bytes(end - place - 1))
    part.entries[end - 1].at.length = 0
    part.count -= 1
    index.count -= 1
    # Half empty: give space back. When there is no memory for the smaller table, the larger one goes on serving.
    if part.capacity > 4 * SMALLEST and part.count * 2 < part.capacity:
        resize(index, part, part.count + part.count // 4 + 1)


cdef uint64_t index_bytes(HashIndex index) noexcept:
    cdef uint64_t total = sizeof(index.partitions) + regions_bytes(index.regions)
    cdef size_t size
    cdef int p
    for p in range(PARTITIONS):
        size = table_bytes(index.partitions[p].places)
        total += size if size < PAGED else 0
    return total
