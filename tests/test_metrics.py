"""The table of metrics: what is exported is what it says, in every form, and its document is fresh."""

import importlib.util
from pathlib import Path

from prometheus_client import parser as text_parser
from prometheus_client.openmetrics import parser as openmetrics_parser
from twisted.internet.task import Clock

from kvcore.scrub import Scrub
from kvnet.commit import Commit
from kvnet.exposition import FORMATS, OPENMETRICS, TEXT, Exposition
from kvnet.families import FAMILIES, Collector, Sources
from kvnet.metrics import Metrics
from kvnet.session import Session, command_rows
from kvnet.tap import Options
from kvnet.vitals import Disk
from tests.support import StoreCase

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("metrics_doc", ROOT / "tools" / "metrics_doc.py")
metrics_doc = importlib.util.module_from_spec(spec)
spec.loader.exec_module(metrics_doc)

PARSERS = {
    TEXT: text_parser.text_string_to_metric_families,
    OPENMETRICS: openmetrics_parser.text_string_to_metric_families,
}


class MetricsCase(StoreCase):
    def setUp(self):
        super().setUp()
        options = Options()
        options.parseOptions([])
        self.store = self.open()
        self.metrics = Metrics()
        self.session = Session(self.store, self.metrics, command_rows(self.metrics))
        commit = Commit(self.store, self.metrics, Clock())
        disk = Disk(self.store, self.dir, Clock())
        self.sources = Sources(self.metrics, self.store, Scrub(self.store), commit, disk, options)
        self.collector = Collector(self.sources)
        self.exposition = Exposition(self.collector)

    def samples(self, content_type=OPENMETRICS):
        """What a scraper has: {(name of a sample, *its label values by the labels' names): number}."""
        page = self.exposition.page(content_type).decode()
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in PARSERS[content_type](page)
            for sample in family.samples
        }


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


class PageTests(MetricsCase):
    def test_the_pages_are_those_that_prometheus_client_makes(self):
        self.session.feed(b"write a|1\rread a\rread b\rfoo\r")
        self.metrics.synced(0.001, 3)
        self.sources.process.look = lambda: None
        for content_type, make in FORMATS.items():
            found = self.samples(content_type)
            expected = {
                (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
                for family in PARSERS[content_type](make(self.collector).decode())
                for sample in family.samples
            }
            self.assertEqual(list(found.items()), list(expected.items()))

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

