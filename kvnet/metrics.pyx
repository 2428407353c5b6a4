import time

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily

import kvcore

cdef double[18] COMMAND_BOUNDS = [
    1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0]
cdef double[17] SYNC_BOUNDS = [64e-6 * 2 ** i for i in range(17)]
cdef double[11] GROUP_BOUNDS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000]

OUTCOME_NAMES = ("ok", "miss", "error")
STATES = ("ok", "full", "read-only")


cdef void histogram_add(Histogram* h, double value, uint64_t n) noexcept:
    cdef int i = 0
    while i < h.buckets and value > h.bounds[i]:
        i += 1
    h.counts[i] += n
    h.sum += value * n


cdef tuple histogram_samples(Histogram* h):
    cdef uint64_t total = 0
    samples = []
    for i in range(h.buckets):
        total += h.counts[i]
        samples.append((repr(h.bounds[i]), total))
    total += h.counts[h.buckets]
    samples.append(("+Inf", total))
    return samples, h.sum


cdef class Metrics:
    """Counters of one server, from zero."""

    def __cinit__(self):
        self.commands = []
        self.sync_seconds.bounds = SYNC_BOUNDS
        self.sync_seconds.buckets = 17
        self.group_sizes.bounds = GROUP_BOUNDS
        self.group_sizes.buckets = 11

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


class Collector:
    """What prometheus_client asks when somebody scrapes. Of a Metrics, a kvcore.Store and its kvcore.scrub.Scrub."""

    def __init__(self, metrics, store, scrub):
        self._metrics = metrics
        self._store = store
        self._scrub = scrub

    def collect(self):
        """Yield the metric families."""
        yield from server_families(self._metrics)
        yield from store_families(self._store)
        yield from scrub_families(self._scrub)


def server_families(Metrics m not None):
    operations = CounterMetricFamily(
        "kvstore_commands", "Commands executed, by front end, command and outcome.",
        labels=("protocol", "command", "outcome"))
    latency = HistogramMetricFamily(
        "kvstore_command_seconds", "Time from receiving a command to handing its reply to the socket, in seconds.",
        labels=("protocol", "command"))
    for row, (protocol, command) in enumerate(m.commands):
        for outcome in range(<int>OUTCOMES):
            operations.add_metric((protocol, command, OUTCOME_NAMES[outcome]), m.outcomes[row][outcome])
        buckets, total = histogram_samples(&m.seconds[row])
        latency.add_metric((protocol, command), buckets, total)
    yield operations
    yield latency
    buckets, total = histogram_samples(&m.sync_seconds)
    yield HistogramMetricFamily(
        "kvstore_fsync_seconds", "Duration of fdatasync of the log, in seconds.", buckets=buckets, sum_value=total)
    buckets, total = histogram_samples(&m.group_sizes)
    yield HistogramMetricFamily(
        "kvstore_commit_group_size", "Connections whose replies waited for the same sync.", buckets=buckets, sum_value=total)
    yield CounterMetricFamily("kvstore_fsync_failures", "Syncs of the log that failed.", m.sync_failures)
    yield GaugeMetricFamily(
        "kvstore_last_fsync_timestamp_seconds", "Unix time of the last good sync; 0: none yet.", m.sync_good_at)
    yield GaugeMetricFamily("kvstore_connections", "Client connections open now.", m.connections)
    yield CounterMetricFamily("kvstore_connections_opened", "Client connections accepted.", m.connections_opened)
    yield CounterMetricFamily(
        "kvstore_connections_refused", "Client connections closed at once, over --max-connections.",
        m.connections_refused)
    yield CounterMetricFamily(
        "kvstore_connections_idle", "Client connections closed after --idle-timeout.", m.connections_idle)
    yield CounterMetricFamily(
        "kvstore_accept_pauses", "Times that no clients were accepted for want of descriptors.", m.accept_pauses)
    yield CounterMetricFamily(
        "kvstore_reading_paused", "Times that a client was not read because it did not take its replies.", m.reading_paused)
    yield CounterMetricFamily(
        "kvstore_turns_over", "Times that a client's pipelined commands gave way to other clients.", m.turns_over)
    yield CounterMetricFamily(
        "kvstore_cold_waits", "Times that commands, or parts of lists, waited for records to be read from the disk.",
        m.cold_waits)
    yield CounterMetricFamily(
        "kvstore_commands_too_long", "Commands dropped because they were too long.", m.commands_too_long)
    yield CounterMetricFamily("kvstore_received_bytes", "Bytes received from clients.", m.received_bytes)
    yield CounterMetricFamily("kvstore_sent_bytes", "Bytes of replies handed to sockets.", m.sent_bytes)


def store_families(store):
    stats = store.stats()
    yield InfoMetricFamily("kvstore_build", "The running version.", {"version": kvcore.__version__})
    yield GaugeMetricFamily("kvstore_keys", "Keys in the store.", stats["keys"])
    yield GaugeMetricFamily("kvstore_live_bytes", "Bytes of log records that are some key's value.", stats["live_bytes"])
    yield GaugeMetricFamily("kvstore_dead_bytes", "Bytes of log records that no longer count.", stats["dead_bytes"])
    yield GaugeMetricFamily("kvstore_disk_bytes", "Bytes of all segment files.", stats["disk_bytes"])
    yield GaugeMetricFamily("kvstore_index_bytes", "Memory of the index, in bytes.", stats["index_bytes"])
    yield GaugeMetricFamily("kvstore_segments", "Segment files.", stats["segments"])
    yield GaugeMetricFamily(
        "kvstore_unsynced_bytes", "Bytes written but not yet known to be on the disk.", stats["unsynced_bytes"])
    yield CounterMetricFamily("kvstore_written_bytes", "Bytes of records written for clients.", stats["written_bytes"])
    yield CounterMetricFamily("kvstore_compactions", "Compactions begun.", stats["compactions"])
    yield CounterMetricFamily(
        "kvstore_compaction_read_bytes", "Bytes of segments read by compaction.", stats["compaction_read_bytes"])
    yield CounterMetricFamily(
        "kvstore_compaction_written_bytes", "Bytes of records copied by compaction.", stats["compaction_written_bytes"])
    yield CounterMetricFamily(
        "kvstore_compaction_reclaimed_bytes", "Bytes of segments dropped by compaction.",
        stats["compaction_reclaimed_bytes"])
    yield CounterMetricFamily(
        "kvstore_damaged_reads", "Reads that met a record whose checksum does not hold.", stats["damaged_reads"])
    yield GaugeMetricFamily(
        "kvstore_damaged_ranges", "Damaged stretches of the log found when the store was opened.",
        store.recovery["damaged_ranges"])
    yield GaugeMetricFamily(
        "kvstore_recovery_seconds", "How long opening the store took, in seconds.", store.recovery["seconds"])
    yield GaugeMetricFamily(
        "kvstore_last_backup_timestamp_seconds", "Unix time of the last good backup; 0: none.", store.last_backup)
    state = GaugeMetricFamily("kvstore_state", "1 for the state the store is in.", labels=("state",))
    for name in STATES:
        state.add_metric((name,), store.state == name)
    yield state


def scrub_families(scrub):
    yield CounterMetricFamily(
        "kvstore_scrubbed_bytes", "Bytes of sealed segments read and verified by the scrub.", scrub.bytes)
    yield GaugeMetricFamily(
        "kvstore_scrub_damaged_ranges", "Damaged stretches that the scrub has found in segments that are still there.",
        len(scrub.damage))
    yield GaugeMetricFamily(
        "kvstore_last_scrub_timestamp_seconds", "Unix time of the end of the last full pass of the scrub; 0: none yet.",
        scrub.passed_at)
