"""Commands for existing runs and models: status, versions, promotion, rollback, clean-up."""

from __future__ import annotations

from typing import Annotated

import typer

from agit_core.errors import BadInput
from pipeline.cli import show as cli_show
from pipeline.cli.options import ConfigName, Overrides, read_config
from pipeline.cli.output import Answer, Debug, Json

Reason = Annotated[str, typer.Option("--reason", help="The reason, recorded in the model's audit trail.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(status)
    app.command()(runs)
    app.command()(models)
    app.command()(promote)
    app.command()(rollback)
    app.command()(clean)


def status(
    run: Annotated[
        str | None,
        typer.Argument(
            help="A run's id or URI, or a configuration's name for its newest run. Default: the newest run."
        ),
    ] = None,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Show a run's progress, checkpoints and failures.

    \b
    Examples:
      agit status
      agit status h2z --set storage=s3://bucket/prefix
    """
    from pipeline import run_status as stored

    found = stored.status(_find(run, overrides))
    return Answer(found.plain(), lambda _: cli_show.lines(stored.describe(found)))


def runs(overrides: Overrides = None, json: Json = False, debug: Debug = False) -> Answer:
    """List the runs in a storage, most recently active first.

    \b
    Example:
      agit runs --set storage=s3://bucket/prefix
    """
    from pipeline import run_status as stored

    root = _storage(overrides)
    found = stored.list_runs(root)

    def show(_: object) -> None:
        rows = stored.rows(found)
        columns = [name for name in rows[0] if any(row[name] for row in rows)] if rows else []
        cli_show.table_of(rows, columns, f"no run in {root}")

    return Answer({"storage": root, "runs": [run.plain() for run in found]}, show)


def _storage(overrides: list[str] | None) -> str:
    return read_config("demo", overrides).storage


def _find(run: str | None, overrides: list[str] | None) -> str:
    from pipeline import records
    from pipeline import run_status as stored

    if run and "/" in run:
        return run
    root = _storage(overrides)
    names = [entry.run_id for entry in stored.list_runs(root)]
    matching = [name for name in names if run is None or name == run or name.rsplit("-", 1)[0] == run]
    if not matching:
        what = f"no run '{run}'" if run else "no run"
        raise BadInput(f"{what} in {root}; list the runs of a storage with `agit runs --set storage=URI`")
    return records.run_uri(root, matching[0])


def models(
    config: ConfigName, overrides: Overrides = None, json: Json = False, debug: Debug = False
) -> Answer:
    """List a model's versions and its champion's audit trail.

    \b
    Example:
      agit models h2z
    """
    settings = read_config(config, overrides)
    from pipeline.registry import models as registry

    return Answer(registry.history(settings), cli_show.versions)


def promote(
    config: ConfigName,
    version: Annotated[str, typer.Argument(help="A version's number or alias, such as challenger.")],
    reason: Reason,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Make a version the champion, regardless of the gate.

    \b
    Example:
      agit promote h2z challenger --reason "looks better on our photographs"
    """
    settings = read_config(config, overrides)
    from pipeline.registry import models as registry

    return Answer(registry.promote(settings, version, reason), cli_show.changed)


def rollback(
    config: ConfigName, reason: Reason, overrides: Overrides = None, json: Json = False, debug: Debug = False
) -> Answer:
    """Make the previous champion the champion again.

    \b
    Example:
      agit rollback h2z --reason "version 4 fails on foals"
    """
    settings = read_config(config, overrides)
    from pipeline.registry import models as registry

    return Answer(registry.rollback(settings, reason), cli_show.changed)


def clean(
    older_than: Annotated[
        float,
        typer.Option("--older-than", metavar="DAYS", min=0, help="Only items unchanged for this many days."),
    ] = 30,
    yes: Annotated[bool, typer.Option("--yes", help="Remove the items; default: only list them.")] = False,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """List or remove old runs, data sets and caches.

    These are runs without a registered model, also in a local MLflow database, data sets that no run refers to, caches,
    and flow runs of the embedded Prefect server. Everything that a registered model needs is kept.

    \b
    Examples:
      agit clean --older-than 60
      agit clean --older-than 60 --yes
    """
    settings = read_config("demo", overrides)
    from dataclasses import asdict

    from pipeline import clean as cleaning
    from pipeline.flows import unused_runs as flow_runs

    found = cleaning.find(settings, older_than)
    ended = flow_runs.find(older_than)
    if yes:
        cleaning.remove(settings, found)
    if ended is not None:
        if yes:
            flow_runs.remove(older_than)
        reason = f"{ended.number} flow runs that have ended"
        found.append(cleaning.Unused("prefect", str(ended.database), 0, ended.newest, reason))
    answer = {"storage": settings.storage, "older_than_days": older_than, "removed": yes}
    things = [asdict(thing) for thing in found]
    return Answer({**answer, "bytes": sum(thing.bytes for thing in found), "found": things}, cli_show.unused)
