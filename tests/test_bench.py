"""`kvstore bench` against a real server, against redis-server where there is one, and against small servers that lie."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from unittest import SkipTest, mock

from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from kvnet.bench import run
from kvnet.bench.loadgen import Loop
from kvnet.bench.mix import MIXES, fixed
from kvnet.bench.workload import Workload
from kvnet.cli import main
from kvnet.client import Client
from tests.bench_servers import Server
from tests.daemon import PATIENCE, Daemon, environment
from tests.support import SANITIZED

SMALL = ("--clients=7", "--requests=3000", "--keys=500", "--value-size=40")


def ignore(*progress):
    """Nobody looks at the progress."""


class BenchCase(SynchronousTestCase):
    def daemon(self, *options):
        """A real server with an empty store."""
        directory = self.mktemp()
        os.mkdir(directory)
        daemon = Daemon(directory, "--data-dir=data", *options)
        self.addCleanup(daemon.kill)
        return daemon

    def fake(self, protocol, hook=None):
        server = Server(protocol, hook)
        self.addCleanup(server.close)
        return server

    def bench(self, *words):
        """The exit status and the output of both kinds."""
        done = CliRunner().invoke(main, ["bench", *words])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.output

    def figures(self, *words, status=0):
        """The JSON of a run."""
        code, output = self.bench(*words, "--json")
        self.assertEqual(code, status, output)
        return json.loads(output)

    def operations(self, result, phase="run"):
        """(writes, reads) that were answered."""
        operations = result["phases"][phase]["operations"]
        return tuple(operations.get(name, {"count": 0})["count"] for name in ("write", "read"))


class RealServerTest(BenchCase):
    def test_text(self):
        daemon = self.daemon()
        for pipeline in (1, 16):
            with self.subTest(pipeline):
                result = self.figures(f"--port={daemon.port}", *SMALL, "--load", f"--pipeline={pipeline}")
                self.assertEqual(self.operations(result, "load"), (500, 0))
                self.assertEqual(sum(self.operations(result)), 3000)
                for figures in result["phases"]["run"]["operations"].values():
                    self.assertEqual((figures["misses"], figures["errors"], figures["wrong"]), (0, 0, 0))
        workload = Workload(500, fixed(16, 40))
        with Client("127.0.0.1", daemon.port) as client:
            self.assertEqual(client.keys(), [workload.key(number) for number in range(500)])
            self.assertEqual(client.read(workload.key(123)), workload.value(123))

    def test_mix_threads_and_little_time(self):
        daemon = self.daemon()
        result = self.figures(
            f"--port={daemon.port}", "--mix=pizzaria", "--keys=300", "--load", "--threads=3", "--clients=8",
            "--duration=0.2", "--distribution=80-20", "--pipeline=4")  # fmt: skip
        writes, reads = self.operations(result)
        self.assertTrue(writes and reads, result)
        self.assertEqual(self.operations(result, "load"), (300, 0))
        sizes = Workload(300, MIXES["pizzaria"]).live_bytes()
        self.assertEqual(result["phases"]["load"]["sent_bytes"], sizes + 300 * len(b"write |\r"))
        self.assertEqual(result["phases"]["load"]["received_bytes"], 300 * len(b"success\r"))

    def test_large_values_through_full_sockets(self):
        daemon = self.daemon()
        result = self.figures(
            f"--port={daemon.port}", "--value-size=3000000", "--keys=5", "--load", "--clients=2", "--requests=40",
            "--pipeline=8")  # fmt: skip
        self.assertEqual(sum(self.operations(result)), 40)

    def test_value_that_was_not_written_by_it(self):
        daemon = self.daemon()
        with Client("127.0.0.1", daemon.port) as client:
            client.write("key:000000000003", b"something else")
        code, output = self.bench(
            f"--port={daemon.port}", "--keys=4", "--read-ratio=1", "--requests=400", "--value-size=5", "--clients=3")
        self.assertEqual(code, 1)
        self.assertRegex(output, r"run: \d+ reads gave a wrong value")
        self.assertIn("read of 'key:000000000003': a wrong value of 14 bytes, 'something else'; written were 5, ", output)

    def test_errors_of_the_server(self):
        daemon = self.daemon("--max-value-size=100", "--dialect=escabelo")
        code, output = self.bench(f"--port={daemon.port}", "--value-size=200000", "--read-ratio=0", "--requests=20")
        self.assertEqual(code, 1)
        self.assertIn("run: 20 commands were answered with an error\n  write of 'key:0000000", output)

    def test_misses(self):
        daemon = self.daemon()
        code, output = self.bench(f"--port={daemon.port}", "--read-ratio=1", *SMALL)
        self.assertEqual(code, 0)
        self.assertIn("run: 3,000 reads (100.0%) found no value: --load writes every key before", output)

    def test_ctrl_c_prints_the_results_so_far(self):
        daemon = self.daemon()
        process = subprocess.Popen(
            [sys.executable, "-m", "kvnet", "bench", f"--port={daemon.port}", "--duration=3600", "--json"],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
        self.addCleanup(process.kill)
        with Client("127.0.0.1", daemon.port) as client:
            while len(client.keys()) <= 50:  # more keys than connections: some reply has come
                pass
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE)
        self.assertEqual((process.returncode, errors), (130, ""))
        result = json.loads(output)
        self.assertTrue(result["phases"]["run"]["interrupted"])
        self.assertGreater(sum(self.operations(result)), 0)


class FakeServerTest(BenchCase):
    def test_resp(self):
        server = self.fake("resp")
        result = self.figures("--protocol=resp", f"--port={server.port}", *SMALL, "--load", "--pipeline=3")
        self.assertEqual(sum(self.operations(result)), 3000)
        self.assertEqual(server.answered, 3500)
        workload = Workload(500, fixed(16, 40))
        self.assertEqual(server.data, {workload.key(number): workload.value(number) for number in range(500)})

    def test_the_read_ratio(self):
        server = self.fake("text")
        for ratio, low, high in (("0", 0, 0), ("0.25", 650, 850), ("1", 3000, 3000)):
            writes, reads = self.operations(self.figures(f"--port={server.port}", *SMALL, f"--read-ratio={ratio}"))
            self.assertTrue(low <= reads <= high, (ratio, reads))
            self.assertEqual(writes + reads, 3000)

    def test_the_same_seed_sends_the_same_commands(self):
        def commands(seed):
            seen = []
            server = self.fake("text", lambda number, *command: seen.append(command))
            self.figures(f"--port={server.port}", "--clients=1", "--requests=200", f"--seed={seed}")
            return seen

        self.assertEqual(commands(5), commands(5))
        self.assertNotEqual(commands(5), commands(6))

    def test_liar(self):
        for protocol, lie in (("text", b"some other value\r"), ("resp", b"$16\r\nsome other value\r\n")):
            server = self.fake(protocol, lambda number, *command, lie=lie: lie if number == 700 else None)
            result = self.figures(
                f"--protocol={protocol}", f"--port={server.port}", *SMALL, "--load", "--read-ratio=1", status=1)
            phase = result["phases"]["run"]
            self.assertEqual((phase["operations"]["read"]["wrong"], phase["operations"]["read"]["count"]), (1, 2999))
            self.assertIn("a wrong value of 16 bytes, 'some other value'; written were 40", phase["remarks"][0])

    def test_one_wrong_byte(self):
        def flip(number, word, key, value):
            if number != 600:
                return None
            right = bytearray(server.data[key])
            right[-1] ^= 1
            return bytes(right) + b"\r"

        server = self.fake("text", flip)
        result = self.figures(f"--port={server.port}", *SMALL, "--load", "--read-ratio=1", status=1)
        self.assertEqual(result["phases"]["run"]["operations"]["read"]["wrong"], 1)

    def test_key_lost_after_the_load(self):
        server = self.fake("text", lambda number, *command: b"error\r" if number == 600 else None)
        code, output = self.bench(f"--port={server.port}", *SMALL, "--load", "--read-ratio=1")
        self.assertEqual(code, 1)
        self.assertIn("run: 1 reads (0.0%) found no value: keys were lost", output)

    def test_server_that_goes_away(self):
        for threads in ("1", "3"):
            server = self.fake("text", lambda number, *command: b"" if number > 100 else None)
            code, output = self.bench(f"--port={server.port}", *SMALL, f"--threads={threads}")
            self.assertEqual((code, output.count("\n")), (1, 1), output)
            self.assertRegex(output, rf"\Akvstore: localhost:{server.port} (closed the connection|failed: )")

    def test_last_reply_and_the_end_in_one_segment(self):
        with socket.create_server(("127.0.0.1", 0)) as port:
            client = socket.create_connection(port.getsockname())
            server, _ = port.accept()
        self.addCleanup(client.close)
        self.addCleanup(server.close)
        client.setblocking(False)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        loop = Loop(Workload(10, fixed(16, 10), "uniform"), "text", [client.fileno()], 1, duration=60)
        thread = threading.Thread(target=loop.run)
        thread.start()
        server.recv(1000)
        server.send(b"success\r")
        server.shutdown(socket.SHUT_WR)
        thread.join()
        self.assertEqual((loop.failure, loop.answered), ("closed the connection", 1))

    def test_one_connection_that_is_closed(self):
        server = self.fake("text", lambda number, *command: b"" if number == 100 else None)
        code, output = self.bench(f"--port={server.port}", "--clients=6", "--threads=3", "--duration=3600")
        self.assertEqual((code, output), (1, f"kvstore: localhost:{server.port} closed the connection\n"))

    def test_another_protocol(self):
        server = self.fake("text", lambda *command: b"-ERR what?\r\n")
        code, output = self.bench(f"--port={server.port}", *SMALL, "--read-ratio=0")
        self.assertEqual(code, 1)
        self.assertIn("sent what is no reply of this protocol: b'-ERR what?'", output)

    def test_more_replies_than_commands(self):
        server = self.fake("text", lambda number, *command: b"success\rsuccess\r" if number == 50 else None)
        code, output = self.bench(f"--port={server.port}", *SMALL, "--read-ratio=0", "--clients=1")
        self.assertEqual(code, 1)
        self.assertIn("sent what is no reply of this protocol", output)

    def test_table(self):
        server = self.fake("text")
        code, output = self.bench(f"--port={server.port}", *SMALL, "--load")
        self.assertEqual(code, 0)
        lines = output.split("\n")
        self.assertEqual(lines[0], "latencies in milliseconds")
        self.assertEqual(lines[1].split(), ["operations", "ops/s", "mean", "p50", "p95", "p99", "p99.9", "max"])
        self.assertEqual([line.split("  ")[0] for line in lines[2:5]], ["load: write", "write", "read"])
        for line in lines[2:5]:
            self.assertEqual(len(line.split()[-8:]), 8)
            latencies = [float(cell) for cell in line.split()[-5:]]
            self.assertEqual(latencies, sorted(latencies))
        self.assertRegex(lines[6], r"\Arun: [\d,]+ ops/s in [\d.]+ s; sent [\d.]+ MiB, received [\d.]+ MiB, [\d.]+ MiB/s\Z")

    def test_json(self):
        server = self.fake("text")
        result = self.figures(f"--port={server.port}", *SMALL)
        self.assertEqual(result["version"], 1)
        self.assertEqual(result["target"], {"host": "localhost", "port": server.port, "protocol": "text"})
        self.assertEqual((result["plan"]["clients"], result["plan"]["keys"], result["plan"]["duration"]), (7, 500, None))
        for figures in result["phases"]["run"]["operations"].values():
            self.assertEqual(sum(count for _, count in figures["histogram"]), figures["count"])
            self.assertLessEqual(figures["p50_us"], figures["p99_us"])
            self.assertEqual(figures["histogram"][-1][0], figures["max_us"])


class ReportTest(BenchCase):
    def results(self, *names):
        """Paths of the results of small runs."""
        directory = self.mktemp()
        os.mkdir(directory)
        server = self.fake("text")
        paths = []
        for name in names:
            code, output = self.bench(f"--port={server.port}", "--clients=3", "--requests=300", "--pipeline=2", "--json")
            self.assertEqual(code, 0)
            paths.append(os.path.join(directory, name))
            with open(paths[-1], "w") as file:
                file.write(output)
        return paths

    def test_table(self):
        code, output = self.bench("report", *self.results("one.json", "other.json"))
        self.assertEqual(code, 0)
        lines = output.split("\n")
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:6]]
        self.assertEqual(rows[0], ["run", "what", "operation", "ops/s", "p50", "p95", "p99", "p99.9", "max"])
        self.assertEqual({len(row) for row in rows}, {9})
        self.assertEqual(
            [(row[0], row[2]) for row in rows[2:]],
            [("one", "write"), ("one", "read"), ("other", "write"), ("other", "read")])
        self.assertEqual(rows[2][1], "text, 3 clients x 2, 50% reads, 100,000 keys, uniform, 16 + 256 B")
        self.assertRegex(lines[9], r"\A\* one, run: read: \d+ misses\Z")

    def draws(self):
        if SANITIZED:
            raise SkipTest("matplotlib cannot be imported under the sanitizers")

    def test_page(self):
        self.draws()
        paths = self.results("one.json", "other.json")
        page = os.path.join(os.path.dirname(paths[0]), "page.md")
        code, output = self.bench("report", *paths, f"--output={page}")
        self.assertEqual(code, 0, output)
        with open(page) as file:
            text = file.read()
        self.assertIn("| other | ", text)
        plot = page.replace(".md", ".svg")
        if importlib.util.find_spec("matplotlib") is None:
            self.assertIn("matplotlib is not installed", output)
            self.assertFalse(os.path.exists(plot))
            return
        self.assertIn("(page.svg)", text)
        with open(plot) as file:
            self.assertIn("other: read", file.read())

    def test_page_without_matplotlib(self):
        (path,) = self.results("one.json")
        page = os.path.join(os.path.dirname(path), "page.md")
        with mock.patch.dict(sys.modules, {"matplotlib": None}):
            code, output = self.bench("report", path, f"--output={page}")
        self.assertEqual(
            (code, output),
            (0, f"kvstore: {page} has no plots: matplotlib is not installed (pip install matplotlib)\n"))
        with open(page) as file:
            self.assertNotIn("svg", file.read())

    def test_files_of_the_same_name(self):
        paths = [self.results("one.json")[0] for _ in range(2)]
        code, output = self.bench("report", *paths)
        self.assertEqual((code, [output.count(f"| {path} |") for path in paths]), (0, [2, 2]))

    def test_files_that_are_no_results(self):
        (path,) = self.results("one.json")
        for content, reason in (
            (None, "cannot read .*: No such file or directory"),
            ("{", "is not JSON: "),
            ("[]", "was not written by kvstore bench --json"),
            ('{"version": 1}', "was not written by kvstore bench --json"),
            ('{"version": 9, "plan": {}, "phases": {}, "target": {}}', "is of version 9; this kvstore reads version 1"),
        ):
            bad = os.path.join(os.path.dirname(path), "bad.json")
            if content is not None:
                with open(bad, "w") as file:
                    file.write(content)
            code, output = self.bench("report", path, bad)
            self.assertEqual((code, output.count("\n")), (1, 1), output)
            self.assertRegex(output, f"\\Akvstore: .*{reason}")

    def test_command_lines(self):
        self.assertEqual(self.bench("report")[0], 2)
        code, output = self.bench("--clients=3", "report", "x.json")
        self.assertEqual(code, 2)
        self.assertIn("the options of report stand behind its name", output)

    def test_page_that_cannot_be_written(self):
        self.draws()
        (path,) = self.results("one.json")
        code, output = self.bench("report", path, f"--output={path}/no/page.md")
        self.assertEqual((code, output.count("\n")), (1, 1), output)
        self.assertIn("kvstore: cannot write ", output)


class RedisTest(BenchCase):
    def redis(self):
        """The port of a redis-server that keeps nothing on the disk."""
        program = shutil.which("redis-server")
        if program is None:
            raise SkipTest("redis-server is not installed")
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
        process = subprocess.Popen(
            [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
            stdout=subprocess.PIPE, text=True)  # fmt: skip
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        while "eady to accept connections" not in (line := process.stdout.readline()):
            self.assertTrue(line, "redis-server ended")
        return port

    def test_redis_server(self):
        result = self.figures("--protocol=resp", f"--port={self.redis()}", *SMALL, "--load", "--pipeline=16", "--threads=2")
        self.assertEqual(self.operations(result, "load"), (500, 0))
        self.assertEqual(sum(self.operations(result)), 3000)


class CommandLineTest(BenchCase):
    def refused(self, *words):
        code, output = self.bench(*words)
        self.assertEqual(code, 2, output)
        return output.strip().split("\n")[-1]

    def closed_port(self):
        with socket.create_server(("127.0.0.1", 0)) as listening:
            return listening.getsockname()[1]

    def test_server_that_is_not_there(self):
        port = self.closed_port()
        self.assertEqual(
            self.bench(f"--port={port}"), (1, f"kvstore: cannot connect to localhost:{port}: Connection refused\n"))

    def test_host_that_means_nothing(self):
        code, output = self.bench("--host=a..b", "--port=1")
        self.assertEqual((code, output.count("\n")), (1, 1), output)
        self.assertIn("kvstore: cannot connect to a..b:1: ", output)

    def test_options_that_do_not_go_together(self):
        self.assertIn("--duration and --requests exclude each other", self.refused("--duration=1", "--requests=1"))
        self.assertIn("--mix and --key-size exclude each other", self.refused("--mix=pizzaria", "--key-size=9"))
        self.assertIn("--threads share the clients", self.refused("--clients=2", "--threads=3"))
        self.assertIn("--mix and --value-size exclude each other", self.refused("--mix=pizzaria", "--value-size=9"))

    def test_values_out_of_range(self):
        for words in (["--clients=0"], ["--pipeline=0"], ["--duration=0"], ["--read-ratio=1.1"], ["--mix=x"], ["--keys=0"]):
            self.assertIn("Invalid value", self.refused(*words))
        self.assertIn("keys of 2 bytes tell at most 100 apart", self.refused("--key-size=2"))

    def test_ports(self):
        """Its own option, then that of kvstore or the environment, then the protocol's port."""
        port = self.closed_port()
        runner = CliRunner()
        for words, variables, place in (
            (["bench", "--host=127.0.0.1", f"--port={port}"], {"KVSTORE_PORT": "1"}, f"127.0.0.1:{port}"),
            (["--port", str(port), "bench"], {}, f"localhost:{port}"),
            (["bench", "--protocol=resp"], {"KVSTORE_PORT": str(port)}, f"localhost:{port}"),
            (["bench"], {"KVSTORE_HOST": "a..b"}, "a..b:8080"),
            (["bench", "--protocol=resp"], {"KVSTORE_HOST": "a..b"}, "a..b:6379"),
        ):
            done = runner.invoke(main, words, env=variables)
            self.assertEqual(done.exit_code, 1, done.output)
            self.assertIn(f"cannot connect to {place}: ", done.output)
        done = runner.invoke(main, ["bench"], env={"KVSTORE_PORT": "tcp://x"})
        self.assertEqual(done.exit_code, 2)
        self.assertIn("is not a port", done.output)

    def test_fewer_descriptors_than_clients(self):
        server = self.fake("text")
        code = (
            "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60));"
            "from kvnet.cli import main; main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, "bench", f"--port={server.port}", "--clients=100"],
            env=environment(), capture_output=True, text=True, timeout=PATIENCE)  # fmt: skip
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertRegex(done.stderr, r"\Akvstore: cannot connect to .*: connection \d+ of 100: Too many open files\n\Z")


class FixedRateTest(BenchCase):
    def measure(self, server, **plan):
        """The Phase of a run over one connection."""
        target = run.Target("127.0.0.1", server.port)
        plan = run.Plan(**{"clients": 1, "duration": None, "read_ratio": 0.0, **plan})
        sockets = run.connect(target, plan.clients)
        self.addCleanup(run.disconnect, sockets)
        return run.measure(target, sockets, plan, Workload(100, fixed(16, 10)), ignore)

    def pausing(self, pauses):
        """A server that pauses before its hundredth answer, and appends how long that was, in seconds, to `pauses`."""

        def pause(number, *command):
            if number == 100:
                begun = time.monotonic()
                threading.Event().wait(0.4)
                pauses.append(time.monotonic() - begun)

        return self.fake("text", pause)

    def longer(self, phase, seconds):
        return sum(count for ns, count in phase.tallies[0].latency.buckets() if ns >= seconds * 1e9)

    def test_a_pause_is_charged_to_every_command_that_was_due(self):
        pauses, rate = [], 2000
        phase = self.measure(self.pausing(pauses), requests=1200, rate=rate)
        self.assertEqual(phase.tallies[0].latency.count, 1200)
        # What was due in its first half was answered in no less than the other half. Two: where the half begins and ends.
        self.assertGreaterEqual(self.longer(phase, pauses[0] / 2), min(rate * pauses[0] / 2, 1100) - 2)
        closed = self.longer(self.measure(self.pausing(pauses), requests=1200), pauses[1] / 2)
        self.assertGreaterEqual(closed, 1)
        self.assertLess(closed, rate * pauses[0] / 20)

    def test_the_schedule(self):
        """So many commands as the rate and the time make, shared evenly; never before they are due."""
        times = {}
        server = self.fake("text", lambda number, word, key, value: times.setdefault(number, time.monotonic()) and None)
        begun = time.monotonic()
        phase = self.measure(server, duration=0.5, rate=400, clients=5, threads=2)
        self.assertEqual((phase.tallies[0].latency.count, phase.unsent), (200, 0))
        for number in (50, 100, 150, 200):
            # Both threads keep their own time; each has sent at most one more than its share.
            self.assertGreaterEqual(times[number] - begun, (number - 4) / 400)

    def test_a_rate_that_is_too_high(self):
        server = self.fake("text", lambda *command: threading.Event().wait(0.01) or None)
        phase = self.measure(server, duration=0.2, rate=1000)
        self.assertEqual(phase.tallies[0].latency.count + phase.unsent, 200)
        self.assertGreater(phase.unsent, 0)
