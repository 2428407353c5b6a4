"""The soak in small: reads, writes and deletes of keys of all sizes through a kill and a stop."""

import os
import random
import signal

from twisted.trial.unittest import SynchronousTestCase

from tests.soak import Sample, Soak, slopes

OPERATIONS = 3000  # of each life


def enough(daemon, loads):
    while sum(load.answered for load in loads) < OPERATIONS and all(load.is_alive() for load in loads):
        loads[0].progress.wait(1)
        loads[0].progress.clear()


class SoakTest(SynchronousTestCase):
    def test_contents_through_a_kill_and_a_stop_under_load(self):
        directory = self.mktemp()
        os.mkdir(directory)
        seed = random.randrange(1 << 32)
        run = Soak(directory, random.Random(seed))
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGTERM):
            run.life(number, enough)
        self.assertEqual(run.wrong, [], f"seed {seed}")
        self.assertGreaterEqual(run.operations, 3 * OPERATIONS)


class SlopeTest(SynchronousTestCase):
    def samples(self, **grown):
        steady = Sample(0, 0, 40.0, 20, 3, 1.1)._asdict()
        return [Sample(**{**steady, "seconds": i * 5, **{name: steady[name] + growth * i for name, growth in grown.items()}})
                for i in range(20)]

    def test_what_stays_is_well(self):
        self.assertEqual(slopes(self.samples())[0], [])

    def test_what_grows_is_told(self):
        for name, growth in (("rss_mib", 1), ("fds", 1), ("threads", 1), ("disk_ratio", 0.1)):
            self.assertRegex(slopes(self.samples(**{name: growth}))[0][0], f"^{name} grew by")

    def test_too_few_samples_say_nothing(self):
        self.assertEqual(slopes(self.samples(fds=100)[:5]), ([], {}))
