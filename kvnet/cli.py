"""The `kvstore` command: the server, and a client for the shell.

Only `serve` imports Twisted: the other commands should start as quickly as they finish.
"""

import os
import signal
import sys

import click

from kvnet import monitor, offline, stats
from kvnet.bench.command import bench
from kvnet.client import Client, ClientError
from kvnet.health import health


class _Failed(click.ClickException):
    """Ends the command with status 1 and one line."""

    def show(self, file=None) -> None:
        click.echo(f"kvstore: {self.message}", err=True)


def _print_version(context, parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        import kvcore

        click.echo(f"kvstore {kvcore.__version__}")
        context.exit()


def _remember(context, parameter, value: str | None) -> None:
    if value is not None:
        context.ensure_object(dict)[parameter.name] = value


def _at_server(command):
    """--host and --port behind the name of a command, where many write them. These win."""
    for name in ("--port", "--host"):
        option = click.option(name, expose_value=False, callback=_remember, help="As in kvstore --help.")
        command = option(command)
    return command


def _client(server: dict[str, str]) -> Client:
    # Checked here and not by click: `serve` must not mind a KVSTORE_PORT that is meant for something else
    # (Kubernetes sets one for a service that is named kvstore).
    port = server["port"]
    if not (port.isascii() and port.isdigit() and 0 < int(port) <= 65535):
        raise click.UsageError(f"--port or KVSTORE_PORT: {port!r} is not a port")
    return Client(server["host"], int(port))


def _print_lines(lines: list[bytes]) -> None:
    out = click.get_binary_stream("stdout")
    out.writelines(line + b"\n" for line in lines)
    out.flush()


class _Commands(click.Group):
    """Turns what the client reports into status 1, for all commands."""

    def invoke(self, context):
        try:
            return super().invoke(context)
        except ClientError as error:
            raise _Failed(str(error)) from error


@click.group(cls=_Commands)
@click.option(
    "--host",
    default="localhost",
    envvar="KVSTORE_HOST",
    show_default=True,
    show_envvar=True,
    expose_value=False,
    callback=_remember,
    help="Where the server is.",
)
@click.option(
    "--port",
    default="8080",
    envvar="KVSTORE_PORT",
    show_default=True,
    show_envvar=True,
    expose_value=False,
    callback=_remember,
    help="Its port of the text protocol.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and exit.",
)
def main() -> None:
    """A durable key-value store: run the server, talk to one, or look after a data directory.

    The exit status is 1 when the server says error or cannot be reached, 2 when the command line is wrong.
    """


@main.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def serve(options: tuple[str, ...]) -> None:
    """Run the server; see kvstore serve --help."""
    # The imports take a while; process 1 of a container would not hear a signal that has no handler yet.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    from twisted.scripts import twistd

    sys.argv[1:] = ["--nodaemon", "--pidfile=", "kvstore", *options]
    twistd.run()


@main.command()
@click.argument("key")
@click.argument("value")
@_at_server
@click.pass_obj
def write(server: dict[str, str], key: str, value: str) -> None:
    """Store VALUE under KEY.

    The value "-" stands for the standard input, taken as it is. A value that begins with "-" follows "--".
    """
    data = click.get_binary_stream("stdin").read() if value == "-" else os.fsencode(value)
    with _client(server) as client:
        client.write(os.fsencode(key), data)
    click.echo("success")


@main.command()
@click.argument("key")
@_at_server
@click.pass_obj
def read(server: dict[str, str], key: str) -> None:
    """Print the value of KEY and a line feed."""
    with _client(server) as client:
        _print_lines([client.read(os.fsencode(key))])


@main.command()
@click.argument("key")
@_at_server
@click.pass_obj
def delete(server: dict[str, str], key: str) -> None:
    """Delete KEY."""
    with _client(server) as client:
        client.delete(os.fsencode(key))
    click.echo("success")


@main.command()
@_at_server
@click.pass_obj
def keys(server: dict[str, str]) -> None:
    """Print all keys, ascending, one to a line."""
    with _client(server) as client:
        _print_lines(client.keys())


@main.command()
@click.argument("prefix")
@_at_server
@click.pass_obj
def reads(server: dict[str, str], prefix: str) -> None:
    """Print the values of all keys with PREFIX, by key."""
    with _client(server) as client:
        _print_lines(client.reads(os.fsencode(prefix)))


@main.command(short_help="Reclaim all dead space, while no server runs.")
@click.argument("directory", type=click.Path(exists=True, file_okay=False))
def compact(directory: str) -> None:
    """Reclaim all dead space in the data DIRECTORY of a server that is stopped.

    A running server does that by itself.
    """
    import kvcore

    try:
        with kvcore.open(directory, fsync="no") as store:
            before = store.stats()["disk_bytes"]
            store.compact()
            after = store.stats()["disk_bytes"]
    except kvcore.KVError as error:
        raise _Failed(str(error)) from error
    click.echo(f"{before} bytes before, {after} bytes after")


@main.command()
@click.option("--verbose", is_flag=True, help="Ask the monitoring port as well, and print the table of kvstore stats.")
@stats.metrics_option
@_at_server
@click.pass_obj
def status(server: dict[str, str], verbose: bool, metrics: str) -> None:
    """Print what the server says about itself.

    With --verbose the exit status is also 1 when the server cannot do all of its work: the disk is full, say.
    """
    with _client(server) as client:
        click.echo(client.status())
    if verbose:
        place = stats.monitoring_place(server, metrics)
        try:
            state, look = stats.take(place)
        except monitor.MonitorError as error:
            raise _Failed(str(error)) from error
        click.echo("\n".join(stats.lines(place, state, look, None)))
        sys.exit(0 if state == "ok" else 1)


for command in (*offline.COMMANDS, health, stats.stats, bench):
    main.add_command(command)
