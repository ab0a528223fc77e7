"""The command ``agit``. Every command is thin: it reads the configuration and calls one plain function.

Stages and the configuration schema are imported inside the commands, which keeps ``agit --help`` fast. The docstring of
a command is its help text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from agit_core.errors import BadInput
from pipeline.cli import data as cli_data
from pipeline.cli import export, runs, scores, show, tune
from pipeline.cli import model as cli_model
from pipeline.cli import output as cli_output
from pipeline.cli.options import ConfigName, Overrides, read_config
from pipeline.cli.output import Answer, Debug, Json

app = typer.Typer(
    name="agit",
    help="Attention-guided image-to-image translation: from two folders of images to a scored, registered model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # with rich, help takes twice as long to appear
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _version(asked: bool) -> None:
    if asked:
        from importlib import metadata

        print(f"agit {metadata.version('agit')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options of the command itself."""


@app.command()
def run(config: ConfigName, overrides: Overrides = None, json: Json = False, debug: Debug = False) -> Answer:
    """Run all stages, from the source images to the report.

    They are prepare, train, evaluate, register and report, run as the Prefect flow `agit`. Running the same command
    again reuses finished stages and resumes an unfinished training.

    \b
    Examples:
      agit run demo
      agit run h2z --set data.source=path/to/horses,path/to/zebras
    """
    settings = read_config(config, overrides)
    from pipeline import progress, tasks

    with progress.shown_on(progress.for_terminal()):
        summary = tasks.already_done(settings)
        if summary is not None:
            return Answer(summary.plain(), show.summary)
        from pipeline.flows import embedded

        summary = embedded.run_flow("agit", cli_output.debugging(), config=config, overrides=overrides or [])
    return Answer(summary, show.summary)


@app.command()
def prepare(
    config: ConfigName, overrides: Overrides = None, json: Json = False, debug: Debug = False
) -> Answer:
    """Convert the source images to Parquet shards with a manifest.

    Images are validated and resized. Every file that is not used is listed with the reason, as quarantined if it lies
    among the images, else as left out; duplicates and train/test leaks are reported.

    data.source: a folder with trainA, trainB (testA, testB, valA, valB), with train/CLASS, test/CLASS, val/CLASS, with
    CLASS/train, CLASS/test, or with two folders of any names; two folders 'A,B'; a zip or tar of one; Parquet files
    with an image column and a domain or label; a CSV list; the name of a public set.

    \b
    Example:
      agit prepare h2z --set data.source=path/to/horses,path/to/zebras
    """
    settings = read_config(config, overrides)
    from pipeline import progress, tasks

    with progress.shown_on(progress.for_terminal()):
        data = tasks.prepare(settings)
    counts = {name: split.rows for name, split in data.manifest.splits.items()}
    quarantined, notes = (
        {name: found for name, split in data.manifest.splits.items() if (found := getattr(split, kind))}
        for kind in ("quarantined", "notes")
    )
    name, uri = tasks.locate(settings, data)
    return Answer(
        {
            "run_id": name,
            "storage": settings.storage,
            **tasks.known(settings, uri),
            "data": data.uri,
            "fingerprint": data.manifest.fingerprint,
            "domains": {domain: entry.name for domain, entry in data.manifest.domains.items()},
            "rows": counts,
            "quarantined": quarantined,
            "notes": notes,
            "left_out": data.manifest.left_out,
            "duplicate_groups": data.manifest.duplicates.exact_groups,
            "near_groups": data.manifest.duplicates.near_groups,
            "duplicates": data.manifest.duplicates.policy,
            "leaks": data.manifest.leaks,
            "near_leaks": data.manifest.near_leaks,
            "reused": data.reused,
        },
        show.prepared,
    )


@app.command()
def train(
    config: ConfigName, overrides: Overrides = None, json: Json = False, debug: Debug = False
) -> Answer:
    """Train, or resume an unfinished training.

    Prepares the data first if necessary.

    \b
    Example:
      agit train h2z --set train.epochs=100
    """
    settings = read_config(config, overrides)
    from pipeline import progress, tasks

    with progress.shown_on(progress.for_terminal()):
        data = tasks.prepare(settings)
        done = tasks.train(settings, data)
    return Answer(
        {
            "run_id": done.run_id,
            "storage": settings.storage,
            **tasks.known(settings, done.uri),
            "checkpoint": done.result.model,
            "run": done.uri,
            "reused": done.reused,
        },
        show.trained,
    )


@app.command()
def spec(config: ConfigName, overrides: Overrides = None, json: Json = False, debug: Debug = False) -> Answer:
    """Write the specification of a training job for a RayJob.

    Prepares the data and prints the job's entry point for Kubernetes; see infra/kubernetes/ray-job.

    \b
    Example:
      agit spec h2z --set storage=s3://bucket/prefix
    """
    settings = read_config(config, overrides)
    from pipeline import progress, tasks
    from pipeline.launch import specs

    with progress.shown_on(progress.for_terminal()):
        data = tasks.prepare(settings)
    uri = specs.specify(settings, data.uri)
    entrypoint = f"python -m pipeline.train_job {uri}"
    return Answer({"storage": settings.storage, "spec": uri, "entrypoint": entrypoint}, show.mapping)


@app.command()
def evaluate(
    config: ConfigName,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="Score this model instead of the configuration's training: models:/NAME@champion, "
            "models:/NAME/3, or a checkpoint or model folder.",
        ),
    ] = None,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Score a finished training or any other model.

    Metrics: KID, FID, attention, background, cycle. The model is compared with doing nothing (unchanged images) and
    with the current champion; differences within the 95 % confidence interval are marked as noise.

    \b
    Examples:
      agit evaluate h2z
      agit evaluate h2z --model models:/h2z@champion
    """
    settings = read_config(config, overrides)
    from pipeline import progress, tasks
    from pipeline.registry import model_reference

    head: dict[str, Any] = {"storage": settings.storage}
    with progress.shown_on(progress.for_terminal()):
        if model is None:
            data = tasks.find_prepared(settings)
            done = tasks.trained(settings, data)
            evaluation = tasks.evaluate(settings, data, done)
            head |= {"run_id": done.run_id, **tasks.known(settings, done.uri)}
        else:
            data = tasks.prepare(settings)
            subject = model_reference.resolve(model, settings)
            evaluation = tasks.evaluate_model(settings, data, subject.folder)
            head |= model_reference.describe(subject, settings)
    kept = ("metrics", "baseline", "champion", "intervals", "counts", "protocol", "inception", "uri")
    found = evaluation.model_dump()
    return Answer(head | {key: found[key] for key in kept}, lambda _: scores.show(evaluation))


@app.command()
def report(
    config: ConfigName, overrides: Overrides = None, json: Json = False, debug: Debug = False
) -> Answer:
    """Build the HTML report of a run, also during training.

    \b
    Example:
      agit report h2z
    """
    settings = read_config(config, overrides)
    from pipeline import progress, storage, tasks

    with progress.shown_on(progress.for_terminal()):
        data = tasks.find_prepared(settings)
        name, uri = tasks.locate(settings, data)
        if not storage.list_(uri):
            raise BadInput(
                f"run {name} is not in {settings.storage}; run `agit train` with the same settings"
            )
        report_uri = tasks.report(settings, data, uri)
    summary = {
        "run_id": name,
        "storage": settings.storage,
        **tasks.known(settings, uri),
        "report": report_uri,
    }
    return Answer(summary, show.built)


@app.command()
def doctor(
    config: Annotated[
        str, typer.Argument(metavar="[CONFIG]", help="Check what this configuration needs.")
    ] = "demo",
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Check whether a run is possible, with remedies.

    Checks installation, machine, storage, data source and servers. Exit status 0 if a local run is possible, else 1.

    \b
    Example:
      agit doctor h2z --set storage=s3://bucket/prefix
    """
    settings = read_config(config, overrides)
    from pipeline.cli.doctor import examine
    from pipeline.flows.embedded import configured_url
    from pipeline.registry.tracking import tracking_uri

    def find_source() -> None:
        from pipeline.data.sources import opening  # imported late: needs packages whose presence is checked

        opening.find(settings.data)

    findings = examine(settings, tracking_uri(settings), configured_url(), find_source)
    missing = ", ".join(check["name"] for check in findings["checks"] if check["state"] == "missing")
    failure = f"a local run is not possible yet: fix {missing}, as listed under remedy" if missing else None
    return Answer(findings, show.findings, failure)


@app.command(name="presets")
def list_presets(json: Json = False, debug: Debug = False) -> Answer:
    """List the presets, the configurations of this package.

    Show one in full with `agit config PRESET`.
    """
    from importlib import resources

    from pipeline.config import presets

    folder = resources.files("pipeline.configs")
    texts = {
        name: folder.joinpath(f"{name}.yaml").read_text().splitlines()[0].lstrip("# ") for name in presets()
    }
    return Answer(texts, show.mapping)


@app.command(name="config")
def show_config(
    config: Annotated[
        str | None,
        typer.Argument(metavar="CONFIG", help="A preset's name (see `agit presets`) or a YAML file."),
    ] = None,
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this YAML file instead of printing.")
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of configuration files, for editors.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Show a configuration with all defaults, as YAML.

    The output is a valid CONFIG for every command; credentials are left out.

    \b
    Example:
      agit config h2z --set train.epochs=100 -o mine.yaml
    """
    if schema:
        from pipeline.cli import schema as of_files

        return Answer(of_files.schema(), show.as_json, public=True)
    if config is None:
        raise BadInput("give a CONFIG, a preset's name or a YAML file, or --schema")
    from pipeline.redact import redact

    plain: dict[str, Any] = redact(read_config(config, overrides).plain())
    if output is not None:
        from pipeline import storage

        storage.write_text(str(output), show.yaml_text(plain))
        return Answer({"written": str(output)}, show.mapping)
    return Answer(plain, show.as_yaml)


# after the stages, so that `agit --help` lists these first
app.add_typer(cli_data.app, name="data")
cli_model.add_to(app)
export.add_to(app)
runs.add_to(app)
tune.add_to(app)


def run_command_line() -> int:
    """Run the command line in ``sys.argv`` and return the exit status."""
    return cli_output.execute(app)
