"""`benchmarks/compare.py`: that every scenario runs and is shown, how servers are started, what ratios and goals mean.

No figure is judged here: the runs are too short to mean anything.
"""

import importlib
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from kvnet import tap
from tests.bench_servers import Server
from tests.daemon import PATIENCE, ROOT, environment

sys.path.append(str(ROOT / "benchmarks"))
figures, goals, scenarios, servers, talk = map(importlib.import_module, ("figures", "goals", "scenarios", "servers", "talk"))

COMPARE = str(ROOT / "benchmarks" / "compare.py")
PROTOCOLS = servers.kvstore().protocols
TWIN = f"{shlex.quote(sys.executable)} -m kvnet serve --data-dir {{dir}} --text {{text}} --metrics off"


class CompareCase(SynchronousTestCase):
    def compare(self, *words, status=0):
        """The output, both kinds together, of a quick run."""
        done = subprocess.run(
            [sys.executable, COMPARE, "--quick", *words], env=environment(), text=True, timeout=4 * PATIENCE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.assertEqual(done.returncode, status, done.stdout)
        self.assertNotIn("Traceback", done.stdout)
        return done.stdout

    def measured(self, *words):
        """(about, samples) of a quick run."""
        path = os.path.abspath(self.mktemp())
        self.compare("--json", path, *words)
        with open(path) as file:
            found = json.load(file)
        return found["about"], found["samples"]


class WholeTests(CompareCase):
    def test_everything_is_measured_and_shown(self):
        about, samples = self.measured("--servers=kvstore")
        self.assertEqual(set(samples), {"kvstore", *(f"kvstore {protocol}" for protocol in PROTOCOLS)})
        measured = {name for found in samples.values() for name in found}
        foreign = {name for name in figures.SHOWN if name.startswith("tool_")}
        self.assertEqual(figures.SHOWN - foreign - measured, set())
        for found in samples.values():
            for name, values in found.items():
                self.assertEqual(len(values), 1, name)
                self.assertTrue(math.isfinite(values[0]), name)
        page = figures.markdown(about, samples, None, goals.markdown("goal", figures.verdicts(about, samples)))
        for title, _, _ in figures.tables(samples):
            self.assertIn(f"\n## {title}\n", page)
        self.assertIn("A quick run", page)
        self.assertNotIn(str(ROOT), page)
        self.assertEqual([line for line in page.splitlines() if "not judged" in line and " met" in line], [])

    def test_a_peer_stands_beside_this_server_where_it_keeps_writes_alike(self):
        about, samples = self.measured("--servers=kvstore", f"--peer=twin={TWIN}", "--only=everysec", "--only=always")
        self.assertIn("write", samples["twin text"])
        self.assertNotIn("always", samples["twin text"])
        self.assertIn("always", samples["kvstore text"])
        self.assertNotIn(os.path.dirname(sys.executable), json.dumps(about))
        self.assertIn("--peer 'twin=python", about["command"])
        _, header, rows = next(figures.tables(samples))
        self.assertIn("kvstore text to twin text", header)
        self.assertTrue(rows[0][-1])

    def test_redis_benchmark_drives_redis(self):
        if not (shutil.which("redis-server") and shutil.which("redis-benchmark")):
            raise SkipTest("redis-server or redis-benchmark is not installed")
        _, samples = self.measured("--servers=redis", "--only=redis-benchmark")
        expected = {f"tool_{word}_{depth}" for word in ("set", "get") for depth in (1, 32)}
        self.assertEqual(set(samples["redis resp"]), expected)

    def test_a_peer_that_ends_is_told_in_one_line(self):
        peer = "--peer=gone=sh -c 'echo no room; exit 3' {text}"
        output = self.compare("--servers=kvstore", peer, "--only=idle", status=1)
        self.assertEqual(output.splitlines()[-1], "Error: gone ended with status 3: no room")


class PeerTests(SynchronousTestCase):
    def test_commands_that_cannot_be_used(self):
        for text, problem in (
            ("sh {text}", "is not NAME=COMMAND"), ("x=", "is not NAME=COMMAND"), ("x=sh", "neither {text} nor {resp}"),
            ("x=sh {text} {port}", "{port} is none of"), ("x=no-such-program {text}", "no program no-such-program")):
            with self.assertRaises(ValueError, msg=text) as caught:
                servers.peer(text)
            self.assertIn(problem, str(caught.exception))

    def test_the_command_line(self):
        peer = servers.peer("x=/bin/sh -c 'a b' --port {resp} --at={dir}/{fsync}")
        self.assertEqual(peer.protocols, ["resp"])
        self.assertEqual(peer.words(resp=7, dir="/d", fsync="no"), ["/bin/sh", "-c", "a b", "--port", "7", "--at=/d/no"])
        self.assertEqual(peer.shown, "sh -c 'a b' --port {resp} --at={dir}/{fsync}")
        self.assertTrue(peer.keeps("always"))
        self.assertFalse(servers.peer("x=sh {text}").keeps("always"))


    def test_this_server_is_measured_by_every_front_end_it_has(self):
        text = next(option for option in tap.OPTIONS if option.name == "text")
        self.patch(tap, "OPTIONS", (text, text._replace(name="resp")))
        self.assertEqual(servers.kvstore().protocols, ["text", "resp"])
        self.patch(tap, "OPTIONS", (text,))
        self.assertEqual(servers.kvstore().protocols, ["text"])


class TalkTests(SynchronousTestCase):
    def answered(self, reply, value, protocol="resp"):
        """Whether a server that gives this reply counts as ready."""
        server = Server(protocol, lambda *command: reply)
        self.addCleanup(server.close)
        return talk.answered(server.port, protocol, b"key", value)

    def test_a_server_that_is_loading_is_not_ready(self):
        self.assertFalse(self.answered(b"-LOADING it takes a while\r\n", b"value"))

    def test_a_server_that_closes_is_not_ready(self):
        self.assertFalse(self.answered(b"", b"value"))

    def test_a_server_that_answers_is(self):
        self.assertTrue(self.answered(b"$5\r\nvalue\r\n", b"value"))
        self.assertTrue(self.answered(b"$-1\r\n", None))
        self.assertTrue(self.answered(b"value\r", b"value", "text"))
        self.assertTrue(self.answered(b"-ERR no such command\r\n", None))
        self.assertTrue(self.answered(b"error\r", None, "text"))

    def test_a_reply_in_parts(self):
        for protocol, reply in (("resp", b"$4\r\n\r\n\r\n\r\n"), ("resp", b"$-1\r\n"), ("text", b"value\r")):
            for end in range(len(reply)):
                self.assertFalse(talk.whole(protocol, reply[:end]), reply[:end])
            self.assertTrue(talk.whole(protocol, reply))

    def test_another_value_is_refused(self):
        for reply, protocol in ((b"$-1\r\n", "resp"), (b"error\r", "text")):
            self.assertRaises(ValueError, self.answered, reply, b"value", protocol)

    def test_no_server_is_not_ready(self):
        self.assertFalse(talk.answered(servers.free_ports(["text"])["text"], "text", b"key", None))


class FigureTests(SynchronousTestCase):
    samples = {
        "kvstore text": {"write": [200.0, 300.0, 100.0], "write_p99": [10.0, 10.0, 40.0], "mix": [100.0], "mix_200": [98.0]},
        "redis resp": {"write": [100.0, 100.0, 100.0], "write_p99": [20.0, 20.0, 20.0]},
    }

    def test_above_one_is_better_for_this_server(self):
        for figure, direction in (("write", figures.MORE), ("write_p99", figures.LESS)):
            self.assertEqual(figures.better(self.samples, "kvstore text", "redis resp", figure, direction), 2.0)

    def test_tables_leave_out_what_nobody_measured(self):
        found = {title: (header, [row[0] for row in rows]) for title, header, rows in figures.tables(self.samples)}
        self.assertEqual(len(found), 2)
        header, titles = found[figures.TABLES[0][0]]
        self.assertEqual(header, ["", "kvstore text", "redis resp", "kvstore text to redis resp"])
        self.assertEqual(len(titles), 3)

    def test_goals_are_judged_by_what_was_measured(self):
        samples = {"kvstore": {"memory": [80e6], "idle": [2e3]}, "pizzakv text": {"mix": [50.0]}, **self.samples}
        words = {verdict.goal: (verdict.measured, verdict.word) for verdict in figures.verdicts({"quick": False}, samples)}
        self.assertEqual(words["1,000,000 keys, values of 100 bytes: <= 75 MB"], ("80 MB", "missed"))
        self.assertEqual(words["an idle connection: <= 20 KB"], ("2 KB", "met"))
        self.assertEqual(words["80/20 mix: 1.3x pizzakv text"], ("2x", "met"))
        self.assertEqual(words["ready after kill -9: <= 600 ms"], ("", "not measured"))
        self.assertEqual(figures.busy(samples, "kvstore text"), 0.98)
        self.assertEqual(
            {verdict.word for verdict in figures.verdicts({"quick": True}, samples)}, {"not judged", "not measured"})
