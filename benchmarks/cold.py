"""How long a client that reads data in memory waits while others read data that are not.

    python benchmarks/cold.py [--data MIB] [--memory MIB] [--readers N] [--seconds N] [--directory PATH]

A server gets a memory cgroup of its own, a fraction of its data, and is filled. One client then reads a few keys over and
over, first alone, then beside some that read keys at random. Prints the first one's latencies of both times, p99 beside /
p99 alone, and how often the server's main thread waited for a page. Needs root.
"""

import contextlib
import multiprocessing
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

import click

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kvnet.client import Client  # noqa: E402

VALUE = 1000
HOT = 100
GROUPS = (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max"))


def key(number):
    """Keys of 12 bytes."""
    return b"key%09d" % number


class Group:
    """A memory cgroup, of the first or the second version."""

    def __init__(self, limit):
        for root, name in GROUPS:
            self._path = pathlib.Path(root, f"kvstore-cold-{os.getpid()}")
            with contextlib.suppress(OSError):
                self._path.mkdir()
                (self._path / name).write_text(str(limit))
                return
            with contextlib.suppress(OSError):
                self._path.rmdir()
        raise click.ClickException("no memory cgroup can be made: not root, or no controller is mounted")

    def enter(self):
        """Have this process in it."""
        (self._path / "cgroup.procs").write_text(str(os.getpid()))

    def remove(self):
        """All its processes must have ended."""
        self._path.rmdir()


def serve(directory, group):
    """(process, port) of a server in the group."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kvnet", "serve", f"--data-dir={directory}/data", "--text=0", "--metrics=off"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=group.enter,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"})
    line = process.stdout.readline()
    while "text on" not in line:
        if not line:
            raise click.ClickException("the server has ended")
        line = process.stdout.readline()
    return process, int(line.split("text on 127.0.0.1:")[1].split()[0].strip(",;"))


def read_at_random(port, count, seed, reads):
    """One of those who read what is not in memory; reads.value: how many."""
    numbers = random.Random(seed)
    with Client("127.0.0.1", port) as client:
        while True:
            client.read(key(numbers.randrange(count)))
            reads.value += 1


def read_hot(port, seconds):
    """Latencies in microseconds, ascending."""
    found = []
    with Client("127.0.0.1", port) as client:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            began = time.perf_counter()
            client.read(key(len(found) % HOT))
            found.append((time.perf_counter() - began) * 1e6)
            time.sleep(0.0005)
    return sorted(found)


def major_faults(pid):
    """Of the main thread."""
    return int(pathlib.Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()[9])


def show(name, found):
    """One line; returns p99."""
    at = {p: found[min(int(len(found) * p), len(found) - 1)] for p in (0.5, 0.99, 0.999)}
    click.echo(f"{name:8} {len(found):7,} reads   " + "   ".join(f"p{100 * p:g} {us:9,.0f} us" for p, us in at.items()))
    return at[0.99]


@click.command(help=__doc__)
@click.option("--data", default=768, help="MiB of values")
@click.option("--memory", default=160, help="MiB of memory that the server may use")
@click.option("--readers", default=4, help="clients that read at random")
@click.option("--seconds", default=10, help="of each measurement")
@click.option("--directory", default=None, help="where to put the data, on the disk to measure")
def main(data, memory, readers, seconds, directory):
    """The command line."""
    count = (data << 20) // VALUE
    place = tempfile.mkdtemp(dir=directory)
    group = Group(memory << 20)
    server, port = serve(place, group)
    helpers = []
    try:
        with Client("127.0.0.1", port) as client:
            for number in range(count):
                client.write(key(number), random.randbytes(VALUE // 2).hex().encode())
        alone = show("alone", read_hot(port, seconds))
        faults = major_faults(server.pid)
        reads = [multiprocessing.Value("q", 0, lock=False) for _ in range(readers)]
        for seed, value in enumerate(reads):
            helpers.append(multiprocessing.Process(target=read_at_random, args=(port, count, seed, value), daemon=True))
            helpers[-1].start()
        beside = show("beside", read_hot(port, seconds))
        total = sum(value.value for value in reads)
        click.echo(f"p99 beside / alone {beside / alone:.1f}; {total / seconds:,.0f} reads a second at random; "
                   f"the main thread waited for {major_faults(server.pid) - faults:,} pages")
    finally:
        for helper in helpers:
            helper.terminate()
            helper.join()
        server.terminate()
        server.wait()
        group.remove()
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
