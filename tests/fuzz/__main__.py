"""`python -m tests.fuzz`: one target under libFuzzer (atheris), or one input again. `make fuzz` runs each in turn."""

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path

from tests.fuzz.directory import TARGETS as DIRECTORY_TARGETS
from tests.fuzz.text import TextTarget

TARGETS = {"text": TextTarget, **DIRECTORY_TARGETS}


def scratch():
    """A temporary directory, in memory where that can be: syncing is not what is tried here."""
    memory = "/dev/shm"
    return tempfile.TemporaryDirectory(dir=memory if os.path.isdir(memory) else None)


def fuzz(target, name, seconds, seed, directory):
    """Run until the time is over or an input fails; its file is then left in the current directory. Does not return."""
    import atheris

    corpus = Path(directory, "corpus")
    corpus.mkdir()
    for number, data in enumerate(target.seeds()):
        corpus.joinpath(str(number)).write_bytes(data)
    atheris.Setup(
        [sys.argv[0], str(corpus), f"-max_total_time={seconds}", f"-seed={seed}", f"-artifact_prefix={name}-",
         "-max_len=4096", "-print_final_stats=1", "-verbosity=0"],
        target.run,
        internal_libfuzzer=False,
    )
    atheris.Fuzz()


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("input", nargs="?", type=Path, help="a file: run this input once, without libFuzzer")
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=random.randrange(1, 1 << 31))
    options = parser.parse_args()
    with scratch() as directory:
        target = TARGETS[options.target](directory)
        if options.input is not None:
            target.run(options.input.read_bytes())
            return
        print(f"fuzz {options.target}: seed {options.seed}, {options.seconds} s", flush=True)
        # libFuzzer ends the process by itself.
        if os.fork() == 0:
            fuzz(target, options.target, options.seconds, options.seed, directory)
        status = os.waitstatus_to_exitcode(os.wait()[1])
    sys.exit(status)


if __name__ == "__main__":
    main()
