cdef uint64_t upper_end(int bucket) noexcept:
    """The largest value that is counted in a bucket."""
    cdef int shift = max(bucket // SUB_BUCKETS - 1, 0)
    return (<uint64_t>(bucket - shift * SUB_BUCKETS) + 1 << shift) - 1


cdef class Histogram:
    """Counts of latencies. Whole numbers of nanoseconds everywhere."""

    def add(self, uint64_t ns):
        """Count one."""
        counts_add(&self.counts, ns)

    def merge(self, Histogram other not None):
        """Add all that `other` counts."""
        cdef int i
        for i in range(BUCKETS):
            self.counts.buckets[i] += other.counts.buckets[i]
        self.counts.count += other.counts.count
        self.counts.sum += other.counts.sum
        self.counts.longest = max(self.counts.longest, other.counts.longest)

    @property
    def count(self):
        """How many there are (int)."""
        return self.counts.count

    @property
    def longest(self):
        """The longest one, exactly (int); 0: there is none."""
        return self.counts.longest

    @property
    def mean(self):
        """Their mean (float); 0: there is none."""
        return self.counts.sum / <double>self.counts.count if self.counts.count else 0.0

    def percentile(self, double percent):
        """What `percent` of them do not exceed (int): at most 1/64 above the exact answer. 0: there are none."""
        cdef uint64_t seen = 0
        cdef double wanted = max(self.counts.count * percent / 100, 1.0)
        cdef int i
        for i in range(BUCKETS):
            seen += self.counts.buckets[i]
            if seen >= wanted:
                return min(upper_end(i), self.counts.longest)
        return self.counts.longest

    def buckets(self):
        """The buckets that are not empty, ascending: a list of (largest value it counts, count)."""
        cdef int i
        return [
            (min(upper_end(i), self.counts.longest), self.counts.buckets[i])
            for i in range(BUCKETS) if self.counts.buckets[i]
        ]
