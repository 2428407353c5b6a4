"""A Dockerfile read: its instructions in order, and what .dockerignore leaves of the context. For tools/image.py, tests."""

import json
import os
import re
import shlex
from pathlib import Path
from typing import NamedTuple

ARGUMENT = re.compile(r"--[a-z-]+(=\S+)?\s+")


class Step(NamedTuple):
    """One instruction: its name in capitals, its --options, and the rest as it stands there."""

    name: str
    options: dict[str, str]
    rest: str

    @property
    def words(self) -> list[str]:
        """The rest as words: those of the JSON array, or those of a shell."""
        return json.loads(self.rest) if self.rest.startswith("[") else shlex.split(self.rest)


def steps(text: str) -> list[Step]:
    """The instructions of a Dockerfile."""
    lines = [line for line in text.split("\n") if not line.lstrip().startswith("#")]
    return [_step(line) for line in "\n".join(lines).replace("\\\n", " ").split("\n") if line.strip()]


def _step(line: str) -> Step:
    name, _, rest = line.strip().partition(" ")
    rest, options = rest.lstrip(), {}
    while match := ARGUMENT.match(rest):
        key, _, value = match[0].strip().partition("=")
        options[key], rest = value, rest[match.end() :]
    return Step(name.upper(), options, rest)


def stages(text: str) -> list[list[Step]]:
    """The instructions by stage; each stage begins with its FROM."""
    found: list[list[Step]] = []
    for step in steps(text):
        if step.name == "FROM":
            found.append([])
        found[-1].append(step)
    return found


def expanded(text: str, variables: dict[str, str]) -> str:
    """The text with $NAME and ${NAME} replaced."""
    return re.sub(r"\$(?:(\w+)|\{(\w+)\})", lambda match: variables.get(match[1] or match[2], ""), text)


def context_files(root: Path) -> list[str]:
    """Paths below root that COPY can see: the last rule that matches a path, or a folder above it, decides."""
    rules = []
    for line in (root / ".dockerignore").read_text("utf-8").split("\n"):
        if line.strip() and not line.startswith("#"):
            kept = line.startswith("!")
            rules.append((re.compile(_pattern(line.lstrip("!").strip().strip("/"))), kept))
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in (".git", ".venv"))
        for name in sorted(names):
            path = os.path.relpath(os.path.join(folder, name), root)
            if _kept(path, rules):
                found.append(path)
    return found


def _kept(path: str, rules: list[tuple[re.Pattern, bool]]) -> bool:
    parts = path.split("/")
    heads = ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]
    verdict = True
    for pattern, kept in rules:
        if any(pattern.fullmatch(head) for head in heads):
            verdict = kept
    return verdict


def _pattern(glob: str) -> str:
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.sub(r"\*\*/|\*\*|\*|\?|[^*?]+", lambda match: parts.get(match[0]) or re.escape(match[0]), glob)
