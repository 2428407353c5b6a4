"""The log of the process: what is worth a line, in which form, and where it goes. docs/operations.md ("The log")."""

import json
import math
import signal
import sys
from datetime import UTC, datetime

from twisted.application.service import MultiService
from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogObserver,
    LegacyLogObserverWrapper,
    LogLevel,
    PredicateResult,
    formatEvent,
    formatEventAsClassicLogText,
)
from twisted.python.logfile import LogFile
from twisted.python.reflect import safe_str

from kvnet.incidents import Limiter

LOG_FILE = "twistd.log"  # of a daemon that names none, as twistd has it


class Root(MultiService):
    """The service that twistd runs. It makes `observer` that of the application, which twistd gives it for a parent."""

    def __init__(self, observer):
        super().__init__()
        self._observer = observer

    def setServiceParent(self, parent):
        """As in IService. A --logger of twistd is still stronger."""
        parent.setComponent(ILogObserver, self._observer)
        super().setServiceParent(parent)


def observer(reactor, twistd, word: str):
    """The ILogObserver for the options of twistd and --log-format: text or json."""
    if twistd["syslog"]:
        from twisted.python.syslog import SyslogObserver

        out = LegacyLogObserverWrapper(SyslogObserver(twistd["prefix"]).emit)
    else:
        out = FileLogObserver(_file(reactor, twistd), {"text": text_line, "json": json_line}[word])
    limiter = Limiter(out, reactor)
    reactor.addSystemEventTrigger("after", "shutdown", limiter.flush)
    return FilteringLogObserver(limiter, [_is_news])


def _file(reactor, twistd):
    name = twistd["logfile"]
    if twistd["nodaemon"] and name in (None, "-"):
        # A path may hold bytes that are no text, and the locale may know little.
        sys.stdout.reconfigure(errors="backslashreplace")
        return sys.stdout
    if name == "-":
        raise SystemExit("kvstore: a daemon cannot log to standard output; name a file with --logfile")
    file = LogFile.fromFullPath(name or LOG_FILE)
    if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, lambda number, frame: reactor.callFromThread(file.rotate))
    return file


def _is_news(event):
    """Of what Twisted tells only troubles: the server itself says when it starts and stops."""
    twisted = str(event.get("log_namespace", "")).startswith(("twisted.", "log_legacy"))
    calm = event.get("log_level") in (LogLevel.debug, LogLevel.info)
    return PredicateResult.no if twisted and calm else PredicateResult.maybe


def text_line(event) -> str | None:
    """An event as Twisted writes it: time, origin and level, message; lines behind a first one are indented."""
    line = formatEventAsClassicLogText(event)
    return line and _readable(line)


def json_line(event) -> str:
    """An event as one JSON object and a line feed: timestamp, level, namespace, message, and the fields of the event.

    A failure is in `failure`, with its traceback. A field that is named like one of these is left to the message.
    """
    failure = event.get("log_failure")
    level = event.get("log_level")
    line = {
        "timestamp": _iso(event.get("log_time")),
        "level": level.name if level else "info",
        "namespace": _value(event.get("log_namespace")),
        "message": _readable(formatEvent(event)),
    }
    if failure is not None:
        line["failure"] = _readable(failure.getTraceback())
    for name, value in event.items():
        if not name.startswith("log_") and name not in _OF_TWISTED:
            line.setdefault(_readable(name), _value(value))
    return json.dumps(line) + "\n"


# What Twisted's older interface adds to an event; it is in the message.
_OF_TWISTED = ("format", "isError", "message", "failure", "system", "time", "why")


def _iso(seconds) -> str:
    moment = datetime.fromtimestamp(seconds, UTC) if seconds is not None else datetime.now(UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _value(value):
    """What JSON can say of a value, and in no other type than another value of its kind."""
    if value is None or isinstance(value, bool):
        return value
    if (isinstance(value, int) and abs(value) < 1 << 64) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return _readable(value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else safe_str(value))


def _readable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
