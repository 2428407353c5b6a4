import time

cdef double[18] COMMAND_BOUNDS = [
    1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0]
cdef double[17] SYNC_BOUNDS = [64e-6 * 2 ** i for i in range(17)]
cdef double[11] GROUP_BOUNDS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000]
cdef double[11] LAG_BOUNDS = [1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5]

# Upper bounds of the histograms, for who shows them.
COMMAND_SECONDS = tuple(COMMAND_BOUNDS)
SYNC_SECONDS = tuple(SYNC_BOUNDS)
GROUP_SIZES = tuple(GROUP_BOUNDS)
LAG_SECONDS = tuple(LAG_BOUNDS)

OUTCOME_NAMES = ("ok", "miss", "error")
WORKS = ("maintenance", "scrub", "sealing", "reading")


cdef void histogram_add(Histogram* h, double value, uint64_t n) noexcept:
    cdef int i = 0
    while i < h.buckets and value > h.bounds[i]:
        i += 1
    h.counts[i] += n
    h.sum += value * n


# As they are shown: how many are within each bound, how many there are, their sum.
cdef list histogram_numbers(Histogram* h):
    cdef uint64_t total = 0
    numbers = []
    for i in range(h.buckets + 1):
        total += h.counts[i]
        numbers.append(total)
    numbers.append(total)
    numbers.append(h.sum)
    return numbers


cdef class Metrics:
    """Counters of one server, from zero."""

    def __cinit__(self):
        self.commands = []
        self.sync_seconds.bounds = SYNC_BOUNDS
        self.sync_seconds.buckets = 17
        self.group_sizes.bounds = GROUP_BOUNDS
        self.group_sizes.buckets = 11
        self.lag_seconds.bounds = LAG_BOUNDS
        self.lag_seconds.buckets = 11
        self.failures = [0] * len(WORKS)

    def add_commands(self, protocol, names):
        """Make rows for the commands `names` (str) of a front end; return the number of the first row (int)."""
        first = len(self.commands)
        if first + len(names) > MAX_COMMANDS:
            raise ValueError(f"at most {MAX_COMMANDS} commands can be counted")
        for name in names:
            self.seconds[len(self.commands)].bounds = COMMAND_BOUNDS
            self.seconds[len(self.commands)].buckets = 18
            self.commands.append((protocol, name))
        return first

    def count(self, protocol, command, outcome):
        """How often `command` ended with `outcome` ("ok", "miss", "error"): int."""
        return self.outcomes[self.commands.index((protocol, command))][OUTCOME_NAMES.index(outcome)]

    def total(self, protocol, command):
        """How often `command` ran, whatever came of it (int)."""
        return sum(self.count(protocol, command, outcome) for outcome in OUTCOME_NAMES)

    def synced(self, seconds, group):
        """Note a sync that succeeded, took `seconds` (float) and was waited for by `group` (int) connections."""
        histogram_add(&self.sync_seconds, seconds, 1)
        if group:
            histogram_add(&self.group_sizes, group, 1)
        self.sync_good_at = time.time()

    def lagged(self, seconds):
        """Note that a call came so much later (float) than it was due."""
        histogram_add(&self.lag_seconds, seconds, 1)

    def failed(self, work):
        """Note that background work failed. work: one of WORKS."""
        self.failures[WORKS.index(work)] += 1

    # What there is to show, as flat lists of numbers. Of a histogram: counts within each bound, in all, that again, the sum.

    def outcome_numbers(self):
        """Counts (list of int) by command and outcome."""
        return [self.outcomes[row][outcome] for row in range(len(self.commands)) for outcome in range(<int>OUTCOMES)]

    def command_numbers(self):
        """The histograms of the commands, one behind the other."""
        numbers = []
        for row in range(len(self.commands)):
            numbers += histogram_numbers(&self.seconds[row])
        return numbers

    def sync_numbers(self):
        """The histogram of syncs."""
        return histogram_numbers(&self.sync_seconds)

    def group_numbers(self):
        """The histogram of group sizes."""
        return histogram_numbers(&self.group_sizes)

    def lag_numbers(self):
        """The histogram of lags."""
        return histogram_numbers(&self.lag_seconds)
