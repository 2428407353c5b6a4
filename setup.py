"""Build the extension modules: one for each .pyx file of kvcore and kvnet. Everything else stands in pyproject.toml.

KVSTORE_DEBUG=1      line tracing, assertions, balance counters (KV_DEBUG), no optimisation
KVSTORE_SANITIZE=1   address and undefined behaviour sanitizers; with assertions and counters
KVSTORE_SANITIZE=fuzzer   the same, with coverage for libFuzzer; for clang only
KVSTORE_COVERAGE=1   what ships, without optimisation and with gcov's counters: see tools/branches.py; for gcc only
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext as setuptools_build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

import preflight  # noqa: E402

DEBUG = os.environ.get("KVSTORE_DEBUG", "") not in ("", "0")
SANITIZE = os.environ.get("KVSTORE_SANITIZE", "") not in ("", "0")
FUZZER = os.environ.get("KVSTORE_SANITIZE") == "fuzzer"
COVERAGE = os.environ.get("KVSTORE_COVERAGE", "") not in ("", "0")
MODE = "sanitize" if SANITIZE else "coverage" if COVERAGE else "debug" if DEBUG else "release"
BUILD = f"build/{MODE}"  # apart, so that no file of one mode is taken for that of another

DIRECTIVES = {
    "language_level": 3,
    "binding": False,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "embedsignature": True,
    "linetrace": DEBUG,
    "profile": DEBUG,
    "optimize.use_switch": not COVERAGE,  # each condition shall be one in the C, too
}

# What Cython generates has unused arguments (every function that fits a slot of a type) and type objects that name only
# their first fields. Nothing else is silenced: all other warnings stand, for our own C and for Cython's.
CFLAGS = ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers"]
# The interpreter's own flags may ask for checks that only work with optimisation.
UNOPTIMISED = ["-g", "-U_FORTIFY_SOURCE"]
SANITIZERS = [
    "-fsanitize=address,undefined" + (",fuzzer-no-link" if FUZZER else ""),
    "-fno-sanitize-recover=undefined",
    "-fno-omit-frame-pointer",
]

# Atomic, for gcov infers some counts from others: one lost between threads would take or invent a branch.
COUNTERS = ["--coverage", "-fprofile-update=atomic"]

COMPILE = {
    # Without assertions the variables that only they used are left over.
    "release": [*CFLAGS, "-Wno-unused-variable", "-O2"],
    "debug": [*CFLAGS, *UNOPTIMISED, "-O0"],
    "sanitize": [*CFLAGS, *UNOPTIMISED, "-O1", *SANITIZERS],
    "coverage": [*UNOPTIMISED, "-Wno-all", "-O0", *COUNTERS],
}[MODE]
MACROS = {
    "release": [("CYTHON_WITHOUT_ASSERTIONS", "1")],
    "debug": [("KV_DEBUG", "1"), ("CYTHON_TRACE_NOGIL", "1")],
    "sanitize": [("KV_DEBUG", "1")],
    "coverage": [("CYTHON_WITHOUT_ASSERTIONS", "1")],
}[MODE]


def extensions():
    """One Extension for each .pyx file, named after its path."""
    os.chdir(ROOT)
    # The tests' own module is for builds in place; no wheel carries it.
    folders = ("kvcore", "kvnet", *(["tests"] if "--inplace" in sys.argv else []))
    sources = sorted(path for folder in folders for path in Path(folder).rglob("*.pyx"))
    headers = sorted(str(path) for path in Path("kvcore").glob("*.h"))
    return [
        Extension(
            ".".join(path.with_suffix("").parts),
            [str(path)],
            include_dirs=["kvcore"],
            depends=[*headers, "setup.py"],
            define_macros=MACROS,
            extra_compile_args=COMPILE,
            extra_link_args=SANITIZERS if SANITIZE else COUNTERS if COVERAGE else [],
        )
        for path in sources
    ]


class build_ext(setuptools_build_ext):
    def initialize_options(self):
        super().initialize_options()
        self.parallel = os.cpu_count()

    def run(self):
        # Not at the top of the file: asking for the version or the metadata should not compile anything.
        from Cython.Build import cythonize
        from Cython.Compiler.Errors import CompileError

        try:
            generated = cythonize(
                self.extensions,
                build_dir=f"{BUILD}/cython",
                compiler_directives=DIRECTIVES,
                force=bool(self.force) or None,
                nthreads=os.cpu_count() or 1,
            )
        except CompileError as error:
            raise SystemExit(f"kvstore: Cython refused {error}") from None
        sources = {ext.name: ext.sources for ext in generated}
        for ext in self.extensions:
            ext.sources = sources[ext.name]
        super().run()

    def build_extensions(self):
        problem = preflight.toolchain()
        if problem:
            raise SystemExit("kvstore: " + problem)
        super().build_extensions()


if __name__ == "__main__":
    setup(
        packages=[*find_packages(str(ROOT), include=["kvcore", "kvcore.*", "kvnet", "kvnet.*"]), "twisted.plugins"],
        ext_modules=extensions(),
        cmdclass={"build_ext": build_ext},
        options={"build": {"build_base": BUILD}},
    )
