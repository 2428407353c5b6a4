"""The server as a process: how it is started from a shell, what it prints, how it ends."""

import contextlib
import os
import select
import signal
import socket
import sys
import tempfile
import urllib.request
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from kvnet import tap
from kvnet.client import Client
from tests.daemon import KVSTORE_SERVE, PATIENCE, TWISTD, TWISTD_FOREGROUND, Daemon, run


class ProcessTests(SynchronousTestCase):
    """The whole thing, as it is started from a shell."""

    def setUp(self):
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir(parents=True)

    def start(self, *options, **settings):
        daemon = Daemon(self.directory, *options, **settings)
        self.addCleanup(daemon.kill)
        return daemon

    def files(self):
        return sorted(path.name for path in self.directory.iterdir())

    def assertOneLine(self, result, *parts):
        """Status 1, and one line about it."""
        status, _, err = result
        self.assertEqual(status, 1, err)
        self.assertRegex(err, r"\Akvstore: [^\n]+\n\Z")
        for part in parts:
            self.assertIn(part, err)

    def test_serves_on_both_families_and_stops_cleanly(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            for command in (TWISTD_FOREGROUND, KVSTORE_SERVE):
                daemon = self.start(command=command)
                self.assertEqual([host for host, _ in daemon.addresses["text"]], ["127.0.0.1", "::1"])
                for host, port in daemon.addresses["text"]:
                    with Client(host, port) as client:
                        client.write("k", b"v")
                        self.assertEqual(client.read("k"), b"v")
                status, out, err = daemon.stop(number)
                self.assertEqual((status, err), (0, ""), out)
                self.assertIn("kvstore stopped\n", out)
                self.assertEqual(self.files(), ["data"])

    def test_what_was_written_is_there_after_a_restart(self):
        daemon = self.start()
        with Client("127.0.0.1", daemon.port) as client:
            client.write("k", b"v")
        daemon.stop()
        daemon = self.start()
        self.assertIn(" 1 keys, ", daemon.output)
        with Client("127.0.0.1", daemon.port) as client:
            self.assertEqual(client.keys(), [b"k"])

    def test_monitoring(self):
        host, port = self.start().addresses["metrics"][0]
        for path, part in (("metrics", b"kvstore_"), ("healthz", b"ok\n"), ("readyz", b"ok\n")):
            with urllib.request.urlopen(f"http://{host}:{port}/{path}", timeout=60) as answer:
                self.assertIn(part, answer.read())

    def test_requests_are_not_logged(self):
        daemon = self.start()
        host, port = daemon.addresses["metrics"][0]
        urllib.request.urlopen(f"http://{host}:{port}/healthz", timeout=60).close()
        with Client("127.0.0.1", daemon.port) as client:
            client.status()
        self.assertNotIn("healthz", daemon.stop()[1])

    def test_stops_while_clients_are_connected(self):
        daemon = self.start()
        with socket.create_connection(("127.0.0.1", daemon.port)) as idle, Client("::1", daemon.port) as busy:
            busy.status()
            status, out, err = daemon.stop()
            self.assertEqual((status, err), (0, ""), out)
            self.assertEqual(idle.recv(1), b"")

    def test_what_was_read_is_answered_before_the_stop(self):
        daemon = self.start("--fsync=always")
        with socket.create_connection(("127.0.0.1", daemon.port)) as client, client.makefile("rb") as replies:
            client.sendall(b"write k|v\r" * 500)
            self.assertEqual(replies.read(8), b"success\r")
            self.assertEqual(daemon.stop()[0], 0)
            self.assertEqual(replies.read(), b"success\r" * 499)

    def test_a_second_signal_changes_nothing(self):
        daemon = self.start()
        with socket.create_connection(("127.0.0.1", daemon.port)):
            daemon.process.send_signal(signal.SIGTERM)
            status, out, err = daemon.stop(signal.SIGINT)
        self.assertEqual((status, err), (0, ""), out)
        self.assertNotIn("Traceback", out)

    def test_a_signal_that_comes_before_twisted_is_there(self):
        program = (
            "import os, signal, sys\n"
            "class Sender:\n"
            "    def find_spec(self, name, *more):\n"
            "        if name == 'twisted.scripts': os.kill(os.getpid(), signal.{})\n"
            "sys.meta_path.insert(0, Sender())\n"
            "from kvnet.cli import main; main(['serve', '--text=0', '--metrics=off'])"
        )
        for name in ("SIGTERM", "SIGINT"):
            self.assertEqual(run(self.directory, sys.executable, "-c", program.format(name)), (0, "", ""))
        self.assertEqual(self.files(), [])

    def test_a_signal_in_the_first_moment(self):
        """When the reactor has put its own handlers in place, and ours do not stand yet."""
        program = (
            "import os, signal, sys; from twisted.internet import reactor; from twisted.scripts import twistd; "
            "reactor.addSystemEventTrigger('during', 'startup', os.kill, os.getpid(), signal.SIGTERM); twistd.run()")
        words = ["--nodaemon", "--pidfile=", "kvstore", "--text=0", "--metrics=off"]
        status, out, err = run(self.directory, sys.executable, "-c", program, *words)
        self.assertEqual((status, err), (0, ""))
        self.assertIn("kvstore stopped\n", out)

    def test_systemd_is_told_when_it_serves(self):
        # The name of a socket is 107 bytes at most: not the test's own directory.
        short = tempfile.TemporaryDirectory()
        self.addCleanup(short.cleanup)
        for place in (os.path.join(short.name, "ready"), f"@kvstore-test-{os.getpid()}"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.bind(place.replace("@", "\0"))
                manager.settimeout(PATIENCE)
                self.patch(os, "environ", {**os.environ, "NOTIFY_SOCKET": place})
                daemon = self.start()
                self.assertEqual(manager.recv(100), b"READY=1")
                self.assertEqual(daemon.stop()[0], 0)

    def test_systemd_that_cannot_be_told(self):
        for place, reason in (("/no/such/socket", "No such file or directory"), ("/" + 107 * "x", "AF_UNIX path too long")):
            self.patch(os, "environ", {**os.environ, "NOTIFY_SOCKET": place})
            status, out, err = self.start().stop()
            self.assertEqual((status, err), (0, ""), out)
            self.assertIn(f"{place}, which NOTIFY_SOCKET names, was not told: {reason}\n", out)

    def test_directory_of_another_server(self):
        daemon = self.start()
        for command in (TWISTD_FOREGROUND, KVSTORE_SERVE):
            command = [word.replace("twistd.pid", "other.pid") for word in command]
            self.assertOneLine(
                run(self.directory, *command, "--text=0", "--metrics=off"), str(daemon.process.pid)
            )
        self.assertEqual(self.files(), ["data", "twistd.pid"])

    def test_port_of_another_program(self):
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            for command in (TWISTD_FOREGROUND, KVSTORE_SERVE):
                self.assertOneLine(
                    run(self.directory, *command, f"--text={port}", "--metrics=off"),
                    f"127.0.0.1:{port}",
                    "--text",
                )
        self.assertEqual(self.files(), [])

    def test_directory_that_cannot_be_made(self):
        (self.directory / "data").write_bytes(b"a file")
        self.assertOneLine(run(self.directory, *TWISTD_FOREGROUND, "--text=0", "--metrics=off"), "data")
        self.assertEqual(self.files(), ["data"])

    def test_directory_of_something_else(self):
        (self.directory / "data").mkdir()
        (self.directory / "data" / "photo.jpg").write_bytes(b"a photo")
        self.assertOneLine(run(self.directory, *TWISTD_FOREGROUND, "--text=0", "--metrics=off"), "photo.jpg")
        self.assertEqual(self.files(), ["data"])
        self.assertEqual([path.name for path in (self.directory / "data").iterdir()], ["photo.jpg"])

    def test_wrong_options(self):
        for command in (TWISTD_FOREGROUND, KVSTORE_SERVE):
            status, out, err = run(self.directory, *command, "--bogus")
            self.assertEqual((status, out), (2, ""))
            self.assertRegex(err, r"\Akvstore: [^\n]*--bogus[^\n]*\n\Z")
            status, out, err = run(self.directory, *command, KVSTORE_FSYNC="maybe")
            self.assertEqual((status, out), (2, ""))
            self.assertRegex(err, r"\Akvstore: KVSTORE_FSYNC: [^\n]*\n\Z")
        self.assertEqual(self.files(), [])

    def test_help_is_the_same_for_both_commands(self):
        helps = [run(self.directory, *command, "--help") for command in (TWISTD_FOREGROUND, KVSTORE_SERVE)]
        self.assertEqual(helps[0], helps[1])
        self.assertEqual(helps[0], (0, tap.help_text() + "\n", ""))

    def test_daemon(self):
        """Its parent returns when it serves, and it ends cleanly on SIGTERM."""
        options = ["--pidfile=x.pid", "--logfile=x.log", "kvstore", "--text=unix:x.sock", "--metrics=off"]
        self.assertEqual(run(self.directory, *TWISTD, *options), (0, "", ""))
        pid = int((self.directory / "x.pid").read_text())
        waiting = os.pidfd_open(pid)
        self.addCleanup(os.close, waiting)
        self.addCleanup(self.kill, waiting)
        self.assertIn("text on unix:x.sock", (self.directory / "x.log").read_text())
        self.assertOneLine(run(self.directory, *TWISTD_FOREGROUND, "--text=0", "--metrics=off"), str(pid))

        signal.pidfd_send_signal(waiting, signal.SIGTERM)
        self.wait_for_end(waiting)
        self.assertEqual(self.files(), ["data", "x.log"])

    def test_daemon_that_cannot_start(self):
        daemon = self.start()
        options = ["--pidfile=x.pid", "--logfile=x.log", "kvstore", "--text=0", "--metrics=off"]
        result = run(self.directory, *TWISTD, *options)
        self.assertOneLine(result, str(daemon.process.pid))
        self.assertEqual(self.files(), ["data", "twistd.pid", "x.log"])
        self.assertIn(result[2].removeprefix("kvstore: "), (self.directory / "x.log").read_text())

    def kill(self, process):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)

    def wait_for_end(self, process):
        poll = select.poll()
        poll.register(process, select.POLLIN)
        self.assertTrue(poll.poll(60_000), "the daemon does not end")
