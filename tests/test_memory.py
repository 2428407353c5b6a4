"""Memory that cannot be had: the operation is refused, the store stays what it was, and goes on when there is some."""

import subprocess
import sys

from tests.support import SANITIZED, StoreCase

PROGRAM = """
import errno, random, resource, sys
import kvcore

directory, seed = sys.argv[1], int(sys.argv[2])
rng = random.Random(seed)
store = kvcore.open(directory, fsync="no", segment_size=64 << 20, executor=lambda job: (job.run(), job.finish()))
model, refused = {}, {"put": 0, "delete": 0, "batch": 0, "get": 0, "scan": 0}
small = [b"s%d" % i for i in range(120_000)]
values = [rng.randbytes(size) for size in (10, 3000, 200_000, 6_000_000)]
big = [b"b%d" % i for i in range(40)]


def limit(spare):
    global allowed
    size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) << 10
    allowed = (size + spare, resource.RLIM_INFINITY)


def attempt(what, act):
    resource.setrlimit(resource.RLIMIT_AS, allowed)
    try:
        act()
        done = True
    except MemoryError:
        done = False
    except kvcore.StorageError as error:
        if error.errno != errno.ENOMEM:
            raise
        done = False
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    refused[what] += not done
    return done


limit(rng.choice((0, 100_000, 1_000_000)))
for i, key in enumerate(small):
    if attempt("put", lambda: store.put(key, values[0])):
        model[key] = values[0]
    if i % 50_000 == 49_999:
        limit(rng.choice((0, 300_000, 3_000_000)))
for i in range(300):
    limit(rng.choice((0, 100_000, 1_000_000, 8_000_000)))
    key, value = rng.choice(big), rng.choice(values)
    if rng.random() < 0.6:
        if attempt("put", lambda: store.put(key, value)):
            model[key] = value
    elif rng.random() < 0.3:
        if attempt("delete", lambda: store.delete(key)):
            model.pop(key, None)
    elif rng.random() < 0.3:
        pairs = [(name, value, None) for name in rng.sample(big, 3)]
        if attempt("batch", lambda: store.apply(pairs)):
            model.update((name, value) for name, value, _ in pairs)
    else:
        got = []
        if attempt("get", lambda: got.append(store.get(key))) and got[0] != model.get(key):
            sys.exit(f"{key} is wrong")
    if i % 10 == 0:
        attempt("scan", lambda: sum(1 for _ in store.keys(b"s1")))
if store.state != "ok":
    sys.exit(store.reason)
if dict(store.items()) != model or len(store) != len(model):
    sys.exit("the store is not what was acknowledged")
store.put(b"more", b"1")
model[b"more"] = b"1"
store.close()
with kvcore.open(directory) as store:
    if dict(store.items()) != model:
        sys.exit("after opening the store is not what was acknowledged")
print(sum(refused.values()), refused)
"""


class AllocationTest(StoreCase):
    if SANITIZED:
        skip = "a sanitizer needs address space of its own"

    def test_what_is_refused_changes_nothing(self):
        for seed in range(3):
            directory = self.mktemp()
            done = subprocess.run([sys.executable, "-c", PROGRAM, directory, str(seed)], capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertGreater(int(done.stdout.split()[0]), 30, done.stdout)
