"""`kvstore status --verbose` against a real server."""

import os
import sys

from twisted.trial.unittest import SynchronousTestCase

from kvcore.backup import backup
from kvnet.client import Client
from tests.daemon import Daemon, run

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


class VerboseStatusTest(SynchronousTestCase):
    def setUp(self):
        self.directory = os.path.abspath(self.mktemp())
        os.makedirs(self.directory)
        self.daemon = Daemon(self.directory, "--data-dir=data", "--fsync=always")
        self.addCleanup(self.daemon.kill)

    def status(self, *words):
        return run(self.directory, sys.executable, "-m", "kvnet", "status", f"--port={self.daemon.port}", *words)

    def verbose(self, host="127.0.0.1"):
        port = self.daemon.addresses["metrics"][0][1]
        return self.status("--verbose", f"--metrics-port={port}", f"--host={host}")

    def test_a_healthy_server(self):
        with Client("127.0.0.1", self.daemon.port) as client:
            client.write("a", b"1")
            client.write("a", b"2")
        backup(os.path.join(self.directory, "data"), os.path.join(self.directory, "copy"))
        for host in ("127.0.0.1", "::1", "localhost"):
            status, out, err = self.verbose(host)
            self.assertEqual((status, err), (0, ""))
            self.assertRegex(
                out,
                r"\Awell going our operation\nstate: ok\nkeys: 1\nlive bytes: 22\ndead bytes: \d+\nbytes on disk: \d+\n"
                rf"bytes not synced yet: 0\nlast fsync: {TIME}\nlast backup: {TIME}\nlast scrub: none\n"
                r"damage: 0 ranges at the opening, 0 found by the scrub, 0 reads that met some\n\Z")

    def test_a_port_that_is_none(self):
        status, out, err = self.status("--verbose", "--metrics-port=1", "--host=127.0.0.1")
        self.assertEqual((status, out), (1, "well going our operation\n"))
        self.assertRegex(err, r"\Akvstore: cannot ask the monitoring port 127.0.0.1:1: [^\n]+\n\Z")

    def test_without_verbose_it_is_one_line(self):
        self.assertEqual(self.status("--host=127.0.0.1"), (0, "well going our operation\n", ""))

    def test_a_server_without_backup(self):
        self.assertIn("\nlast backup: none\n", self.verbose()[1])
