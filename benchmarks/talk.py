"""What the benchmarks say to a server beside the load generator: single reads and lists, in both protocols."""

import socket
import time

HOST = "127.0.0.1"
TIMEOUT = 60.0                  # seconds
CHUNK = 1 << 20
# A list in the text protocol has no end of its own. So a command with a known reply goes behind every request.
MARKS = {"text": (b"status\r", b"well going our operation\r"), "resp": (b"PING\r\n", b"+PONG\r\n")}
LOADING = b"-LOADING"


def read(protocol, key):
    """The request for a value."""
    if protocol == "text":
        return b"read %b\r" % key
    return b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(key), key)


def all_keys(protocol):
    """The request for all keys."""
    return b"keys\r" if protocol == "text" else b"*2\r\n$4\r\nKEYS\r\n$1\r\n*\r\n"


def below(protocol, prefix):
    """The request for what lies under a prefix: the values in the text protocol, the keys in that of Redis."""
    if protocol == "text":
        return b"reads %b\r" % prefix
    return b"*2\r\n$4\r\nKEYS\r\n$%d\r\n%b*\r\n" % (len(prefix) + 1, prefix)


def connect(port, receive_buffer=None):
    """A connection. `receive_buffer`: bytes the kernel keeps at most, where that matters."""
    connection = socket.socket()
    connection.settimeout(TIMEOUT)
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect((HOST, port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def exchange(connection, protocol, request):
    """Send a request; return how many bytes its reply has. EOFError when the server closes before."""
    ask, mark = MARKS[protocol]
    connection.sendall(request + ask)
    chunk, tail, received = bytearray(CHUNK), b"", 0
    while not tail.endswith(mark):
        count = connection.recv_into(chunk)
        if not count:
            raise EOFError("the server closed the connection")
        received += count
        tail = (tail + chunk[max(0, count - len(mark)):count])[-len(mark):]
    return received - len(mark)


def timed(connection, protocol, request):
    """(seconds, bytes of the reply) of a request."""
    started = time.perf_counter()
    received = exchange(connection, protocol, request)
    return time.perf_counter() - started, received


def whole(protocol, reply):
    """Whether this is all of the reply to a read."""
    if protocol == "text":
        return reply.endswith(b"\r")
    header, end, rest = reply.partition(b"\r\n")
    if header[:1] != b"$" or header == b"$-1":
        return bool(end)
    return bool(end) and len(rest) >= int(header[1:]) + 2


def answered(port, protocol, key, value):
    """Whether the server answers a read, and with this value; value None: with anything but that it is not ready."""
    try:
        with connect(port) as connection:
            connection.sendall(read(protocol, key))
            reply = b""
            while not whole(protocol, reply):
                chunk = connection.recv(CHUNK)
                if not chunk:
                    return False
                reply += chunk
    except (ConnectionError, TimeoutError):
        return False
    if reply.startswith(LOADING):
        return False
    if value is not None and value not in reply:
        raise ValueError(f"{reply[:60]!r} was answered where a value had been written")
    return True
