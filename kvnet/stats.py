"""`kvstore stats`: what a running server counts, for people and for scripts."""

import contextlib
import json
import shutil
import sys
import textwrap
import time

import click

from kvnet import monitor, places

TIMEOUT = 10  # seconds for the server to answer
EVERY = 2.0  # seconds between two looks

metrics_option = click.option(
    "--metrics", metavar="PORT|ENDPOINT", default="9464", envvar="KVSTORE_METRICS", show_default=True, show_envvar=True,
    help="The monitoring port; also as given to kvstore serve.")


def monitoring_place(server: dict[str, str], metrics: str) -> places.Place:
    """Where the monitoring port is. Raises click.UsageError."""
    try:
        place = places.find(metrics, server["host"])
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if place is None:
        raise click.UsageError("--metrics or KVSTORE_METRICS: the figures come from the monitoring port, and that is off")
    return place


@click.command(short_help="Print what the server counts: memory, disk, traffic, latencies.")
@click.option("--json", "as_json", is_flag=True, help="Print the metrics by their names, unrounded, on one line.")
@click.option("--watch", metavar="[SECONDS]", type=click.FloatRange(0.1, 86400), is_flag=False, flag_value=EVERY,
              help=f"Go on until Ctrl-C, with rates; a look every so many seconds. [{EVERY:g} when none are given]")
@metrics_option
@click.option("--host", help="As in kvstore --help.")
@click.pass_obj
def stats(server: dict[str, str], as_json: bool, watch: float | None, metrics: str, host: str | None) -> None:
    """Print what the running server counts, from its monitoring port.

    Without --watch counters and latencies are those since its start; with it, latencies and rates are those since the
    look before. The exit status is 1 when the server cannot be asked; when it goes away later, --watch waits for it.
    """
    place = monitoring_place({**server, "host": host or server["host"]}, metrics)
    screen = _Screen(watch is not None and not as_json)
    before = None
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            try:
                state, look = take(place)
            except monitor.MonitorError as error:
                if before is None:
                    click.echo(f"kvstore: {error}", err=True)
                    sys.exit(1)
                screen.tell(f"kvstore: {error}")
            else:
                figures = [json.dumps({"state": state, **look.as_dict()})] if as_json else lines(place, state, look, before)
                screen.show(figures)
                before = look
            if watch is None:
                return
            time.sleep(watch)


def take(place: places.Place):
    """Readiness (str) and metrics (kvnet.figures.Look) of a server. Raises monitor.MonitorError."""
    from kvnet.figures import Look

    state = monitor.readiness(place, TIMEOUT)
    status, text = monitor.ask(place, "metrics", TIMEOUT)
    try:
        if status == 200:
            return state, Look(text, time.monotonic())
    except ValueError as error:
        raise monitor.MonitorError(f"{places.show(place)} sends metrics that cannot be read: {error}") from error
    raise monitor.MonitorError(f"{places.show(place)} is no monitoring port of a kvstore: it answers {status} to /metrics")


def lines(place: places.Place, state: str, look, before) -> list[str]:
    """The table under a line that says which server, and how it is."""
    from kvnet.figures import table

    version = next((labels.get("version", "?") for labels, _ in look.samples.get("kvstore_build_info", ())), "?")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 1
    head = f"kvstore {version} at {places.show(place)}: {state}"
    return [*textwrap.wrap(head, max(width, 79)), "", *table(look, before, width)]


class _Screen:
    """Standard output: on a terminal each table of many takes the place of the one before."""

    def __init__(self, many: bool):
        self._many = many
        self._in_place = many and sys.stdout.isatty()
        self._shown = 0

    def show(self, lines: list[str]) -> None:
        """Print lines."""
        if not self._in_place:
            click.echo("\n".join(lines) + "\n" * self._many)
            return
        room = shutil.get_terminal_size().lines - 1
        if len(lines) > room:
            lines = [*lines[: room - 1], f"({len(lines) - room + 1} more lines need a higher terminal)"]
        up = f"\x1b[{self._shown}F" if self._shown else ""
        click.echo(up + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J", nl=False)
        self._shown = len(lines)

    def tell(self, message: str) -> None:
        """Print a message: in the place of the table, or apart from the output."""
        if self._in_place:
            self.show([message])
        else:
            click.echo(message, err=True)
