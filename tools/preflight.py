"""Say in one line what this machine lacks to build kvstore, before anything is downloaded or compiled.

The Makefile runs it with whatever Python it was given, setup.py before it compiles. Standard library only, and it must
parse on old Pythons too.
"""
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig

OLDEST = (3, 11)
DEBIAN_FEDORA = "Debian, Ubuntu: apt install %s; Fedora: dnf install %s"


def interpreter():
    """What is wrong with the Python that will make the virtual environment, or None."""
    if sys.version_info < OLDEST:
        return "Python %d.%d or newer is needed, this is %d.%d (%s); name a newer one: make PYTHON=python3.12" % (
            OLDEST + tuple(sys.version_info[:2]) + (sys.executable,)
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return "this Python cannot make virtual environments. " + DEBIAN_FEDORA % ("python3-venv", "python3")
    return None


def toolchain():
    """What is missing to compile an extension module, or None."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        return "no C compiler: '%s' is not there. %s" % (compiler[0], DEBIAN_FEDORA % ("build-essential", "gcc"))
    include = sysconfig.get_path("include")
    if not os.path.exists(os.path.join(include, "Python.h")):
        return "no Python headers: %s/Python.h is not there. %s" % (
            include,
            DEBIAN_FEDORA % ("python3-dev", "python3-devel"),
        )
    probe = subprocess.run(
        compiler + ["-E", "-I", include, "-"],
        input=b"#include <Python.h>\n",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    if probe.returncode:
        said = probe.stderr.decode("utf-8", "replace").strip().split("\n")
        return "the C compiler lacks its own headers: %s. %s" % (
            next((line for line in said if "error" in line), said[-1]),
            DEBIAN_FEDORA % ("build-essential", "gcc glibc-devel"),
        )
    return None


if __name__ == "__main__":
    problem = interpreter() or toolchain()
    if problem:
        sys.exit("kvstore: " + problem)
