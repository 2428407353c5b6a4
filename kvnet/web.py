"""The HTTP port for monitoring: /metrics, /healthz and /readyz.

prometheus_client has a Twisted resource as well; that one works in threads and imports the global reactor.
"""

import gzip
from collections.abc import Awaitable, Callable

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from kvnet.exposition import OPENMETRICS, TEXT

PLAIN = "text/plain; charset=utf-8"
GZIP_LEVEL = 1  # leaves a sixth of the page, in a twentieth of a millisecond

log = Logger()


class MonitorSite(Site):
    """The site. `scrape` makes the page of metrics of a content type, one of kvnet.exposition.FORMATS; `readiness` says
    "ok", or in a line why the server cannot do all of its work.
    """

    noisy = False

    def __init__(self, reactor, scrape: Callable[[str], Awaitable[bytes]], readiness: Callable[[], str]):
        super().__init__(_Monitor(scrape, readiness), reactor=reactor)

    def log(self, request: Request) -> None:
        """No access log: a scrape every few seconds is no news."""


class _Monitor(Resource):
    isLeaf = True

    def __init__(self, scrape: Callable[[str], Awaitable[bytes]], readiness: Callable[[], str]):
        super().__init__()
        self._scrape = scrape
        self._readiness = readiness

    def render_GET(self, request: Request) -> int:
        Deferred.fromCoroutine(self._answer(request)).addErrback(lambda failure: log.failure("unexpected", failure))
        return NOT_DONE_YET

    render_HEAD = render_GET  # the request leaves the body out itself

    async def _answer(self, request: Request) -> None:
        gone = []
        request.notifyFinish().addErrback(gone.append)
        status, content_type, body = await self._page(request)
        if gone:
            return
        request.setResponseCode(status)
        request.setHeader(b"content-type", content_type.encode())
        request.setHeader(b"content-length", b"%d" % len(body))
        request.write(body)
        request.finish()

    async def _page(self, request: Request) -> tuple[int, str, bytes]:
        """Status, content type and body."""
        if request.path == b"/metrics":
            return await self._metrics(request)
        if request.path == b"/healthz":
            return 200, PLAIN, b"ok\n"
        if request.path == b"/readyz":
            state = self._readiness()
            return 200 if state == "ok" else 503, PLAIN, state.encode() + b"\n"
        return 404, PLAIN, b"not found; there are /metrics, /healthz and /readyz\n"

    async def _metrics(self, request: Request) -> tuple[int, str, bytes]:
        types, encodings = _accepted(request, "accept"), _accepted(request, "accept-encoding")
        openmetrics = types.get("application/openmetrics-text", 0)
        content_type = OPENMETRICS if openmetrics and openmetrics >= types.get("text/plain", 0) else TEXT
        try:
            body = await self._scrape(content_type)
        except Exception:
            log.failure("the metrics could not be shown")
            return 500, PLAIN, b"the metrics cannot be shown; the log says why\n"
        request.setHeader(b"vary", b"accept, accept-encoding")
        if encodings.get("gzip", encodings.get("*", 0)):
            request.setHeader(b"content-encoding", b"gzip")
            body = gzip.compress(body, GZIP_LEVEL)
        return 200, content_type, body


def _accepted(request: Request, header: str) -> dict[str, float]:
    """What a client takes, by its name, and how much it likes it: 0 to 1."""
    weights = {}
    for item in ",".join(request.requestHeaders.getRawHeaders(header, [])).lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        weight = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        try:
            weights[name] = max(float(weight), weights.get(name, 0.0))
        except ValueError:
            pass  # a weight that is none: as if it were not there
    return weights
