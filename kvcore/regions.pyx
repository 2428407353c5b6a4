from libc.stdint cimport uintptr_t
from libc.stdlib cimport free, malloc


cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* address, size_t n, int protection, int flags, int fd, long long offset)
    int munmap(void* address, size_t n)
    int madvise(void* address, size_t n, int advice)
    enum: PROT_READ
    enum: PROT_WRITE
    enum: MAP_PRIVATE
    enum: MAP_ANONYMOUS
    enum: MADV_HUGEPAGE
    enum: MADV_DONTNEED
    void* MAP_FAILED


cdef enum:
    LINE = 64                   # bytes of a cache line
    PAGE = 4096                 # bytes of a page, or a part of one
    HUGE_PAGE = 2 << 20         # bytes of a huge page, or a part or a multiple of one
    TABLES = 64                 # tables of the size asked for that a new region has room for
    LARGE = 64 << 10            # bytes of a table from which huge pages are worth it: the last one may be all but empty


cdef inline uintptr_t up(uintptr_t n, size_t unit) noexcept nogil:
    return (n + unit - 1) & ~<uintptr_t>(unit - 1)


cdef Region* region_new(size_t size, bint huge) noexcept nogil:
    cdef Region* region = <Region*>malloc(sizeof(Region))
    cdef uint8_t* memory
    cdef uint8_t* start
    if region == NULL:
        return NULL
    # Mapped with room to align it, which is given back at once.
    memory = <uint8_t*>mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if memory == <uint8_t*>MAP_FAILED:
        free(region)
        return NULL
    start = <uint8_t*>up(<uintptr_t>memory, HUGE_PAGE)
    if start > memory:
        munmap(memory, start - memory)
    munmap(start + size, memory + HUGE_PAGE - start)
    if huge:
        madvise(start, size, MADV_HUGEPAGE)     # refused where there are none
    region.start = start
    region.size = size
    region.used = region.live = 0
    region.unit = HUGE_PAGE if huge else PAGE
    return region


cdef void* regions_take(Region** regions, size_t n) noexcept nogil:
    cdef Region* region = regions[0]
    n = up(n, LINE)
    if region == NULL or region.size - region.used < n:
        region = region_new(up(TABLES * n, HUGE_PAGE), n >= LARGE)
        if region == NULL:
            return NULL
        region.older = regions[0]
        regions[0] = region
    region.used += n
    region.live += n
    return region.start + region.used - n


cdef void regions_give(Region** regions, void* memory, size_t n) noexcept nogil:
    cdef uint8_t* at = <uint8_t*>memory
    cdef uint8_t* page = <uint8_t*>up(<uintptr_t>at, PAGE)
    cdef Region* region
    while not regions[0].start <= at < regions[0].start + regions[0].size:
        regions = &regions[0].older
    region = regions[0]
    n = up(n, LINE)
    region.live -= n
    if region.live == 0:
        regions[0] = region.older
        munmap(region.start, region.size)
        free(region)
    elif at + n >= page + PAGE:
        madvise(page, (at + n - page) & ~<size_t>(PAGE - 1), MADV_DONTNEED)


cdef size_t regions_bytes(const Region* region) noexcept nogil:
    cdef size_t total = 0
    while region != NULL:
        # The last page is there as a whole.
        total += up(region.used, region.unit) - (region.used - region.live)
        region = region.older
    return total
