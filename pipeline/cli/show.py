"""Terminal output of the commands' results; ``--json`` prints the same values unformatted."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from pipeline.cli import console
from pipeline.logs import printable
from pipeline.metrics import table as score_table

_MOST_LEAKS = 20
_MOST_OF_A_REASON = 20
_MARKS = {"ok": "[green]ok[/green]", "missing": "[red]missing[/red]", "optional": "[yellow]optional[/yellow]"}


def summary(value: dict[str, Any]) -> None:
    _scores(value["metrics"])
    model = value["model"]
    aliases = f" ({', '.join(model['aliases'])})" if model["aliases"] else ""
    _pairs(
        {
            "run": f"{value['run_id']}, {value['steps']} steps",
            "model": f"{model['name']} version {model['version']}{aliases}",
            "report": value["report"],
        }
    )


def prepared(value: dict[str, Any]) -> None:
    for kind, what in (("quarantined", "quarantined"), ("notes", "note on")):
        for split, entries in value[kind].items():
            lines(by_reason(what, [{**entry, "name": f"{split}/{entry['name']}"} for entry in entries]))
    lines(by_reason("left out", value["left_out"]))
    for kind, pairs in (("is", value["leaks"]), ("looks like", value["near_leaks"])):
        for train, test in pairs[:_MOST_LEAKS]:
            console.write(printable(f"leak: {test} {kind} {train}"), markup=False)
    drop = value["duplicates"] == "drop"
    kept = "one of each kept" if drop else "all kept: data.duplicates=drop keeps one"
    _pairs(
        {
            "data": value["data"],
            "domains": ", ".join(f"{domain.upper()} is {name}" for domain, name in value["domains"].items()),
            **{name: f"{rows} images" for name, rows in value["rows"].items()},
            "duplicates": f"{value['duplicate_groups']} groups of equal files, "
            f"{value['near_groups']} of near copies ({kept})",
            "leaks": f"{len(value['leaks'])} test images are training images, "
            f"{len(value['near_leaks'])} look like one" + (": left out of training" if drop else ""),
        }
    )


def by_reason(what: str, entries: list[dict[str, str]]) -> list[str]:
    """One line per file with its reason; of many with the same reason, the first few and the number of the others."""
    names: dict[str, list[str]] = {}
    for entry in entries:
        names.setdefault(entry["reason"], []).append(entry["name"])
    lines = []
    for reason, files in names.items():
        lines += [f"{what} {name}: {reason}" for name in files[:_MOST_OF_A_REASON]]
        if more := len(files[_MOST_OF_A_REASON:]):
            lines.append(f"{what} {more} more: {reason}")
    return lines


def trained(value: dict[str, Any]) -> None:
    _pairs({"run": f"{value['run_id']}, {value['steps']} steps", "checkpoint": value["checkpoint"]})


def built(value: dict[str, Any]) -> None:
    _pairs({"report": value["report"]})


def tuned(value: dict[str, Any]) -> None:
    rows = [{**row, **row["values"]} for row in value["trials"]]
    columns = [key for key in (rows[0] if rows else {}) if key not in ("values", "run_id", "message")]
    table_of(rows, columns)
    best = value["best"]
    _pairs(
        {
            "best": f"trial {best['trial']}, run {best['run_id']}" if best else "none",
            "preset": value["preset"] and f"agit run {value['preset']}",
            "report": value["report"],
        }
    )


def reproduced(value: dict[str, Any]) -> None:
    apart = max(value["largest_difference"].values(), default=0.0)
    _pairs(
        {
            "model": value["model"],
            "run": f"{value['run_id']}, {value['steps']} steps, in {value['storage']}",
            "weights": "bit-identical" if value["identical"] else f"different, by at most {apart:.3g}",
        }
    )


def findings(value: dict[str, Any]) -> None:
    table = console.plain_table()
    for column in ("", "what", "found", "remedy"):
        table.add_column(column, overflow="fold")
    for check in value["checks"]:
        cells = (check["name"], check["found"], check.get("remedy") or "")
        table.add_row(_MARKS[check["state"]], *(console.literal(printable(cell)) for cell in cells))
    console.write(table)
    console.write(
        "A local run is possible." if value["ok"] else "A local run is not possible yet: see what is missing."
    )


def lines(value: list[str]) -> None:
    for line in value:
        console.write(printable(line), markup=False, soft_wrap=True)


def versions(value: dict[str, Any]) -> None:
    table_of(
        [
            {
                **row,
                "kid_target_a2b": row["metrics"].get("kid_target_a2b"),
                "kid_target_b2a": row["metrics"].get("kid_target_b2a"),
            }
            for row in value["versions"]
        ],
        ["version", "aliases", "run_id", "kid_target_a2b", "kid_target_b2a"],
        f"no version of '{value['name']}' is registered; register one with `agit run`",
    )
    if not value["events"]:
        return
    events = [{**event, "time": _when(event["time"]), "reason": _why(event)} for event in value["events"]]
    table_of(events, ["time", "action", "version", "previous", "champion", "by", "reason"])


def changed(event: dict[str, Any]) -> None:
    """One event of the audit trail."""
    _pairs({**event, "time": _when(event["time"])})


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


def _why(event: dict[str, Any]) -> str:
    decision = event.get("decision") or {}
    return str(event.get("reason") or "; ".join(decision.get("reasons", [])))


def unused(value: dict[str, Any]) -> None:
    """The result of `agit clean`."""
    from rich.filesize import decimal

    rows = [
        {
            "kind": thing["kind"],
            "size": decimal(thing["bytes"]),
            "last changed": _when(thing["updated"]),
            "what": thing["uri"],
            "why": thing["reason"],
        }
        for thing in value["found"]
    ]
    nothing = f"nothing in {value['storage']} is both unused and older than {value['older_than_days']:g} days"
    table_of(rows, list(rows[0]) if rows else [], nothing)
    if rows:
        done = "removed" if value["removed"] else "would be removed with --yes"
        print(f"{decimal(value['bytes'])} in {len(rows)} places {done}")


def mapping(value: dict[str, Any]) -> None:
    _pairs(value)


def as_yaml(value: Any) -> None:
    print(yaml_text(value), end="")


def as_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def yaml_text(value: Any) -> str:
    import yaml

    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=110)


def table_of(rows: list[dict[str, Any]], columns: list[str], nothing: str = "nothing there") -> None:
    """Print dicts as a plain table; nested values are flattened to text."""
    if not rows:
        console.write(printable(nothing), markup=False)
        return
    table = console.plain_table()
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        # literal: square brackets in file names are not markup
        table.add_row(*(console.literal(_cell(row.get(column))) for column in columns))
    console.write(table)


def _scores(metrics: dict[str, Any]) -> None:
    table = console.plain_table()
    table.add_column("score")
    for column in ("a2b", "b2a", "doing nothing, a2b", "b2a"):
        table.add_column(column, justify="right")
    for row in score_table.rows(metrics):
        table.add_row(*row.cells)
    console.write(table)


def _pairs(values: dict[str, Any]) -> None:
    width = max((len(key) for key in values), default=0)
    for key, value in values.items():
        if value is not None:
            console.write(f"{printable(key):<{width}}  {_cell(value)}", markup=False, soft_wrap=True)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_cell(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{printable(str(key))} {_cell(item)}" for key, item in value.items())
    return printable(str(value))
