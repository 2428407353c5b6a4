"""The real server on a machine that fails: a disk that refuses writes, a sync that fails, no descriptors left."""

import os
import re
import select
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from kvnet.client import Client, ClientError
from tests.daemon import KVSTORE_SERVE, PATIENCE, Daemon
from tests.system import disk

STATUS = b"well going our operation\r"


class SystemCase(SynchronousTestCase):
    def setUp(self):
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir(parents=True)

    def start(self, *options, command=KVSTORE_SERVE):
        """A server, and a client of it."""
        daemon = Daemon(self.directory, *options, command=command)
        self.addCleanup(daemon.kill)
        client = Client("127.0.0.1", daemon.port)
        self.addCleanup(client.close)
        return daemon, client

    def attach(self, device):
        """Mount a disk.Disk, if the machine can."""
        self.addCleanup(device.detach)
        try:
            device.attach()
        except subprocess.CalledProcessError as error:
            self.skipTest(f"{error.cmd[0]} does not work here: {error.stdout.strip()}")
        return device

    def page(self, daemon, name):
        """(status, text) of a page of the monitoring port."""
        host, port = daemon.addresses["metrics"][0]
        try:
            with urllib.request.urlopen(f"http://{host}:{port}/{name}", timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def write_some(self, client, name, count):
        """Write so many keys; what was acknowledged, as a dict."""
        written = {}
        for i in range(count):
            key, value = b"%s-%d" % (name, i), os.urandom(8).hex().encode() * (i % 50)
            client.write(key, value)
            written[key] = value
        return written

    def assertReadOnly(self, daemon, client, contents):
        """It says so, it refuses writes, it reads on."""
        status, text = self.page(daemon, "readyz")
        self.assertEqual((status, text.partition(":")[0]), (503, "read-only"))
        self.assertRaises(ClientError, client.write, b"refused", b"1")
        self.assertRaises(ClientError, client.delete, next(iter(contents)))
        self.assertContents(client, contents)

    def assertContents(self, client, contents):
        self.assertEqual({key: client.read(key) for key in contents}, contents)


class FailingDiskTest(SystemCase):
    """EIO from the block device below a real ext4."""

    skip = disk.missing()

    def setUp(self):
        super().setUp()
        self.disk = self.attach(disk.FailingDisk(self.directory))

    def serve(self):
        return self.start(f"--data-dir={self.disk.mounted}/data", "--fsync=always", "--segment-size=1MiB")

    def syncs(self, daemon):
        """(good ones, failed ones) since the start."""
        text = self.page(daemon, "metrics")[1]
        names = ("kvstore_fsync_seconds_count", "kvstore_fsync_failures_total")
        return tuple(float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1]) for name in names)

    def test_nothing_acknowledged_is_lost_and_nothing_is_tried_twice(self):
        daemon, client = self.serve()
        contents = self.write_some(client, b"before", 300)
        good, failed = self.syncs(daemon)
        self.assertEqual(failed, 0)
        self.disk.fail()
        self.assertRaises(ClientError, client.write, b"lost", b"1")
        self.assertReadOnly(daemon, client, contents)
        self.disk.mend()
        self.assertReadOnly(daemon, client, contents)
        self.assertEqual(self.syncs(daemon), (good, 1))
        daemon.stop()
        self.disk.attach_image()
        daemon, client = self.serve()
        self.assertContents(client, contents)
        self.assertRaises(ClientError, client.read, b"refused")
        contents.update(self.write_some(client, b"after", 10))
        self.assertEqual(daemon.stop()[0], 0)
        daemon, client = self.serve()
        self.assertContents(client, contents)
        self.assertEqual(daemon.stop()[0], 0)


class PausedDiskTest(SystemCase):
    """A disk that does not answer: who needs what is on it waits, the others do not."""

    skip = disk.missing()

    def setUp(self):
        super().setUp()
        self.disk = self.attach(disk.PausingDisk(self.directory))

    def serve(self):
        return self.start(f"--data-dir={self.disk.mounted}/data", "--fsync=no", "--segment-size=1MiB")

    def ask(self, daemon, said):
        connection = socket.create_connection(("127.0.0.1", daemon.port), timeout=PATIENCE)
        self.addCleanup(connection.close)
        connection.sendall(said)
        return connection

    def answers(self, connection, count):
        """The next `count` replies."""
        received = b""
        while received.count(b"\r") < count:
            part = connection.recv(1 << 20)
            self.assertTrue(part, received[:100])
            received += part
        return received

    def test_others_are_served_while_the_disk_is_read(self):
        daemon, client = self.serve()
        contents = {b"key%04d" % i: os.urandom(2000).hex().encode() for i in range(2000)}
        client.write(b"hot", b"1")
        for key, value in contents.items():
            client.write(key, value)
        self.assertEqual(daemon.stop()[0], 0)
        # Nothing of it is in memory then.
        self.disk.detach()
        self.disk.attach()
        daemon, client = self.serve()
        # The first one that waits is noticed by its waiting, and holds the others up.
        for key in (b"key0000", b"key0500"):
            self.assertEqual(client.read(key), contents[key])
        self.assertEqual(client.read(b"hot"), b"1")
        self.disk.pause()
        self.addCleanup(self.disk.resume)  # before the server is killed: it might not end
        reader = self.ask(daemon, b"read hot\rread key1500\rread hot\rread key1000\r")
        lister = self.ask(daemon, b"reads key12\rstatus\r")
        self.assertEqual(self.answers(reader, 1), b"1\r")
        for _ in range(100):
            self.assertEqual(client.read(b"hot"), b"1")
        self.assertEqual(client.status(), "well going our operation")
        self.assertEqual(select.select([reader, lister], [], [], 0)[0], [])
        self.disk.resume()
        self.assertEqual(self.answers(reader, 3), b"%s\r1\r%s\r" % (contents[b"key1500"], contents[b"key1000"]))
        self.assertEqual(
            self.answers(lister, 101),
            b"".join(value + b"\r" for key, value in contents.items() if key.startswith(b"key12")) + STATUS)
        # The reader, once for its pipeline, and the lister.
        text = self.page(daemon, "metrics")[1]
        self.assertGreaterEqual(float(re.search(r"^kvstore_cold_waits_total (\S+)$", text, re.MULTILINE)[1]), 2)
        self.assertEqual(daemon.stop()[0], 0)


class FailedSyncTest(SystemCase):
    """One fdatasync that the kernel answers with EIO; the next one would succeed, and prove nothing."""

    skip = None if shutil.which("strace") else "needs strace"

    def trace(self, daemon, log):
        """Have the next fdatasync of each thread fail."""
        tracer = subprocess.Popen(
            ["strace", "-f", "-p", str(daemon.process.pid), "-o", log, "-e", "trace=fdatasync,fsync",
             "-e", "inject=fdatasync:error=EIO:when=1"],
            stderr=subprocess.PIPE, text=True)
        self.addCleanup(tracer.stderr.close)
        self.addCleanup(tracer.wait)
        said = tracer.stderr.readline()
        if "attached" not in said:
            self.skipTest(f"strace may not trace here: {said.strip()}")
        return tracer

    def test_a_failed_sync_is_not_tried_again(self):
        daemon, client = self.start("--fsync=always")
        contents = self.write_some(client, b"before", 50)
        log = self.directory / "calls"
        tracer = self.trace(daemon, log)
        self.assertRaises(ClientError, client.write, b"lost", b"1")
        self.assertReadOnly(daemon, client, contents)
        daemon.stop()
        tracer.wait()
        calls = re.findall(r"f(?:data)?sync\(.*", log.read_text())
        self.assertEqual(len(calls), 1, calls)
        self.assertIn("INJECTED", calls[0])
        daemon, client = self.start("--fsync=always")
        self.assertContents(client, contents)
        self.assertEqual(daemon.stop()[0], 0)


class DescriptorTest(SystemCase):
    """More clients than descriptors: those who are connected are served, through new segments too; the others wait."""

    LIMIT = 100
    LIMITED = ("sh", "-c", f'ulimit -n {LIMIT} && exec "$0" "$@"', *KVSTORE_SERVE)

    def connect(self, daemon):
        connection = socket.create_connection(("127.0.0.1", daemon.port), timeout=PATIENCE)
        self.addCleanup(connection.close)
        return connection

    def test_the_data_path_goes_on(self):
        daemon, client = self.start("--segment-size=1MiB", command=self.LIMITED)
        contents = self.write_some(client, b"before", 10)
        connections = [self.connect(daemon) for _ in range(self.LIMIT + 20)]
        for connection in connections:
            connection.sendall(b"status\r")
        while "no clients are accepted for now" not in (line := daemon.process.stdout.readline()):
            self.assertTrue(line, "the server has ended")
        for connection in connections[:10]:
            self.assertEqual(connection.recv(100), STATUS)
        for i in range(300):
            key, value = b"large-%d" % i, b"%d." % i * 4000
            client.write(key, value)
            contents[key] = value
        self.assertContents(client, contents)
        last = connections.pop()
        self.assertEqual(select.select([last], [], [], 0)[0], [])
        for connection in connections:
            connection.close()
        self.assertEqual(last.recv(100), STATUS)
        status, text = self.page(daemon, "metrics")
        self.assertGreater(float(re.search(r"^kvstore_accept_pauses_total (\S+)$", text, re.MULTILINE)[1]), 0)
        self.assertEqual(self.page(daemon, "readyz"), (200, "ok\n"))
        status, out, _ = daemon.stop()
        self.assertEqual(status, 0)
        self.assertLessEqual(out.count("no clients are accepted"), 1, out)  # that there were more
