"""Small servers that the load generator is let loose on: each keeps a dict, and does what it is told to do wrong."""

import socketserver
import threading


class Handler(socketserver.StreamRequestHandler):
    """One connection, in the server's protocol."""

    def handle(self):
        ask, answer = (self.text, self.text_reply) if self.server.protocol == "text" else (self.resp, self.resp_reply)
        try:
            while command := ask():
                reply = self.server.hook(self.server.count(), *command)
                if reply is None:
                    reply = answer(*command)
                if not reply:
                    return
                self.wfile.write(reply)
        except OSError:
            pass  # the generator went away

    def text(self):
        line = b""
        while not line.endswith(b"\r"):
            byte = self.rfile.read(1)
            if not byte:
                return None
            line += byte
        word, _, rest = line[:-1].partition(b" ")
        key, _, value = rest.partition(b"|")
        return word, key, value if word == b"write" else None

    def text_reply(self, word, key, value):
        if value is not None:
            self.server.data[key] = value
            return b"success\r"
        return self.server.data.get(key, b"error") + b"\r"

    def resp(self):
        header = self.rfile.readline()
        if not header:
            return None
        parts = []
        for _ in range(int(header[1:])):
            length = int(self.rfile.readline()[1:])
            parts.append(self.rfile.read(length + 2)[:-2])
        return (*parts, None)[:3]

    def resp_reply(self, word, key, value):
        if value is not None:
            self.server.data[key] = value
            return b"+OK\r\n"
        found = self.server.data.get(key)
        return b"$-1\r\n" if found is None else b"$%d\r\n%b\r\n" % (len(found), found)


class Server(socketserver.ThreadingTCPServer):
    """Answers from `data`. `hook`, if given, sees each command as (how many there were, word, key, value or None for a
    read); what it returns is sent instead of the right reply, b"" closes the connection.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, protocol, hook=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.protocol = protocol
        self.hook = hook or (lambda *command: None)
        self.data = {}
        self.answered = 0
        self._lock = threading.Lock()
        self.port = self.server_address[1]
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def count(self):
        """One more command has come; how many that makes."""
        with self._lock:
            self.answered += 1
            return self.answered

    def close(self):
        """For cleanups."""
        self.shutdown()
        self.server_close()
        self._thread.join()
