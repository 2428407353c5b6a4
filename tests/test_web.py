"""The monitoring port, request by request, without a socket."""

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from twisted.internet.task import Clock
from twisted.internet.testing import EventLoggingObserver, StringTransport
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from kvnet.web import MonitorSite


class KeysCollector:
    """Stands for the collector of the server."""

    def __init__(self):
        self.keys = 0

    def collect(self):
        yield GaugeMetricFamily("kvstore_keys", "Keys in the store.", self.keys)


class MonitorTests(SynchronousTestCase):
    def setUp(self):
        self.state = "ok"
        self.registry = CollectorRegistry()
        self.site = MonitorSite(Clock(), self.registry, lambda: self.state)
        self.site.doStart()
        self.addCleanup(self.site.doStop)

    def request(self, path, method="GET"):
        """The status, the headers and the body of the answer."""
        transport = StringTransport()
        channel = self.site.buildProtocol(None)
        channel.makeConnection(transport)
        channel.dataReceived(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        head, _, body = transport.value().partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        self.assertEqual(int(headers["content-length"]), len(body) if method == "GET" else 3)
        return int(status.split()[1]), headers, body

    def test_metrics_come_from_the_registry_given(self):
        collector = KeysCollector()
        self.registry.register(collector)
        for keys in (3, 4):
            collector.keys = keys
            status, headers, body = self.request("/metrics")
            self.assertEqual((status, headers["content-type"]), (200, CONTENT_TYPE_LATEST))
            self.assertIn(f"\nkvstore_keys {keys}.0\n".encode(), body)
            self.assertNotIn(b"python_info", body)

    def test_metrics_before_there_is_a_collector(self):
        self.assertEqual(self.request("/metrics")[::2], (200, b""))

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
