"""The checker of command lines tells right from wrong, so that the tests that rely on it can fail."""

import shlex

import pytest

from tests.infra import commands


@pytest.mark.parametrize(
    "line",
    [
        "agit run h2z --set train.max_steps=20 --json",
        "agit data verify s3://bucket/prefix",
        "agit --help",
        "ray start --head --port=6379",
        "mlflow server --workers=2",
        "prefect --no-prompt worker start --pool agit --type process",
        "python -m pipeline.train_job spec.json",
    ],
)
def test_command_lines_that_work(line: str) -> None:
    commands.check(shlex.split(line))


@pytest.mark.parametrize(
    "line",
    [
        "agit rnu h2z",
        "agit run h2z --sett train.max_steps=20",
        "agit run",
        "agit data vreify s3://bucket/prefix",
        "ray start --haed",
        "mlflow server --workers",
        "prefect worker start --pol agit",
        "prefect workers start",
        "python -m pipeline.trainjob spec.json",
        "kubectl get pods",
    ],
)
def test_command_lines_that_do_not(line: str) -> None:
    with pytest.raises(commands.Unknown):
        commands.check(shlex.split(line))
