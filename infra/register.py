"""``python -m infra.register [process|docker|kubernetes]``: set up a Prefect server for this project.

Creates or updates the work pool with its base job template, the automation that marks flow runs with a dead process as
crashed, and the deployments of ``infra/prefect.yaml``. ``AGIT_IMAGE`` names the image for containerised flow runs.
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
_HEARTBEAT = "prefect.flow-run.heartbeat"
_ENDS = ("Completed", "Failed", "Cancelled", "Crashed")


def pool_template(kind: str, image: str | None = None) -> dict[str, Any]:
    """Base job template of a kind of work pool; ``image`` is the default image for the flow runs' containers."""
    template: dict[str, Any] = json.loads((FOLDER / "pools" / f"{kind}.json").read_text())
    if image and "image" in (variables := template["variables"]["properties"]):
        variables["image"]["default"] = image
    return template


def register(kind: str) -> None:
    """Create or update pool, automation and deployments on the configured Prefect server."""
    from prefect import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    template = pool_template(kind, os.environ.get("AGIT_IMAGE"))
    with get_client(sync_client=True) as client:
        client.create_work_pool(
            WorkPoolCreate(name=POOL, type=kind, base_job_template=template), overwrite=True
        )
    _mark_dead_runs()
    deploy = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    subprocess.run(
        [*deploy, "--prefect-file", str(FOLDER / "prefect.yaml")],
        env={"AGIT_STORAGE": "", "AGIT_RAY_ADDRESS": "", **os.environ, "PWD": os.getcwd()},
        check=True,
    )


def _mark_dead_runs(timeout: timedelta = timedelta(seconds=540)) -> None:
    """Create the automation that marks a flow run as crashed after a heartbeat timeout.

    Without it, a run whose process was killed stays in state Running forever. Heartbeats are sent every 180 s.
    """
    from prefect.automations import Automation
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import EventTrigger, Posture

    automation = Automation(
        name=DEAD_RUNS,
        description="Marks a flow run as crashed when its heartbeats stop before it has ended.",
        trigger=EventTrigger(
            after={_HEARTBEAT},
            expect={_HEARTBEAT, *(f"prefect.flow-run.{state}" for state in _ENDS)},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timeout,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message="Heartbeat timeout: its process is gone. Run it again with the same parameters to resume.",
            )
        ],
    )
    # these methods are synchronous here because no event loop is running
    try:
        existing: Any = Automation.read(name=DEAD_RUNS)
    except ValueError:
        automation.create()
        return
    automation.id = existing.id
    automation.update()


def main(arguments: list[str]) -> int:
    kind = arguments[0] if arguments else "process"
    if kind not in TYPES or len(arguments) > 1:
        print(f"usage: python -m infra.register [{'|'.join(TYPES)}]", file=sys.stderr)
        return 2
    try:
        register(kind)
    except subprocess.CalledProcessError as error:
        print(
            f"`prefect deploy` failed with exit status {error.returncode}; see its output above",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
