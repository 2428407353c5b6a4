"""What twistd and `kvstore serve` need to know: the options, and how the service is made from them.

OPTIONS is the only table: parsing, the environment, the checks and --help come from it.
"""

import os
import re
import sys
import textwrap
from collections.abc import Callable
from typing import NamedTuple

from twisted.python import usage

import kvcore

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_UNITS = {"": 1, "K": KIB, "M": MIB, "G": GIB}


class Option(NamedTuple):
    """One option: how it is written, and `parse`, which makes the value of the text or raises ValueError."""

    name: str
    metavar: str
    default: str
    parse: Callable[[str], object]
    help: str

    @property
    def variable(self) -> str:
        """The name of the environment variable that sets this option."""
        return "KVSTORE_" + self.name.upper().replace("-", "_")


def parse_size(text: str) -> int:
    """Bytes from a number with an optional unit: 1048576, 1024K, 64MiB."""
    match = re.fullmatch(r"([0-9]+) ?([KMG]?)(?:(?<=[KMG])iB)?", text, re.ASCII | re.IGNORECASE)
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 64MiB, 512K or 1048576")
    return int(match[1]) * _UNITS[match[2].upper()]


def parse_listen(text: str) -> int | str | None:
    """Where to listen: None for off, a port of the loopback, or an endpoint (checked when it is bound)."""
    if text == "off":
        return None
    if ":" in text:
        return text
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise ValueError(f"{text!r} is not a port, an endpoint such as tcp:8080:interface=0.0.0.0, or off")
    return int(text)


def _path(text: str) -> str:
    if not text:
        raise ValueError("the path is empty")
    return text


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text!r} is not one of {', '.join(words)}")
        return text

    return parse


def _size(low: int, high: int, between: str) -> Callable[[str], int]:
    def parse(text: str) -> int:
        size = parse_size(text)
        if not low <= size <= high:
            raise ValueError(f"{text!r} is not between {between}")
        return size

    return parse


def _number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            raise ValueError(f"{text!r} is not a whole number between {low} and {high}")
        return int(text)

    return parse


OPTIONS = (
    Option("data-dir", "PATH", "./data", _path, "directory of the data; made when it is not there"),
    Option(
        "fsync",
        "always|everysec|no",
        "everysec",
        _one_of("always", "everysec", "no"),
        "when a write is forced to the disk. always: before it is acknowledged; everysec: within about a "
        "second; no: when the system does it. Acknowledged writes survive a killed server with each of them",
    ),
    Option(
        "text",
        "PORT|ENDPOINT|off",
        "8080",
        parse_listen,
        "where the text protocol listens. A port: this machine only, 127.0.0.1 and ::1; 0: any free port. "
        "An endpoint: tcp:8080:interface=0.0.0.0 (every machine that can reach this one), unix:/path",
    ),
    Option(
        "metrics",
        "PORT|ENDPOINT|off",
        "9464",
        parse_listen,
        "where HTTP serves /metrics (Prometheus), /healthz and /readyz",
    ),
    Option(
        "segment-size",
        "SIZE",
        "64MiB",
        _size(64 * KIB, GIB, "64KiB and 1GiB"),
        "size at which the log goes on in a new file, 64KiB to 1GiB",
    ),
    Option(
        "max-value-size",
        "SIZE",
        "64MiB",
        _size(1, GIB, "1 and 1GiB"),
        "longest value that is accepted, up to 1GiB",
    ),
    Option(
        "compression",
        "on|off",
        "on",
        _one_of("on", "off"),
        "whether values are compressed when they are copied to reclaim space, where that saves a tenth",
    ),
    Option(
        "dialect",
        "challenge|escabelo|lf",
        "challenge",
        _one_of("challenge", "escabelo", "lf"),
        "variant of the text protocol. escabelo: errors carry a reason, status carries counters; "
        "lf: the items of keys and reads are joined by line feeds",
    ),
    Option(
        "max-connections",
        "NUMBER",
        "10000",
        _number(1, 1_000_000),
        "how many text connections may be open at a time; further ones are closed",
    ),
    Option(
        "idle-timeout",
        "SECONDS",
        "0",
        _number(0, 31_536_000),
        "close a text connection that was silent for so long; 0: never",
    ),
    Option(
        "log-format",
        "text|json",
        "text",
        _one_of("text", "json"),
        "how a line of the log is written. json: one object a line",
    ),
)

_INTRO = """\
Usage: kvstore serve [OPTIONS]
   or: twistd [TWISTD OPTIONS] kvstore [OPTIONS]

Serve a durable key-value store: over a text protocol, with metrics over HTTP.

Options, each with its default and the environment variable that also sets it
(the command line wins; an empty variable counts as not set):
"""

_OUTRO = """\
  --version
      print the version and exit
  --help
      print this text and exit

A SIZE is a number of bytes, or of KiB, MiB or GiB: 1048576, 1024K, 64MiB.
"""


def help_text() -> str:
    """The text of --help."""
    lines = [_INTRO]
    for option in OPTIONS:
        lines.append(f"  --{option.name}={option.metavar}")
        lines += textwrap.wrap(option.help, 79, initial_indent=" " * 6, subsequent_indent=" " * 6)
        lines.append(f"      [{option.default}; {option.variable}]")
    lines.append(_OUTRO)
    return "\n".join(lines)


class Options(usage.Options):
    """The options of the server: a dict from the names in OPTIONS to checked values.

    What is wrong with them is told in one line, with exit status 2.
    """

    # No default here: it stands behind the environment.
    optParameters = tuple((option.name, None, None, option.help) for option in OPTIONS)

    def __str__(self) -> str:
        return help_text()

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"kvstore {kvcore.__version__}")
        raise SystemExit(0)

    def parseArgs(self, *words: str) -> None:
        """Refuse words that belong to no option."""
        if words:
            raise usage.UsageError(f"unexpected argument {words[0]!r}")

    def parseOptions(self, options=None) -> None:
        """Read the command line, then the environment, then the defaults.

        twistd would answer a mistake with its whole usage and status 1; one line says better what is wrong.
        """
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            print(f"kvstore: {error}", file=sys.stderr)
            raise SystemExit(2) from None

    def postOptions(self) -> None:
        """Replace each text by its value."""
        for option in OPTIONS:
            source, text = f"--{option.name}", self[option.name]
            if text is None:
                source, text = option.variable, os.environ.get(option.variable) or option.default
            try:
                self[option.name] = option.parse(text)
            except ValueError as error:
                raise usage.UsageError(f"{source}: {error}") from None
        if self["log-format"] == "json" and self.parent is not None and (self.parent["syslog"] or self.parent["logger"]):
            raise usage.UsageError("--log-format=json does not go together with --syslog or --logger of twistd")


def makeService(options):
    """The service that twistd runs."""
    from twisted.internet import reactor

    from kvnet import logs, process
    from kvnet.service import Server

    server = Server(reactor, options)
    if options.parent is None:
        return server
    # twistd runs us: the process is ours.
    process.take_over(reactor, daemonize=not options.parent["nodaemon"])
    root = logs.Root(logs.observer(reactor, options.parent, options["log-format"]))
    server.setServiceParent(root)
    return root
