"""The container image: linted, pinned like the rest, and its install steps and scripts really run."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from infra.register import TYPES
from tests.infra import dockerfile
from tests.infra.commands import tool
from tests.infra.pins import constraints, normalised

FOLDER = Path("infra/docker")
PROJECT = tomllib.loads(Path("pyproject.toml").read_text())["project"]


def lint(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([tool("hadolint"), "--no-color", str(path)], capture_output=True, text=True)


def test_linter_has_nothing_to_say() -> None:
    done = lint(dockerfile.PATH)
    assert (done.returncode, done.stdout) == (0, "")


def test_linter_would_say_something(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text(dockerfile.PATH.read_text().replace("--no-install-recommends ", "").replace("=0.19.*", ""))
    done = lint(bad)
    assert done.returncode != 0
    assert {"DL3008", "DL3015"} <= set(re.findall(r"DL\d+", done.stdout))


@pytest.mark.parametrize("variant", ["gpu", "cpu"])
def test_stages_lead_back_to_one_pinned_base(variant: str) -> None:
    given = {**dockerfile.arguments(), "VARIANT": variant}
    for target in ("packages", "agit", "mlflow"):
        chain = dockerfile.ancestors(target, given)
        assert chain[-1].name == "base", target
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm(@sha256:[0-9a-f]{64})?", given["PYTHON_IMAGE"])


def test_everything_copied_is_there_and_not_ignored() -> None:
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    sources = {source for stage in dockerfile.stages().values() for source in dockerfile.copied(stage)}
    assert ignored[1] == "*"
    for source in sources:
        assert Path(source).exists(), source
        assert source.split("/")[0] in let_in, source
    packages = set(_packages())
    assert packages <= sources, "every package of pyproject.toml is copied"


def _packages() -> list[str]:
    tool_section = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["setuptools"]
    return [pattern.removesuffix("*") for pattern in tool_section["packages"]["find"]["include"]]


@pytest.mark.parametrize("target", ["agit", "mlflow"])
def test_images_run_as_nobody_special(target: str) -> None:
    stage = dockerfile.stages()[target]
    assert stage.all("USER") == ["10001:10001"]
    # the user is the last thing that is set before the command, so no later step runs as root
    words = [word for word, _ in stage.instructions]
    assert words.index("USER") < words.index("CMD")
    entrypoint = json.loads(dockerfile.stages()["base"].all("ENTRYPOINT")[0])
    assert entrypoint[0].endswith("/tini")
    assert isinstance(json.loads(stage.all("CMD")[0]), list)


def test_versions_are_those_of_the_project() -> None:
    stages, pins = dockerfile.stages(), constraints()
    assert f'version="{PROJECT["version"]}"' in stages["agit"].all("LABEL")[0]
    server = constraints(str(FOLDER / "mlflow.txt"))
    assert server["mlflow"] == pins["mlflow-skinny"], "the server is as old as its clients"
    assert f'version="{server["mlflow"]}"' in stages["mlflow"].all("LABEL")[0]
    names = re.findall(r"agit(?:-mlflow)?:(\d[\w.]*)", dockerfile.PATH.read_text())
    assert set(names) == {PROJECT["version"]}


def test_every_pin_has_hashes_and_no_index_is_named() -> None:
    text = Path("constraints.txt").read_text()
    assert "://" not in text
    assert not re.search(r"^-", text, re.MULTILINE), "no options"
    for pin in re.split(r"\n(?=\S)", text.rstrip()):
        head, *hashes = pin.split(" \\\n")
        assert re.fullmatch(r"[\w.-]+==[\w.+!]+( ; .+)?", head), head
        assert hashes, f"{head} has no hash"
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", line) for line in hashes), head


def test_what_is_installed_is_checked_against_the_hashes() -> None:
    """Of the Makefile and the image alike; the wheels of PyTorch's own index are other files."""
    calls = [
        line
        for line in re.sub(r"\\\n\s*", " ", Path("Makefile").read_text()).splitlines()
        if "install" in line
    ]
    calls += [
        part
        for stage in dockerfile.stages().values()
        for text in stage.all("RUN")
        for part in text.split("&&")
    ]
    installs = [call for call in calls if re.search(r"(uv|UV\)) pip install", call)]
    assert len(installs) == 5
    for call in installs:
        assert re.search(r"-[cb] constraints\.txt", call), call
        assert ("--no-verify-hashes" in call) == ("TORCH_INDEX" in call), call


def image_requirements() -> list[str]:
    """What the image installs from the index: the extras that the Dockerfile names."""
    install = next(text for text in dockerfile.stages()["packages"].all("RUN") if "pyproject.toml" in text)
    assert "-r pyproject.toml" in install
    extras = re.findall(r"--extra (\w+)", install)
    assert "pipeline" in extras
    needs = (PROJECT["optional-dependencies"][extra] for extra in extras)
    return [*PROJECT["dependencies"], *itertools.chain.from_iterable(needs)]


def test_every_kind_of_worker_can_be_installed() -> None:
    pins = constraints()
    for kind in set(TYPES) - {"process"}:  # that one comes with Prefect
        needs = [Requirement(text) for text in PROJECT["optional-dependencies"][kind]]
        assert [need.name for need in needs] == [f"prefect-{kind}"]
        assert needs[0].specifier.contains(pins[f"prefect-{kind}"])


def test_pins_are_complete_and_agree() -> None:
    """Whatever the image installs, down to the last dependency, has a pin that its dependents accept.

    The metadata are those of the packages installed here, which came from the same pins.
    """
    pins, open_, seen = constraints(), [Requirement(line) for line in image_requirements()], set()
    while open_:
        need = open_.pop()
        name = normalised(need.name)
        assert name in pins, f"{need.name} is not in constraints.txt"
        assert need.specifier.contains(pins[name], prereleases=True), f"{need} but {name}=={pins[name]}"
        if (name, *sorted(need.extras)) in seen:
            continue
        seen.add((name, *sorted(need.extras)))
        for text in metadata.requires(need.name) or []:
            further = Requirement(text)
            marker = further.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ["", *need.extras]):
                open_.append(further)
    assert {"torch", "ray", "prefect-kubernetes", "kopf"} <= {name for name, *_ in seen}


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_clean(script: Path) -> None:
    assert os.access(script, os.X_OK)
    done = subprocess.run([tool("shellcheck"), str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def entrypoint(folder: Path, environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    given = {"PATH": os.environ["PATH"], "AGIT_SECRETS_FOLDER": str(folder), **environment}
    return subprocess.run(
        [FOLDER / "entrypoint.sh", *command], env=given, capture_output=True, text=True, timeout=60
    )


def test_entrypoint_reads_secrets_from_files_and_leaves_other_files_alone(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("p=w d\n")
    given = {"DB_PASSWORD_FILE": str(tmp_path / "password"), "SSL_CERT_FILE": "/etc/ssl/cert.pem"}
    done = entrypoint(tmp_path, given, "bash", "-c", 'echo "$DB_PASSWORD|${SSL_CERT:-none}|$1"', "-", "a b")
    assert (done.returncode, done.stdout) == (0, "p=w d|none|a b\n")


def test_entrypoint_without_the_secret_says_which(tmp_path: Path) -> None:
    done = entrypoint(tmp_path, {"DB_PASSWORD_FILE": str(tmp_path / "password")}, "true")
    assert done.returncode == 2
    assert "DB_PASSWORD_FILE" in done.stderr


def test_entrypoint_without_secrets_runs_the_command(tmp_path: Path) -> None:
    assert entrypoint(tmp_path, {}, "bash", "-c", "exit 7").returncode == 7
