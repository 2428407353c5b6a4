"""Write the dashboard, grafana/dashboards/kvstore.json, from the rows and panels below: python tools/dashboard.py

Each row answers a question. Expressions are written in short, see panels.py.
"""

from itertools import count
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, VariableOption, VariableRefresh, VariableSort
from panels import DATASOURCE, NEUTRAL, graph_panel, heat_panel, stat_panel

PATH = Path(__file__).resolve().parent.parent / "grafana" / "dashboards" / "kvstore.json"

COMMANDS = "rate(kvstore_commands_total{}[])"
SECONDS = "kvstore_command_seconds_bucket"
FSYNC = "kvstore_fsync_seconds_bucket"
OVERHEAD = "kvstore_disk_bytes{} / (kvstore_live_bytes{} > 0)"


def quantile(share, histogram, by=""):
    """The value below which so much of a histogram lies, over all that is not in `by`."""
    return f"histogram_quantile({share}, sum by (le{by}) (rate({histogram}{{}}[])))"


def rate_of(outcome=None):
    """Commands a second of each server, all or those that ended so."""
    selected = "{}" if outcome is None else f'{{outcome="{outcome}"}}'
    return f"sum by (instance) (rate(kvstore_commands_total{selected}[]))"


def healthy():
    yield stat_panel(
        "Up",
        "Whether Prometheus reaches the server. Down: see whether the process is there, and what the end of its log says.",
        "none", "up{}", words={0: ("DOWN", "red"), 1: ("up", "green")})
    yield stat_panel(
        "State",
        "ok is normal. full: the disk has no space, values are refused, reads and deletes go on; make room, writing "
        "resumes by itself. read-only: writing to the disk failed; look at the disk, then restart.",
        "none", 'kvstore_state{state="full"} + ignoring(state) 2 * kvstore_state{state="read-only"}',
        words={0: ("ok", "green"), 1: ("FULL", "red"), 2: ("READ-ONLY", "red")})
    yield stat_panel(
        "Alerts",
        "Those that fire now. docs/operations.md says of each what it means and what to do.",
        "none", 'sum by (alertname) (ALERTS{alertstate="firing"})', legend="{{alertname}}", name=True, none="none",
        base="red", width=6)
    yield stat_panel(
        "Errors",
        "Commands of the last minutes that were refused or failed, as a share of all. Normal: next to none. Which "
        "commands: Errors and damage, below.",
        "percentunit", f'{rate_of("error")} / {rate_of()}', steps=[(0.001, "orange"), (0.01, "red")])
    yield stat_panel(
        "p99 latency",
        "99 of 100 commands are answered within this time, network not included. Around a millisecond is normal; with "
        "--fsync=always it is that of the disk. When it is high: Latency and Durability, below.",
        "s", quantile(0.99, SECONDS, ", instance"), steps=[(0.05, "orange"), (0.25, "red")])
    yield stat_panel(
        "Unsynced",
        "How much of the past a power cut would take now. --fsync=everysec: at most 2 seconds; always: nothing that was "
        "acknowledged; no: about half a minute. More than that: the disk does not keep up.",
        "s", "kvstore_unsynced_age_seconds{}", steps=[(2, "orange"), (5, "red")])
    yield stat_panel(
        "Free space",
        "Left on the file system of the data directory. Compaction needs some to give space back: make room below 10 %.",
        "percentunit", "kvstore_filesystem_free_bytes{} / kvstore_filesystem_size_bytes{}", base="red",
        steps=[(0.1, "orange"), (0.2, "green")])
    yield stat_panel(
        "Last backup",
        "How long ago the last good backup was taken. Once a day is a good habit: `kvstore backup`.",
        "s", "time() - kvstore_last_backup_timestamp_seconds{}", steps=[(93600, "orange"), (259200, "red")], never="red")
    yield stat_panel(
        "Damage",
        "Damaged stretches of the log: found at the opening and, since, by the scrub. 0 is normal; else take a copy and "
        "run `kvstore check`, which names the keys.",
        "none", "kvstore_recovery_damaged_ranges{} + kvstore_scrub_damaged_ranges{}", steps=[(1, "red")])
    yield stat_panel(
        "Overhead",
        "Bytes on disk over bytes that count. At most 115 % once writing has paused; more while much is overwritten, and "
        "in a store of a few segments.",
        "percentunit", OVERHEAD, steps=[(1.5, "orange"), (2, "red")])
    yield stat_panel(
        "Connections",
        "Open client connections, as a share of those that may be open. At 100 % new clients are turned away.",
        "percentunit", "kvstore_connections{} / kvstore_max_connections{}", steps=[(0.8, "orange"), (0.95, "red")])
    yield stat_panel(
        "Commands",
        "Commands a second, of all front ends.",
        "ops", rate_of())
    yield stat_panel(
        "Keys",
        "Keys in the store.",
        "short", "kvstore_keys{}")
    yield stat_panel(
        "Uptime",
        "Since the server was started. Shorter than you thought: something restarted it, its log says what.",
        "s", "time() - process_start_time_seconds{}")
    yield stat_panel(
        "Version",
        "The version that runs, and its --fsync: what a power cut may take. everysec: about 2 seconds; always: nothing; "
        "no: about half a minute.",
        "none", "kvstore_options_info{} * on (job, instance) group_left (version) kvstore_build_info{}",
        legend="{{version}} {{fsync}}", name=True)


def traffic():
    yield graph_panel(
        "By front end",
        "Commands a second. A sudden step is a client's doing; a fall to nothing with clients connected, the server's.",
        "ops", (f"sum by (protocol) ({COMMANDS})", "{{protocol}}"), stacked=True)
    yield graph_panel(
        "By command",
        "Commands a second. `keys` and `reads` are lists: each costs as much as all that it returns.",
        "ops", (f"sum by (protocol, command) ({COMMANDS})", "{{protocol}} {{command}}"))
    yield graph_panel(
        "By outcome",
        "ok: done; miss: the key was not there, often normal; error: refused or failed, never normal for long.",
        "ops", (f"sum by (outcome) ({COMMANDS})", "{{outcome}}"), stacked=True)
    yield graph_panel(
        "Hits",
        "Reads that found their key, of those that were answered. A fall means that clients ask for other keys than "
        "before.",
        "percentunit",
        ('sum by (protocol) (rate(kvstore_commands_total{command="read",outcome="ok"}[])) / '
         'sum by (protocol) (rate(kvstore_commands_total{command="read",outcome=~"ok|miss"}[]))', "{{protocol}}"), width=12)
    yield graph_panel(
        "Keys",
        "Keys in the store. Each takes up to 24 bytes of memory.",
        "short", ("kvstore_keys{}", "{{instance}}"), width=12)


def latency():
    yield graph_panel(
        "Percentiles",
        "From receiving a command to handing its reply to the socket. p99 far above p50: some commands wait, for the disk "
        "(Durability; Cold reads) or behind large lists and compaction (Lag of the reactor).",
        "s", *((quantile(share / 100, SECONDS), f"p{share}") for share in (50, 95, 99)),
        steps=[(0.05, "orange"), (0.25, "red")], log=True, width=12)
    yield graph_panel(
        "p99 by command",
        "Lists may take long; a read or a write that does is no list's neighbour for nothing.",
        "s", (quantile(0.99, SECONDS, ", protocol, command"), "{{protocol}} {{command}}"), log=True, width=12)
    yield heat_panel(
        "How long commands take",
        "Each column is a moment, each cell so many commands. Two bands are normal, from memory and from the disk; a band "
        "that climbs is a queue.",
        "s", f"{SECONDS}{{}}")
    yield graph_panel(
        "Lag of the reactor",
        "How late the server's one thread comes to what is due, p99. About a millisecond is the timer's own; more is what "
        "every client waits on top: a core that others use, or large lists.",
        "s", (quantile(0.99, "kvstore_reactor_lag_seconds_bucket", ", instance"), "{{instance}}"),
        steps=[(0.01, "orange"), (0.1, "red")], width=6)
    yield graph_panel(
        "Cold reads",
        "Commands that waited for records from the disk, a second. Many: the data that are in use do not fit into memory.",
        "ops", ("rate(kvstore_cold_waits_total{}[])", "{{instance}}"), width=6)


def durability():
    yield graph_panel(
        "fsync",
        "How long the disk takes to keep what it was given. A good SSD: below 5 ms. Above 100 ms, where the alert is, "
        "writers wait: another user of the disk, or a disk that fails.",
        "s", *((quantile(share / 100, FSYNC, ", instance"), f"p{share} {{{{instance}}}}") for share in (50, 99)),
        steps=[(0.1, "red")], log=True)
    yield heat_panel(
        "How long fsyncs take",
        "Each column is a moment, each cell so many fsyncs.",
        "s", f"{FSYNC}{{}}", width=8)
    yield graph_panel(
        "Unsynced age",
        "How much of the past a power cut would take. Stays below 2 s with --fsync=everysec: beyond that writers are made "
        "to wait.",
        "s", ("kvstore_unsynced_age_seconds{}", "{{instance}}"), steps=[(2, "orange"), (5, "red")])
    yield graph_panel(
        "Group size",
        "With --fsync=always: connections whose replies one fsync served, the mean and p95. It grows with load; near 1 "
        "under load the clients wait for each other.",
        "none",
        ("rate(kvstore_commit_group_size_sum{}[]) / rate(kvstore_commit_group_size_count{}[])", "mean {{instance}}"),
        (f'clamp_min({quantile(0.95, "kvstore_commit_group_size_bucket", ", instance")}, 1)', "p95 {{instance}}"))
    yield graph_panel(
        "fsyncs",
        "A second; failed ones apart. One a second with everysec and writers, many with always. One failure makes the "
        "store read-only until it is restarted.",
        "ops", ("rate(kvstore_fsync_seconds_count{}[])", "{{instance}}"),
        ("rate(kvstore_fsync_failures_total{}[])", "failed {{instance}}"))
    yield graph_panel(
        "Unsynced bytes",
        "Written, and not known to be on the disk. Rises and falls each second with everysec.",
        "bytes", ("kvstore_unsynced_bytes{}", "{{instance}}"))


def memory():
    yield graph_panel(
        "Memory",
        "own: what a memory limit has to leave room for. resident: with the pages of data files, which the system takes "
        "back when it needs them; it may be large.",
        "bytes", ("kvstore_private_memory_bytes{}", "own {{instance}}"),
        ("process_resident_memory_bytes{}", "resident {{instance}}"), width=6)
    yield graph_panel(
        "Index",
        "Grows with the number of keys, not with their length.",
        "bytes", ("kvstore_index_bytes{}", "{{instance}}"), width=6)
    yield graph_panel(
        "Index per key",
        "At most 24 bytes, from some thousands of keys on.",
        "bytes", ("kvstore_index_bytes{} / (kvstore_keys{} > 0)", "{{instance}}"), width=6)
    yield graph_panel(
        "Processor",
        "Cores in use. Commands run in one thread: at 100 % and above the server has no more to give; worker threads for "
        "the disk come on top.",
        "percentunit", ("rate(process_cpu_seconds_total{}[])", "{{instance}}"), steps=[(0.95, "orange")], width=6)


def disk():
    yield graph_panel(
        "Live and dead",
        "Records that count, and those that were overwritten or deleted and wait for compaction. The line is the size of "
        "the files.",
        "bytes", ("kvstore_live_bytes{}", "live {{instance}}"), ("kvstore_dead_bytes{}", "dead {{instance}}"),
        ("kvstore_disk_bytes{}", "files {{instance}}"))
    yield graph_panel(
        "Overhead",
        "Bytes on disk over bytes that count: at most 115 % once writing has paused. High for an hour: see the alert.",
        "percentunit", (OVERHEAD, "{{instance}}"), steps=[(1.15, "orange")])
    yield graph_panel(
        "Free space",
        "Left on the file system of the data directory. At nothing values are refused, reads and deletes go on.",
        "bytes", ("kvstore_filesystem_free_bytes{}", "free {{instance}}"),
        ("kvstore_filesystem_size_bytes{}", "size {{instance}}"))
    yield graph_panel(
        "Compaction",
        "Bytes a second. It runs by itself when enough is dead, and slowly while clients write.",
        "binBps", *((f"rate(kvstore_compaction_{what}_bytes_total{{}}[])", f"{what} {{{{instance}}}}")
                    for what in ("read", "written", "reclaimed")))
    yield graph_panel(
        "Compactions",
        "Begun in an hour, whether one runs (1), and whether it is behind (1): it makes no pauses then.",
        "none", ("increase(kvstore_compactions_total{}[1h])", "in an hour {{instance}}"),
        ("kvstore_compaction_running{}", "running {{instance}}"), ("kvstore_compaction_behind{}", "behind {{instance}}"))
    yield graph_panel(
        "Time in compaction",
        "Share of the last hour, of compactions that have ended. Near 100 %: the disk is busy with nothing else.",
        "percentunit", ("rate(kvstore_compaction_seconds_total{}[1h])", "{{instance}}"))
    yield graph_panel(
        "Write amplification",
        "Bytes written to the log for each byte that clients wrote, over an hour: 1 without compaction, 2 or 3 with many "
        "overwrites.",
        "none",
        ("1 + increase(kvstore_compaction_written_bytes_total{}[1h]) / (increase(kvstore_written_bytes_total{}[1h]) > 0)",
         "{{instance}}"), width=6)
    yield graph_panel(
        "Written",
        "Bytes of records written for clients, a second.",
        "binBps", ("rate(kvstore_written_bytes_total{}[])", "{{instance}}"), width=6)
    yield graph_panel(
        "Compressed",
        "Size of the values that compaction compressed, over what it was before, since the start. Near 100 %: they do not "
        "compress, --compression=off saves the work.",
        "percentunit",
        ("kvstore_compressed_to_bytes_total{} / (kvstore_compressed_from_bytes_total{} > 0)", "{{instance}}"), width=6)
    yield graph_panel(
        "Segments",
        "Files of the log, of --segment-size each, mapped into memory.",
        "none", ("kvstore_segments{}", "{{instance}}"), width=6)


def recovery():
    for title, metric, unit, steps, description in (
        ("Opening took", "seconds", "s", [(10, "orange"), (60, "red")],
         "Time from the start to serving. Long: much had to be replayed; after a clean stop there is nothing to replay."),
        ("Records replayed", "records", "short", (), "Records that no checkpoint covered. 0 after a clean stop."),
        ("Bytes replayed", "bytes", "bytes", (), "Size of these records."),
        ("Torn", "torn_bytes", "bytes", (), "Cut off at the end of the log: an unfinished write of a crash. No damage."),
        ("Damaged", "damaged_bytes", "bytes", [(1, "red")],
         "Bytes found damaged and copied to quarantine/. Run `kvstore check` and see docs/operations.md."),
        ("Lost keys", "lost_keys", "short", [(1, "red")],
         "Keys whose value was in damaged bytes: a read answers an error until they are written or deleted."),
    ):
        yield stat_panel(title, description, unit, f"kvstore_recovery_{metric}{{}}", steps=steps, width=4)
    yield graph_panel(
        "To be replayed",
        "Bytes of log since the last checkpoint: what an opening after a crash has to read first.",
        "bytes", ("kvstore_replay_bytes{}", "{{instance}}"))
    yield graph_panel(
        "Checkpoints",
        "Written in an hour. With few writes there are none, and none are needed.",
        "none", ("increase(kvstore_checkpoints_total{}[1h])", "{{instance}}"))
    yield graph_panel(
        "Last checkpoint",
        "How long ago. Without one since the start nothing is shown; To be replayed says whether that matters.",
        "s", ("time() - (kvstore_last_checkpoint_timestamp_seconds{} > 0)", "{{instance}}"))


def network():
    yield graph_panel(
        "Connections",
        "Open ones, and the limit: --max-connections or the limit of open files, whichever is less.",
        "none", ("kvstore_connections{}", "open {{instance}}"),
        ("kvstore_max_connections{}", "limit {{instance}}"), width=12)
    yield graph_panel(
        "Come and gone",
        "A second. Many opened: clients that do not keep connections. refused: over --max-connections. idle: silent for "
        "--idle-timeout. paused: out of descriptors, raise the limit of open files.",
        "ops", *((f"rate(kvstore_{metric}_total{{}}[])", f"{word} {{{{instance}}}}") for word, metric in (
            ("opened", "connections_opened"), ("refused", "connections_refused"), ("idle", "connections_idle"),
            ("paused", "accept_pauses"))), width=12)
    yield graph_panel(
        "Network",
        "Bytes of commands and of replies a second.",
        "binBps", ("rate(kvstore_received_bytes_total{}[])", "in {{instance}}"),
        ("rate(kvstore_sent_bytes_total{}[])", "out {{instance}}"), width=12)
    yield graph_panel(
        "Clients held back",
        "Times a second. slow: a client does not take its replies, and is not read until it does. turn: a long pipeline "
        "gave way to others, normal. too long: a command over the limit was dropped.",
        "ops", *((f"rate(kvstore_{metric}_total{{}}[])", f"{word} {{{{instance}}}}") for word, metric in (
            ("slow", "reading_paused"), ("turn", "turns_over"), ("too long", "commands_too_long"))), width=12)


def damage():
    yield graph_panel(
        "Alerts",
        "Which alerts fired, and when.",
        "none", ('sum by (alertname) (ALERTS{alertstate="firing"})', "{{alertname}}"), stacked=True)
    yield graph_panel(
        "Errors by command",
        "A second. `invalid` is what was no command: a client that speaks another protocol. Errors of writes alone: the "
        "disk is full or failed, see State. Of reads: damage.",
        "ops", ('sum by (protocol, command) (rate(kvstore_commands_total{outcome="error"}[]))', "{{protocol}} {{command}}"))
    yield graph_panel(
        "Damaged reads",
        "Reads that met damaged bytes, in an hour; they are answered with an error, never with wrong bytes. Any is one too "
        "many.",
        "none", ("increase(kvstore_damaged_reads_total{}[1h])", "{{instance}}"), steps=[(1, "red")])
    yield graph_panel(
        "Damaged ranges",
        "Stretches of the log that are damaged: found at the opening, and by the scrub since. 0 is normal.",
        "none", ("kvstore_recovery_damaged_ranges{}", "opening {{instance}}"),
        ("kvstore_scrub_damaged_ranges{}", "scrub {{instance}}"), steps=[(1, "red")])
    yield graph_panel(
        "Background failures",
        "Work behind the clients' backs that failed, in an hour; the server's log says why. 0 is normal.",
        "none", ("sum by (work) (increase(kvstore_background_failures_total{}[1h]))", "{{work}}"), steps=[(1, "red")])
    yield graph_panel(
        "Scrub",
        "Bytes that are verified a second: at most 8 MiB, once a day all of the log.",
        "binBps", ("rate(kvstore_scrubbed_bytes_total{}[])", "{{instance}}"))
    yield stat_panel(
        "Last scrub",
        "How long ago all of the log had been verified: about a day, longer for very much data.",
        "s", "time() - kvstore_last_scrub_timestamp_seconds{}", never=NEUTRAL, height=8)


ROWS = {
    "Is it up and healthy?": healthy,
    "Traffic: who asks for what?": traffic,
    "Latency: how long do clients wait?": latency,
    "Durability: what would a power cut take?": durability,
    "Memory and processor": memory,
    "Disk: does the space follow the data?": disk,
    "Recovery: how was the last start, how will the next be?": recovery,
    "Connections and network": network,
    "Errors and damage": damage,
}


def variables():
    yield dashboards.DatasourceVariable("datasource").label("Data source").type("prometheus")
    for name, label, query in (
        ("job", "Job", "label_values(kvstore_build_info, job)"),
        ("instance", "Instance", 'label_values(kvstore_build_info{job=~"$job"}, instance)'),
    ):
        yield (
            dashboards.QueryVariable(name)
            .label(label)
            .datasource(DATASOURCE)
            .query({"query": query, "refId": name})
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            .current(VariableOption(text="All", value="$__all"))
        )


def dashboard():
    """The whole of it, as the library's builder."""
    made = (
        dashboards.Dashboard("kvstore")
        .uid("kvstore")
        .description("A kvstore server, from the top: is it well; if not, which of the rows below says why.")
        .tags(["kvstore"])
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
    )
    for variable in variables():
        made.with_variable(variable)
    numbers = count(1)
    for question, panels in ROWS.items():
        made.with_row(dashboards.Row(question).id(next(numbers)))
        for panel in panels():
            made.with_panel(panel.id(next(numbers)))
    return made


def render():
    """The contents of the file."""
    return JSONEncoder(sort_keys=True, indent=2).encode(dashboard().build()) + "\n"


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
