"""A small blocking client of the text protocol, for Python programs and for the `kvstore` command."""

import re
import socket

# The grammar's [A-z] is meant as written: everything from "A" to "z" in ASCII.
_KEY = re.compile(rb"[A-z0-9.:-]{1,102400}")
_ERROR = b"error"
_CHUNK = 1 << 18


class ClientError(Exception):
    """The server said `error`, could not be reached or went away, or the request could never be sent.

    The message is one line.
    """


class Client:
    """One connection to a server, opened by the first call that needs it; also a context manager.

    Keys are str or bytes, values are bytes. The protocol does not frame its replies, and so

    * a stored value that is exactly b"error" cannot be told from the reply `error`: it raises ClientError,
    * so does a list from keys() or reads() that consists of nothing but b"error",
    * reads() cannot tell one empty value from no value: both are [].

    It speaks the dialect `challenge`, the default of the server. `timeout` is in seconds and bounds each wait
    for the server, not the whole call.
    """

    def __init__(self, host: str = "localhost", port: int = 8080, timeout: float = 30.0):
        self._host = host
        self._port = port
        self._timeout = timeout
        self._socket: socket.socket | None = None

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def write(self, key: str | bytes, value: bytes) -> None:
        """Store a value. When this returns it is as safe as the server's --fsync says."""
        if b"\r" in value:
            raise ClientError("write: the value holds a carriage return, which this protocol cannot carry")
        self._expect_success("write", self._ask(b"write " + _checked("write", key) + b"|" + value))

    def read(self, key: str | bytes) -> bytes:
        """The value of a key. ClientError when there is none."""
        reply = self._ask(b"read " + _checked("read", key))
        if reply == _ERROR:
            raise ClientError("read: the server says error: no such key, or its value cannot be read")
        return reply

    def delete(self, key: str | bytes) -> None:
        """Delete a key. ClientError when there is none."""
        self._expect_success("delete", self._ask(b"delete " + _checked("delete", key)))

    def status(self) -> str:
        """What the server says about itself."""
        reply = self._ask(b"status")
        if reply == _ERROR:
            raise ClientError("status: the server says error")
        return reply.decode("utf-8", "backslashreplace")

    def keys(self) -> list[bytes]:
        """All keys, ascending."""
        return self._list("keys", b"keys")

    def reads(self, prefix: str | bytes) -> list[bytes]:
        """The values of the keys that begin with the prefix, in the order of the keys."""
        return self._list("reads", b"reads " + _checked("reads", prefix))

    def _expect_success(self, command: str, reply: bytes) -> None:
        if reply != b"success":
            shown = reply[:200].decode("utf-8", "backslashreplace")
            raise ClientError(f"{command}: the server says {shown}")

    def _ask(self, command: bytes) -> bytes:
        """Send one command; its reply, without the carriage return."""
        if self._socket is None:
            self._socket = self._connect()
        try:
            self._socket.sendall(command + b"\r")
            return self._receive_reply(self._socket)
        except OSError as error:
            raise self._failure(error) from error
        except BaseException:
            # Half of a reply may still be under way; no later call may take it for its own.
            self.close()
            raise

    def _receive_reply(self, connection: socket.socket) -> bytes:
        reply = bytearray()
        while True:
            chunk = connection.recv(_CHUNK)
            if not chunk:
                raise ClientError(f"{self._place()} closed the connection before it answered")
            reply += chunk
            if b"\r" in chunk:
                break
        if reply.index(b"\r") != len(reply) - 1:
            raise ClientError(f"{self._place()} sent more than one reply; is it a kvstore server?")
        return bytes(reply[:-1])

    def _list(self, command: str, request: bytes) -> list[bytes]:
        """A list ends where the server closes: its items are joined by what ends a reply.

        So it has a connection of its own, half-closed behind the request.
        """
        reply = bytearray()
        with self._connect() as connection:
            try:
                connection.sendall(request)
                connection.shutdown(socket.SHUT_WR)
                while chunk := connection.recv(_CHUNK):
                    reply += chunk
            except OSError as error:
                raise self._failure(error) from error
        if not reply.endswith(b"\r"):
            raise ClientError(f"{command}: {self._place()} closed the connection before the end of the list")
        items = bytes(reply[:-1]).split(b"\r") if len(reply) > 1 else []
        if items == [_ERROR]:
            raise ClientError(f"{command}: the server says error")
        return items

    def _connect(self) -> socket.socket:
        try:
            return socket.create_connection((self._host, self._port), self._timeout)
        except (OSError, UnicodeError) as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> ClientError:
        self.close()
        if isinstance(error, TimeoutError):
            return ClientError(f"{self._place()} did not answer within {self._timeout:g} s")
        reason = getattr(error, "strerror", None) or str(error)
        return ClientError(f"cannot talk to {self._place()}: {reason}")

    def _place(self) -> str:
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"


def _checked(command: str, key: str | bytes) -> bytes:
    """The bytes of a key that the protocol can carry."""
    if isinstance(key, str):
        key = key.encode("utf-8", "surrogateescape")
    if not _KEY.fullmatch(key):
        raise ClientError(
            f"{command}: a key is 1 to 102400 characters of A-Z a-z 0-9 . - : _ [ ] ^ ` and the backslash"
        )
    return key
