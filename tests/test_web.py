"""The monitoring port, request by request, without a socket."""

import gzip

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import EventLoggingObserver, StringTransport
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from kvnet.exposition import OPENMETRICS, TEXT
from kvnet.web import MonitorSite


class MonitorTests(SynchronousTestCase):
    def setUp(self):
        self.state = "ok"
        self.scraped = []
        self.site = MonitorSite(Clock(), self.scrape, lambda: self.state)
        self.site.doStart()
        self.addCleanup(self.site.doStop)

    async def scrape(self, content_type):
        self.scraped.append(content_type)
        return b"page %d" % len(self.scraped)

    def ask(self, path, method="GET", **headers):
        """The transport that the answer comes to, and the connection."""
        transport = StringTransport()
        channel = self.site.buildProtocol(None)
        channel.makeConnection(transport)
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        channel.dataReceived(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{lines}\r\n".encode())
        return transport, channel

    def request(self, path, method="GET", **headers):
        """The status, the headers and the body of the answer."""
        transport, _ = self.ask(path, method, **headers)
        head, _, body = transport.value().partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        self.assertEqual(int(headers["content-length"]), len(body) if method == "GET" else 3)
        return int(status.split()[1]), headers, body

    def type_for(self, accept):
        """The content type that a client gets who accepts this."""
        status, headers, body = self.request("/metrics", accept=accept)
        self.assertEqual((status, headers["content-type"]), (200, self.scraped[-1]))
        return headers["content-type"]

    def test_metrics_are_made_for_each_request(self):
        for number in (b"1", b"2"):
            status, headers, body = self.request("/metrics")
            self.assertEqual((status, headers["content-type"], body), (200, TEXT, b"page " + number))
            self.assertEqual((headers["vary"], headers.get("content-encoding")), ("accept, accept-encoding", None))

    def test_the_type_that_the_client_likes_best(self):
        prometheus = (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
            "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,text/plain;version=0.0.4;q=0.3,"
            "*/*;q=0.2")
        for accept, content_type in (
            (prometheus, OPENMETRICS),
            ("application/openmetrics-text", OPENMETRICS),
            ("text/plain;q=0.5, Application/OpenMetrics-Text; Q=0.5", OPENMETRICS),
            ("application/openmetrics-text;q=0.4,text/plain;q=0.5", TEXT),
            ("application/openmetrics-text;q=0.4,text/plain", TEXT),
            ("application/openmetrics-text;q=0", TEXT),
            ("application/openmetrics-text;q=much", TEXT),
            ("text/html,*/*;q=0.8", TEXT),
            (";;,q=1,", TEXT),
        ):
            self.assertEqual(self.type_for(accept), content_type, accept)

    def test_metrics_are_compressed_for_who_takes_that(self):
        for encodings in ("gzip", "deflate, gzip;q=0.5", "*", "br;q=1.0, GZIP"):
            _, headers, body = self.request("/metrics", accept_encoding=encodings)
            self.assertEqual((headers["content-encoding"], gzip.decompress(body)[:5]), ("gzip", b"page "), encodings)
        for encodings in ("", "identity", "gzip;q=0", "gzip;q=0, *", "*;q=0", "xgzip"):
            _, headers, body = self.request("/metrics", accept_encoding=encodings)
            self.assertEqual((headers.get("content-encoding"), body[:5]), (None, b"page "), encodings)

    def test_metrics_that_take_their_time(self):
        waiting = []

        async def scrape(content_type):
            waiting.append(Deferred())
            return await waiting[-1]

        self.patch(self, "scrape", scrape)
        self.setUp()
        patient, _ = self.ask("/metrics")
        gone, channel = self.ask("/metrics")
        channel.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(patient.value(), b"")
        for deferred in waiting:
            deferred.callback(b"at last")
        self.assertEqual((patient.value()[-7:], gone.value()), (b"at last", b""))

    def test_metrics_that_cannot_be_made(self):
        async def scrape(content_type):
            raise ZeroDivisionError

        self.patch(self, "scrape", scrape)
        self.setUp()
        status, headers, body = self.request("/metrics", accept_encoding="gzip")
        self.assertEqual((status, body.count(b"\n"), headers.get("content-encoding")), (500, 1, None))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_health_does_not_depend_on_the_store(self):
        for self.state in ("ok", "loading", "read-only"):
            self.assertEqual(self.request("/healthz")[::2], (200, b"ok\n"))

    def test_readiness_says_why_not(self):
        self.assertEqual(self.request("/readyz")[::2], (200, b"ok\n"))
        for self.state in ("loading", "full", "read-only"):
            self.assertEqual(self.request("/readyz")[::2], (503, self.state.encode() + b"\n"))

    def test_query_is_ignored(self):
        self.assertEqual(self.request("/healthz?verbose=1")[0], 200)

    def test_anything_else_is_not_found_in_one_line(self):
        for path in ("/", "/metric", "/metrics/", "/metrics/x", "/healthz/..", "//healthz"):
            status, headers, body = self.request(path)
            self.assertEqual((status, headers["content-type"]), (404, "text/plain; charset=utf-8"), path)
            self.assertEqual(body.count(b"\n"), 1)

    def test_head_is_the_same_without_the_body(self):
        status, headers, body = self.request("/healthz", "HEAD")
        self.assertEqual((status, headers["content-length"], body), (200, "3", b""))

    def test_other_methods_are_refused(self):
        transport = StringTransport()
        channel = self.site.buildProtocol(None)
        channel.makeConnection(transport)
        channel.dataReceived(b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        self.assertEqual(transport.value()[:13], b"HTTP/1.1 405 ")

    def test_requests_are_not_logged(self):
        events = EventLoggingObserver.createWithCleanup(self, globalLogPublisher)
        self.request("/healthz")
        self.request("/healthz", "HEAD")
        self.request("/nothing")
        self.assertEqual(list(events), [])
