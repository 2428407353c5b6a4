"""`kvstore health` and the words that lead it to the server, against pages that are played and against real servers."""

import http.server
import os
import signal
import socket
import sys
import threading

from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from kvnet import health, places
from kvnet.cli import main
from tests.daemon import Daemon, run


class PagesCase(SynchronousTestCase):
    """Plays a monitoring port."""

    def serve(self, pages):
        """The port of a server that answers with {path: (status, text)}."""

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                status, text = pages[self.path]
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *words):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        return server.server_address[1]

    def kvstore(self, *words, **environment):
        """The status, standard output and standard error of a command."""
        result = CliRunner(env={"KVSTORE_METRICS": "", "KVSTORE_TEXT": ""}).invoke(
            main, words, env=environment, prog_name="kvstore")
        self.assertTrue(result.exception is None or isinstance(result.exception, SystemExit), result.exception)
        return result.exit_code, result.stdout, result.stderr


class PlaceTests(SynchronousTestCase):
    def test_words_of_the_options(self):
        for words, place in (
            ("8080", ("localhost", 8080)),
            ("tcp:8080", ("localhost", 8080)),
            ("tcp:port=8080", ("localhost", 8080)),
            ("tcp:8080:interface=0.0.0.0", ("localhost", 8080)),
            ("tcp:8080:interface=\\:\\:", ("localhost", 8080)),
            ("tcp6:8080:interface=fe80\\:\\:1:backlog=5", ("fe80::1", 8080)),
            ("tcp:8080:10.0.0.5", ("10.0.0.5", 8080)),
            ("unix:/run/kv.sock:mode=660", "/run/kv.sock"),
            ("unix:address=/a\\:b\\\\", "/a:b\\"),
            ("off", None),
        ):
            self.assertEqual(places.find(words), place, words)

    def test_another_host_goes_before_the_interface(self):
        for words in ("9464", "tcp:9464:interface=0.0.0.0", "tcp:9464:interface=127.0.0.1"):
            self.assertEqual(places.find(words, "kvstore"), ("kvstore", 9464))

    def test_words_that_lead_nowhere(self):
        for words in ("", "0", "65536", "http", "-1", "\u0661", "ssl:1", "tcp:", "tcp:x", "unix:", "systemd:domain=INET"):
            self.assertRaises(ValueError, places.find, words)

    def test_places_for_people(self):
        shown = [places.show(place) for place in (("localhost", 1), ("::1", 1), "/run/x")]
        self.assertEqual(shown, ["localhost:1", "[::1]:1", "unix:/run/x"])


class HealthTests(PagesCase):
    def assertUnhealthy(self, result, part):
        """Status 1, and a line that says why."""
        status, out, err = result
        self.assertEqual((status, out), (1, ""))
        self.assertRegex(err, r"\Akvstore: [^\n]+\n\Z")
        self.assertIn(part, err)

    def test_ready(self):
        port = self.serve({"/readyz": (200, "ok\n")})
        for words, environment in (
            ([f"--metrics={port}"], {}),
            ([f"--metrics=tcp:{port}:interface=127.0.0.1"], {}),
            ([], {"KVSTORE_METRICS": f"tcp:{port}:interface=0.0.0.0"}),
        ):
            self.assertEqual(self.kvstore("health", *words, **environment), (0, "ok\n", ""))

    def test_no_proxy_is_asked(self):
        port = self.serve({"/readyz": (200, "ok\n")})
        self.assertEqual(self.kvstore("health", f"--metrics={port}", http_proxy="http://127.0.0.1:1")[0], 0)

    def test_another_host(self):
        port = self.serve({"/readyz": (200, "ok\n")})
        for words in (["--host=127.0.0.1", "health"], ["health", "--host=127.0.0.1"]):
            self.assertEqual(self.kvstore(*words, f"--metrics=tcp:{port}:interface=10.255.255.1")[0], 0)

    def test_alive_but_not_ready(self):
        for state in ("read-only: fdatasync failed", "full: the disk has no space left", "loading"):
            port = self.serve({"/readyz": (503, state + "\n")})
            self.assertUnhealthy(self.kvstore("health", f"--metrics={port}"), f"kvstore: {state}\n")

    def test_something_else(self):
        port = self.serve({"/readyz": (404, "")})
        self.assertUnhealthy(self.kvstore("health", f"--metrics={port}"), "no monitoring port of a kvstore")
        for sent in (b"", b"220 ready\n"):
            with socket.create_server(("127.0.0.1", 0)) as listening:
                thread = threading.Thread(target=self.answer, args=(listening, sent))
                thread.start()
                text = f"--text={listening.getsockname()[1]}"
                self.assertUnhealthy(self.kvstore("health", "--metrics=off", text), "text port of a kvstore")
                thread.join()

    def answer(self, listening, sent):
        """Take a connection and a command, send bytes, close."""
        connection, _ = listening.accept()
        with connection:
            connection.recv(100)
            connection.sendall(sent)

    def test_nobody_there(self):
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
        self.assertUnhealthy(self.kvstore("health", f"--metrics={port}"), "Connection refused")
        self.assertUnhealthy(self.kvstore("health", "--metrics=off", f"--text={port}"), "Connection refused")
        self.assertUnhealthy(self.kvstore("health", "--metrics=unix:/no/such"), "unix:/no/such: No such file")

    def test_a_server_that_does_not_answer_yet(self):
        self.patch(health, "TIMEOUT", 0.05)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
            for words in ([f"--metrics={port}"], ["--metrics=off", f"--text={port}"]):
                self.assertUnhealthy(self.kvstore("health", *words), "no answer in time; it is still opening its data")

    def test_nothing_to_ask(self):
        self.assertUnhealthy(self.kvstore("health", "--metrics=off", "--text=off"), "both off")

    def test_wrong_words_are_status_2(self):
        status, out, err = self.kvstore("health", "--metrics=http")
        self.assertEqual((status, out), (2, ""))
        self.assertIn("'http'", err)

    def test_does_without_twisted_and_the_engine(self):
        program = (
            "import sys, kvnet.cli; "
            "print([name for name in sys.modules if name.split('.')[0] in ('twisted', 'kvcore', 'prometheus_client')])"
        )
        self.assertEqual(run(".", sys.executable, "-c", program), (0, "[]\n", ""))


class RealServerTests(SynchronousTestCase):
    def setUp(self):
        self.directory = os.path.abspath(self.mktemp())
        os.makedirs(self.directory)

    def health(self, **variables):
        """The exit status of the probe with the variables that the server has."""
        return run(self.directory, sys.executable, "-m", "kvnet", "health", **variables)[0]

    def start(self, *options):
        daemon = Daemon(self.directory, *options)
        self.addCleanup(daemon.kill)
        return daemon

    def test_wherever_it_listens(self):
        for options in (
            {"metrics": "tcp:0:interface=127.0.0.1", "text": "off"},
            {"metrics": "unix:m.sock", "text": "unix:t.sock"},
            {"metrics": "off", "text": "unix:t.sock"},
            {"metrics": "off", "text": "tcp:0:interface=127.0.0.1"},
        ):
            daemon = self.start(*(f"--{name}={value}" for name, value in options.items()))
            for name, where in daemon.addresses.items():
                if where:
                    options[name] = options[name].replace(":0:", f":{where[0][1]}:")
            variables = {f"KVSTORE_{name.upper()}": value for name, value in options.items()}
            self.assertEqual(self.health(**variables), 0, options)
            daemon.process.send_signal(signal.SIGKILL)
            daemon.wait()
            self.assertEqual(self.health(**variables), 1, options)
