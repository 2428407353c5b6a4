"""`kvstore bench challenge`: the real thing, small; and what it says when a step fails."""

import json
import os
from pathlib import Path

from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

import kvcore
from kvnet.bench import challenge
from kvnet.bench.mix import MIXES
from kvnet.bench.workload import Workload
from kvnet.cli import main

SMALL = ("--entries=200", "--duration=0.3", "--clients=5")
NUMBERS = (
    "load throughput", "write throughput", "read throughput", "write p95", "read p95", "recovery after kill -9",
    "of which opening the data", "keys read back then", "storage overhead", "fragmentation", "compaction ratio",
    "storage overhead, compacted",
)  # fmt: skip


class ChallengeTest(SynchronousTestCase):
    def setUp(self):
        self.patch(challenge, "KILL_AFTER", 0.0)
        self.directory = self.mktemp()

    def challenge(self, *words):
        """The exit status and the output."""
        done = CliRunner().invoke(main, ["bench", "challenge", *SMALL, *words])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.output

    def test_figures(self):
        code, output = self.challenge(f"--data-dir={self.directory}", "--json")
        self.assertEqual(code, 0, output)
        result = json.loads(output)
        figures = {figure["name"]: figure["value"] for figure in result["figures"]}
        for name in NUMBERS:
            self.assertGreater(figures.pop(name), 0, name)
        self.assertEqual(figures, {"durability class": "everysec"})
        workload = Workload(200, MIXES["pizzaria"])
        self.assertEqual((result["entries"], result["live_bytes"]), (200, workload.live_bytes()))
        self.assertEqual(result["phases"]["check"]["operations"]["read"]["count"], 200)
        with kvcore.open(self.directory) as store:
            self.assertEqual(dict(store.items()), {workload.key(n): workload.value(n) for n in range(200)})

    def test_table(self):
        self.patch(challenge.Challenge, "_kill_in_the_load", lambda self, server: server.kill())
        code, output = self.challenge("--fsync=always")
        self.assertEqual(code, 0, output)
        lines = output.strip().split("\n")
        self.assertRegex(lines[0], r"\A200 entries, [\d.]+ MiB of keys and values; 5 clients, 0.3 s of mixed load\Z")
        self.assertEqual(len(lines), 1 + len(NUMBERS) + 1)
        self.assertIn("always", lines[-1])
        self.assertIn("survives kill -9 and a power cut", lines[-1])

    def test_directory_in_use(self):
        os.mkdir(self.directory)
        Path(self.directory, "file").touch()
        code, output = self.challenge(f"--data-dir={self.directory}")
        self.assertEqual(code, 2)
        self.assertIn(f"--data-dir: {self.directory} is not empty", output)
        self.assertEqual(os.listdir(self.directory), ["file"])

    def test_server_that_does_not_start_again(self):
        def kill_and_damage(self, server):
            server.kill()
            Path(self.directory, "MANIFEST").write_text("nonsense")

        self.patch(challenge.Challenge, "_kill_in_the_load", kill_and_damage)
        code, output = self.challenge(f"--data-dir={self.directory}")
        self.assertEqual((code, output.count("\n")), (1, 1), output)
        self.assertIn("kvstore: the server did not start: ", output)

    def test_key_lost_in_the_crash(self):
        def kill_and_delete(self, server):
            server.kill()
            with kvcore.open(str(self.directory)) as store:
                store.delete(self.workload.key(7))

        self.patch(challenge.Challenge, "_kill_in_the_load", kill_and_delete)
        self.assertEqual(self.challenge(), (1, "kvstore: check: 0 errors, 0 wrong values, 1 keys lost\n"))

    def test_wrong_value_after_the_crash(self):
        def kill_and_write(self, server):
            server.kill()
            with kvcore.open(str(self.directory)) as store:
                store.put(self.workload.key(7), b"something else")

        self.patch(challenge.Challenge, "_kill_in_the_load", kill_and_write)
        code, output = self.challenge()
        self.assertEqual((code, output.count("\n")), (1, 1), output)
        self.assertIn("kvstore: check: 0 errors, 1 wrong values, 0 keys lost: read of ", output)
