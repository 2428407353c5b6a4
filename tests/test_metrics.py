"""The table of metrics: what is exported is what it says, in every form, and its document is fresh."""

import gzip
import importlib.util
import os
import shutil
import subprocess
import time
import urllib.request
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from unittest import SkipTest

from prometheus_client import parser as text_parser
from prometheus_client.openmetrics import parser as openmetrics_parser
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

import kvcore
from kvcore.scrub import Scrub
from kvnet.client import Client, ClientError
from kvnet.commit import Commit
from kvnet.exposition import FORMATS, OPENMETRICS, TEXT, Exposition
from kvnet.families import FAMILIES, Collector, Sources
from kvnet.metrics import Metrics
from kvnet.session import Session, command_rows
from kvnet.tap import Options
from kvnet.vitals import Disk
from tests.daemon import PATIENCE, Daemon
from tests.support import StoreCase

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("metrics_doc", ROOT / "tools" / "metrics_doc.py")
metrics_doc = importlib.util.module_from_spec(spec)
spec.loader.exec_module(metrics_doc)

PARSERS = {
    TEXT: text_parser.text_string_to_metric_families,
    OPENMETRICS: openmetrics_parser.text_string_to_metric_families,
}


def samples_of(page, content_type):
    """{(name of a sample, *its label values by the labels' names): number}, in the order of the page."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in PARSERS[content_type](page)
        for sample in family.samples
    }


class MetricsCase(StoreCase):
    def setUp(self):
        super().setUp()
        options = Options()
        options.parseOptions([])
        self.store = self.open()
        self.metrics = Metrics()
        self.session = Session(self.store, self.metrics, command_rows(self.metrics))
        commit = Commit(self.store, self.metrics, Clock(), None, None)
        disk = Disk(self.store, self.dir, Clock())
        self.sources = Sources(self.metrics, self.store, Scrub(self.store), commit, disk, options)
        self.collector = Collector(self.sources)
        self.exposition = Exposition(self.collector)

    def samples(self, content_type=OPENMETRICS):
        """What a scraper has."""
        return samples_of(self.exposition.page(content_type).decode(), content_type)


class TableTests(MetricsCase):
    def test_names_follow_the_conventions(self):
        names = [family.name for family in FAMILIES]
        self.assertEqual(sorted(set(names)), sorted(names))
        for family in FAMILIES:
            self.assertRegex(family.name, "^(kvstore|process)_[a-z_]+$")
            self.assertEqual(family.name.endswith("_total"), family.kind == "counter", family.name)
            self.assertEqual(family.name.endswith("_info"), family.kind == "info", family.name)
            self.assertRegex(family.meaning, r"^[A-Z0-9][^\n|]*\.$")
            self.assertEqual(bool(family.bounds), family.kind == "histogram", family.name)

    def test_document_is_fresh(self):
        self.assertEqual(
            (ROOT / "docs" / "metrics.md").read_text("utf-8"), metrics_doc.render(), "run python tools/metrics_doc.py")

    def test_every_row_is_exported_as_what_it_is(self):
        kinds = {"info": "gauge"}
        found = {
            (family.name + "_total" * (family.type == "counter"), family.type, family.documentation)
            for family in PARSERS[TEXT](self.exposition.page(TEXT).decode())
        }
        self.assertEqual(found, {
            (family.name, kinds.get(family.kind, family.kind), family.meaning) for family in FAMILIES})
        found = {
            (family.name, family.type, family.unit, family.documentation)
            for family in PARSERS[OPENMETRICS](self.exposition.page(OPENMETRICS).decode())
        }
        self.assertEqual(found, {
            (family.name.removesuffix("_total").removesuffix("_info"), family.kind, family.unit, family.meaning)
            for family in FAMILIES})

    def test_every_label_set_is_there_from_the_start(self):
        found = self.samples()
        for protocol, command in self.metrics.commands:
            for outcome in ("ok", "miss", "error"):
                self.assertEqual(found["kvstore_commands_total", command, outcome, protocol], 0)
            self.assertEqual(found["kvstore_command_seconds_count", command, protocol], 0)
        self.assertIn(("text", "invalid"), self.metrics.commands)
        for family in FAMILIES:
            for labels in family.series(self.sources):
                self.assertEqual(len(labels), len(family.labels), family.name)
        before = found.keys()
        self.session.feed(b"write a|1\rread a\rread b\rfoo\r")
        self.metrics.synced(0.001, 3)
        self.metrics.failed("scrub")
        self.assertEqual(self.samples().keys(), before)


class CompletenessTests(MetricsCase):
    """Each thing that is counted has its own number on the page, once."""

    def assertShown(self, things):
        """These numbers, all different, are on the page."""
        numbers = [family.read(self.sources) for family in FAMILIES if not family.labels and not family.bounds]
        self.assertEqual(sorted(number for number in numbers if number in things.values()), sorted(things.values()))

    def test_counters(self):
        members = {name for name in vars(Metrics) if type(getattr(self.metrics, name)) in (int, float)}
        counters = {name: 1000 + number for number, name in enumerate(sorted(members))}
        for name, number in counters.items():
            setattr(self.metrics, name, number)
        self.assertGreater(len(counters), 10)
        self.assertShown(counters)

    def test_figures_of_the_store(self):
        figures = {name: 1000 + number for number, name in enumerate(self.store.stats())}
        self.sources.stats = figures
        del figures["flushes"]  # for the engine's own tests
        self.assertShown(figures)

    def test_what_opening_found(self):
        found = {name: 1000 + number for number, name in enumerate(self.store.recovery)}
        for name in ("messages", "checkpoint", "segments"):  # the log tells them; kvstore_segments is what there is now
            del found[name]
        self.sources.store = SimpleNamespace(recovery=found, state="ok")
        self.sources.commit = SimpleNamespace(unsynced_age=0)
        self.sources.stats = defaultdict(int)
        self.assertShown(found)

    def test_the_process_is_looked_at_for_each_page(self):
        looks = []
        self.sources.process.look = lambda: looks.append(True)
        self.exposition.page(TEXT)
        self.exposition.page(TEXT)
        self.assertEqual(len(looks), 2)


class ServerTests(SynchronousTestCase):
    """A real server, scraped as Prometheus does it."""

    def setUp(self):
        directory = os.path.abspath(self.mktemp())
        os.makedirs(directory)
        self.began = time.time()
        self.daemon = Daemon(directory, "--data-dir=data", "--fsync=always", "--max-connections=123")
        self.addCleanup(self.daemon.kill)

    def scrape(self, **headers):
        """The headers and the body of the page."""
        host, port = self.daemon.addresses["metrics"][0]
        with urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/metrics", headers=headers)) as answer:
            return answer.headers, answer.read()

    def test_what_was_done_is_told(self):
        with Client("127.0.0.1", self.daemon.port) as client:
            client.write("a", b"1")
            client.read("a")
            self.assertRaises(ClientError, client.read, "b")
        headers, body = self.scrape(**{
            "Accept": "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3",
            "Accept-Encoding": "gzip"})
        self.assertEqual((headers["Content-Type"], headers["Content-Encoding"]), (OPENMETRICS, "gzip"))
        found = samples_of(gzip.decompress(body).decode(), OPENMETRICS)
        for name, *labels, number in (
            ("kvstore_keys", 1),
            ("kvstore_commands_total", "write", "ok", "text", 1),
            ("kvstore_commands_total", "read", "miss", "text", 1),
            ("kvstore_fsync_seconds_count", 1),
            ("kvstore_unsynced_age_seconds", 0),
            ("kvstore_max_connections", 123),
            ("kvstore_connections_opened_total", 1),
        ):
            self.assertEqual(found[name, *labels], number, name)
        self.assertIn(kvcore.__version__, next(labels for name, *labels in found if name == "kvstore_build_info"))
        self.assertIn("always", next(labels for name, *labels in found if name == "kvstore_options_info"))
        space = os.statvfs(".")
        self.assertEqual(found["kvstore_filesystem_size_bytes",], space.f_blocks * space.f_frsize)
        self.assertGreater(found["kvstore_private_memory_bytes",], 1 << 20)
        # The kernel counts it in hundredths of a second.
        self.assertTrue(self.began - 1 < found["process_start_time_seconds",] <= time.time())

    def test_promtool_has_nothing_to_say(self):
        if shutil.which("promtool") is None:
            raise SkipTest("needs promtool (Debian: prometheus)")
        done = subprocess.run(
            ["promtool", "check", "metrics"], input=self.scrape()[1], capture_output=True, timeout=PATIENCE, check=False)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, b"", b""))


class PageTests(MetricsCase):
    def test_the_pages_are_those_that_prometheus_client_makes(self):
        self.session.feed(b"write a|1\rread a\rread b\rfoo\r")
        self.metrics.synced(0.001, 3)
        self.sources.process.look = lambda: None
        for content_type, make in FORMATS.items():
            expected = samples_of(make(self.collector).decode(), content_type)
            self.assertEqual(list(self.samples(content_type).items()), list(expected.items()))

    def test_numbers_are_those_of_the_server(self):
        self.session.feed(b"write a|1\rwrite a|2\rread a\rread b\rfoo\r")
        self.metrics.synced(0.001, 3)
        self.metrics.synced(0.1, 1)
        self.metrics.lagged(0.02)
        self.metrics.failed("scrub")
        self.sources.disk.free_bytes = 5 << 40
        found = self.samples()
        for name, *labels, number in (
            ("kvstore_keys", 1),
            ("kvstore_commands_total", "write", "ok", "text", 2),
            ("kvstore_commands_total", "read", "ok", "text", 1),
            ("kvstore_commands_total", "read", "miss", "text", 1),
            ("kvstore_commands_total", "read", "error", "text", 0),
            ("kvstore_commands_total", "invalid", "error", "text", 1),
            ("kvstore_command_seconds_count", "write", "text", 2),
            ("kvstore_command_seconds_bucket", "write", "+Inf", "text", 2),
            ("kvstore_fsync_seconds_bucket", "0.001024", 1),
            ("kvstore_fsync_seconds_count", 2),
            ("kvstore_fsync_seconds_sum", 0.101),
            ("kvstore_commit_group_size_bucket", "1.0", 1),
            ("kvstore_commit_group_size_sum", 4),
            ("kvstore_reactor_lag_seconds_bucket", "0.01", 0),
            ("kvstore_reactor_lag_seconds_bucket", "0.025", 1),
            ("kvstore_background_failures_total", "maintenance", 0),
            ("kvstore_background_failures_total", "scrub", 1),
            ("kvstore_filesystem_free_bytes", 5 << 40),
            ("kvstore_state", "ok", 1),
            ("kvstore_state", "read-only", 0),
            ("kvstore_max_connections", 10_000),
        ):
            self.assertEqual(found[name, *labels], number, name)

