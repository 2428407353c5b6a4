"""Commands over a data directory that need no server: check, salvage, log, backup, restore. They never change its data."""

import contextlib
import json
import os
import re
import sys
import time
from datetime import UTC, datetime

import click

BIG = 256 << 20  # bytes of segments from which a progress bar is shown
POLL = 0.25  # seconds between two looks at a log that is followed
INTERRUPTED = 130
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

directory_argument = click.argument("directory", metavar="DIR", type=click.Path(exists=True, file_okay=False))
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@contextlib.contextmanager
def _errors(status: int = 2):
    """What the engine refuses is a line and this exit status."""
    from kvcore.errors import KVError

    try:
        yield
    except KVError as error:
        click.echo(f"kvstore: {error}", err=True)
        sys.exit(status)


@contextlib.contextmanager
def _interrupts(what: str, status: int = INTERRUPTED):
    """Ctrl-C is a line and this exit status. what: of which nothing is left then."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"kvstore: interrupted; nothing is left of {what}", err=True)
        sys.exit(status)


@contextlib.contextmanager
def _progress(directory: str, label: str, times: int = 1):
    """A function to call with the bytes done of `times` all segments, or None when nobody would wait long, or look."""
    total = 0
    for entry in os.scandir(directory):
        if entry.name.endswith(".seg"):
            with contextlib.suppress(FileNotFoundError):  # a server may have dropped it by now
                total += times * entry.stat().st_size
    if total < BIG or not sys.stderr.isatty():
        yield None
        return
    with click.progressbar(length=total, label=label, file=sys.stderr) as bar:
        yield bar.update


def _show(lines, as_dict: dict, as_json: bool) -> None:
    click.echo(json.dumps(as_dict) if as_json else "\n".join(lines))


@click.command()
@directory_argument
@json_option
def check(directory: str, as_json: bool) -> None:
    """Read all of the data directory DIR and tell what is damaged.

    Nothing is changed. The exit status is 0 when nothing is damaged, 1 when something is, 2 when DIR cannot be read.
    """
    from kvcore import check

    with _errors(), _progress(directory, "checking") as progress:
        report = check.check(directory, progress)
    _show(check.report_lines(report), check.report_dict(report), as_json)
    sys.exit(1 if report.damage else 0)


@click.command(short_help="Save what can be read of DIR in a new store.")
@directory_argument
@click.argument("target", metavar="NEWDIR", type=click.Path())
@json_option
def salvage(directory: str, target: str, as_json: bool) -> None:
    """Write all that can be read of the data directory DIR into a new store.

    DIR is not changed. NEWDIR is empty or not there yet. The exit status is 0 when every key was saved, 1 when something
    was lost, 2 when DIR cannot be read or NEWDIR not be written.
    """
    from kvcore import salvage

    with _interrupts(f"the new store in {target}"), _errors(), _progress(directory, "salvaging", times=2) as progress:
        done = salvage.salvage(directory, target, progress)
    _show(salvage.salvaged_lines(done), salvage.salvaged_dict(done), as_json)
    sys.exit(0 if salvage.is_whole(done) else 1)


@click.command(short_help="Copy DIR as it is at one moment into TARGET.")
@directory_argument
@click.argument("target", metavar="TARGET", type=click.Path())
def backup(directory: str, target: str) -> None:
    """Copy the store in the data directory DIR, as it is at one moment, into TARGET.

    A server may be running there; it is not asked for anything. TARGET is empty or not there yet. On the same file system
    segments that no longer change are linked, not copied: they take no space, but damage to them is damage to both.

    The exit status is 0 when the backup is whole and on the disk; else it is 1, and nothing is left in TARGET.
    """
    from kvcore.backup import backup

    with _interrupts(f"the backup in {target}", 1), _errors(1), _progress(directory, "copying") as progress:
        done = backup(directory, target, progress)
    if done.unnoted:
        click.echo(f"kvstore: the backup is good, but its time was not noted: {done.unnoted}", err=True)
    click.echo(f"{done.segments} segments, {done.bytes} bytes in {target}, {done.linked_bytes} of them linked")


@click.command(short_help="Make a data directory DIR of a backup.")
@click.argument("directory", metavar="BACKUP", type=click.Path(exists=True, file_okay=False))
@click.argument("target", metavar="DIR", type=click.Path())
def restore(directory: str, target: str) -> None:
    """Check the backup in BACKUP, copy it into DIR, and open it there once to prove it.

    BACKUP is not changed, nor shared with DIR, which is empty or not there yet. The exit status is 0 when DIR is ready for a
    server; else it is 1, and nothing is left in DIR.
    """
    from kvcore.restore import restore

    with _interrupts(f"the store in {target}", 1), _errors(1), _progress(directory, "restoring", times=2) as progress:
        done = restore(directory, target, progress)
    click.echo(f"{done.keys} keys, {done.bytes} bytes in {target}")


class _When(click.ParamType):
    """A moment, as unix milliseconds."""

    name = "WHEN"

    def convert(self, value, parameter, context):
        relative = re.fullmatch(r"(\d+)([smhd])", value)
        if relative:
            return int((time.time() - int(relative[1]) * UNITS[relative[2]]) * 1000)
        try:
            return int(datetime.fromisoformat(value).timestamp() * 1000)
        except ValueError:
            return self.fail(f"{value!r} is neither a time like 2030-01-31T12:00 nor one ago like 90s, 10m, 2h, 7d")


def _iso(milliseconds: int) -> str:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (OverflowError, ValueError):
        return f"{milliseconds}ms"  # beyond the calendar


def _line(operation) -> str:
    from kvcore.check import printable

    words = [_iso(operation.version >> 20), "delete" if operation.deleted else "put   ", f"{operation.value_size:>8}"]
    words.append(printable(operation.key))
    if operation.deadline:
        words.append(f"until={_iso(operation.deadline)}")
    if operation.batch_size:
        words.append(f"batch={operation.number}/{operation.batch_size}")
    return "  ".join(words)


def _json_line(operation) -> str:
    from kvcore.check import printable

    line = {
        "time": _iso(operation.version >> 20),
        "version": operation.version,
        "operation": "delete" if operation.deleted else "put",
        "key": printable(operation.key),
        "key_size": len(operation.key),
        "value_size": operation.value_size,
    }
    if operation.deadline:
        line["expires_at"] = operation.deadline
    if operation.batch_size:
        line["batch"] = [operation.number, operation.batch_size]
    return json.dumps({**line, "segment": operation.segment, "offset": operation.offset})


@click.command()
@directory_argument
@click.option("--since", type=_When(), help="Only from then on: a time in ISO 8601, or ago: 90s, 10m, 2h, 7d.")
@click.option("--key", help="Only operations on this key.")
@click.option("--follow", is_flag=True, help="Go on with what a running server writes, until Ctrl-C.")
@json_option
def log(directory: str, since: int | None, key: str | None, follow: bool, as_json: bool) -> None:
    """Print the operations on the data directory DIR, oldest first.

    One to a line: time (UTC), put or delete, bytes of the value as stored, key, deadline, place in its batch. What is not
    printable in a key, blanks and backslashes are shown as \\xNN. Operations that compaction has dropped, because later
    ones replaced them, are not there any more.

    The exit status is 1 when damage may hide operations, 2 when DIR cannot be read.
    """
    from kvcore.check import damage_lines
    from kvcore.history import History

    wanted = None if key is None else os.fsencode(key)
    text = _json_line if as_json else _line
    told = 0

    def show(operations):
        nonlocal told
        for operation in operations:
            if wanted is None or operation.key == wanted:
                click.echo(text(operation))
        for line in damage_lines(history.damage[told:]):
            click.echo(f"kvstore: {line}", err=True)
        told = len(history.damage)

    with _errors(), contextlib.suppress(KeyboardInterrupt):
        history = History(directory)
        show(history.past((since or 0) << 20))
        while follow:
            time.sleep(POLL)
            show(history.new())
    sys.exit(1 if told else 0)


COMMANDS = (check, salvage, log, backup, restore)
