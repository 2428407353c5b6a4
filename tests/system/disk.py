"""A disk that really fails: an ext4 on a block device whose writes answer EIO when they are told to.

    image file <- nbdkit, its error filter <- nbdfuse <- loop device <- ext4

The image holds what reached the disk, whatever any cache says.
"""

import os
import select
import shutil
import subprocess
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


class FailingDisk:
    """A file system at `mounted` (Path), made in the empty `directory` (Path).

    Raises subprocess.CalledProcessError, whose stdout says what did not work.
    """

    def __init__(self, directory):
        self.mounted = directory / "mounted"
        self._image = directory / "image"
        self._trigger = directory / "fails"
        self._fuse = directory / "fuse"
        self._server = None
        self._loop = None
        self._is_mounted = False
        self.mounted.mkdir()
        self._fuse.mkdir()
        with open(self._image, "wb") as f:
            f.truncate(SIZE)
        run("mkfs.ext4", "-q", str(self._image))

    def attach(self):
        """Mount it so that it can fail."""
        self._server = subprocess.Popen(
            ["nbdfuse", self._fuse, "[", "nbdkit", "--exit-with-parent", "--filter=error", "file", self._image, "error=EIO",
             "error-pwrite-rate=100%", "error-zero-rate=100%", "error-trim-rate=100%", f"error-file={self._trigger}", "]"],
            stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_mount(self._fuse)
        self._loop = run("losetup", "--find", "--show", str(self._fuse / "nbd"))
        self._mount(self._loop)

    def fail(self):
        """From now on nothing can be written."""
        self._trigger.touch()

    def mend(self):
        """From now on it works again."""
        self._trigger.unlink()

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


def wait_for_mount(path):
    """Until something is mounted at `path` (Path)."""
    with open("/proc/self/mountinfo") as table:
        poller = select.poll()
        poller.register(table, select.POLLPRI)
        while f" {Path(path).absolute()} " not in table.read():
            if not poller.poll(PATIENCE_MS):
                raise AssertionError(f"nothing was mounted at {path}")
            table.seek(0)
