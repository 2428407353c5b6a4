"""Turn what trial printed into one line: N passed, N failed[, N skipped]. Exits 1 unless tests ran and all went well.

    python tools/trial_summary.py < build/test.log
"""

import re
import sys

RESULT = re.compile(r"^(PASSED|FAILED)(?: \(([a-zA-Z]+=\d+(?:, [a-zA-Z]+=\d+)*)\))?$", re.MULTILINE)
RAN = re.compile(r"^Ran (\d+) tests? in ", re.MULTILINE)


def summarise(text):
    """The closing line for the last summary in text, and whether the run was good."""
    ran, result = RAN.findall(text), RESULT.findall(text)
    if not ran or not result:
        return "0 passed, 0 failed", False
    word, counts = result[-1]
    count = {name: int(number) for name, number in (item.split("=") for item in counts.split(", ") if item)}
    failed = count.get("failures", 0) + count.get("errors", 0) + count.get("unexpectedSuccesses", 0)
    skipped = count.get("skips", 0) + count.get("expectedFailures", 0)
    passed = count.get("successes", 0)
    line = f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else "")
    return line, word == "PASSED" and failed == 0 and passed > 0


if __name__ == "__main__":
    closing, good = summarise(sys.stdin.read())
    print(closing)
    sys.exit(0 if good else 1)
