from __future__ import annotations

from pathlib import Path

from infra.stack_state import free_port
from tests.pipeline.command import agit


def _states(answer: dict) -> dict[str, str]:
    return {check["name"]: check["state"] for check in answer["checks"]}


def test_a_working_installation_passes(tmp_path: Path) -> None:
    called = agit("doctor", "--json", "--set", "storage=./new", cwd=tmp_path)
    assert called.status == 0, called.err
    states = _states(called.answer)
    assert called.answer["ok"] is True
    for name in ("python", "torch", "ray", "prefect", "cores", "memory", "storage", "mlflow server"):
        assert states[name] == "ok"
    assert "missing" not in states.values()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "the storage is left as it was"


def test_what_is_missing_comes_with_its_remedy(tmp_path: Path) -> None:
    port = free_port()
    called = agit(
        "doctor",
        "h2z",
        *("--set", "data.source=./nowhere", "--set", "train.device=cuda"),
        *("--set", "storage=s3://none/x", "--set", "evaluate.inception=./none.pt"),
        *("--set", f"register.tracking_uri=http://127.0.0.1:{port}"),
        *("--set", f"cluster.address=http://127.0.0.1:{port}"),
        "--json",
        cwd=tmp_path,
        PREFECT_API_URL=f"http://127.0.0.1:{port}/api",
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
        AWS_ACCESS_KEY_ID="key",
        AWS_SECRET_ACCESS_KEY="secret",
        CUDA_VISIBLE_DEVICES="",
    )
    assert called.status == 1
    missing = {
        check["name"]: check["remedy"] for check in called.answer["checks"] if check["state"] == "missing"
    }
    servers = {"prefect server", "mlflow server", "ray server"}
    assert set(missing) == {"gpu", "data source", "storage", "inception weights", *servers}
    assert all(missing.values())
    assert "PREFECT_API_URL" in missing["prefect server"]
    assert called.last_line.startswith("agit: a local run cannot work yet without ")
    assert "inception weights" in called.last_line


def test_a_table_for_people(tmp_path: Path) -> None:
    called = agit("doctor", cwd=tmp_path)
    assert called.status == 0
    assert "A local run can work." in called.out
