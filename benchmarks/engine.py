"""The engine in process: microseconds per operation, values of 100 bytes.

    python benchmarks/engine.py [--keys N] [--rounds N]

Prints the median and the range of the rounds. Each round has a fresh directory under the current one.
"""

import random
import shutil
import statistics
import tempfile
import time

import click

import kvcore

VALUE = b"v" * 100


def timed(function, arguments):
    """Microseconds per call."""
    started = time.perf_counter()
    for argument in arguments:
        function(argument)
    return (time.perf_counter() - started) / len(arguments) * 1e6


def one_round(keys):
    """{workload: us per operation} with `keys` in random order."""
    directory = tempfile.mkdtemp(dir=".", prefix="bench-")
    shuffled = random.sample(keys, len(keys))
    absent = [b"no" + key[2:] for key in shuffled]
    try:
        store = kvcore.open(directory + "/buffered", fsync="no", autoflush=False)
        result = {"put, buffered": timed(lambda key: store.put(key, VALUE), keys)}
        store.flush()
        result["get, random"] = timed(store.get, shuffled)
        result["get, in order"] = timed(store.get, keys)
        result["get, absent"] = timed(store.get, absent)
        result["put over, buffered"] = timed(lambda key: store.put(key, VALUE), shuffled)
        result["delete, buffered"] = timed(store.delete, shuffled)
        store.close()
        store = kvcore.open(directory + "/kernel", fsync="no")
        result["put, in the kernel"] = timed(lambda key: store.put(key, VALUE), keys)
        store.close()
        store = kvcore.open(directory + "/kernel", fsync="no")
        result["reopen, us per key"] = store.recovery["seconds"] / len(keys) * 1e6
        store.close()
    finally:
        shutil.rmtree(directory)
    return result


@click.command()
@click.option("--keys", default=200_000, show_default=True, help="How many keys of 16 bytes.")
@click.option("--rounds", default=5, show_default=True)
def main(keys, rounds):
    names = [b"key%013d" % i for i in range(keys)]
    results = [one_round(names) for _ in range(rounds)]
    print(f"{keys} keys of 16 bytes, values of 100 bytes, {rounds} rounds; us/op, loop and call included")
    print(f"{'workload':<22}{'median':>8}{'min':>8}{'max':>8}")
    for workload in results[0]:
        figures = [result[workload] for result in results]
        print(f"{workload:<22}{statistics.median(figures):8.2f}{min(figures):8.2f}{max(figures):8.2f}")


if __name__ == "__main__":
    main()
