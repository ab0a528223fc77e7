"""A stage of a run on the cluster of ``cluster.address``: a job like that of a training.

Its folder is ``{storage}/jobs/{stage}-{name}-{hash}``; the job writes its progress and result there. What the
stage makes lies where it always does, so a job that was killed, or is submitted again, finds what is done.
"""

from __future__ import annotations

from typing import Any

from pipeline import records, storage
from pipeline.config import Config, fingerprint
from pipeline.launch import follow
from pipeline.launch.specs import absolute
from pipeline.records import Spec
from pipeline.train.failures import Allowance

_SETTINGS = {
    "prepare": ("name", "storage", "data"),
    "evaluate": ("name", "storage", "data", "seed", "method", "evaluate"),
    "translate": ("name", "storage"),
}
"""What each stage depends on: the same settings and arguments are the same job."""


def submit(
    config: Config, stage: str, progress: follow.ProgressCallback | None = None, **arguments: Any
) -> dict[str, Any]:
    """Run a stage as a job of the cluster, or follow the job of the same stage that already runs there.

    Args:
        stage: ``prepare``, ``evaluate`` or ``translate``; see :mod:`pipeline.stage_job` for their arguments and
            results.
        arguments: JSON-ready; local paths absolute, in a folder that every node shares.

    Raises:
        BadInput, RunFailed: as the stage raised them there, or it was lost too often.
    """
    tree = _settings(config)
    key = fingerprint({"arguments": arguments, **{name: tree[name] for name in _SETTINGS[stage]}}, 8)
    name = f"{stage}-{config.name}-{key}"
    folder = storage.join(tree["storage"], "jobs", name)
    spec = Spec(
        run_id=name,
        run_uri=folder,
        job="pipeline.stage_job",
        stage=stage,
        arguments=arguments,
        config=tree,
    )
    # the result of an earlier job may be outdated
    storage.remove(records.JOB_RESULT.uri(folder))
    return follow.run_job(config, spec, Allowance(lambda: 0, config.train.max_failures, stage), progress)


def _settings(config: Config) -> dict[str, Any]:
    """The settings as a process with another working directory understands them, without a registry."""
    from pipeline.data.sources.opening import absolute as absolute_source

    tree = config.plain()
    tree["storage"] = absolute(config.storage)
    data, evaluate = tree["data"], tree["evaluate"]
    data["source"] = absolute_source(data["source"])
    for section, key in ((data, "masks"), (evaluate, "inception")):
        section[key] = section[key] and absolute(section[key])
    tree["train"]["start_from"] = None
    return tree
