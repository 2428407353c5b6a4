"""The real server as a child process, for tests that need a process: signals, statuses, what it prints."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TWISTD = (sys.executable, "-c", "from twisted.scripts.twistd import run; run()")
TWISTD_FOREGROUND = (*TWISTD, "--nodaemon", "--pidfile=twistd.pid", "kvstore")
KVSTORE_SERVE = (sys.executable, "-m", "kvnet", "serve")
# Nothing here takes so long; a hang should fail its test and not the whole run.
PATIENCE = 60


def environment(**variables):
    """That of the tests, with the sources on the path and none of our own variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KVSTORE_")}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **variables}


def run(directory, *words, **variables):
    """The status, standard output and standard error of a command that ends by itself."""
    done = subprocess.run(
        words, cwd=directory, env=environment(**variables), capture_output=True, text=True, timeout=PATIENCE
    )
    return done.returncode, done.stdout, done.stderr


class Daemon:
    """A server in the foreground, on free ports unless the options say otherwise.

    When it is made it is ready. `addresses` maps "text" and "metrics" to lists of (host, port). It is killed when it has not
    ended after `patience` seconds.
    """

    def __init__(self, directory, *options, command=TWISTD_FOREGROUND, patience=PATIENCE):
        self.process = subprocess.Popen(
            [*command, "--text=0", "--metrics=0", *options],
            cwd=directory,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._watchdog = threading.Timer(patience, self.process.kill)
        self._watchdog.daemon = True
        self._watchdog.start()
        self.output = ""
        while "opened in" not in self.output:
            line = self.process.stdout.readline()
            if not line:
                status, _, err = self.wait()
                raise AssertionError(f"the server ended with status {status}: {self.output}{err}")
            self.output += line
        self.addresses = {
            name: [(host.strip("[]"), int(port)) for host, port in re.findall(r"(\S+):(\d+)", where)]
            for name, where in re.findall(r"(text|metrics) on (\S+(?: and \S+)*[^,; ])", line)
        }

    @property
    def port(self):
        """The port of the text protocol."""
        return self.addresses["text"][0][1]

    def stop(self, number=signal.SIGTERM):
        """Send a signal and wait; like wait()."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self):
        """The status, all of the standard output and the standard error, when the process has ended."""
        out, err = self.process.communicate()
        self._watchdog.cancel()
        return self.process.returncode, self.output + out, err

    def kill(self):
        """For cleanups: whatever state it is in."""
        if self.process.poll() is None:
            self.process.kill()
            self.wait()
