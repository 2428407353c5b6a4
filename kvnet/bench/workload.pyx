from libc.math cimport pow
from libc.string cimport memcpy

from math import gcd
from random import Random

from kvcore.types cimport slice_of

from kvnet.bench.mix import KEY_LETTERS

cdef enum:
    BLOCK = 4194304             # offsets of values: a power of two, and so large that values seldom share bytes
    LETTERS = 1048576           # offsets of the letters of keys: a power of two
    MAX_DIGITS = 12
    EXACT_TERMS = 1000000       # of the zeta sum; the rest is an integral

cdef double THETA = 0.99        # of the zipf distribution, as YCSB has it (ZipfianGenerator.ZIPFIAN_CONSTANT)

DISTRIBUTIONS = ("uniform", "80-20", "zipf")
MAX_KEYS = 4_000_000_000

UNWANTED = b"\r\n|\0"


# Both are SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
cdef inline uint64_t mixed(uint64_t x) noexcept nogil:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ULL
    x = (x ^ x >> 27) * 0x94D049BB133111EBULL
    return x ^ x >> 31


cdef uint64_t random_next(uint64_t* state) noexcept nogil:
    state[0] += 0x9E3779B97F4A7C15ULL
    return mixed(state[0])


cdef inline uint64_t below(uint64_t limit, uint64_t random) noexcept nogil:
    return (random >> 32) * limit >> 32


cdef inline size_t size_in(const SizeSpan* span, uint64_t hash) noexcept nogil:
    return span.shortest + below(span.choices, hash)


cdef size_t key_size(Workload w, uint64_t number) noexcept nogil:
    cdef uint64_t hash = mixed(number + 1)
    cdef const SizeSpan* span = w.key_spans
    while hash % 100 >= span.until:
        span += 1
    return size_in(span, hash)


cdef uint8_t* key_put(Workload w, uint64_t number, uint8_t* out) noexcept nogil:
    cdef uint8_t* end = out + key_size(w, number)
    cdef uint64_t rest = number
    cdef int i
    memcpy(out, b"key:", w.prefix)
    out += w.prefix
    for i in range(w.digits - 1, -1, -1):
        out[i] = <uint8_t>(48 + rest % 10)
        rest //= 10
    out += w.digits
    if out < end:
        memcpy(out, w.letters_at + (mixed(number) & LETTERS - 1), end - out)
    return end


cdef Slice value_of(Workload w, uint64_t number) noexcept nogil:
    cdef uint64_t hash = mixed(~number)
    return slice_of(w.block_at + (hash & BLOCK - 1), size_in(&w.value_span, hash))


cdef uint64_t number_of(Workload w, uint64_t rank) noexcept nogil:
    return rank * w.stride % w.keys


cdef inline double fraction(uint64_t random) noexcept nogil:
    return (random >> 11) * (1.0 / (1ULL << 53))


# J. Gray and others: "Quickly generating billion-record synthetic databases", 1994; YCSB draws its ranks the same way.
cdef uint64_t zipf_rank(Workload w, uint64_t random) noexcept nogil:
    cdef double u = fraction(random), uz = u * w.zeta
    cdef uint64_t rank
    if uz < 1:
        return 0
    if uz < w.zeta2:
        return 1
    rank = <uint64_t>(w.keys * pow(w.eta * u - w.eta + 1, w.alpha))
    return rank if rank < w.keys else w.keys - 1


cdef uint64_t pick(Workload w, uint64_t* state) noexcept nogil:
    cdef uint64_t random = random_next(state), hot
    if w.distribution == UNIFORM:
        return number_of(w, below(w.keys, random))
    if w.distribution == ZIPF:
        return number_of(w, zipf_rank(w, random))
    hot = (w.keys + 4) // 5
    if hot == w.keys or below(10, random) < 8:
        return number_of(w, below(hot, random_next(state)))
    return number_of(w, hot + below(w.keys - hot, random_next(state)))


cdef double zeta(uint64_t n) noexcept:
    """The sum of 1 / i ** THETA for i from 1 to n."""
    cdef uint64_t i, exact = n if n < EXACT_TERMS else <uint64_t>EXACT_TERMS
    cdef double total = 0
    for i in range(1, exact + 1):
        total += pow(i, -THETA)
    if n > exact:
        # Euler and Maclaurin; what is left out is below 1e-13.
        total += (pow(n, 1 - THETA) - pow(exact, 1 - THETA)) / (1 - THETA) + (pow(n, -THETA) - pow(exact, -THETA)) / 2
    return total


cdef int set_span(SizeSpan* s, uint64_t until, span) except -1:
    s.until = until
    s.shortest = span.shortest
    s.choices = span.longest - span.shortest + 1
    return 0


cdef make_order(Workload w):
    # Below 2**24, so that its product with any rank fits; about 0.618 of the keys, which spreads neighbours evenly.
    w.stride = min(int(w.keys * 0.6180339887), 10_368_889) or 1
    while gcd(w.stride, w.keys) != 1:
        w.stride += 1
    if w.distribution == ZIPF:
        w.zeta = zeta(w.keys)
        w.zeta2 = 1 + pow(0.5, THETA)
        w.alpha = 1 / (1 - THETA)
        w.eta = (1 - pow(2.0 / w.keys, 1 - THETA)) / (1 - w.zeta2 / w.zeta) if w.keys > 2 else 0


def repeated(letters):
    """A table that translates random bytes into these."""
    return bytes(letters[i % len(letters)] for i in range(256))


cdef make_bytes(Workload w):
    rng = Random(0)
    wanted = bytes(byte for byte in range(256) if byte not in UNWANTED)
    w.block = rng.randbytes(BLOCK + w.longest_value).translate(repeated(wanted))
    w.letters = rng.randbytes(LETTERS + w.longest_key).translate(repeated(KEY_LETTERS))
    w.block_at = w.block
    w.letters_at = w.letters


cdef class Workload:
    """Keys and values of the sizes of a `kvnet.bench.mix.Mix`, numbered from 0 to keys - 1.

    keys: int, 1 to MAX_KEYS. distribution: one of DISTRIBUTIONS. ValueError when the shortest keys cannot tell so many
    apart.
    """

    def __init__(self, uint64_t keys, mix, distribution="uniform"):
        if not 0 < keys <= MAX_KEYS:
            raise ValueError(f"there are 1 to {MAX_KEYS} keys")
        if len(mix.keys) > MAX_SPANS or sum(span.percent for span in mix.keys) != 100:
            raise ValueError(f"the sizes of the keys are 1 to {MAX_SPANS} spans that make 100 percent")
        self.keys = keys
        self.distribution = DISTRIBUTIONS.index(distribution)
        shortest = min(span.shortest for span in mix.keys)
        self.longest_key = max(span.longest for span in mix.keys)
        self.longest_value = mix.values.longest
        self.digits = min(shortest, MAX_DIGITS)
        self.prefix = 4 if shortest >= MAX_DIGITS + 4 else 0
        most = int("9" * self.digits) + 1
        if keys > most:
            raise ValueError(f"keys of {shortest} bytes tell at most {most} apart")
        until = 0
        for i, span in enumerate(mix.keys):
            until += span.percent
            set_span(&self.key_spans[i], until, span)
        set_span(&self.value_span, 100, mix.values)
        make_order(self)
        make_bytes(self)

    def key(self, uint64_t number):
        """The key (bytes) of a number below `keys`."""
        cdef bytearray out = bytearray(self.longest_key)
        cdef uint8_t* start = out
        del out[key_put(self, number, start) - start:]
        return bytes(out)

    def value(self, uint64_t number):
        """The value (bytes) of a number below `keys`."""
        cdef Slice value = value_of(self, number)
        return value.ptr[:value.len]

    def picks(self, int count, uint64_t seed):
        """The first `count` numbers that a thread with this seed asks for: list of int."""
        return [pick(self, &seed) for _ in range(count)]

    def live_bytes(self):
        """What all keys and their values take together (int)."""
        cdef uint64_t number, total = 0
        for number in range(self.keys):
            total += key_size(self, number) + value_of(self, number).len
        return total
