"""What belongs to the process and not to the services in it: signals, and how a start that failed is told."""

import gc
import math
import os
import resource
import signal
import socket
import sys

from twisted.logger import Logger

log = Logger()


# Descriptors that are not for clients: segments, ports, monitoring, the interpreter's own.
OWN_DESCRIPTORS = 64


class StartError(Exception):
    """The server cannot start. The message is one line: what, where, what to do."""


def take_over(reactor, daemonize: bool) -> None:
    """Make the process that of a server. Called once, before twistd becomes a daemon."""
    _stop_on_signals(reactor)
    reactor.callWhenRunning(_settle_memory)
    reactor.callWhenRunning(_tell_ready)
    _report_start_errors(_DaemonReport.install(reactor) if daemonize else None)


def _settle_memory() -> None:
    """What there is now stays: the garbage collector need not go through it again and again."""
    gc.collect()
    gc.freeze()


def _tell_ready() -> None:
    """Tell systemd, when it waits for it (Type=notify, sd_notify(3)), that clients are served from now on."""
    place = os.environ.get("NOTIFY_SOCKET")
    if not place:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.connect("\0" + place[1:] if place[0] == "@" else place)
            manager.sendall(b"READY=1")
    except OSError as error:
        log.warn("{place}, which NOTIFY_SOCKET names, was not told: {reason}", place=place, reason=error.strerror or error)


def raise_descriptor_limit(clients: int) -> None:
    """Raise the limit of open files, as far as it may be, to what so many clients need; tell when that is not enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = clients + OWN_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if descriptors_for_clients() < clients:
        log.warn(
            "less than {clients} connections are possible: the process may have {soft} open files (ulimit -n)",
            clients=clients, soft=soft)


def descriptors_for_clients() -> float:
    """The descriptor from which on none may go to a client: what is left is for the data."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return math.inf if soft == resource.RLIM_INFINITY else soft - min(OWN_DESCRIPTORS, soft // 2)


def _stop_on_signals(reactor) -> None:
    """SIGTERM and SIGINT stop the reactor, once, and the process then ends with status 0.

    With the reactor's own handlers twistd ends by raising the signal again.
    """
    signals = (signal.SIGTERM, signal.SIGINT)
    stopping = False

    def stop(number, frame):
        nonlocal stopping
        if not stopping:
            stopping = True
            reactor.callFromThread(reactor.stop)

    def install():
        for number in signals:
            signal.signal(number, stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)

    # The reactor puts its own handlers in place when it begins to run. What comes before ours stand is kept until
    # then; while the store is opened nothing could be stopped anyway.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    reactor.callWhenRunning(install)


def _report_start_errors(report) -> None:
    """Show a StartError that nothing caught as its line alone; the interpreter then exits with status 1."""

    def hook(kind, error, trace):
        if not issubclass(kind, StartError):
            sys.__excepthook__(kind, error, trace)
        elif report is None:
            # Not sys.stderr: twistd has put its log there.
            print(f"kvstore: {error}", file=sys.__stderr__)
        else:
            log.critical("{error}", error=error)
            report.send(f"kvstore: {error}\n")

    sys.excepthook = hook


class _DaemonReport:
    """Carries the line of a StartError from the daemon to the command that started it and waits for it.

    twistd has a pipe for that as well, but cuts the message at 100 bytes and wraps its repr in two lines.
    This object stands in for sys.__stderr__, which is where the waiting parent writes them.
    """

    def __init__(self, stderr):
        self._stderr = stderr
        self._reader, self._writer = os.pipe()

    @classmethod
    def install(cls, reactor) -> "_DaemonReport":
        """Put a report in the place of sys.__stderr__; it ends when the reactor runs."""
        report = cls(sys.__stderr__)
        sys.__stderr__ = report
        reactor.callWhenRunning(report._close)
        return report

    def send(self, line: str) -> None:
        """In the daemon: hand the line over."""
        os.write(self._writer, line.encode("utf-8", "backslashreplace"))

    def write(self, text: str) -> int:
        """In the parent: show the line that the daemon sent, or twistd's text when it ended without one."""
        os.close(self._writer)  # or the end of the pipe would never come
        with open(self._reader, "rb") as pipe:
            line = pipe.read().decode("utf-8")
        return self._stderr.write(line or text)

    def flush(self) -> None:
        """As a file has it."""
        self._stderr.flush()

    def _close(self) -> None:
        sys.__stderr__ = self._stderr
        os.close(self._reader)
        os.close(self._writer)
