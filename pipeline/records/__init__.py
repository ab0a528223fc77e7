"""The files of a run's folder and of a data set: name, type, reader and writer of each, defined only here."""

# ruff: noqa: F401 - this package is used as one module

from pipeline.records.data_set import Duplicates, Manifest, NamedDomain, Shard, Split
from pipeline.records.file import Damaged, File, Record, Tree, Values
from pipeline.records.folder import (
    ALIVE,
    BEST_PRESET,
    CHECKPOINTS,
    DONE,
    EVALUATION,
    EVENTS,
    JOB_RESULT,
    MANIFEST,
    METRICS,
    PICTURES,
    PROGRESS,
    REGISTRATION,
    REPORT,
    RESULT,
    SAMPLE_STEP,
    SAMPLES,
    SCORES,
    SEARCH_SUMMARY,
    SPEC,
    START,
    SUMMARY,
    Data,
    Run,
    metric_rows,
    newest_samples,
    read_scores,
    run_uri,
    sample_folder,
    score_file,
    scored_steps,
)
from pipeline.records.model import (
    Evaluation,
    Finished,
    GateDecision,
    RegisteredModel,
    Registration,
    Rival,
    ScoredModel,
    Summary,
    Tracked,
)
from pipeline.records.training import (
    Alive,
    Event,
    Owner,
    Progress,
    Result,
    SampleStep,
    Scores,
    Spec,
    Start,
    Validation,
)
