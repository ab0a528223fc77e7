"""Settings of the workflow (`schema`), and how presets, YAML files and ``--set`` become them (`reader`)."""

from pipeline.config.reader import BASE, load, parse, parse_recorded, presets
from pipeline.config.schema import (
    LOSSES,
    BuiltinConfig,
    ClusterConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    GateConfig,
    RegisterConfig,
    ReportConfig,
    TrainConfig,
    TuneConfig,
    ValidationConfig,
    fingerprint,
    resolved_best_by,
)

__all__ = [
    "BASE",
    "LOSSES",
    "BuiltinConfig",
    "ClusterConfig",
    "Config",
    "DataConfig",
    "EvaluateConfig",
    "GateConfig",
    "RegisterConfig",
    "ReportConfig",
    "TrainConfig",
    "TuneConfig",
    "ValidationConfig",
    "fingerprint",
    "load",
    "parse",
    "parse_recorded",
    "presets",
    "resolved_best_by",
]
