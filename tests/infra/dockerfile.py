"""The Dockerfile as instructions, enough to compare it with what it copies and installs."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

PATH = Path("infra/docker/Dockerfile")


@dataclass
class Stage:
    """One ``FROM ... AS name`` and what follows it."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, keyword: str) -> list[str]:
        return [text for word, text in self.instructions if word == keyword]


def arguments() -> dict[str, str]:
    """The defaults of the ARGs before the first FROM."""
    head = PATH.read_text().split("\nFROM ", 1)[0]
    return dict(re.findall(r"^ARG (\w+)=(\S+)$", head, re.MULTILINE))


def stages() -> dict[str, Stage]:
    """The stages by name, in order."""
    text = "\n".join(line for line in PATH.read_text().splitlines() if not line.lstrip().startswith("#"))
    found: dict[str, Stage] = {}
    stage: Stage | None = None
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if not line.strip():
            continue
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = found[name] = Stage(name, base)
        elif stage is not None:
            stage.instructions.append((word, rest))
    return found


def copied(stage: Stage) -> list[str]:
    """What a stage copies from the build context."""
    sources = []
    for text in stage.all("COPY"):
        words = shlex.split(text)
        if not any(word.startswith("--from=") for word in words):
            sources += [word for word in words if not word.startswith("--")][:-1]
    return sources


def ancestors(name: str, given: dict[str, str]) -> list[Stage]:
    """A stage and those it is built on, the nearest first."""
    chain, every = [], stages()
    while name in every:
        chain.append(every[name])
        name = re.sub(r"\$\{(\w+)\}", lambda match: given[match[1]], every[name].base)
    return chain
