"""The reply parsers of the load generator, within reach of the tests. Built in place only, never shipped."""
from cpython.bytes cimport PyBytes_FromStringAndSize
from kvcore.types cimport slice_of, uint8_t
from kvnet.bench.wire cimport (
    COMMAND_ROOM, MORE, READ, WRITE, Operation, Protocol, Reply, command_put, reply_reset, reply_take)
from kvnet.bench.workload cimport Workload, uint64_t

from kvnet.bench.wire import PROTOCOLS

OUTCOMES = ("more", "good", "miss", "refused", "wrong", "foreign")


def command(protocol, operation, Workload workload not None, uint64_t number):
    """The bytes of a command; operation: "write" or "read"."""
    cdef bytearray out = bytearray(COMMAND_ROOM + workload.longest_key + workload.longest_value)
    cdef uint8_t* start = out
    cdef Protocol p = PROTOCOLS.index(protocol)
    cdef Operation o = READ if operation == "read" else WRITE
    del out[command_put(p, o, workload, number, start) - start:]
    return bytes(out)


def replies(protocol, asked, chunks):
    """What the replies that come in `chunks` mean: list of (outcome, first bytes where they are kept).

    asked: list of the expected value (bytes) of a read, or None for a write. What is not complete comes last, as "more".
    """
    cdef Reply reply
    cdef size_t used
    cdef bytes chunk, expected
    cdef Protocol p = PROTOCOLS.index(protocol)
    found, waiting = [], list(asked)
    reply_reset(&reply)
    for chunk in chunks:
        while chunk:
            expected = waiting[0] if waiting[0] is not None else b""
            outcome = reply_take(
                p, WRITE if waiting[0] is None else READ, slice_of(<const char*>expected, len(expected)), &reply,
                <const uint8_t*><const char*>chunk, len(chunk), &used)
            chunk = chunk[used:]
            if outcome == MORE:
                break
            found.append((OUTCOMES[outcome], PyBytes_FromStringAndSize(<char*>reply.head, reply.kept)))
            if OUTCOMES[outcome] == "foreign":
                return found
            waiting.pop(0)
            reply_reset(&reply)
    if waiting:
        found.append(("more", b""))
    return found
