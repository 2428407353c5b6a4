"""A disk that really fails, or does not answer: an ext4 on a block device whose requests do so when they are told to.

    image file <- nbdkit, its filter <- nbdfuse <- loop device <- ext4

The image holds what reached the disk, whatever any cache says.
"""

import os
import select
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

SIZE = 64 << 20
PATIENCE_MS = 30_000
TOOLS = ("nbdkit", "nbdfuse", "fusermount3", "losetup", "mkfs.ext4", "mount", "umount")
PACKAGES = "nbdkit libnbd-bin fuse3 e2fsprogs"


def missing():
    """What the machine lacks for this (str), or None."""
    if os.geteuid() != 0:
        return "needs root"
    tools = [tool for tool in TOOLS if shutil.which(tool) is None]
    if tools:
        return f"needs {', '.join(tools)} (Debian, Ubuntu: apt install {PACKAGES})"
    devices = [path for path in ("/dev/fuse", "/dev/loop-control") if not os.path.exists(path)]
    return f"needs {' and '.join(devices)}" if devices else None


def run(*words):
    """The output of a command (str). Raises subprocess.CalledProcessError."""
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout.strip()


class Disk:
    """A file system at `mounted` (Path), made in the empty `directory` (Path); `filter` is one of nbdkit's.

    Raises subprocess.CalledProcessError, whose stdout says what did not work.
    """

    def __init__(self, directory):
        self.mounted = directory / "mounted"
        self._image = directory / "image"
        self._fuse = directory / "fuse"
        self._server = None
        self._loop = None
        self._is_mounted = False
        self.mounted.mkdir()
        self._fuse.mkdir()
        with open(self._image, "wb") as f:
            f.truncate(SIZE)
        run("mkfs.ext4", "-q", str(self._image))

    filter = None

    def filter_options(self):
        """What the filter has to be told (list of str)."""
        return []

    def attach(self):
        """Mount it so that the filter decides what happens."""
        self._server = subprocess.Popen(
            ["nbdfuse", self._fuse, "[", "nbdkit", "--exit-with-parent", f"--filter={self.filter}", "file", self._image,
             *self.filter_options(), "]"],
            stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_mount(self._fuse)
        self._loop = run("losetup", "--find", "--show", str(self._fuse / "nbd"))
        self._mount(self._loop)

    def attach_image(self):
        """Mount what reached the disk, with no cache in between."""
        self.detach()
        self._mount(self._image)

    def detach(self):
        """Take everything away again; whatever state it is in."""
        if self._is_mounted:
            run("umount", str(self.mounted))
            self._is_mounted = False
        if self._loop is not None:
            run("losetup", "--detach", self._loop)
            self._loop = None
        if self._server is not None:
            run("fusermount3", "-u", str(self._fuse))
            self._server.wait(PATIENCE_MS / 1000)
            self._server = None

    def _mount(self, device):
        run("mount", str(device), str(self.mounted))
        self._is_mounted = True


class FailingDisk(Disk):
    """One whose writes can fail."""

    filter = "error"

    def __init__(self, directory):
        self._trigger = directory / "fails"
        super().__init__(directory)

    def filter_options(self):
        """As in Disk."""
        return ["error=EIO", "error-pwrite-rate=100%", "error-zero-rate=100%", "error-trim-rate=100%",
                f"error-file={self._trigger}"]

    def fail(self):
        """From now on nothing can be written."""
        self._trigger.touch()

    def mend(self):
        """From now on it works again."""
        self._trigger.unlink()


class PausingDisk(Disk):
    """One that can keep everybody waiting."""

    filter = "pause"

    _place = _control = None

    def attach(self):
        """As in Disk."""
        # The name of a socket is 107 bytes at most: not the test's own directory.
        self._place = tempfile.mkdtemp()
        super().attach()

    def filter_options(self):
        """As in Disk."""
        return [f"pause-control={self._place}/control"]

    def pause(self):
        """From now on no request is answered."""
        self._tell(b"p")

    def resume(self):
        """Answer those that wait, and the next ones."""
        self._tell(b"r")

    def detach(self):
        """As in Disk."""
        if self._control is not None:
            self.resume()
            self._control.close()
            self._control = None
        super().detach()
        if self._place is not None:
            shutil.rmtree(self._place)
            self._place = None

    def _tell(self, letter):
        if self._control is None:
            self._control = socket.socket(socket.AF_UNIX)
            self._control.settimeout(PATIENCE_MS / 1000)
            self._control.connect(f"{self._place}/control")
        self._control.sendall(letter)
        answer = self._control.recv(1)
        if answer != letter.upper():
            raise AssertionError(f"nbdkit answers {answer!r}")


def wait_for_mount(path):
    """Until something is mounted at `path` (Path)."""
    with open("/proc/self/mountinfo") as table:
        poller = select.poll()
        poller.register(table, select.POLLPRI)
        while f" {Path(path).absolute()} " not in table.read():
            if not poller.poll(PATIENCE_MS):
                raise AssertionError(f"nothing was mounted at {path}")
            table.seek(0)
