"""The arrows of the design, proved on the sources: what may import what, how long a module may be, how C functions fail."""

import ast
import re
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from kvnet import tap

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 600
ENGINE_DOORS = {"kvcore.store", "kvcore.types", "kvcore.bytebuf", "kvcore.clock"}

# A string (kept out: it may hold anything), or a comment.
LITERAL = re.compile(r"""[rbuf]*('{3}|"{3})(?:\\.|[^\\])*?\1|[rbuf]*(['"])(?:\\.|[^\\\n])*?\2|\#[^\n]*""", re.DOTALL)
FROM = re.compile(r"from\s+(\.*)([\w.]*)\s+(c?import)\s+(.+)")
IMPORT = re.compile(r"(c?import)\s+(.+)")
# "cdef inline TYPE name(arguments) TAIL"; the type is empty when a Python object is returned.
FUNCTION = re.compile(
    r"(?:cdef|cpdef)\s+(?!class\b)((?:[\w.]+\s+|[\w.]+\s*\*+\s*|[\w.]+\[[^]]*\]\s*)*)(\w+)\s*\((?!\*)(.*)$"
)
POINTER = re.compile(r"\(\s*\*\s*(\w+)\s*\)\s*\((.*)$")
CLASS = re.compile(r"cdef\s+class\s+([\w.]+)")
CLAUSE = re.compile(r"\b(except|noexcept)\b")
QUALIFIERS = {"inline", "public", "api", "readonly", "const", "static"}
PYTHON_TYPES = {"object", "bytes", "bytearray", "str", "list", "tuple", "dict", "set", "frozenset", "type", "memoryview"}


def sources(folder, *suffixes):
    """The files below folder that are ours and end so."""
    return sorted(path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)


def logical_lines(text):
    """(line number, indentation, text) of each logical line, without strings, comments and line breaks inside brackets."""
    text = LITERAL.sub(lambda match: ("" if match[0][0] == "#" else '""') + "\n" * match[0].count("\n"), text)
    held, start, depth = "", 0, 0
    for number, line in enumerate(text.split("\n"), 1):
        start = start if held else number
        held += line.rstrip("\\")
        depth += sum(map(line.count, "([{")) - sum(map(line.count, ")]}"))
        if depth <= 0 and not line.endswith("\\"):
            if held.strip():
                yield start, len(held) - len(held.lstrip()), held.strip()
            held, depth = "", 0


def imports_of(path):
    """(line number, "import" or "cimport", dotted name) of everything a source names; "from a import b" names a.b."""
    package = path.relative_to(ROOT).parent.parts
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield node.lineno, "import", alias.name
            elif isinstance(node, ast.ImportFrom):
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
                base = base if node.level else node.module
                for alias in node.names:
                    yield node.lineno, "import", f"{base}.{alias.name}"
        return
    for number, _, line in logical_lines(path.read_text("utf-8")):
        if match := FROM.match(line):
            dots, module, word, names = match.groups()
            base = ".".join([*package[: len(package) - len(dots) + 1], *filter(None, [module])]) if dots else module
            for name in names.strip("() ").split(","):
                if name.strip():
                    yield number, word, f"{base}.{name.split()[0]}"
        elif match := IMPORT.match(line):
            for name in match[2].split(","):
                yield number, match[1], name.split()[0]


def inside(name, package):
    return name == package or name.startswith(package + ".")


def closing(text):
    """What stands behind the bracket that closes an argument list; text begins behind the opening one."""
    depth = 1
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[position + 1 :]
    return ""


def unguarded(text, classes):
    """(line number, name) of each C function, or pointer to one, whose errors are left to Cython's default."""
    extern = None
    for number, indentation, line in logical_lines(text):
        if extern is not None and indentation > extern:
            continue
        extern = indentation if re.match(r"cdef\s+extern\b", line) else None
        if extern is not None:
            continue
        for match in POINTER.finditer(line):
            if not CLAUSE.search(closing(match[2])):
                yield number, match[1]
        if match := FUNCTION.match(line):
            words = [word for word in match[1].split() if word not in QUALIFIERS]
            returns_object = not words or words[-1] in PYTHON_TYPES or words[-1] in classes
            if not returns_object and not CLAUSE.search(closing(match[3])):
                yield number, match[2]


def run_python(*arguments):
    """(exit status, output) of a fresh interpreter in the root of the checkout."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


class ArrowTests(SynchronousTestCase):
    def refused(self, folder, suffixes, bad):
        found = [
            f"{path.relative_to(ROOT)}:{number}: {word} {name}"
            for path in sources(folder, *suffixes)
            for number, word, name in imports_of(path)
            if bad(word, name)
        ]
        self.assertEqual(found, [])

    def test_sources_are_found(self):
        self.assertGreater(len(sources("kvcore", ".pyx")), 5)
        self.assertGreater(len(sources("kvnet", ".pyx")), 1)
        self.assertIn("kvcore.types.Slice", [name for _, _, name in imports_of(ROOT / "kvcore" / "store.pxd")])

    def test_engine_knows_neither_twisted_nor_server(self):
        self.refused(
            "kvcore", [".py", ".pyx", ".pxd"], lambda _, name: any(inside(name, top) for top in ("twisted", "kvnet", "zope"))
        )

    def test_server_reaches_the_engine_through_its_doors(self):
        self.refused(
            "kvnet",
            [".pyx", ".pxd"],
            lambda word, name: (
                word == "cimport" and inside(name, "kvcore") and not any(inside(name, door) for door in ENGINE_DOORS)
            ),
        )

    def test_no_source_is_included(self):
        found = [
            f"{path.relative_to(ROOT)}:{number}"
            for path in sources(".", ".pyx", ".pxd")
            if path.relative_to(ROOT).parts[0] in ("kvcore", "kvnet")
            for number, _, line in logical_lines(path.read_text("utf-8"))
            if re.match(r"include\s*\"", line)
        ]
        self.assertEqual(found, [])

    def test_engine_loads_no_twisted(self):
        code = "import sys, kvcore; print([name for name in sys.modules if name.split('.')[0] in ('twisted', 'kvnet')])"
        self.assertEqual(run_python("-c", code), (0, "[]\n"))

    def test_server_and_load_generator_know_nothing_of_each_other(self):
        generator = sources("kvnet/bench", ".py", ".pyx", ".pxd")
        self.assertGreater(len(generator), 5)
        found = [
            f"{path.relative_to(ROOT)}:{number}: {name}"
            for path in sources("kvnet", ".py", ".pyx", ".pxd")
            for number, _, name in imports_of(path)
            if path.name != "cli.py"
            and (
                any(inside(name, top) for top in ("kvnet", "twisted")) and not inside(name, "kvnet.bench")
                if path in generator
                else inside(name, "kvnet.bench")
            )
        ]
        self.assertEqual(found, [])

    def test_imports_are_without_warnings(self):
        self.assertEqual(run_python("-W", "error", "-c", "import kvcore, kvnet.service"), (0, ""))


class SourceTests(SynchronousTestCase):
    def test_no_module_is_long(self):
        lengths = {
            str(path.relative_to(ROOT)): path.read_text("utf-8").count("\n")
            for folder in ("kvcore", "kvnet", "tests")
            for path in sources(folder, ".py", ".pyx", ".pxd", ".h")
        }
        self.assertEqual({name: lines for name, lines in lengths.items() if lines > MAX_LINES}, {})

    def test_every_c_function_says_how_it_fails(self):
        paths = [*sources("kvcore", ".pyx", ".pxd"), *sources("kvnet", ".pyx", ".pxd")]
        texts = {path: path.read_text("utf-8") for path in paths}
        classes = {
            match[1]
            for text in texts.values()
            for _, _, line in logical_lines(text)
            if (match := CLASS.match(line))
        }
        found = [
            f"{path.relative_to(ROOT)}:{number}: {name}"
            for path, text in texts.items()
            for number, name in unguarded(text, classes)
        ]
        self.assertEqual(found, [])

    def test_every_option_is_in_the_readme(self):
        rows = [line for line in (ROOT / "README.md").read_text("utf-8").split("\n") if "| `KVSTORE_" in line]
        for option in tap.OPTIONS:
            row = [line for line in rows if re.match(rf"\| `--{option.name}[=`]", line)]
            self.assertEqual(len(row), 1, option.name)
            self.assertIn(f"`{option.variable}`", row[0])
            self.assertIn(f"`{option.default}`", row[0])
        self.assertEqual(len(rows), len(tap.OPTIONS))


class CheckerTests(SynchronousTestCase):
    """The checks above read Cython with regular expressions; these are the cases they must tell apart."""

    def found(self, text, classes=("Store",)):
        return [name for _, name in unguarded(text, set(classes))]

    def test_c_functions_without_a_clause(self):
        for line in (
            "cdef int f(int a):",
            "cdef inline int f(int a) nogil:",
            "cdef void f(a):",
            "cdef const char* f(Slice s):",
            "cdef uint8_t *f()",
            "cdef unsigned long f(int a,\n        int b):",
            "    cdef int f(self)",
            "cpdef bint f(self, noexcept=1):",
            "ctypedef int (*f)(void* ctx) nogil",
            "    int (*f)(void* ctx)",
            "cdef Slice f()  # noexcept",
        ):
            self.assertEqual(self.found(line), ["f"], line)

    def test_what_needs_no_clause(self):
        for line in (
            "cdef int f(int a) except -1:",
            "cdef int f(int a,\n        int b) noexcept nogil:",
            "cdef void f() noexcept",
            "cdef f(self):",
            "cdef object f(self):",
            "cdef inline bytes f(Slice s):",
            "cdef Store f(path):",
            "cdef int a = f(1)",
            "cdef int a = b, c = f(2)",
            "cdef size_t n = (a + b)",
            "cdef class Store(Base):",
            "def f(int a):",
            '"""cdef int f(int a)"""',
            "cdef extern from 'x.h' nogil:\n    int f(int a)\n    cdef void g()",
            "ctypedef int (*f)(void* ctx) noexcept nogil",
            "x = <int (*)(int)>y",
        ):
            self.assertEqual(self.found(line), [], line)

    def test_after_an_extern_block(self):
        self.assertEqual(self.found("cdef extern from 'x.h':\n    int g()\n\ncdef int f():\n    return 1\n"), ["f"])

    def test_cython_imports(self):
        path = ROOT / "kvcore" / "probe.pyx"
        text = (
            "from twisted.python cimport (log as l,\n    failure)\n"
            'cimport kvnet.session as s, libc\n"""import no"""\n# import no\nfrom .types cimport (\n    Slice,\n)\n'
            "def f():\n    import twisted\n    from . import errors\n    important = 1\n"
        )
        self.patch(Path, "read_text", lambda self, encoding: text)
        self.assertEqual(
            [name for _, _, name in imports_of(path)],
            ["twisted.python.log", "twisted.python.failure", "kvnet.session", "libc", "kvcore.types.Slice", "twisted",
             "kvcore.errors"],
        )  # fmt: skip
