"""Incidents that come in masses: a client or a disk that goes on doing the same must not fill the log."""

import threading

from twisted.logger import ILogObserver, LogLevel, formatEvent
from zope.interface import implementer

PERIOD = 60  # seconds in which a line is said once
DIFFERENT = 20  # different lines of one kind that are said in it

# What is printed, and what Python prints of an exception in no one's hands, comes line by line: a line means nothing alone.
PRINTED = ("stdout", "stderr")


class _Kind:
    """What was said of one kind of incident in the current period."""

    def __init__(self):
        self.said = set()
        self.left_out = 0
        self.last = None  # the last event that was left out


@implementer(ILogObserver)
class Limiter:
    """Hands events on to an observer, of warnings and errors not all.

    A kind is what one place in the code tells about one type of exception. The same line is handed on once in PERIOD
    seconds, of a kind at most DIFFERENT lines; the number of the others follows at the end of the period.

    observer: ILogObserver. reactor: provides time, callLater and callFromThread. May be called in any thread.
    """

    def __init__(self, observer, reactor):
        self._observer = observer
        self._reactor = reactor
        self._kinds = {}
        self._lock = threading.Lock()

    def __call__(self, event):
        """Hand an event on, or count it."""
        calm = event.get("log_level") not in (LogLevel.warn, LogLevel.error, LogLevel.critical)
        if calm or event.get("log_namespace") in PRINTED or self._is_said(event):
            self._observer(event)

    def flush(self):
        """Tell what was left out so far, and begin anew."""
        with self._lock:
            kinds, self._kinds = self._kinds, {}
        for kind in kinds.values():
            self._summarize(kind)

    def _is_said(self, event):
        failure = event.get("log_failure")
        name = (event.get("log_namespace"), event.get("log_format"), failure and failure.type)
        line = formatEvent(event) + (failure.getErrorMessage() if failure else "")
        with self._lock:
            kind = self._kinds.get(name)
            if kind is None:
                kind = self._kinds[name] = _Kind()
                self._reactor.callFromThread(self._reactor.callLater, PERIOD, self._end, name, kind)
            if line in kind.said or len(kind.said) == DIFFERENT:
                kind.left_out += 1
                kind.last = event
                return False
            kind.said.add(line)
            return True

    def _end(self, name, kind):
        with self._lock:
            if self._kinds.get(name) is not kind:
                return  # flushed
            del self._kinds[name]
        self._summarize(kind)

    def _summarize(self, kind):
        if kind.left_out:
            self._observer({
                **{key: kind.last[key] for key in ("log_level", "log_namespace", "log_time")},
                "log_format": "{left_out} more like it were left out; the last: {line}",
                "left_out": kind.left_out,
                "line": formatEvent(kind.last),
            })
