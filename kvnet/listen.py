"""Listening: from the word of an option to bound ports."""

import errno

from twisted.application.service import Service
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import DeferredList, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.python.failure import Failure

from kvnet.process import StartError

BACKLOG = 1024
# What a system without IPv6, or without the address ::1, answers to a bind.
NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)


class Listener(Service):
    """The ports of one front end, bound before the store is opened: early clients wait in the kernel.

    `where` is a port of the loopback or an endpoint description; `name` is the option it came from; `reactor` may be a
    kvnet.ports.Ports, whose TCP and UNIX ports are direct.
    """

    def __init__(self, reactor, name: str, where: int | str, factory):
        self.setName(name)
        self.addresses: list[str] = []
        self._reactor = reactor
        self._where = where
        self._factory = factory
        self._ports = []

    def privilegedStartService(self) -> None:
        """Bind the ports. Raises StartError."""
        bind = _loopback if isinstance(self._where, int) else _endpoint
        try:
            self._ports = bind(self._reactor, self._where, self._factory)
            self.addresses = [_show(port.getHost()) for port in self._ports]
        except Exception as error:  # the parsers of endpoints raise whatever comes to them
            raise StartError(self._explain(error)) from error

    def release(self) -> None:
        """Close the ports at once, for a start that failed: no reactor will run to do it."""
        for port in self._ports:
            _close(port)
        self._ports = []

    def stopService(self) -> DeferredList:
        """Stop accepting."""
        super().stopService()
        ports, self._ports = self._ports, []
        return DeferredList([maybeDeferred(port.stopListening) for port in ports])

    def _explain(self, error: Exception) -> str:
        place = repr(self._where)
        if isinstance(error, CannotListenError):
            if isinstance(self._where, int):
                place = _join(error.interface, error.port)
            error = error.socketError
        reason = " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
        return f"cannot listen on {place}: {reason}; choose another place with --{self.name}"


def _loopback(reactor, number: int, factory, tries: int = 10) -> list:
    """Ports on 127.0.0.1 and ::1 with the same number; for 0, the one that the first of them gets."""
    first = reactor.listenTCP(number, factory, BACKLOG, "127.0.0.1")
    try:
        return [first, reactor.listenTCP(first.getHost().port, factory, BACKLOG, "::1")]
    except CannotListenError as error:
        if getattr(error.socketError, "errno", None) in NO_IPV6:
            return [first]
        _close(first)
        if number or not tries:
            raise
    # Another program has that number on ::1; the next free one will do as well.
    return _loopback(reactor, number, factory, tries - 1)


def _endpoint(reactor, description: str, factory) -> list:
    """The port of an endpoint; it must be bound when listen() returns, as the start line names it."""
    results = []
    serverFromString(reactor, description).listen(factory).addBoth(results.append)
    if not results:
        raise ValueError("endpoints of this kind do not listen at once")
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results


def _close(port) -> None:
    port.stopReading()
    port.connectionLost(Failure(ConnectionDone()))


def _show(address) -> str:
    if isinstance(address, UNIXAddress):
        return "unix:" + address.name.decode("utf-8", "backslashreplace")
    return _join(address.host, address.port)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
