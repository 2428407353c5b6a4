from posix.time cimport CLOCK_MONOTONIC, clock_nanosleep, timespec

from kvcore.clock cimport clock


cdef extern from *:
    """
    #include <stddef.h>
    typedef struct {
        int gives_way;
        double portion;     /* seconds of work between pauses */
        size_t records;     /* since the last look at the clock */
        double paused_at;
        size_t pauses;
    } kv_pace;
    static __thread kv_pace kv_pace_here;
    static _Atomic double kv_pace_until;
    """
    struct Pace "kv_pace":
        bint gives_way
        double portion
        size_t records
        double paused_at
        size_t pauses
    Pace here "kv_pace_here"
    double pause_ends "kv_pace_until"       # of whichever thread paused last


cdef extern from "<sys/prctl.h>" nogil:
    enum: PR_SET_TIMERSLACK
    int prctl(int what, unsigned long value)


cdef enum:
    LOOK_EVERY = 32             # records between looks at the clock
    PAUSE = 20_000              # ns. With much less the pause is over before the thread has let go of its processor


def give_way(double portion=200e-6):
    """From now on the thread that calls this pauses between portions of long work, of so many seconds."""
    here.gives_way = True
    here.portion = portion
    prctl(PR_SET_TIMERSLACK, 1)     # or its pauses would be four times as long


def pauses():
    """How many pauses the thread that calls this has made (int)."""
    return here.pauses


cdef void pace(size_t records) noexcept nogil:
    global pause_ends
    cdef timespec moment
    cdef double now
    if not here.gives_way:
        return
    here.records += records
    if here.records < LOOK_EVERY:
        return
    here.records = 0
    now = clock()
    # While one pauses they all do: or the processor would go from one to the next.
    if now - here.paused_at > here.portion:
        pause_ends = now + PAUSE * 1e-9
    elif now >= pause_ends:
        return
    moment.tv_sec = 0
    moment.tv_nsec = PAUSE
    clock_nanosleep(CLOCK_MONOTONIC, 0, &moment, NULL)
    here.paused_at = clock()
    here.pauses += 1
