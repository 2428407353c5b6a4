"""Servers as child processes. Each is a command line; all are started, watched and ended in the same way.

What a command line may hold is replaced when the server is started:

    {text} {resp}   a free port for that protocol; which of them it holds says what the server speaks
    {dir}           the directory of the data, empty or as an earlier start left it
    {fsync}         always, everysec or no; a server without it only takes part where everysec is measured

Servers get one half of the processors and whoever measures the other half, so that neither moves about.
"""

import contextlib
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass

import measure
import talk

import kvcore
from kvnet import tap

PROTOCOLS = ("text", "resp")
ROOT = pathlib.Path(__file__).resolve().parent.parent
PATIENCE = 120.0                # seconds for a start or a stop
POLL = 0.001


class ServerError(Exception):
    """A server cannot be started or ended. The message is one line."""


@dataclass(frozen=True)
class Server:
    """A server that can be started."""

    name: str
    command: str
    program: tuple[str, ...] = ()       # the words that stand for the first of the command
    busy: str = ""                      # further options with which reclaiming space never rests
    version: str = ""

    @property
    def protocols(self):
        """What it speaks, the one it is mainly measured by first."""
        return [protocol for protocol in PROTOCOLS if f"{{{protocol}}}" in self.command]

    def keeps(self, fsync):
        """Whether it can be told to keep writes so."""
        return "{fsync}" in self.command or fsync == "everysec"

    def words(self, **values):
        """The command line with everything replaced."""
        words = [re.sub(r"\{(\w+)\}", lambda match: str(values[match[1]]), word) for word in shlex.split(self.command)]
        return [*(self.program or words[:1]), *words[1:]]

    @property
    def shown(self):
        """The command for a page: without the path of the program."""
        first, *rest = self.command.split(" ", 1)
        return " ".join([os.path.basename(first), *rest])


def kvstore():
    """This checkout's server, with every front end that it has."""
    options = {option.name for option in tap.OPTIONS}
    ports = "".join(f" --{protocol} {{{protocol}}}" for protocol in PROTOCOLS if protocol in options)
    return Server("kvstore", f"kvstore serve --data-dir {{dir}}{ports} --metrics off --fsync {{fsync}}",
                  (sys.executable, "-m", "kvnet"), "--segment-size 2MiB", kvcore.__version__)


def redis():
    """redis-server with its log of operations and no snapshots; None when it is not installed."""
    if shutil.which("redis-server") is None:
        return None
    told = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"v=(\S+)", told)
    return Server("redis", "redis-server --bind 127.0.0.1 --port {resp} --dir {dir} --save '' --appendonly yes "
                  "--appendfsync {fsync}", version=version[1] if version else "")


def peer(text):
    """A Server from NAME=COMMAND. ValueError when it is none."""
    name, _, command = text.partition("=")
    made = Server(name.strip(), command.strip())
    if not (made.name and made.command):
        raise ValueError(f"{text!r} is not NAME=COMMAND")
    unknown = set(re.findall(r"\{(\w+)\}", command)) - {*PROTOCOLS, "dir", "fsync"}
    if unknown:
        raise ValueError(f"{name}: {{{unknown.pop()}}} is none of {{text}}, {{resp}}, {{dir}}, {{fsync}}")
    if not made.protocols:
        raise ValueError(f"{name}: the command has neither {{text}} nor {{resp}} for its port")
    program = shlex.split(command)[0]
    if shutil.which(program) is None:
        raise ValueError(f"{name}: there is no program {program}")
    return made


def halves():
    """(processors of the servers, those of whoever measures); both are the same where there is only one."""
    available = sorted(os.sched_getaffinity(0))
    middle = len(available) // 2
    return set(available[:middle] or available), set(available[middle:])


@contextlib.contextmanager
def placed(processors):
    """What is started inside runs on these processors only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_ports(names):
    """{name: a port that is free at the moment}."""
    with contextlib.ExitStack() as stack:
        ports = {}
        for name in names:
            probe = stack.enter_context(socket.socket())
            probe.bind((talk.HOST, 0))
            ports[name] = probe.getsockname()[1]
        return ports


class Running:
    """A server that was started on `directory`; also a context manager, which kills it.

    `seconds` is the time from the start of the process to the answer to its first read.
    """

    def __init__(self, server, directory, processors, fsync="everysec", extra="", key=b"none", value=None):
        """Start it and wait until it answers a read of key, with value if that is given. ServerError when it does not."""
        self.server = server
        self.data = pathlib.Path(directory) / "data"
        self.data.mkdir(parents=True, exist_ok=True)
        self.ports = free_ports(server.protocols)
        self._log = pathlib.Path(directory) / "log"
        words = [*server.words(dir=self.data, fsync=fsync, **self.ports), *shlex.split(extra)]
        kept = {name: text for name, text in os.environ.items() if not name.startswith("KVSTORE_")}
        with open(self._log, "w") as log, placed(processors):
            started = time.perf_counter()
            self.process = subprocess.Popen(
                words, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=kept | {"PYTHONPATH": str(ROOT)})
        try:
            self._wait(started, key, value)
        except BaseException:
            self.kill()
            raise

    def _wait(self, started, key, value):
        protocol = self.server.protocols[0]
        while True:
            try:
                if talk.answered(self.ports[protocol], protocol, key, value):
                    break
            except ValueError as error:
                raise ServerError(f"{self.server.name}: {error}") from None
            if self.process.poll() is not None:
                last = self._log.read_text(errors="replace").strip().splitlines()[-1:]
                raise ServerError(f"{self.server.name} ended with status {self.process.returncode}: {''.join(last)}")
            if time.perf_counter() - started > PATIENCE:
                raise ServerError(f"{self.server.name} answered no read within {PATIENCE:g} s")
            time.sleep(POLL)
        self.seconds = time.perf_counter() - started

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.kill()

    def stop(self):
        """End it as an operator does. ServerError when it does not end."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise ServerError(f"{self.server.name} did not end within {PATIENCE:g} s of SIGTERM") from None

    def kill(self):
        """kill -9, and wait for the end."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def private_memory(self):
        """Its anonymous memory that is resident, in bytes."""
        return measure.private_memory(self.process.pid)

    def disk_bytes(self):
        """What its data directory takes on the disk."""
        return measure.disk_bytes(self.data)
