"""The monitoring port of a running server, seen from outside: for `kvstore health`, `stats` and `status --verbose`."""

from http.client import HTTPConnection, HTTPException

from kvnet import places


class MonitorError(Exception):
    """The monitoring port cannot be reached, or is not that of a kvstore. The message is one line."""


def ask(place: places.Place, page: str, timeout: float) -> tuple[int, str]:
    """Status and text of a page; `timeout` in seconds is for each wait. Raises MonitorError.

    No proxy that the environment may name is asked.
    """
    connection = HTTPConnection("localhost")
    try:
        connection.sock = places.connect(place, timeout)
        connection.request("GET", "/" + page, headers={"Connection": "close"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, ValueError, HTTPException) as error:
        raise MonitorError(f"cannot ask the monitoring port {places.show(place)}: {places.explain(error)}") from error
    finally:
        connection.close()


def readiness(place: places.Place, timeout: float) -> str:
    """ "ok", or why the server cannot do all of its work, in a line. Raises MonitorError."""
    status, text = ask(place, "readyz", timeout)
    if status not in (200, 503):
        raise MonitorError(f"{places.show(place)} is no monitoring port of a kvstore: it answers {status} to /readyz")
    return text.strip()
