"""``python -m infra.register [process|docker|kubernetes]``: everything that a Prefect server has to know.

The work pool with its base job template, the automation that tells of flow runs whose process is gone, and the
deployments of ``infra/prefect.yaml``. Doing it again brings them up to date. ``AGIT_IMAGE`` names the image of flow
runs that are containers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
POOL = "agit"
TYPES = ("process", "docker", "kubernetes")
DEAD_RUNS = "agit: flow runs whose process is gone"
_BEAT = "prefect.flow-run.heartbeat"
_ENDS = ("Completed", "Failed", "Cancelled", "Crashed")


def pool_template(kind: str, image: str | None = None) -> dict[str, Any]:
    """The base job template of a kind of work pool; ``image``: of the flow runs' containers."""
    template: dict[str, Any] = json.loads((FOLDER / "pools" / f"{kind}.json").read_text())
    if image and "image" in (variables := template["variables"]["properties"]):
        variables["image"]["default"] = image
    return template


def register(kind: str) -> None:
    """Creates or updates pool, automation and deployments on the server that Prefect is configured for."""
    from prefect import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    template = pool_template(kind, os.environ.get("AGIT_IMAGE"))
    with get_client(sync_client=True) as client:
        client.create_work_pool(
            WorkPoolCreate(name=POOL, type=kind, base_job_template=template), overwrite=True
        )
    _tell_dead_runs()
    deploy = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    subprocess.run(
        [*deploy, "--prefect-file", str(FOLDER / "prefect.yaml")],
        env={"AGIT_STORAGE": "", "AGIT_RAY_ADDRESS": "", **os.environ, "PWD": os.getcwd()},
        check=True,
    )


def _tell_dead_runs(silent: timedelta = timedelta(seconds=540)) -> None:
    """Without it a run whose process was killed says Running for ever (heartbeats come every 180 s)."""
    from prefect.automations import Automation
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import EventTrigger, Posture

    automation = Automation(
        name=DEAD_RUNS,
        description="Crashed, when a flow run that sent heartbeats sends no more and did not end.",
        trigger=EventTrigger(
            after={_BEAT},
            expect={_BEAT, *(f"prefect.flow-run.{state}" for state in _ENDS)},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=silent,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message="Its process sends no heartbeats any more; the same parameters go on with the run.",
            )
        ],
    )
    # on one import both kinds of calls are there: without an event loop they answer at once
    try:
        present: Any = Automation.read(name=DEAD_RUNS)
    except ValueError:
        automation.create()
        return
    automation.id = present.id
    automation.update()


def main(arguments: list[str]) -> int:
    kind = arguments[0] if arguments else "process"
    if kind not in TYPES or len(arguments) > 1:
        print(f"call it as: python -m infra.register [{'|'.join(TYPES)}]", file=sys.stderr)
        return 2
    try:
        register(kind)
    except subprocess.CalledProcessError as error:
        print(f"`prefect deploy` ended with status {error.returncode}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
