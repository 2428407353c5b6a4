"""The log: what is said of incidents in masses, and the two forms of a line."""

import io
import json
import signal
import socket
from pathlib import Path

from twisted.internet.task import Clock
from twisted.internet.testing import EventLoggingObserver
from twisted.logger import FileLogObserver, Logger, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.python.syslog import SyslogObserver
from twisted.trial.unittest import SynchronousTestCase

from kvcore.errors import CorruptionError
from kvnet.client import Client, ClientError
from kvnet.errors import text_error
from kvnet.incidents import DIFFERENT, PERIOD, Limiter
from kvnet.logs import json_line, observer, text_line
from tests.daemon import KVSTORE_SERVE, TWISTD, TWISTD_FOREGROUND, Daemon, run


class HandReactor(Clock):
    def callFromThread(self, function, *arguments):
        function(*arguments)

    def addSystemEventTrigger(self, *arguments):
        pass


class LimiterTests(SynchronousTestCase):
    def setUp(self):
        self.said = []
        self.reactor = HandReactor()
        self.limiter = Limiter(self.said.append, self.reactor)
        self.log = Logger("here", observer=self.limiter)

    def lines(self):
        lines = [formatEvent(event) for event in self.said]
        self.said.clear()
        return lines

    def test_the_same_line_is_said_once_and_counted(self):
        for _ in range(1000):
            self.log.error("damage at {place}", place=1)
        self.assertEqual(self.lines(), ["damage at 1"])
        self.reactor.advance(PERIOD)
        self.assertEqual([event["log_level"] for event in self.said], [LogLevel.error])
        self.assertEqual(self.lines(), ["999 more like it were left out; the last: damage at 1"])
        self.reactor.advance(PERIOD)
        self.assertEqual(self.lines(), [])
        self.log.error("damage at {place}", place=1)
        self.assertEqual(self.lines(), ["damage at 1"])

    def test_so_many_different_lines_of_a_kind_are_said(self):
        for place in range(DIFFERENT + 5):
            self.log.error("damage at {place}", place=place)
        self.assertEqual(self.lines(), [f"damage at {place}" for place in range(DIFFERENT)])
        self.reactor.advance(PERIOD)
        self.assertEqual(self.lines(), [f"5 more like it were left out; the last: damage at {DIFFERENT + 4}"])

    def test_kinds_do_not_hide_each_other(self):
        for _ in range(2):
            self.log.warn("one")
            self.log.warn("other")
            Logger("elsewhere", observer=self.limiter).warn("one")
            for error in (ValueError("a"), KeyError("a"), KeyError("b")):
                self.log.failure("trouble", Failure(error))
        self.assertEqual(self.lines(), ["one", "other", "one", "trouble", "trouble", "trouble"])

    def test_what_is_no_incident_is_always_said(self):
        for _ in range(50):
            self.log.info("started")
            Logger("stderr", observer=self.limiter).error("{log_io}", log_io="  in function")
        self.assertEqual(len(self.said), 100)

    def test_the_rest_is_told_at_the_end(self):
        for _ in range(3):
            self.log.error("again")
        self.limiter.flush()
        self.assertEqual(self.lines(), ["again", "2 more like it were left out; the last: again"])
        self.log.error("again")
        self.reactor.advance(PERIOD)
        self.assertEqual(self.lines(), ["again"])

    def test_what_was_left_out_can_be_written_in_both_forms(self):
        for _ in range(2):
            self.log.failure("trouble", Failure(ValueError("x")))
        self.limiter.flush()
        self.assertIn("1 more like it were left out; the last: trouble", text_line(self.said[1]))
        self.assertEqual(json.loads(json_line(self.said[1]))["left_out"], 1)


class JsonTests(SynchronousTestCase):
    def setUp(self):
        self.out = io.StringIO()
        self.log = Logger("here", observer=FileLogObserver(self.out, json_line))

    def line(self):
        """The only line of the log."""
        text = self.out.getvalue()
        self.assertEqual((text[-1:], text.count("\n")), ("\n", 1), text)
        text.encode("ascii")
        return json.loads(text, parse_constant=lambda name: self.fail(name))

    def test_a_line(self):
        self.log.warn("{count} of {what}", count=3, what="these", share=0.5, none=None, flag=True)
        line = self.line()
        self.assertRegex(line.pop("timestamp"), r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\Z")
        self.assertEqual(line, {
            "level": "warn", "namespace": "here", "message": "3 of these",
            "count": 3, "what": "these", "share": 0.5, "none": None, "flag": True,
        })

    def test_the_moment(self):
        self.assertIn('"timestamp": "2001-09-09T01:46:40.500Z"', json_line({"log_time": 1000000000.5, "log_format": ""}))

    def test_a_failure_has_its_traceback_in_a_field(self):
        try:
            raise ValueError("wrong\nin two lines")
        except ValueError:
            self.log.failure("trouble")
        line = self.line()
        self.assertEqual((line["level"], line["message"]), ("critical", "trouble"))
        self.assertIn("test_logs.py", line["failure"])
        self.assertIn("wrong\nin two lines", line["failure"])

    def test_odd_values(self):
        class Rude:
            def __repr__(self):
                raise RuntimeError

        self.log.info("{text}", text="a\nb\u2028\udcff\x00", data=b"\xff\x00k", nan=float("nan"), huge=float("inf"),
                      large=10**5000, rude=Rude(), things=[1, {2}], timestamp="mine")
        line = self.line()
        self.assertEqual(line["message"], "a\nb\u2028\\udcff\x00")
        self.assertEqual((line["data"], line["nan"], line["huge"]), ("\\xff\x00k", "nan", "inf"))
        self.assertNotEqual(line["timestamp"], "mine")
        self.assertEqual(line["things"], "[1, {2}]")

    def test_a_message_that_cannot_be_made(self):
        self.log.info("{missing.attribute} {", other=1)
        self.assertEqual(self.line()["other"], 1)

    def test_text_with_bytes_of_a_path(self):
        self.assertIn("a\\udcff", text_line({"log_format": "{path}", "path": "a\udcff", "log_time": 0.0}))


class PlaceTests(SynchronousTestCase):
    """Where twistd's options send the log."""

    def observer(self, **options):
        return observer(HandReactor(), {"syslog": False, "nodaemon": False, "logfile": None, **options}, "text")

    def test_a_daemon_turns_to_a_new_file_on_sigusr1(self):
        self.addCleanup(signal.signal, signal.SIGUSR1, signal.signal(signal.SIGUSR1, signal.SIG_DFL))
        path = Path(self.mktemp())
        log = Logger("here", observer=self.observer(logfile=str(path)))
        log.info("old")
        signal.raise_signal(signal.SIGUSR1)
        log.info("new")
        for name, word in ((path, "new"), (path.with_name(path.name + ".1"), "old")):
            self.assertRegex(name.read_text(), rf"\A[^\n]+ \[here#info\] {word}\n\Z")

    def test_syslog(self):
        said = []
        self.patch(SyslogObserver, "syslog", lambda self, priority, line: said.append(line))
        log = Logger("here", observer=self.observer(syslog=True, prefix="kvstore"))
        for _ in range(3):
            log.warn("again")
        self.assertEqual(said, ["[-] again"])


class TellingTests(SynchronousTestCase):
    def test_damage_and_want_of_memory_are_told_other_errors_are_the_clients(self):
        events = EventLoggingObserver.createWithCleanup(self, globalLogPublisher)
        for reason in ("no such key", CorruptionError(5, "byte 1 of x is damaged"), MemoryError()):
            text_error(reason, False)
        self.assertEqual([(event["log_level"], formatEvent(event)) for event in events], [
            (LogLevel.error, "a command met damage: byte 1 of x is damaged"), (LogLevel.error, "a command found no memory")])


class ProcessTests(SynchronousTestCase):
    """The log of the real server."""

    def setUp(self):
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir(parents=True)

    def start(self, *options, **settings):
        daemon = Daemon(self.directory, *options, **settings)
        self.addCleanup(daemon.kill)
        return daemon

    def test_a_line_for_the_start_and_one_for_the_stop(self):
        for command in (TWISTD_FOREGROUND, KVSTORE_SERVE):
            status, out, err = self.start(command=command).stop()
            self.assertEqual((status, err), (0, ""))
            self.assertRegex(out, r"\A[^\n]+ kvstore \d[^\n]+ opened in [^\n]+\n[^\n]+ kvstore stopped\n\Z")

    def test_json(self):
        status, out, err = self.start("--log-format=json", "--max-connections=1").stop()
        self.assertEqual((status, err), (0, ""))
        first, last = map(json.loads, out.splitlines())
        self.assertEqual((first["level"], first["keys"], first["fsync"]), ("info", 0, "everysec"))
        self.assertEqual(last["message"], "kvstore stopped")

    def test_json_of_a_daemon(self):
        """In the file that twistd names, also when the variable asks for it."""
        options = ["--pidfile=x.pid", "--logfile=x.log", "kvstore", "--text=0", "--metrics=off", "--data-dir=photos"]
        (self.directory / "photos").mkdir()
        (self.directory / "photos" / "photo.jpg").write_bytes(b"a photo")
        status, _, err = run(self.directory, *TWISTD, *options, KVSTORE_LOG_FORMAT="json")
        self.assertEqual(status, 1)
        line = json.loads((self.directory / "x.log").read_text().splitlines()[0])
        self.assertEqual((line["level"], f"kvstore: {line['message']}\n"), ("critical", err))

    def test_what_twistd_cannot_write(self):
        for words in (["--syslog"], ["--logger=twisted.logger.STDLibLogObserver"]):
            status, out, err = run(self.directory, *TWISTD, *words, "kvstore", "--log-format=json")
            self.assertEqual((status, out), (2, ""))
            self.assertRegex(err, r"\Akvstore: [^\n]*--log-format=json[^\n]*\n\Z")
        status, _, err = run(self.directory, *TWISTD, "--logfile=-", "kvstore", "--text=0", "--metrics=off")
        self.assertEqual((status, err), (1, "kvstore: a daemon cannot log to standard output; name a file with --logfile\n"))

    def test_clients_that_are_turned_away_are_a_line_and_a_number(self):
        daemon = self.start("--max-connections=1")
        with Client("127.0.0.1", daemon.port) as first:
            first.status()
            for _ in range(50):
                with socket.create_connection(("127.0.0.1", daemon.port)) as other:
                    self.assertEqual(other.recv(1), b"")
        out = daemon.stop()[1]
        self.assertEqual(out.count("a client was turned away: 1 are connected (--max-connections)\n"), 2)
        self.assertIn(" 49 more like it were left out; the last: a client was turned away", out)

    def test_damage_that_is_read_is_told(self):
        daemon = self.start()
        with Client("127.0.0.1", daemon.port) as client:
            client.write("k", b"a value like no other")
            path = min((self.directory / "data").glob("*.seg"))
            data = path.read_bytes()
            with open(path, "r+b") as segment:
                segment.seek(data.index(b"like no other"))
                segment.write(b"LIKE")
            for _ in range(3):
                self.assertRaises(ClientError, client.read, "k")
        out = daemon.stop()[1]
        self.assertIn(f"a command met damage: the record at byte 64 of {path} is damaged; write or delete", out)
        self.assertIn("2 more like it were left out", out)
