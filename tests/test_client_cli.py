"""The Python client and the shell commands, against a server that plays a script."""

import socket
import sys
import threading

from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from kvnet.cli import main
from kvnet.client import Client, ClientError
from tests.daemon import run

COMMAND = "a command comes in"
EOF = "the client closes its side"


def receive_command(stream):
    command = b""
    while not command.endswith(b"\r") and (byte := stream.read(1)):
        command += byte
    return command


class ScriptedServer:
    """Plays one script per connection: bytes are sent, COMMAND waits for one, EOF for the client's end.

    What each connection received stands in `received`, once the server is closed.
    """

    def __init__(self, *scripts):
        self.received = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(30)
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._play, args=(scripts,), daemon=True)
        self._thread.start()

    def _play(self, scripts):
        for script in scripts:
            connection, _ = self._socket.accept()
            connection.settimeout(30)
            with connection, connection.makefile("rb") as stream:
                received = b""
                for step in script:
                    if isinstance(step, bytes):
                        connection.sendall(step)
                    elif step is EOF:
                        received += stream.read()
                    else:
                        received += receive_command(stream)
                self.received.append(received)

    def close(self):
        self._thread.join(30)
        self._socket.close()


class ScriptedTestCase(SynchronousTestCase):
    def serve(self, *scripts):
        server = ScriptedServer(*scripts)
        self.addCleanup(server.close)
        return server

    def closed_port(self):
        with socket.create_server(("127.0.0.1", 0)) as listening:
            return listening.getsockname()[1]


class ClientTests(ScriptedTestCase):
    def connect(self, server, **options):
        client = Client("127.0.0.1", server.port, **options)
        self.addCleanup(client.close)
        return client

    def failure(self, function, *arguments):
        """The message of the ClientError, which is one line."""
        message = str(self.assertRaises(ClientError, function, *arguments))
        self.assertNotIn("\n", message)
        return message

    def test_commands_share_one_connection(self):
        server = self.serve(
            [
                *(COMMAND, b"success\r", COMMAND, b"v\r", COMMAND, b"\r", COMMAND, b"success\r"),
                *(COMMAND, b"well going our operation\r", EOF),
            ]
        )
        with self.connect(server) as client:
            client.write("k", b"v\n|")
            self.assertEqual(client.read(b"k"), b"v")
            self.assertEqual(client.read("k"), b"")
            client.delete("k")
            self.assertEqual(client.status(), "well going our operation")
        server.close()
        self.assertEqual(server.received, [b"write k|v\n|\rread k\rread k\rdelete k\rstatus\r"])

    def test_reply_in_pieces(self):
        value = bytes(range(14, 256)) * 3000
        server = self.serve([COMMAND, value[:1], value[1:500_000], value[500_000:], b"\r"])
        self.assertEqual(self.connect(server).read("k"), value)

    def test_error_replies(self):
        server = self.serve(
            [COMMAND, b"error\r", COMMAND, b"error\r", COMMAND, b"error: no such key\r", COMMAND, b"error\r"]
        )
        client = self.connect(server)
        self.assertIn("write: the server says error", self.failure(client.write, "k", b"v1"))
        self.assertIn("read: the server says error", self.failure(client.read, "k"))
        self.assertIn("delete: the server says error: no such key", self.failure(client.delete, "k"))
        self.assertIn("status: the server says error", self.failure(client.status))

    def test_requests_that_cannot_be_sent(self):
        client = Client("127.0.0.1", self.closed_port())
        for key in ("", "a b", "a|b", "a\r", b"\xff", "\u00e9", "a\n", "k" * 102_401):
            for call in (client.read, client.delete, client.reads):
                self.assertIn("a key is", self.failure(call, key))
            self.assertIn("a key is", self.failure(client.write, key, b""))
        self.assertIn("carriage return", self.failure(client.write, "k", b"a\rb"))

    def test_longest_key_and_every_key_character(self):
        key = ("AZ[\\]^_`az09.-:" * 7000)[:102_400]
        server = self.serve([COMMAND, b"v\r"])
        self.assertEqual(self.connect(server).read(key), b"v")

    def test_lists_use_a_connection_of_their_own(self):
        server = self.serve(
            [EOF, b"a\rb", b"\rc\r"], [EOF, b"x\r\ry\r"], [EOF, b"\r"], [EOF, b"\r"], [COMMAND, b"v\r", EOF]
        )
        with self.connect(server) as client:
            self.assertEqual(client.keys(), [b"a", b"b", b"c"])
            self.assertEqual(client.reads("p:"), [b"x", b"", b"y"])
            self.assertEqual(client.keys(), [])
            self.assertEqual(client.reads("q"), [])
            self.assertEqual(client.read("k"), b"v")
        server.close()
        self.assertEqual(server.received, [b"keys", b"reads p:", b"keys", b"reads q", b"read k\r"])

    def test_list_that_ends_early(self):
        client = self.connect(self.serve([EOF, b"a\rb"], [EOF]))
        self.assertIn("before the end of the list", self.failure(client.keys))
        self.assertIn("before the end of the list", self.failure(client.reads, "p"))

    def test_list_that_is_an_error(self):
        self.assertIn("says error", self.failure(self.connect(self.serve([EOF, b"error\r"])).keys))

    def test_server_that_is_not_there(self):
        port = self.closed_port()
        client = Client("127.0.0.1", port)
        self.assertEqual(
            self.failure(client.read, "k"), f"cannot talk to 127.0.0.1:{port}: Connection refused"
        )
        self.assertIn("Connection refused", self.failure(client.keys))

    def test_name_that_means_nothing(self):
        self.assertIn("cannot talk to", self.failure(Client("a..b", 1).status))

    def test_server_that_goes_away_and_comes_back(self):
        client = self.connect(self.serve([COMMAND, b"half of a val"], [COMMAND, b"v\r"]))
        self.assertIn("closed the connection before it answered", self.failure(client.read, "k"))
        self.assertEqual(client.read("k"), b"v")

    def test_silent_server(self):
        client = self.connect(self.serve([COMMAND, EOF]), timeout=0.01)
        self.assertIn("did not answer within 0.01 s", self.failure(client.read, "k"))

    def test_more_than_one_reply_is_never_taken_for_the_next(self):
        client = self.connect(self.serve([COMMAND, b"v\rw\r"], [COMMAND, b"v\r"]))
        self.assertIn("more than one reply", self.failure(client.read, "k"))
        self.assertEqual(client.read("k"), b"v")


class CommandTests(ScriptedTestCase):
    def run_command(self, *words, server=None, stdin=None, environment=None):
        """The status, the bytes of standard output and the text of standard error."""
        at = ["--host=127.0.0.1", f"--port={server.port}"] if server else []
        result = CliRunner().invoke(main, [*at, *words], stdin, environment or {}, prog_name="kvstore")
        self.assertTrue(
            result.exception is None or isinstance(result.exception, SystemExit), result.exception
        )
        return result.exit_code, result.stdout_bytes, result.stderr

    def test_write(self):
        server = self.serve([COMMAND, b"success\r"])
        self.assertEqual(self.run_command("write", "k", "a|b c", server=server), (0, b"success\n", ""))
        server.close()
        self.assertEqual(server.received, [b"write k|a|b c\r"])

    def test_write_from_standard_input(self):
        data = b" \x00\xff\n"
        server = self.serve([COMMAND, b"success\r"])
        self.assertEqual(self.run_command("write", "k", "-", server=server, stdin=data)[0], 0)
        server.close()
        self.assertEqual(server.received, [b"write k|" + data + b"\r"])

    def test_write_of_a_value_like_an_option(self):
        server = self.serve([COMMAND, b"success\r"])
        self.assertEqual(self.run_command("write", "--", "k", "-5", server=server)[0], 0)
        server.close()
        self.assertEqual(server.received, [b"write k|-5\r"])

    def test_read_gives_the_bytes_as_they_are(self):
        server = self.serve([COMMAND, b" \x00\xff\n\r"])
        self.assertEqual(self.run_command("read", "k", server=server), (0, b" \x00\xff\n\n", ""))

    def test_delete_and_status(self):
        server = self.serve([COMMAND, b"success\r"], [COMMAND, b"well going our operation\r"])
        self.assertEqual(self.run_command("delete", "k", server=server), (0, b"success\n", ""))
        self.assertEqual(self.run_command("status", server=server), (0, b"well going our operation\n", ""))

    def test_lists_one_to_a_line(self):
        server = self.serve([EOF, b"a\rb\r"], [EOF, b"\xff\r\r"], [EOF, b"\r"])
        self.assertEqual(self.run_command("keys", server=server), (0, b"a\nb\n", ""))
        self.assertEqual(self.run_command("reads", "p", server=server), (0, b"\xff\n\n", ""))
        self.assertEqual(self.run_command("keys", server=server), (0, b"", ""))

    def test_errors_of_the_server_are_status_1_and_a_line(self):
        for words, asked in (
            (("write", "k", "v"), COMMAND),
            (("read", "k"), COMMAND),
            (("delete", "k"), COMMAND),
            (("status",), COMMAND),
            (("keys",), EOF),
            (("reads", "p"), EOF),
        ):
            server = self.serve([asked, b"error\r"])
            status, out, err = self.run_command(*words, server=server)
            self.assertEqual((status, out), (1, b""), words)
            self.assertRegex(err, rf"\Akvstore: {words[0]}: the server says error.*\n\Z")

    def test_bad_key_is_status_1_and_a_line(self):
        status, out, err = self.run_command("read", "a b")
        self.assertEqual((status, out), (1, b""))
        self.assertRegex(err, r"\Akvstore: read: a key is .*\n\Z")

    def test_server_that_is_not_there(self):
        status, out, err = self.run_command("--host=127.0.0.1", f"--port={self.closed_port()}", "keys")
        self.assertEqual((status, out), (1, b""))
        self.assertRegex(err, r"\Akvstore: cannot talk to .*: Connection refused\n\Z")

    def test_where_the_server_is(self):
        """Behind the command wins over before it, and that over the environment."""
        wrong = self.closed_port()
        for words, environment in (
            ("read k --host=127.0.0.1 --port={right}", {}),
            ("--host=127.0.0.1 --port={right} read k", {}),
            ("--port={wrong} read --port={right} --host=127.0.0.1 k", {}),
            ("--port={right} read k", {"KVSTORE_HOST": "127.0.0.1", "KVSTORE_PORT": str(wrong)}),
            ("read k", {"KVSTORE_HOST": "127.0.0.1", "KVSTORE_PORT": "{right}"}),
        ):
            right = self.serve([COMMAND, b"v\r"]).port
            environment = {name: value.format(right=right) for name, value in environment.items()}
            words = words.format(right=right, wrong=wrong).split()
            self.assertEqual(self.run_command(*words, environment=environment), (0, b"v\n", ""), words)

    def test_wrong_command_lines_are_status_2(self):
        for words in ((), ("jump",), ("read",), ("write", "k"), ("keys", "x"), ("--bogus", "keys")):
            self.assertEqual(self.run_command(*words)[0], 2, words)
        for port in ("0", "65536", "http", "-1", "tcp://10.0.0.1:8080"):
            status, _, err = self.run_command("keys", environment={"KVSTORE_PORT": port})
            self.assertEqual(status, 2)
            self.assertIn("KVSTORE_PORT", err)

    def test_help_and_version(self):
        import kvcore

        self.assertEqual(self.run_command("--version"), (0, f"kvstore {kvcore.__version__}\n".encode(), ""))
        status, out, _ = self.run_command("--help")
        self.assertEqual(status, 0)
        for command in ("serve", "write", "read", "delete", "keys", "reads", "status"):
            self.assertIn(b"\n  %-6s  " % command.encode(), out)

    def test_the_client_does_without_twisted(self):
        """Only `serve` may take the time to import it."""
        program = "import sys, kvnet.cli; print([name for name in sys.modules if name.startswith('twisted')])"
        self.assertEqual(run(".", sys.executable, "-c", program), (0, "[]\n", ""))
