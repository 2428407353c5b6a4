"""One measurement: one step of one engine, in a process of its own. engine.py starts it.

    python benchmarks/child.py '{"step": "readrandom", "engine": "kvcore", "directory": DIR, "keys": N, "seed": S}'

The last line on standard output is the result, JSON. `directory` is empty for the steps that fill one (FILLS); the others
find what fillrandom left, or a copy of it that they may change.
"""

import json
import statistics
import sys
from array import array

import adapters
import data
import measure
from adapters import BUFFERED, KERNEL, READ

SAMPLE = 500                    # keys that are compared after each step


def us(seconds, count):
    return seconds / count * 1e6


def check(get, numbers, expected):
    """Whatever was measured must have done its work: compare some keys."""
    for number in list(numbers)[::max(1, len(numbers) // SAMPLE)]:
        if get(data.key(number)) != expected(number):
            raise AssertionError(f"wrong value for {data.key(number)!r}")


def opened(spec, mode):
    """The engine over the data of fillrandom. One that keeps nothing is filled here."""
    engine = adapters.ENGINES[spec["engine"]](spec["directory"], mode)
    if not engine.persistent:
        for number in data.shuffled(spec["keys"], spec["seed"]):
            engine.put(data.key(number), data.value(number))
    return engine


def weighed(engine, count, size, result, name):
    """Note under `name` what the directory takes, over `count` live pairs of `size` bytes. The engine is closed."""
    if engine.persistent:
        result[name] = measure.disk_bytes(engine.directory) / (count * size)


def fill(spec, mode, order):
    names, values = data.keys(order), data.values(order)
    engine = adapters.ENGINES[spec["engine"]](spec["directory"], mode)
    measure.quiet()
    loop = measure.empty_pairs(names, values)
    started = measure.clock()
    measure.timed_pairs(engine.put, names, values)
    engine.commit()
    taken = measure.clock() - started
    result = {spec["step"]: us(taken, len(order)), "loop_pairs": us(loop, len(order))}
    engine.close()
    engine = engine.again(READ)
    check(engine.get, order, data.value)
    engine.close()
    if spec["step"] == "fillrandom":
        weighed(engine, len(order), len(names[0]) + data.VALUE_SIZE, result, "disk_fill")
    return result


def fillseq(spec):
    return fill(spec, BUFFERED, range(spec["keys"]))


def fillrandom(spec):
    return fill(spec, BUFFERED, data.shuffled(spec["keys"], spec["seed"]))


def fillkernel(spec):
    return fill(spec, KERNEL, data.shuffled(spec["keys"], spec["seed"]))


def growth(spec):
    """Fill with every put timed; keys and values are made on the way, so that all memory added is the engine's."""
    order = data.shuffled(spec["keys"], spec["seed"])
    pauses = array("d", bytes(8 * len(order)))
    key, value, clock = data.key, data.value, measure.clock
    measure.quiet()
    before = measure.private_memory()
    engine = adapters.ENGINES[spec["engine"]](spec["directory"], KERNEL)
    put = engine.put
    for i, number in enumerate(order):
        name, content = key(number), value(number)
        started = clock()
        put(name, content)
        pauses[i] = clock() - started
    engine.commit()
    result = {"memory_fill": measure.private_memory() - before, "pause": max(pauses) * 1e3}
    if engine.index_bytes():
        result["index"] = engine.index_bytes() / len(order)
    engine.close()
    return result


def load(spec):
    """Fill in the kernel, say so on standard output, and go on writing until killed."""
    order = data.shuffled(spec["keys"], spec["seed"])
    engine = adapters.ENGINES[spec["engine"]](spec["directory"], KERNEL)
    generation = 0
    while True:
        for number in order:
            engine.put(data.key(number), data.value(number, generation))
        if generation == 0:
            print("loaded", flush=True)
        generation += 1


def reopen(spec):
    """Open what lies there and read one key; then a tenth of the keys, for what the process weighs."""
    order = data.shuffled(spec["keys"], spec["seed"] + 1)[:max(1, spec["keys"] // 10)]
    adapter = adapters.ENGINES[spec["engine"]]
    __import__(adapter.module)
    measure.quiet()
    before = measure.private_memory()
    started = measure.clock()
    engine = adapter(spec["directory"], READ)
    found = engine.get(data.key(order[0]))
    taken = measure.clock() - started
    if found is None:
        raise AssertionError("a key is gone")
    for number in order:
        engine.get(data.key(number))
    memory = measure.private_memory() - before
    # After a kill some keys have a second generation already.
    check(lambda name: engine.get(name) is not None, order, lambda number: True)
    engine.close()
    return {spec["step"]: taken, "memory_" + spec["step"]: memory}


def read(spec, names, order=None):
    engine = opened(spec, READ)
    measure.timed(engine.get, names[::10])
    measure.quiet()
    result = {"loop": us(measure.empty(names), len(names))}
    result[spec["step"]] = us(measure.timed(engine.get, names), len(names))
    check(engine.get, order or [], data.value)
    if order is None and any(engine.get(name) is not None for name in names[:SAMPLE]):
        raise AssertionError("an absent key was found")
    engine.close()
    return result


def readrandom(spec):
    order = data.shuffled(spec["keys"], spec["seed"] + 1)
    return read(spec, data.keys(order), order)


def readhot(spec):
    order = data.hot(spec["keys"], spec["keys"], spec["seed"] + 2)
    return read(spec, data.keys(order), order)


def readmissing(spec):
    return read(spec, data.absent(data.shuffled(spec["keys"], spec["seed"] + 3)))


def scan(spec):
    count = spec["keys"]
    width = min(count, data.PREFIX_WIDTH)
    prefixes = data.prefixes(count, spec["seed"])
    engine = opened(spec, BUFFERED)
    measure.quiet()
    started = measure.clock()
    seen = 0
    for _key in engine.keys(b""):
        seen += 1
    result = {"keysfirst": (measure.clock() - started) * 1e3}
    if seen != count:
        raise AssertionError(f"{seen} keys came, not {count}")
    for _warm in range(2):
        found = list(engine.keys(prefixes[0]))
        if len(found) != width or found != sorted(found):
            raise AssertionError(f"{len(found)} keys under a prefix, not {width} in order")
    result["keysall"] = statistics.median(measure.timed_walks(engine.keys, [b""] * 5, 5.0)) * 1e3
    result["prefixscan"] = statistics.median(measure.timed_walks(engine.keys, prefixes)) * 1e3
    result["prefixread"] = statistics.median(measure.timed_walks(engine.items, prefixes)) * 1e3
    # Half of the fresh writes are new keys, half overwrite.
    fresh = data.shuffled(count, spec["seed"] + 4)[:max(1, count // 20)]
    for i, number in enumerate(fresh):
        engine.put(data.key(number), data.value(number, 1))
        engine.put(data.key(count + i), data.value(count + i))
    started = measure.clock()
    found = list(engine.keys(prefixes[-1]))
    result["prefixfresh"] = (measure.clock() - started) * 1e3
    if len(found) != width:
        raise AssertionError(f"{len(found)} keys under a prefix, not {width}")
    engine.close()
    return result


def overwrite(spec):
    order = data.shuffled(spec["keys"], spec["seed"] + 5)
    names, values = data.keys(order), data.values(order, 1)
    size = len(names[0]) + data.VALUE_SIZE
    engine = opened(spec, BUFFERED)
    measure.quiet()
    started = measure.clock()
    measure.timed_pairs(engine.put, names, values)
    engine.commit()
    result = {"overwrite": us(measure.clock() - started, len(order))}
    engine.close()
    weighed(engine, len(order), size, result, "disk_overwrite")
    engine = engine.again(BUFFERED)
    check(engine.get, order, lambda number: data.value(number, 1))
    tightened = engine.tighten()
    engine.close()
    if tightened:
        weighed(engine, len(order), size, result, "disk_tight")
    return result


def deleterandom(spec):
    order = data.shuffled(spec["keys"], spec["seed"] + 6)
    names = data.keys(order)
    engine = opened(spec, BUFFERED)
    measure.quiet()
    started = measure.clock()
    measure.timed(engine.delete, names)
    engine.commit()
    result = {"deleterandom": us(measure.clock() - started, len(order))}
    engine.close()
    engine = engine.again(READ)
    check(engine.get, order, lambda number: None)
    engine.close()
    return result


def pizzaria(spec):
    """Long keys: fill, then reads and overwrites in 80/20 order, in one directory."""
    count = max(500, spec["keys"] // 50)
    names, values = data.pizzaria(count, spec["seed"])
    reads = [names[i] for i in data.hot(count, 5 * count, spec["seed"] + 1)]
    writes = data.hot(count, 2 * count, spec["seed"] + 2)
    adapter = adapters.HashedLmdb if spec["engine"] == "lmdb" else adapters.ENGINES[spec["engine"]]
    measure.quiet()
    engine = adapter(spec["directory"], BUFFERED)
    started = measure.clock()
    measure.timed_pairs(engine.put, names, values)
    engine.commit()
    result = {"pizzaria_fill": us(measure.clock() - started, count)}
    engine.close()
    live = sum(map(len, names)) + sum(map(len, values))
    weighed(engine, 1, live, result, "disk_pizzaria")
    before = measure.private_memory()
    engine = engine.again(READ)
    measure.timed(engine.get, reads[::10])
    result["pizzaria_read"] = us(measure.timed(engine.get, reads), len(reads))
    if engine.persistent:
        result["memory_pizzaria"] = measure.private_memory() - before
    if any(engine.get(names[i]) != values[i] for i in range(0, count, max(1, count // SAMPLE))):
        raise AssertionError("wrong value for a long key")
    engine.close()
    engine = engine.again(BUFFERED)
    fresh = [data.pizzaria_value(number, spec["seed"] + 1) for number in writes]
    written = [names[number] for number in writes]
    started = measure.clock()
    measure.timed_pairs(engine.put, written, fresh)
    engine.commit()
    result["pizzaria_write"] = us(measure.clock() - started, len(writes))
    engine.close()
    return result


FILLS = {step.__name__: step for step in (fillseq, fillrandom, fillkernel, growth, load, pizzaria)}
STEPS = FILLS | {step.__name__: step for step in (
    readrandom, readhot, readmissing, scan, overwrite, deleterandom)} | dict.fromkeys(
        ("reopen_clean", "reopen_bare", "reopen_killed"), reopen)


if __name__ == "__main__":
    order_given = json.loads(sys.argv[1])
    print(json.dumps(STEPS[order_given["step"]](order_given)))
