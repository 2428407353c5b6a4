"""Every fuzz target, for a short time and with the same inputs every time. `make fuzz` goes on from here."""

import random

from tests.fuzz.__main__ import TARGETS, scratch
from tests.support import StoreCase

SEED = 20
RUNS = {"text": 4000, "segment": 700, "covered": 700, "order": 250, "checkpoint": 350, "manifest": 1000, "offline": 200}


class FuzzTest(StoreCase):
    def check(self, name):
        directory = scratch()
        self.addCleanup(directory.cleanup)
        target = TARGETS[name](directory.name)
        rng = random.Random(SEED)
        inputs = [*target.seeds(), *(target.mutated(rng) for _ in range(RUNS[name]))]
        for data in inputs:
            try:
                target.run(data)
            except Exception as error:
                raise AssertionError(f"{name}, input {data.hex()}: {error}") from error
        target.close()

    def test_no_target_is_left_out(self):
        self.assertEqual(set(RUNS), set(TARGETS))


for _name in RUNS:
    setattr(FuzzTest, f"test_{_name}", lambda self, name=_name: self.check(name))
