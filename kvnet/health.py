"""`kvstore health`: for the probes of containers and service managers. Quick, and with a time-out of its own."""

import sys

import click

from kvnet import monitor, places

TIMEOUT = 3  # seconds for each wait; under those that probes are commonly given


@click.command(short_help="Exit with 0 when the server can do all of its work.")
@click.option("--metrics", metavar="PORT|ENDPOINT|off", default="9464", envvar="KVSTORE_METRICS", show_default=True,
              show_envvar=True, help="As given to kvstore serve.")
@click.option("--text", metavar="PORT|ENDPOINT|off", default="8080", envvar="KVSTORE_TEXT", show_default=True,
              show_envvar=True, help="As given to kvstore serve; asked when --metrics is off.")
@click.option("--host", help="As in kvstore --help.")
@click.pass_obj
def health(server: dict[str, str], metrics: str, text: str, host: str | None) -> None:
    """Ask the server whether it can do all of its work: exit with 0 when it can, else with 1 and why in a line.

    It asks /readyz of the monitoring port: read-only, a full disk and a server that is still opening its data are 1. With
    --metrics=off it asks the text port for its status, and 0 means only that the server answers. A server that opens its
    data does not answer yet: give probes a start period.
    """
    host = host or server["host"]
    try:
        http, plain = places.find(metrics, host), places.find(text, host)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    try:
        state = monitor.readiness(http, TIMEOUT) if http else _status(plain)
    except (monitor.MonitorError, _SilentError) as error:
        state = str(error)
    if state != "ok":
        click.echo(f"kvstore: {state}", err=True)
        sys.exit(1)
    click.echo(state)


class _SilentError(Exception):
    """The text port does not answer. The message is one line."""


def _status(place: places.Place | None) -> str:
    """ "ok" when the text port answers."""
    if place is None:
        raise _SilentError("nothing to ask: --metrics and --text are both off")
    try:
        with places.connect(place, TIMEOUT) as connection:
            connection.sendall(b"status\r")
            if not connection.recv(4096).endswith(b"\r"):
                raise _SilentError(f"{places.show(place)} does not answer as the text port of a kvstore does")
    except OSError as error:
        raise _SilentError(f"cannot ask {places.show(place)}: {places.explain(error)}") from error
    return "ok"
