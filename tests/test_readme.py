"""The commands, files and settings that README.md and the guides name exist and mean something."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

from pipeline.config import load
from pipeline.registry import tracking
from pipeline.serve import pyfunc
from tests.infra import commands

GUIDES = [Path("README.md"), Path("pipeline/GUIDE.md"), Path("infra/README.md")]
PAGES = [
    *GUIDES,
    Path("agit_core/METHOD.md"),
    Path("tests/benchmarks/RESULTS.md"),
    Path("infra/CONTRIBUTING.md"),
    Path("infra/CHANGELOG.md"),
]
# words in capitals and dots stand for what the reader fills in
_PLACEHOLDER = re.compile(r"^[A-Z][A-Z_]+$|^\.\.\.$")
_PROGRAMS = {"agit", "ray", "prefect", "make", "docker", "kubectl", "agit-stack", "python"}


def lines(guide: Path) -> list[str]:
    """Command lines: in fenced blocks without a language, and in backquotes where one begins with a program."""
    text = guide.read_text()
    blocks = re.findall(r"```(?:bash|sh|console)?\n(.*?)```", text, re.DOTALL)
    rest = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", rest)]
    found = [line for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    found += [code for code in inline if " " in code]
    return [line for line in found if _program(line)]


def _program(line: str) -> str | None:
    """The program that a line calls, without variables before it; None when it calls none of ours."""
    words = line.split("#")[0].split()
    while words and re.match(r"^[A-Z_]+=", words[0]):
        words = words[1:]
    return words[0] if words and words[0] in _PROGRAMS else None


def split(line: str) -> list[str]:
    words = shlex.split(line, comments=True)
    while re.match(r"^[A-Z_]+=", words[0]):
        words = words[1:]
    # a pipe, a second command or a redirection ends the first
    stop = next((i for i, word in enumerate(words) if word in {"|", "&&", ";", ">", "..."}), len(words))
    return words[:stop]


def check(line: str) -> None:
    """Raises commands.Unknown when the line would fail as it stands."""
    words = split(line)
    match words:
        case ["agit", command]:
            commands.check(["agit", command, "--help"])  # text that speaks of the command
        case ["make", *targets]:
            made = set(re.findall(r"^([a-z-]+):", Path("Makefile").read_text(), re.MULTILINE))
            if not set(targets) <= made:
                raise commands.Unknown(f"Makefile has no {set(targets) - made}")
        case ["docker", *rest]:
            _files(rest)
        case ["kubectl", *rest]:
            _kubectl(rest)
        case ["agit-stack", *rest]:
            _stack(rest)
        case ["python", "-m", module, *_]:
            commands.check(["python", "-m", module])
        case ["prefect", "deployment", "run", name, *_]:
            commands.check(words)
            known = Path("infra/prefect.yaml").read_text()
            if f"name: {name.rpartition('/')[2]}\n" not in known:
                raise commands.Unknown(f"infra/prefect.yaml has no deployment {name}")
        case _:
            commands.check(words)
            if words[0] == "agit":
                _settings(words)


def _files(words: list[str]) -> None:
    """The compose and build files, targets and services that a docker line names."""
    for flag, value in itertools.pairwise(words):
        if flag in {"-f", "--file"} and value.startswith("infra/") and not Path(value).is_file():
            raise commands.Unknown(f"there is no {value}")
        if flag == "--target" and f" AS {value}\n" not in Path("infra/docker/Dockerfile").read_text():
            raise commands.Unknown(f"the Dockerfile has no stage {value}")
    if words[:1] == ["compose"]:
        rest = words[1:]
        while rest[:1] == ["-f"]:
            rest = rest[2:]
        if not rest:
            return  # text that speaks of docker compose
        # what follows `exec SERVICE` is another command
        asked = rest[:1] if rest[0] == "exec" else rest
        done = subprocess.run(
            [commands.tool("docker-compose"), *asked, "--help"], capture_output=True, text=True, timeout=60
        )
        if done.returncode or not done.stdout.startswith(f"Usage:  docker compose {rest[0]}"):
            raise commands.Unknown(f"docker compose {' '.join(rest)}: {done.stderr or done.stdout[:80]}")
        if "exec" in words:
            inner = words[words.index("exec") + 2 :]
            check(shlex.join(inner))


def _kubectl(words: list[str]) -> None:
    for flag, value in itertools.pairwise(words):
        if flag == "-k" and not Path(value, "kustomization.yaml").is_file():
            raise commands.Unknown(f"there is no kustomization in {value}")
    done = subprocess.run(
        [commands.tool("kubectl"), *words, "--help"], capture_output=True, text=True, timeout=60
    )
    if done.returncode or "unknown flag" in done.stderr:
        raise commands.Unknown(f"kubectl {' '.join(words)}: {done.stderr}")


def _stack(words: list[str]) -> None:
    try:
        from infra.stack import app as stack
    except ImportError:
        raise commands.Unknown("there is no agit-stack") from None
    commands.follow(typer.main.get_command(stack), words)


def _settings(words: list[str]) -> None:
    """Settings after --set are keys of the configuration; capitals stand for values."""
    overrides = [value for flag, value in itertools.pairwise(words) if flag == "--set"]
    for override in overrides:
        key = override.partition("=")[0]
        place: object = load("demo").plain()
        for part in key.split("."):
            if not isinstance(place, dict) or part not in place:
                raise commands.Unknown(f"--set {override}: there is no setting {key}")
            place = place[part]


@pytest.mark.parametrize("guide", PAGES, ids=str)
def test_every_command_line_means_something(guide: Path) -> None:
    found, wrong = lines(guide), []
    for line in found:
        try:
            check(line)
        except commands.Unknown as error:
            wrong.append(f"{line}\n    {error}")
    assert len(found) >= (5 if guide in GUIDES else 0), "the guide shows commands"
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("guide", PAGES, ids=str)
def test_every_file_named_is_there(guide: Path) -> None:
    text = guide.read_text()
    names = set(re.findall(r"`((?:infra|pipeline|agit_core|tests)/[\w./-]+)`", text))
    linked = {link for link in re.findall(r"\]\(([^)#\s]+)\)", text) if ":" not in link}
    missing = [name for name in names if not Path(name.rstrip("/")).exists()]
    missing += [link for link in linked if not (guide.parent / link).exists()]
    assert missing == []
    headings = {
        re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-")
        for head in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


@pytest.mark.parametrize(
    "line",
    [
        "agit rnu demo",
        "agit run demo --set trian.workers=2",
        "make demmo",
        "docker compose -f infra/docker/composed.yaml up",
        "docker compose -f infra/docker/compose.yaml up --waits",
        "docker build -f infra/docker/Dockerfile --target agitt .",
        "kubectl apply -k infra/kubernetes/overlays/gcp",
        "kubectl aply -k infra/kubernetes/overlays/gke",
        "prefect deployment run agit/train-zebra",
        "python -m infra.registry kubernetes",
    ],
)
def test_what_means_nothing_is_noticed(line: str) -> None:
    with pytest.raises(commands.Unknown):
        check(line)


def test_mlflows_own_server_is_told_where_the_registry_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable it reads a local database in the working directory."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = tracking.tracking_uri(load("h2z")).replace(str(Path.cwd()), "$PWD")
    for text in (Path("pipeline/GUIDE.md").read_text(), pyfunc.__doc__ or ""):
        assert f"MLFLOW_TRACKING_URI={uri} mlflow models serve -m models:/h2z@champion" in text
