"""The crash campaigns of tests/campaign.py, each as far as a few seconds go; `make test-long` has minutes for them.

A failure names what repeats it: python -m tests.campaign --quick --only NAME --seed SEED --round ROUND
"""

import random
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from kvcore.crashfs import CrashFiles
from tests import campaign
from tests.campaign import Tally, run_round


class CampaignTest(SynchronousTestCase):
    def run_campaign(self, name, states):
        """Rounds of a campaign until it has seen so many states; none may have failed."""
        tally, seed = Tally(), random.randrange(1 << 32)
        number = seed % 1000
        while tally.states < states:
            run_round(name, seed, number, tally, quick=True)
            self.assertEqual(tally.failures[:5], [], f"{len(tally.failures)} of {tally.states} states")
            number += 1

    def test_killed_before_every_call(self):
        self.run_campaign("kill", 3000)

    def test_the_short_way_of_writing_is_among_what_is_tried(self):
        made = []

        class Files(CrashFiles):
            def __init__(self):
                made.append(self)

        with mock.patch.object(campaign, "CrashFiles", Files):
            run_round("kill", 1, 0, Tally(), quick=True)
        self.assertGreater(made[0].calls["store"], 10)

    def test_power_lost_before_every_call(self):
        self.run_campaign("power", 20_000)

    def test_every_subset_of_what_is_unsynced(self):
        self.run_campaign("subsets", 5000)

    def test_one_store_through_many_crashes(self):
        self.run_campaign("lives", 2000)

    def test_faults_of_every_call(self):
        self.run_campaign("faults", 1)

    def test_every_bit_under_an_open_store(self):
        self.run_campaign("read_flips", 500_000)

    def test_bits_of_every_file_before_opening(self):
        self.run_campaign("open_flips", 4000)

    def test_files_cut_short(self):
        self.run_campaign("cuts", 2000)
