"""The HTTP port for monitoring: /metrics, /healthz and /readyz.

prometheus_client has a Twisted resource as well; that one works in threads and imports the global reactor.
"""

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

TEXT = "text/plain; charset=utf-8"

Page = tuple[int, str, bytes]  # status, content type, body


class MonitorSite(Site):
    """The site; `readiness` says "ok", or in a line why the server cannot do all of its work."""

    noisy = False

    def __init__(self, reactor, registry: CollectorRegistry, readiness: Callable[[], str]):
        super().__init__(_Monitor(registry, readiness), reactor=reactor)

    def log(self, request: Request) -> None:
        """No access log: a scrape every few seconds is no news."""


class _Monitor(Resource):
    isLeaf = True

    def __init__(self, registry: CollectorRegistry, readiness: Callable[[], str]):
        super().__init__()
        self._registry = registry
        self._readiness = readiness
        self._pages = {b"/metrics": self._metrics, b"/healthz": self._healthz, b"/readyz": self._readyz}

    def render_GET(self, request: Request) -> bytes:
        status, content_type, body = self._pages.get(request.path, self._not_found)()
        request.setResponseCode(status)
        request.setHeader(b"content-type", content_type.encode())
        return body

    def render_HEAD(self, request: Request) -> bytes:
        # Said here, or the server would leave the body out and log a warning.
        request.setHeader(b"content-length", b"%d" % len(self.render_GET(request)))
        return b""

    def _metrics(self) -> Page:
        return 200, CONTENT_TYPE_LATEST, generate_latest(self._registry)

    def _healthz(self) -> Page:
        return 200, TEXT, b"ok\n"

    def _readyz(self) -> Page:
        state = self._readiness()
        return 200 if state == "ok" else 503, TEXT, state.encode() + b"\n"

    def _not_found(self) -> Page:
        return 404, TEXT, b"not found; there are /metrics, /healthz and /readyz\n"
