"""Dockerfiles and `.dockerignore`, as far as ours go."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.infra.files import ROOT


@dataclass(frozen=True)
class Dockerfile:
    """instructions: of all stages, in order: name and the rest of its line."""

    instructions: tuple[tuple[str, str], ...]

    def all(self, name: str) -> list[str]:
        return [rest for instruction, rest in self.instructions if instruction == name]

    @property
    def user(self) -> str:
        return self.all("USER")[-1]

    @property
    def environ(self) -> dict[str, str]:
        """Of the last stage."""
        last = max(i for i, (name, _) in enumerate(self.instructions) if name == "FROM")
        rests = [rest for name, rest in self.instructions[last:] if name == "ENV"]
        return dict(word.split("=", 1) for rest in rests for word in shlex.split(rest))

    @property
    def copied(self) -> list[str]:
        """What comes from the build's context."""
        words = [shlex.split(rest) for rest in self.all("COPY")]
        return [name for line in words if not line[0].startswith("--from=") for name in line[:-1]]

    def command(self, name: str) -> list[str]:
        """ENTRYPOINT, CMD or the last part of HEALTHCHECK, which are JSON here."""
        return json.loads(self.all(name)[-1].partition("CMD ")[2] or self.all(name)[-1])


def read(path: Path) -> Dockerfile:
    text = re.sub(r"(?m)^\s*#.*\n", "", path.read_text()).replace("\\\n", " ")
    lines = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    return Dockerfile(tuple((name, rest.strip()) for name, rest in lines))


def let_through(path: str) -> bool:
    """Whether `.dockerignore` leaves this file in the build's context: the last line that is about
    it, or about a folder it is in, counts.
    """
    there = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").strip("/")
        parts = path.split("/")
        about = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        if any(re.fullmatch(_regexp(pattern), name) for name in about):
            there = line.startswith("!")
    return there


def _regexp(pattern: str) -> str:
    parts = re.split(r"(\*\*/|\*)", pattern)
    kinds = {"**/": "(?:.*/)?", "*": "[^/]*"}
    return "".join(kinds.get(part, re.escape(part)) for part in parts)
