"""Keys, values and the orders they are used in: a function of the count and the seed, so the same for every engine.

Keys are built in the order in which they will be used: a loop then walks through its own list in the order of memory, and
the time measured is the engine's.
"""

import random
from array import array

from kvnet.bench.mix import KEY_LETTERS, MIXES

VALUE_SIZE = 100
PREFIX_WIDTH = 1000             # keys under one prefix
PIZZARIA = MIXES["pizzaria"]

# Random bytes, so that no engine's compression makes the values small.
BLOCK = random.Random(0).randbytes(1 << 20)


def shuffled(count, seed):
    """0 to count-1 in random order, 4 bytes each."""
    order = array("I", range(count))
    random.Random(seed).shuffle(order)
    return order


def hot(count, uses, seed):
    """`uses` numbers below count; 80 % of them fall on a random 20 % of the numbers."""
    order = shuffled(count, seed)
    rng = random.Random(seed + 1)
    split = max(1, count // 5)
    picked = rng.choices(order[:split], k=uses * 4 // 5)
    picked += rng.choices(order[split:] or order, k=uses - len(picked))
    rng.shuffle(picked)
    return picked


def key(number):
    """16 bytes, in the order of the numbers."""
    return b"key%013d" % number


def keys(order):
    return [b"key%013d" % number for number in order]


def absent(order):
    """As many keys of 16 bytes that are never stored, spread among those that are."""
    return [b"key%012d%c" % (number // 10, 97 + number % 10) for number in order]


def value(number, generation=0, size=VALUE_SIZE):
    """The value of a key's n-th generation: a new bytes object each time."""
    start = (number * 107 + generation * 7919) % ((1 << 20) - size)
    return BLOCK[start:start + size]


def values(order, generation=0):
    return [value(number, generation) for number in order]


def prefixes(count, seed, wanted=200):
    """Prefixes that PREFIX_WIDTH of `count` keys begin with, in random order."""
    numbers = list(range(max(1, count // PREFIX_WIDTH)))
    random.Random(seed).shuffle(numbers)
    return [b"key%010d" % number for number in numbers[:wanted]]


def pizzaria(count, seed):
    """(keys, values) of the challenge's sizes, exactly by share, in random order."""
    rng = random.Random(seed)
    letters = bytes(rng.choices(KEY_LETTERS, k=1 << 20))
    sizes = []
    for percent, shortest, longest in PIZZARIA.keys:
        sizes += [rng.randint(shortest, longest) for _ in range(count * percent // 100)]
    sizes += [100] * (count - len(sizes))
    rng.shuffle(sizes)
    names = []
    for number, size in enumerate(sizes):
        start = rng.randrange(len(letters) - size)
        names.append((b"%x:" % number + letters[start:start + size])[:size])
    return names, [pizzaria_value(number, seed) for number in range(count)]


def pizzaria_value(number, generation):
    _, shortest, longest = PIZZARIA.values
    return value(number, generation, shortest + (number * 7919 + generation * 31) % (longest - shortest + 1))
