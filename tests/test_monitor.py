"""`kvstore status --verbose` against a real server."""

import os
import sys

from kvcore.backup import backup
from kvnet.client import Client
from tests.daemon import Daemon, run
from tests.test_health import PagesCase


class VerboseStatusTest(PagesCase):
    def setUp(self):
        self.directory = os.path.abspath(self.mktemp())
        os.makedirs(self.directory)
        self.daemon = Daemon(self.directory, "--data-dir=data", "--fsync=always")
        self.addCleanup(self.daemon.kill)
        self.monitoring = self.daemon.addresses["metrics"][0][1]

    def status(self, *words):
        return run(self.directory, sys.executable, "-m", "kvnet", "status", f"--port={self.daemon.port}", *words)

    def verbose(self, host="127.0.0.1"):
        return self.status("--verbose", f"--metrics={self.monitoring}", f"--host={host}")

    def test_a_healthy_server(self):
        with Client("127.0.0.1", self.daemon.port) as client:
            client.write("a", b"1")
            client.write("a", b"2")
        backup(os.path.join(self.directory, "data"), os.path.join(self.directory, "copy"))
        for host in ("127.0.0.1", "::1", "localhost"):
            status, out, err = self.verbose(host)
            self.assertEqual((status, err), (0, ""))
            self.assertRegex(
                out, rf"\Awell going our operation\nkvstore \S+ at \S+:{self.monitoring}: ok\n\nserver\n  up  +\d+ s\n")
            self.assertRegex(out, r"\n  last backup  +\d+ s\n")

    def test_a_server_that_cannot_do_all_of_its_work(self):
        self.monitoring = self.serve({"/readyz": (503, "full: no space\n"), "/metrics": (200, "kvstore_keys 1\n")})
        status, out, err = self.verbose()
        self.assertEqual((status, err), (1, ""))
        self.assertIn(f":{self.monitoring}: full: no space\n", out)

    def test_a_port_that_is_none(self):
        status, out, err = self.status("--verbose", "--metrics=1", "--host=127.0.0.1")
        self.assertEqual((status, out), (1, "well going our operation\n"))
        self.assertRegex(err, r"\Akvstore: cannot ask the monitoring port 127.0.0.1:1: [^\n]+\n\Z")

    def test_without_verbose_it_is_one_line(self):
        self.assertEqual(self.status("--host=127.0.0.1"), (0, "well going our operation\n", ""))

    def test_a_server_without_backup(self):
        self.assertRegex(self.verbose()[1], r"\n  last backup  +never\n")
