"""tools/trial_summary.py counts what trial counted, and calls a run good only when tests ran and none failed."""

import importlib.util
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "trial_summary.py"
spec = importlib.util.spec_from_file_location("trial_summary", SCRIPT)
trial_summary = importlib.util.module_from_spec(spec)
spec.loader.exec_module(trial_summary)


def trial(ran, result):
    return f"tests.test_x\n  X\n    test_y ...   [OK]\n\n-----\nRan {ran} tests in 0.012s\n\n{result}\n"


class SummaryTests(SynchronousTestCase):
    def check(self, text, line, good):
        self.assertEqual(trial_summary.summarise(text), (line, good))

    def test_all_passed(self):
        self.check(trial(37, "PASSED (successes=37)"), "37 passed, 0 failed", True)

    def test_one_test(self):
        self.check("Ran 1 test in 0.1s\n\nPASSED (successes=1)\n", "1 passed, 0 failed", True)

    def test_skips_are_named(self):
        self.check(trial(42, "PASSED (skips=2, successes=40)"), "40 passed, 0 failed, 2 skipped", True)

    def test_errors_count_as_failed(self):
        text = trial(40, "FAILED (failures=1, errors=2, successes=37)")
        self.check(text, "37 passed, 3 failed", False)

    def test_todo(self):
        text = trial(5, "FAILED (expectedFailures=1, unexpectedSuccesses=1, successes=3)")
        self.check(text, "3 passed, 1 failed, 1 skipped", False)

    def test_no_test_ran(self):
        self.check(trial(0, "PASSED"), "0 passed, 0 failed", False)

    def test_only_skips_is_no_good_run(self):
        self.check(trial(2, "PASSED (skips=2)"), "0 passed, 0 failed, 2 skipped", False)

    def test_trial_died(self):
        self.check("tests.test_x\n  X\n    test_y ... Segmentation fault\n", "0 passed, 0 failed", False)

    def test_the_last_summary_counts(self):
        text = trial(3, "PASSED (successes=3)") + trial(2, "FAILED (failures=2)")
        self.check(text, "0 passed, 2 failed", False)
