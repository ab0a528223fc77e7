"""The image as it is shipped: built from the Dockerfile, and run as its user with no rights at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.containers.engine import Engine
from tests.pipeline.command import TINY

pytestmark = [pytest.mark.long, pytest.mark.timeout(5400)]
# as Kubernetes' standard `restricted` runs it
RESTRICTED = ("--rm", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only")


def test_it_runs_as_nobody_special_with_nothing_to_write_to(engine: Engine, agit_image: str) -> None:
    script = "id -u; grep CapEff /proc/self/status; touch /home/agit/file /opt/agit/file || true; command -v python"
    done = engine.podman("run", *RESTRICTED, "--read-only-tmpfs=false", agit_image, "bash", "-c", script)
    assert done.stdout.split() == ["10001", "CapEff:", "0000000000000000", "/opt/agit/bin/python"]
    assert done.stderr.count("Read-only file system") == 2


def test_its_programs_start(engine: Engine, agit_image: str) -> None:
    for words in (
        ["agit", "--version"],
        ["prefect", "version"],
        ["ray", "--version"],
        ["agit-leave-node", "1"],
    ):
        engine.podman("run", *RESTRICTED, agit_image, *words)
    done = engine.podman(
        "run", *RESTRICTED, "--network=none", agit_image, "agit", "doctor", "--json", check=False
    )
    assert json.loads(done.stdout), done.stderr


def test_the_demo_runs_in_it_to_a_report(engine: Engine, agit_image: str, tmp_path: Path) -> None:
    """All stages, from the built-in images to the registered model, without a network."""
    tmp_path.chmod(0o777)
    (tmp_path / "tiny.yaml").write_text(TINY)
    mounts = (f"--volume={tmp_path}:/home/agit/work", "--workdir=/home/agit/work", "--network=none")
    settings = (
        "--set",
        "register.gate.better_than_nothing=false",
        "--set",
        "register.gate.better_than_blob=false",
    )
    command = ("agit", "run", "tiny.yaml", "--json", *settings)
    done = engine.podman("run", *RESTRICTED, "--shm-size=512m", *mounts, agit_image, *command, timeout=1800)
    answer = json.loads(done.stdout)
    assert answer["model"]["version"] == 1
    report = tmp_path / ".agit" / "runs" / answer["run_id"] / "report.html"
    assert "</html>" in report.read_text()
    assert report.stat().st_uid == 10001
