"""How to reach a server, from the words that tell it where to listen: those of --text and --metrics. Knows no Twisted."""

import re
import socket

EVERYWHERE = ("", "0.0.0.0", "::")  # interfaces that stand for all of a machine

Place = tuple[str, int] | str  # host and port, or the path of a UNIX socket


def find(words: str, host: str = "localhost") -> Place | None:
    """The place of a port or an endpoint at a host, as `kvstore serve` takes them; None for "off".

    A host other than localhost goes before the interface that an endpoint names. Raises ValueError.
    """
    if words == "off":
        return None
    kind, *rest = _split(words) if ":" in words else ("tcp", words)
    named = dict(field.split("=", 1) for field in rest if "=" in field)
    plain = [field for field in rest if "=" not in field]
    if kind == "unix" and (path := named.get("address", "".join(plain[:1]))):
        return path
    port = named.get("port", "".join(plain[:1]))
    if kind not in ("tcp", "tcp6") or not (port.isascii() and port.isdigit() and 0 < int(port) <= 65535):
        raise ValueError(
            f"cannot tell from {words!r} how to reach the server: a port, tcp:PORT:interface=ADDRESS, unix:PATH or off")
    interface = named.get("interface", "".join(plain[1:2]))
    return host if host != "localhost" or interface in EVERYWHERE else interface, int(port)


def connect(place: Place, timeout: float) -> socket.socket:
    """A connection to a place; `timeout` in seconds is for it and for each wait on it. Raises OSError."""
    if not isinstance(place, str):
        return socket.create_connection(place, timeout)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(timeout)
        connection.connect(place)
    except BaseException:
        connection.close()
        raise
    return connection


def show(place: Place) -> str:
    """A place for people."""
    if isinstance(place, str):
        return f"unix:{place}"
    host, port = place
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def explain(error: Exception) -> str:
    """Why a connection failed, in a few words."""
    if isinstance(error, TimeoutError):
        return "no answer in time; it is still opening its data, or stuck"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _split(words: str) -> list[str]:
    """The fields of an endpoint; a backslash takes the next character as it is."""
    return [re.sub(r"\\(.)", r"\1", field) for field in re.findall(r"(?:\\.|[^:\\])+", words)]
