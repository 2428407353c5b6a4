"""`check`: what is wrong in a data directory, found without changing it; and how damage is shown."""

import os
from typing import NamedTuple

from kvcore.survey import Survey

HIDDEN = frozenset(b" \\")


class Report(NamedTuple):
    """What check() found. Clean when `damage` is empty."""

    directory: str
    holder: str | None  # process id of who has it open, or None
    totals: dict  # segments, records, live_keys, bytes (int)
    damage: list  # of kvcore.survey.Damage
    notes: list  # of str


def check(path, progress=None):
    """Read all of the data directory `path` (str, bytes or path-like) and return a Report. Nothing is changed.

    progress: called with the number of bytes read since the last call. Raises StorageError when it cannot be read.
    """
    holder = holder_of(path)
    survey = Survey(path)
    survey.read(progress)
    survey.check_caches()
    return Report(os.fsdecode(path), holder, survey.totals(), survey.damage, survey.notes)


def holder_of(path):
    """Process id (str) of who has the directory open, or None. Asks the kernel's list of locks and takes none."""
    try:
        found = os.stat(os.path.join(os.fsdecode(path), "LOCK"))
        with open("/proc/locks") as locks:
            lines = [line.split() for line in locks]
    except OSError:
        return None
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    return next((line[4] for line in lines if line[1] == "FLOCK" and line[5] == place), None)


def printable(key):
    """`key` (bytes) as a word of printable ASCII (str): all else, blanks and backslashes are written as \\xNN."""
    return "".join(chr(c) if 32 < c < 127 and c not in HIDDEN else f"\\x{c:02x}" for c in key)


def damage_lines(damage):
    """Lines of text (str) for a list of Damage."""
    for item in damage:
        place = f"{item.file}: {item.length} bytes from {item.offset} on: " if item.length else f"{item.file} "
        yield place + item.what
        for key in item.keys:
            yield f"  key {printable(key)}"


def damage_dicts(damage):
    """The same for JSON: a list of dict."""
    return [{**item._asdict(), "keys": [printable(key) for key in item.keys]} for item in damage]


def holder_line(report):
    """What to know when somebody has the directory open (str)."""
    return (
        f"{report.directory} is in use by process {report.holder}: what it writes or drops meanwhile may show as damage; "
        "to be sure, stop it first"
    )


def found_lines(found):
    """Lines of text (str) for what a Report or a Salvaged says of the directory: who holds it, damage, notes."""
    if found.holder:
        yield holder_line(found)
    yield from damage_lines(found.damage)
    for note in found.notes:
        yield f"note: {note}"


def report_lines(report):
    """Lines of text (str) for a Report; the last one sums up."""
    yield from found_lines(report)
    counts = ", ".join(f"{report.totals[name]} {name.replace('_', ' ')}" for name in report.totals)
    yield f"{counts}, {len(report.damage)} damaged ranges"


def report_dict(report):
    """The same for JSON: a dict."""
    return {
        "directory": report.directory,
        "in_use_by": report.holder,
        **report.totals,
        "damaged_ranges": len(report.damage),
        "damage": damage_dicts(report.damage),
        "notes": report.notes,
    }
