"""Line and branch coverage of the Cython sources, from gcov's counts of the C that Cython made of them.

    python tools/branches.py [--missing] [FOLDER]

FOLDER (build/coverage) is a copy of the tree that was built with KVSTORE_COVERAGE=1, and in which the tests ran. --missing
also lists the lines that never ran, and the branches of which one way was never taken.

The C says in comments which line of the source stands behind what follows. A line has run when any of its C has. A branch is
one way out of a condition of the source, and each condition has two: what follows `if`, `elif`, `while` and the `if` of a
comprehension; each operand of `and` and `or`, but for the last when the result is tested or kept as a whole; the choice in
`a if b else c`, `min` and `max`. A `for` has two: into its body, and past its end; several on one line count as one.

Left out is what Cython adds: the look for an error behind a call, and what passes the error on (also: whether an `except`
catches what was raised); arguments, None and types; `with`; unpacking; references; slices assigned or deleted; imports;
declarations of classes and of the attributes they show.

A function of a .pxd is compiled into each module that uses it: its counts are added up, under the name of the .pxd. A
`finally` is compiled once for each way into it, and each counts. A process that is killed leaves no counts; one that exits
adds its own to the rest.
"""

import argparse
import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

MARKER = re.compile(r'\s*/\* "(kv\w+/[\w/]+\.p(?:yx|xd))":(\d+)$')
FUNCTION_EXIT = re.compile(r"\s*/\* function exit code \*/$")
VALUE = r"!?(?:__pyx_cur_scope->)?__pyx_(?:t_\d+|v_[\w.>\[\]-]+)"
CONDITION = re.compile(rf"\s*(?:\}} else )?if \((?:{VALUE}|unlikely\({VALUE}\))\) (?:\{{|break;)$")
RANGE_LOOP = re.compile(r"\s*for \(__pyx_t_\d+ ?= ?.*\{$")
LIST_END = re.compile(r"\s*if \((?:__pyx_t_\d+ >= __pyx_temp|unlikely\(__pyx_t_\d+ == 0\))\) break;$")
ITERATOR_END = re.compile(r"\s*if \(unlikely\(!__pyx_t_\d+\)\) \{\n\s*PyObject\* exc_type")
DECLARATION = re.compile(r"\s*cdef (?:class|readonly|public)\b")
NOT_OURS = re.compile(r"\s*(?:with|except|del|from|import|cimport)\b|[^=]*\[[^\]=]*:[^\]=]*\] =")


class Coverage:
    """What ran, by line of the sources, and which ways were taken."""

    def __init__(self):
        self.lines = defaultdict(int)  # (source, line): times
        self.branches = {}  # (source, line): {(C function, place in it): [times true, times false]}

    def add(self, folder, notes):
        """Add the counts of one object file; notes is its .gcno."""
        generated, counts = gcov(folder, notes)
        text = (folder / generated).read_text("utf-8").split("\n")
        places = defaultdict(int)
        for number, source, line in source_of(text):
            if number not in counts or DECLARATION.match(source_line(folder, source, line)):
                continue
            count, function, ways = counts[number]
            self.lines[source, line] += count
            kind = kind_of(text, number)
            if kind is None or len(ways) != 2 or NOT_OURS.match(source_line(folder, source, line)):
                continue
            place = "loop" if kind == "loop" else places[function, source, line]
            places[function, source, line] += kind != "loop"
            known = self.branches.setdefault((source, line), {}).setdefault((function, place), [0, 0])
            for way, times in enumerate(in_order(text, number, ways, counts)):
                known[way] += times


def gcov(folder, notes):
    """The C file of a .gcno, and {line of it: (times, function, times of each way out of it)}."""
    command = ["gcov", "--json-format", "--stdout", "--branch-probabilities", str(notes)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    for file in json.loads(done.stdout)["files"]:
        if Path(file["file"]).stem == notes.stem and file["file"].endswith(".c"):
            return file["file"], {
                line["line_number"]: (
                    line["count"], line.get("function_name"), [branch["count"] for branch in line["branches"]])
                for line in file["lines"]
            }  # fmt: skip
    raise SystemExit(f"gcov says nothing about the C of {notes}")


def source_of(text):
    """(number, source, line of it) of each line of C that stems from a source."""
    source, comment = None, False
    for number, content in enumerate(text, 1):
        if match := MARKER.match(content):
            source, comment = (match[1], int(match[2])), True
        elif comment:
            comment = "*/" not in content
        elif content == "}" or FUNCTION_EXIT.match(content):
            source = None
        elif source is not None:
            yield number, *source


def kind_of(text, number):
    """ "condition", "loop", or None for a line of C that is no branch of a source."""
    content = text[number - 1]
    if RANGE_LOOP.match(content) or LIST_END.match(content) or ITERATOR_END.match(content + "\n" + text[number]):
        return "loop"
    return "condition" if CONDITION.match(content) else None


def in_order(text, number, ways, counts):
    """The two counts as the source has them: true before false, into the body before past the end."""
    content = text[number - 1]
    leaves = content.endswith("break;")
    operand = False  # of `and` or `or`: an empty block, then another that leaves
    held, failed = ways
    for follows in range(number + 1, len(text)):
        if follows in counts:
            # gcov often, not always, names first what happens when the C condition holds. What stands next in the C tells.
            next_held, next_failed = (failed, held) if leaves or operand else (held, failed)
            if counts[follows][0] == next_failed != next_held:
                held, failed = failed, held
            break
        if text[follows - 1].strip() == "} else {":
            operand = True
        elif text[follows - 1].lstrip().startswith("}"):
            break
    inverted = leaves or (operand and "(!" in content) or ITERATOR_END.match(content + "\n" + text[number])
    return (failed, held) if inverted else (held, failed)


def source_line(folder, source, line, files={}):  # noqa: B006 - a cache
    if source not in files:
        files[source] = (folder / source).read_text("utf-8").split("\n")
    return files[source][line - 1]


def percent(part, whole):
    return f"{part:5}/{whole:<5}{100 * part / whole if whole else 100:6.1f} %"


def table(coverage):
    """One line for each source, and one for all."""
    rows = []
    for source in sorted({source for source, _ in coverage.lines}):
        lines = [count for (name, _), count in coverage.lines.items() if name == source]
        ways = [way for (name, _), found in coverage.branches.items() if name == source
                for both in found.values() for way in both]  # fmt: skip
        rows.append((source, sum(map(bool, lines)), len(lines), sum(map(bool, ways)), len(ways)))
    rows.append(("all", *(sum(row[i] for row in rows) for i in range(1, 5))))
    yield f"{'source':28}{'lines':>14}{'branches':>19}"
    for source, *figures in rows:
        yield f"{source:28}{percent(*figures[:2])} {percent(*figures[2:])}".rstrip()


def missing(coverage, folder):
    """One line for each line that never ran and each way that was never taken."""
    for source, line in sorted(coverage.lines):
        text = source_line(folder, source, line).strip()
        if not coverage.lines[source, line]:
            yield f"{source}:{line}: never ran: {text}"
            continue
        found = coverage.branches.get((source, line), {})
        for number, ((_, place), ways) in enumerate(found.items(), 1):
            which = f" ({number} of {len(found)})" if len(found) > 1 else ""
            words = ("into the body", "past the end") if place == "loop" else ("true", "false")
            for word, times in zip(words, ways, strict=True):
                if not times:
                    yield f"{source}:{line}: never {word}{which}: {text}"


def main():
    parser = argparse.ArgumentParser(description="Coverage of the Cython sources.")
    parser.add_argument("--missing", action="store_true", help="list what is not covered")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("build/coverage"))
    options = parser.parse_args()
    coverage = Coverage()
    notes = sorted(options.folder.rglob("*.gcno"))
    if not notes:
        sys.exit(f"{options.folder} was not built with KVSTORE_COVERAGE=1")
    for path in notes:
        coverage.add(options.folder, path.relative_to(options.folder))
    for line in [*(missing(coverage, options.folder) if options.missing else []), *table(coverage)]:
        print(line)


if __name__ == "__main__":
    main()
