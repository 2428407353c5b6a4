"""Run the steps of the Dockerfile in order, and then what they made, where there is no container engine.

    python tools/image.py ROOT        as root; also: make image-test ROOT=...

ROOT holds a Debian system with Python and its headers, which stands for the image that FROM names and is not changed:

    debootstrap --variant=minbase --include=ca-certificates,python3-dev,python3-pip,python3-venv bookworm ROOT

Each stage is an overlay over ROOT, in memory. The container has namespaces of its own, a read-only root, the user of the
image, no capabilities, and the command of the image as process 1. It must become healthy, take a write, end with 0 on the
stop signal, and have the data again; then the same as a user without an entry in /etc/passwd.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import dockerfile

CONTEXT = Path(__file__).resolve().parent.parent
PATIENCE = 60  # seconds until a container must be healthy, and until it must have ended
# What leads to the package indexes from here; an engine passes it on as well.
NETWORK_FILES = ("etc/resolv.conf", "etc/hosts", "etc/pip.conf", "etc/ssl/certs")
NETWORK_NAMES = ("PIP_", "SSL_", "HTTP_", "HTTPS_", "NO_PROXY", "http_", "https_", "no_proxy")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def mount(*words) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


class Stage:
    """A root file system and the settings that the instructions so far have made."""

    def __init__(self, base: Path, folder: Path):
        self.root = folder / "root"
        self.upper = folder / "upper"
        for path in (self.root, self.upper, folder / "work"):
            path.mkdir(parents=True)
        layers = f"lowerdir={base},upperdir={self.upper},workdir={folder / 'work'}"
        mount("-t", "overlay", "-o", layers, "overlay", self.root)
        self.environment = {"PATH": PATH}
        self.folder, self.user = "/", "0:0"
        self.settings: dict[str, dockerfile.Step] = {}

    def run(self, step: dockerfile.Step) -> None:
        """RUN: a shell in the root, with the network of this machine."""
        network = {name: value for name, value in os.environ.items() if name.startswith(NETWORK_NAMES)}
        with contextlib.ExitStack() as mounted:
            for path in NETWORK_FILES:
                here, there = Path("/", path), self.root / path
                if here.exists():
                    self._place(here, there)
                    mount("--bind", here, there)
                    mounted.callback(subprocess.run, ["umount", there], check=True)
            inside = ["/bin/sh", "-c", f"cd {shlex.quote(self.folder)} && {step.rest}"]
            subprocess.run(["chroot", self.root, *inside], env={**network, **self.environment}, check=True)

    @staticmethod
    def _place(here: Path, there: Path) -> None:
        """Something to mount upon."""
        if here.is_dir():
            there.mkdir(parents=True, exist_ok=True)
        elif not there.exists():
            there.unlink(missing_ok=True)
            there.touch()

    def copy(self, step: dockerfile.Step, stages: dict[str, "Stage"]) -> None:
        """COPY: from another stage, or all of the context."""
        source, target = step.words
        if "--from" in step.options:
            there = self.root / target.lstrip("/")
            subprocess.run(["cp", "-a", stages[step.options["--from"]].root / source.lstrip("/"), there], check=True)
            return
        for path in dockerfile.context_files(CONTEXT):
            there = self.root / self.folder.lstrip("/") / path
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CONTEXT / path, there)

    def set(self, step: dockerfile.Step) -> None:
        """All other instructions."""
        if step.name == "ENV":
            for word in step.words:
                name, _, value = word.partition("=")
                self.environment[name] = dockerfile.expanded(value, self.environment)
        elif step.name == "WORKDIR":
            self.folder = step.rest
            (self.root / step.rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif step.name == "USER":
            self.user = step.rest
        elif step.name in ("VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"):
            self.settings[step.name] = step
        else:
            raise SystemExit(f"tools/image.py does not know the instruction {step.name}")


def build(base: Path, folder: Path) -> Stage:
    """The last stage, after all instructions."""
    stages: dict[str, Stage] = {}
    stage = None
    for number, instructions in enumerate(dockerfile.stages((CONTEXT / "Dockerfile").read_text("utf-8"))):
        for step in instructions:
            print(f"--> {step.name} {' '.join(step.rest.split())}", flush=True)
            if step.name == "FROM":
                stage = Stage(base, folder / f"stage{number}")
                stages[step.words[-1] if "AS" in step.words else str(number)] = stage
            elif step.name == "RUN":
                stage.run(step)
            elif step.name == "COPY":
                stage.copy(step, stages)
            else:
                stage.set(step)
    return stage


class Container:
    """The command of an image as process 1, over a folder that stands for the volume."""

    def __init__(self, image: Stage, volume: Path, user: str):
        self._image, self._user = image, user
        place = image.settings["VOLUME"].rest
        root = shlex.quote(str(image.root))
        hosts = volume.with_name("hosts")  # an engine makes one, too
        (image.root / "etc/hosts").touch()
        hosts.write_text("127.0.0.1 localhost\n::1 localhost\n")
        script = f"""set -e
            ip link set lo up
            mount --bind {root} {root}
            mount --bind {shlex.quote(str(volume))} {root}{place}
            mount -t tmpfs tmpfs {root}/tmp
            mount --rbind /dev {root}/dev
            mount -t proc proc {root}/proc
            mount --bind {shlex.quote(str(hosts))} {root}/etc/hosts
            mount -o remount,bind,ro {root}
            exec "$@"
        """
        command = image.settings["ENTRYPOINT"].words + image.settings["CMD"].words
        self._outer = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child",
             "sh", "-c", script, "sh", *self._inside(command)])
        self.pid = self._first()

    def _inside(self, command: list[str]) -> list[str]:
        user, group = self._user.split(":")
        variables = [f"{name}={value}" for name, value in self._image.environment.items()]
        return ["chroot", self._image.root, "setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups",
                "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs",
                "env", "-i", *variables, "sh", "-c", 'cd "$0" && exec "$@"', self._image.folder, *command]

    def _first(self) -> int:
        """The number that process 1 has outside."""
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        while self._outer.poll() is None:
            if words := children.read_text().split():
                return int(words[0])
            time.sleep(0.01)
        raise SystemExit("the container could not be made")

    def run(self, *command: str) -> subprocess.CompletedProcess:
        """Run a command beside process 1, as the same user."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--net", "--ipc", "--uts"]
        return subprocess.run([*enter, *self._inside(list(command))], capture_output=True, text=True, timeout=PATIENCE)

    def must(self, *command: str) -> str:
        """The output of a command that must end with 0."""
        done = self.run(*command)
        print(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}", end="", flush=True)
        if done.returncode:
            raise SystemExit(f"{command[0]} ended with {done.returncode}")
        return done.stdout

    def wait_until_healthy(self) -> None:
        """Until HEALTHCHECK says so."""
        check = dockerfile.Step("CMD", {}, self._image.settings["HEALTHCHECK"].rest.removeprefix("CMD").strip()).words
        latest = time.monotonic() + PATIENCE
        while self.run(*check).returncode:
            if self._outer.poll() is not None or time.monotonic() > latest:
                raise SystemExit(f"not healthy: {self.run(*check).stderr}")
            time.sleep(0.1)
        self.must(*check)

    def stop(self) -> None:
        """Send the stop signal to process 1, which must end with 0."""
        name = self._image.settings["STOPSIGNAL"].rest
        os.kill(self.pid, signal.Signals[name])
        try:
            status = self._outer.wait(PATIENCE)
        finally:
            self._outer.kill()
        print(f"{name}: ended with {status}", flush=True)
        if status:
            raise SystemExit("the stop signal must end it with 0")


def live(image: Stage, volume: Path, user: str) -> None:
    """Start, write, stop; start again, read, stop."""
    for words in (("write", "a", "1"), ("read", "a")):
        container = Container(image, volume, user)
        try:
            container.wait_until_healthy()
            container.must("sh", "-c", "tr '\\0' ' ' < /proc/1/cmdline; echo; id; env; ! touch /x; ls -A /tmp")
            if container.must("kvstore", *words) != {"write": "success\n", "read": "1\n"}[words[0]]:
                raise SystemExit("that is not the answer")
            container.must("kvstore", "stats")
        finally:
            container.stop()


def main() -> None:
    if len(sys.argv) != 2 or os.geteuid() != 0:
        raise SystemExit(__doc__)
    if "KVSTORE_IMAGE_MOUNTS" not in os.environ:  # what is mounted shall be gone with this process
        os.environ["KVSTORE_IMAGE_MOUNTS"] = "private"
        os.execvp("unshare", ["unshare", "--mount", "--propagation=private", sys.executable, *sys.argv])
    folder = Path(tempfile.mkdtemp())
    try:
        mount("-t", "tmpfs", "tmpfs", folder)
        image = build(Path(sys.argv[1]).resolve(), folder)
        used = subprocess.run(["du", "-sh", image.upper], capture_output=True, text=True, check=True).stdout.split()[0]
        print(f"built: {used} over the base", flush=True)
        for user in (image.user, "12345:0"):
            volume = folder / f"volume-{user}"
            volume.mkdir()
            os.chown(volume, *map(int, user.split(":")))
            print(f"--> as {user}", flush=True)
            live(image, volume, user)
    finally:
        os.chdir("/")
        subprocess.run(["umount", "--lazy", folder], check=False)
        folder.rmdir()


if __name__ == "__main__":
    main()
