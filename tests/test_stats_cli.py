"""`kvstore stats`: the table and its figures, on a terminal and in a pipe, against played metrics and a real server."""

import json
import math
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

from kvnet import figures
from kvnet.client import Client
from kvnet.families import FAMILIES
from tests.daemon import PATIENCE, Daemon, environment, run
from tests.test_health import PagesCase

COUNTED = """\
# TYPE kvstore_commands counter
kvstore_commands_total{protocol="text",command="read",outcome="ok"} %d
kvstore_commands_total{protocol="text",command="read",outcome="miss"} 5
kvstore_commands_total{protocol="text",command="write",outcome="ok"} 0
# TYPE kvstore_command_seconds histogram
kvstore_command_seconds_bucket{protocol="text",command="read",le="0.001"} %d
kvstore_command_seconds_bucket{protocol="text",command="read",le="0.002"} %d
kvstore_command_seconds_bucket{protocol="text",command="read",le="+Inf"} %d
# TYPE kvstore_keys gauge
kvstore_keys 1234567.0
# TYPE kvstore_build info
kvstore_build_info{version="9.8.7"} 1.0
"""


def look(text, at=0.0):
    return figures.Look(text, at)


class FigureTests(PagesCase):
    def test_units(self):
        for function, cases in (
            (figures.size, {0: "0 B", 1023: "1,023 B", 1024: "1.00 KiB", 12.3 * 2**20: "12.3 MiB", 5e15: "4.44 PiB"}),
            (figures.count, {0: "0", 999_999: "999,999", 1_234_567: "1.23 M", 25e9: "25.0 G"}),
            (figures.seconds, {0: "0 s", 15e-6: "15 us", 1.55e-5: "15.5 us", 0.0123: "12.3 ms", 1: "1 s", 2.5: "2.50 s"}),
            (figures.duration, {0: "0 s", 59.9: "59 s", 60: "1 min", 3 * 3600 + 120: "3 h 2 min", 90_000: "1 d 1 h"}),
        ):
            for value, shown in cases.items():
                self.assertEqual(function(value), shown)
            self.assertEqual(function(math.nan), "-")
        self.assertEqual(figures.ago(0), "never")
        self.assertEqual([figures.percent(*two) for two in ((1, 2), (1, 0), (math.nan, 1))], ["50.0 %", "-", "-"])

    def test_sums_over_labels(self):
        one = look(COUNTED % (10, 1, 2, 2))
        self.assertEqual(one.total("kvstore_commands_total"), 15)
        self.assertEqual(one.total("kvstore_commands_total", outcome="miss"), 5)
        self.assertTrue(math.isnan(one.total("kvstore_nothing")))

    def test_rates(self):
        before, after = look(COUNTED % (10, 1, 2, 2), 5), look(COUNTED % (30, 1, 2, 2), 9)
        self.assertEqual(figures.rate(after, before, "kvstore_commands_total", command="read"), 5)
        self.assertTrue(math.isnan(figures.rate(after, None, "kvstore_commands_total")))
        self.assertTrue(math.isnan(figures.rate(before, after, "kvstore_commands_total")), "the server began anew")

    def test_quantiles(self):
        name = "kvstore_command_seconds"
        first, second = look(COUNTED % (10, 100, 100, 100)), look(COUNTED % (10, 100, 200, 201))
        self.assertAlmostEqual(figures.quantile(first, None, 0.5, name), 0.0005)
        self.assertAlmostEqual(figures.quantile(second, first, 0.5, name), 0.001505)
        self.assertAlmostEqual(figures.quantile(second, first, 1, name), 0.002)
        self.assertTrue(math.isnan(figures.quantile(first, first, 0.5, name)))
        self.assertTrue(math.isnan(figures.quantile(first, None, 0.5, "kvstore_nothing")))

    def test_every_metric_named_is_one_of_the_server(self):
        known = {family.name for family in FAMILIES}
        source = (Path(figures.__file__).parent / "figures.py").read_text("utf-8")
        named = set(re.findall(r'"((?:kvstore|process)_\w+)"', source))
        self.assertGreater(len(named), 20)
        self.assertEqual({name.removesuffix("_count") for name in named} - known, set())

    def test_as_many_columns_as_there_is_room_for(self):
        one = look(COUNTED % (10, 1, 2, 2))
        for width, most, lines in ((1, 38, 70), (79, 80, 36), (80, 80, 36), (120, 118, 26)):
            table = figures.table(one, None, width)
            self.assertLessEqual(max(map(len, table)), most)
            self.assertLess(len(table), lines)
            for title, *_ in figures.GROUPS:
                self.assertEqual(sum(bool(re.search(rf"(^| {{2}}){title}\b", line)) for line in table), 1, title)

    def test_commands_are_told_with_their_front_end_when_there_are_two(self):
        text = COUNTED % (10, 1, 2, 2)
        self.assertIn("  read                   15", figures.table(look(text), None, 1))
        text = text.replace('text",command="write",outcome="ok"} 0', 'resp",command="GET",outcome="ok"} 3')
        table = figures.table(look(text), None, 1)
        self.assertIn("  text read              15", table)
        self.assertIn("  resp GET                3", table)


class CommandTests(PagesCase):
    def metrics(self, text=COUNTED % (10, 1, 2, 2), ready=(200, "ok\n")):
        return self.serve({"/readyz": ready, "/metrics": (200, text)})

    def test_table_in_a_pipe(self):
        port = self.metrics(ready=(503, "read-only: fdatasync failed\n"))
        status, out, err = self.kvstore("stats", f"--metrics={port}")
        self.assertEqual((status, err), (0, ""))
        self.assertEqual(out.split("\n")[:2], [f"kvstore 9.8.7 at localhost:{port}: read-only: fdatasync failed", ""])
        self.assertIn("\n  keys               1.23 M\n", out)
        self.assertNotIn("\x1b", out)
        self.assertNotIn("nan", out)

    def test_json_is_by_metric_name(self):
        port = self.metrics()
        status, out, _ = self.kvstore("stats", "--json", f"--metrics={port}")
        self.assertEqual((status, out.count("\n")), (0, 1))
        figures = json.loads(out)
        self.assertEqual((figures["state"], figures["kvstore_keys"]), ("ok", 1234567))
        self.assertIn(
            {"protocol": "text", "command": "read", "outcome": "miss", "value": 5}, figures["kvstore_commands_total"])

    def test_another_host(self):
        port = self.metrics()
        for words in (["--host=127.0.0.1", "stats"], ["--host=x.invalid", "stats", "--host=127.0.0.1"]):
            self.assertIn(f" at 127.0.0.1:{port}: ok\n", self.kvstore(*words, f"--metrics={port}")[1])

    def test_servers_that_cannot_be_asked(self):
        for port, part in (
            (1, "Connection refused"),
            (self.serve({"/readyz": (200, "ok\n"), "/metrics": (404, "")}), "answers 404 to /metrics"),
            (self.metrics("what is {this"), "cannot be read"),
        ):
            for more in ([], ["--watch"], ["--json"]):
                status, out, err = self.kvstore("stats", f"--metrics={port}", *more)
                self.assertEqual((status, out), (1, ""))
                self.assertRegex(err, r"\Akvstore: [^\n]+\n\Z")
                self.assertIn(part, err)

    def test_wrong_words_are_status_2(self):
        for words in (["--metrics=off"], ["--metrics=x"], ["--watch=0"], ["--watch", "x"], ["more"]):
            status, out, err = self.kvstore("stats", *words)
            self.assertEqual((status, out), (2, ""), words)
            self.assertNotIn("Traceback", err)

    def test_help_names_the_variable(self):
        self.assertIn("KVSTORE_METRICS", self.kvstore("stats", "--help")[1])
        self.assertIn("\n  stats ", self.kvstore("--help")[1])


class RealServerTests(PagesCase):
    def setUp(self):
        self.directory = os.path.abspath(self.mktemp())
        os.makedirs(self.directory)
        self.daemon = Daemon(self.directory, "--fsync=always")
        self.addCleanup(self.daemon.kill)
        self.words = [sys.executable, "-m", "kvnet", "stats", f"--metrics={self.daemon.addresses['metrics'][0][1]}"]
        with Client("127.0.0.1", self.daemon.port) as client:
            client.write("a", b"1")
            client.read("a")

    def start(self, *words, **streams):
        process = subprocess.Popen([*self.words, *words], env=environment(), **streams)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        watchdog = threading.Timer(PATIENCE, process.kill)
        watchdog.start()
        self.addCleanup(watchdog.cancel)
        return process

    def test_every_figure_is_known(self):
        status, out, err = run(self.directory, *self.words)
        self.assertEqual((status, err), (0, ""))
        self.assertEqual([line for line in out.split("\n") if line.endswith(" -")], [])
        self.assertNotIn("nan", out)

    def test_watch_in_a_pipe(self):
        process = self.start("--watch=0.1", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        lines = iter(process.stdout.readline, "")
        for part in ("traffic               total\n", "traffic               total   a second\n"):
            self.assertIn(part, lines)
        self.daemon.process.send_signal(signal.SIGKILL)
        self.daemon.wait()
        self.assertRegex(process.stderr.readline(), r"\Akvstore: cannot ask the monitoring port \S+: Connection refused\n\Z")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        self.assertEqual(process.returncode, 0)
        self.assertNotIn("Traceback", err)
        self.assertNotIn("\x1b", out)

    def test_watch_as_json_is_a_line_for_each_look(self):
        process = self.start("--watch=0.1", "--json", stdout=subprocess.PIPE, text=True)
        for _ in range(2):
            self.assertEqual(json.loads(process.stdout.readline())["kvstore_keys"], 1)
        process.send_signal(signal.SIGINT)
        process.communicate()
        self.assertEqual(process.returncode, 0)

    def test_watch_on_a_terminal_is_in_place(self):
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        process = self.start("--watch=0.1", stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        os.close(theirs)
        shown = b""
        while shown.count(b"\x1b[J") < 3:
            shown += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        try:
            while more := os.read(ours, 65536):
                shown += more
        except OSError:
            pass  # its side is closed
        self.assertEqual(process.wait(), 0)
        self.assertNotIn(b"Traceback", shown)
        first, second, *_ = shown.split(b"\x1b[J")
        up = int(re.match(rb"\x1b\[(\d+)F", second)[1])
        self.assertEqual(up, first.count(b"\n"))
        self.assertLess(up, 24)
        self.assertIn(b"more lines need a higher terminal", first)
