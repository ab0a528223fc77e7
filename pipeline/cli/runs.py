"""Commands about what is there already: runs and their state, versions of a model, promotion and rollback."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from agit_core.errors import BadInput
from pipeline.cli import show as cli_show
from pipeline.cli.options import ConfigName, Overrides, read_config
from pipeline.cli.output import Answer, Debug, Json

Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the model's audit trail.")]


def add_to(app: typer.Typer) -> None:
    """Adds the commands of this file."""
    app.command()(status)
    app.command()(runs)
    app.command()(models)
    app.command()(promote)
    app.command()(rollback)
    app.command()(clean)


def status(
    run: Annotated[
        str | None,
        typer.Argument(help="A run's id or URI, or a config's name for its newest run; default: the newest."),
    ] = None,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """How far a run is: step, images per second, time left, checkpoints, failures and recoveries."""
    from pipeline import run_status as stored

    return Answer(stored.status(_find(run, overrides)), lambda found: cli_show.lines(stored.describe(found)))


def runs(overrides: Overrides = None, json: Json = False, debug: Debug = False) -> Answer:
    """All runs in a storage (`--set storage=URI`), the one that was last active first."""
    from pipeline import run_status as stored

    def show(found: dict[str, Any]) -> None:
        told = stored.rows(found["runs"])
        columns = [name for name in told[0] if any(run[name] for run in told)] if told else []
        cli_show.table_of(told, columns, f"no run in {found['storage']}")

    root = _storage(overrides)
    return Answer({"storage": root, "runs": stored.list_runs(root)}, show)


def _storage(overrides: list[str] | None) -> str:
    return read_config("demo", overrides).storage


def _find(run: str | None, overrides: list[str] | None) -> str:
    from pipeline import records
    from pipeline import run_status as stored

    if run and "/" in run:
        return run
    root = _storage(overrides)
    names = [str(found["run_id"]) for found in stored.list_runs(root)]
    fitting = [name for name in names if run is None or name == run or name.rsplit("-", 1)[0] == run]
    if not fitting:
        what = f"no run '{run}'" if run else "no run"
        raise BadInput(f"{what} in {root}; `agit runs` lists those in a storage (--set storage=URI)")
    return records.run_uri(root, fitting[0])


def models(
    config: ConfigName, overrides: Overrides = None, json: Json = False, debug: Debug = False
) -> Answer:
    """The versions of a model with aliases and scores, and who changed what, when and why."""
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
    """Make a version the champion, whatever the gate said."""
    settings = read_config(config, overrides)
    from pipeline.registry import models as registry

    return Answer(registry.promote(settings, version, reason), cli_show.changed)


def rollback(
    config: ConfigName, reason: Reason, overrides: Overrides = None, json: Json = False, debug: Debug = False
) -> Answer:
    """Make the champion before the present one champion again."""
    settings = read_config(config, overrides)
    from pipeline.registry import models as registry

    return Answer(registry.rollback(settings, reason), cli_show.changed)


def clean(
    older_than: Annotated[
        float,
        typer.Option("--older-than", metavar="DAYS", min=0, help="Only what nobody has changed for so long."),
    ] = 30,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this it is only shown.")] = False,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Old runs without a registered model, data sets that no run refers to, and caches: show them, or remove them.

    What a registered model needs always stays.
    """
    settings = read_config("demo", overrides)
    from dataclasses import asdict

    from pipeline import clean as cleaning

    found = cleaning.find(settings, older_than)
    if yes:
        cleaning.remove(found)
    told = {"storage": settings.storage, "older_than_days": older_than, "removed": yes}
    things = [asdict(thing) for thing in found]
    return Answer({**told, "bytes": sum(thing.bytes for thing in found), "found": things}, cli_show.unused)
