"""C counters and histograms, added to without Python objects; read by kvnet.families when somebody scrapes.

Thread: the reactor's alone.
"""
from libc.stdint cimport uint64_t


cdef enum:
    MAX_COMMANDS = 64
    MAX_BUCKETS = 24

cdef enum Outcome:
    OUTCOME_OK = 0
    OUTCOME_MISS = 1            # the key was not there
    OUTCOME_ERROR = 2
    OUTCOMES = 3


# Counts per bucket, not cumulative; the last one is above all bounds.
cdef struct Histogram:
    const double* bounds        # upper bounds
    int buckets                 # how many bounds
    uint64_t counts[MAX_BUCKETS]
    double sum


cdef class Metrics:
    cdef readonly list commands                     # of (protocol, command), by row
    cdef uint64_t outcomes[MAX_COMMANDS][OUTCOMES]
    cdef Histogram seconds[MAX_COMMANDS]
    cdef Histogram sync_seconds
    cdef Histogram group_sizes                      # connections that waited for a sync
    cdef Histogram lag_seconds                      # of the reactor's calls
    cdef readonly list failures                     # of background work, by WORKS
    cdef public uint64_t sync_failures
    cdef public double sync_good_at                 # unix time of the last good one
    cdef public uint64_t connections_opened
    cdef public uint64_t connections_refused
    cdef public uint64_t connections
    cdef public uint64_t connections_idle           # closed because of that
    cdef public uint64_t accept_pauses
    cdef public uint64_t reading_paused
    cdef public uint64_t turns_over
    cdef public uint64_t cold_waits                 # for records to be read from the disk
    cdef public uint64_t commands_too_long
    cdef public uint64_t received_bytes
    cdef public uint64_t sent_bytes


# n events of this value each.
cdef void histogram_add(Histogram* h, double value, uint64_t n) noexcept
