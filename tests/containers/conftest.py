"""The engine and the images, once for all container tests."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.containers.engine import ROOT, STAND_INS, Engine, missing
from tests.infra.commands import tool


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    if reason := missing():
        pytest.skip(reason)
    with contextlib.closing(Engine(tmp_path_factory.mktemp("engine"))) as engine:
        yield engine


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """One file at a time, also where several processes test: a build takes 35 GB for a while."""
    with FileLock("/var/tmp/agit-test-containers.lock"):
        yield


def _project_image(engine: Engine, target: str, tag: str) -> str:
    folder = ROOT / "infra/docker"
    return engine.build(
        tag,
        ROOT,
        folder / "Dockerfile",
        f"--ignorefile={folder / 'Dockerfile.dockerignore'}",
        f"--target={target}",
        f"--build-arg=PYTHON_IMAGE={engine.python_image()}",
        "--build-arg=VARIANT=cpu",
    )


@pytest.fixture(scope="session")
def agit_image(engine: Engine) -> str:
    """The image of every role, CPU variant; without PyTorch's own index it holds the wheels with CUDA."""
    return _project_image(engine, "agit", "localhost/agit-test:cpu")


@pytest.fixture(scope="session")
def mlflow_image(engine: Engine) -> str:
    return _project_image(engine, "mlflow", "localhost/agit-test-mlflow:1")


def _stand_in(engine: Engine, name: str, tag: str, folder: Path) -> str:
    for file in STAND_INS.glob(f"{name}.*"):
        shutil.copy(file, folder)
    if name == "s3":
        shutil.copy(tool("rclone"), folder)
    return engine.build(
        tag, folder, folder / f"{name}.Dockerfile", f"--build-arg=PYTHON_IMAGE={engine.python_image()}"
    )


@pytest.fixture(scope="session")
def postgres_image(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image of compose.yaml, or a stand-in with Debian's PostgreSQL where no registry can be reached."""
    if engine.has(wanted := "docker.io/library/postgres:17.9-bookworm"):
        return wanted
    return _stand_in(
        engine, "postgres", "localhost/agit-test-postgres:1", tmp_path_factory.mktemp("postgres")
    )


@pytest.fixture(scope="session")
def s3_image(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image of compose.yaml, or a stand-in with rclone's S3 server where no registry can be reached."""
    if engine.has(wanted := "docker.io/chrislusf/seaweedfs:4.44"):
        return wanted
    return _stand_in(engine, "s3", "localhost/agit-test-s3:1", tmp_path_factory.mktemp("s3"))


@pytest.fixture(scope="session")
def images(agit_image: str, mlflow_image: str, postgres_image: str, s3_image: str) -> dict[str, str]:
    """All images by role: agit, mlflow, postgres, s3."""
    return {"agit": agit_image, "mlflow": mlflow_image, "postgres": postgres_image, "s3": s3_image}
