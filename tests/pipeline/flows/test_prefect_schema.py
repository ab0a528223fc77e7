"""The database of a new embedded server: the tables that Prefect's own migrations would have made."""

from __future__ import annotations

import importlib.util
import re
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.flows import prefect_schema
from tests.pipeline.command import environment

_MIGRATIONS = "server/database/_migrations/versions/sqlite"
_REVISION = re.compile(r"^(down_)?revision(?:: [^=]*)? = \"(\w+)\"", re.MULTILINE)


def _last_revisions() -> set[str]:
    """Of the installed Prefect, read from its files: importing them takes seconds."""
    (package,) = importlib.util.find_spec("prefect").submodule_search_locations  # type: ignore[union-attr]
    named = [
        found
        for file in Path(package, _MIGRATIONS).glob("*.py")
        for found in _REVISION.findall(file.read_text())
    ]
    return {name for down, name in named if not down} - {name for down, name in named if down}


def _statements(schema: str) -> set[tuple[str, ...]]:
    """The words of each statement; Prefect's migrations name constraints in any order."""
    return {tuple(sorted(re.findall(r"\w+", statement))) for statement in schema.split(";\n")}


def test_the_installed_prefect_finds_nothing_to_migrate(tmp_path: Path) -> None:
    assert prefect_schema.file().is_file(), "a new Prefect: run python -m pipeline.flows.prefect_schema"
    database = tmp_path / "prefect.db"
    prefect_schema.create(database)
    with sqlite3.connect(database) as connection:
        made = {revision for (revision,) in connection.execute("select version_num from alembic_version")}
    assert made == _last_revisions()
    assert stat.S_IMODE(database.stat().st_mode) == 0o600
    connection.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["prefect.db"]


def test_a_database_that_is_there_is_left_alone(tmp_path: Path) -> None:
    database = tmp_path / "prefect.db"
    database.write_bytes(b"runs")
    prefect_schema.create(database)
    assert database.read_bytes() == b"runs"


def test_another_version_of_prefect_migrates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefect_schema.metadata, "version", lambda name: "3.8.999")
    prefect_schema.create(tmp_path / "prefect.db")
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_the_schema_is_what_the_migrations_lead_to(tmp_path: Path) -> None:
    ask = "import sys, pathlib; from pipeline.flows import prefect_schema as s; "
    code = ask + "print(s.migrated(pathlib.Path(sys.argv[1])), end='')"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "prefect.db")],
        env=environment(PREFECT_HOME=str(tmp_path)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert _statements(done.stdout) == _statements(prefect_schema.file().read_text())
