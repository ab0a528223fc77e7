"""Read configurations: presets and YAML files, what they extend (``base``), ``--set a.b=c``; word what is wrong.

``load("demo", ["data.source=./photos"])`` reads ``pipeline/configs/demo.yaml`` (or a YAML path), applies the
overrides, refuses unknown keys with the nearest valid name, and returns a frozen :class:`Config`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from agit_core import saved_method
from agit_core.errors import BadInput
from pipeline.config.schema import Config

BASE = "base"
"""The key of a configuration file that names the configuration which it extends."""


def presets() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(
        p.name.removesuffix(".yaml")
        for p in resources.files("pipeline.configs").iterdir()
        if p.name.endswith(".yaml")
    )


def load(config: str, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a preset or YAML file and apply ``a.b=c`` overrides.

    A file that names another configuration as its ``base`` inherits the settings it does not set.

    Raises:
        BadInput: no such preset or file, not YAML, an unknown key, a value of the wrong kind.
    """
    tree = _read(config)
    changes = [_key_and_text(override) for override in overrides]
    for key, text in changes:
        _put(tree, key, _value(text))
    # YAML reads 2026, true and 2026-11-27 as other types; a string setting takes the text as it was typed
    strings = _mistyped_strings(tree)
    for key, text in changes:
        if key in strings:
            _put(tree, key, text)
    return parse(tree, where=config)


def parse(tree: dict[str, Any], where: str = "config") -> Config:
    """Validate a nested dict; refuse unknown keys with the nearest valid name."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise BadInput(f"{where}: " + "; ".join(_explain(e) for e in error.errors())) from None


def parse_recorded(tree: dict[str, Any], where: str = "config") -> Config:
    """Validate the configuration that a finished run has recorded, perhaps with an earlier version.

    Method settings unknown to that version take the value that equals its behaviour.
    """
    method = saved_method.from_dict(tree.get("method", {}))
    return parse({**tree, "method": saved_method.to_dict(method)}, where)


def _read(config: str, extending: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings of a preset or file, those of its ``base`` included.

    Args:
        extending: the configurations whose ``base`` led here.
    """
    path = Path(config)
    if len(os.fsencode(path.name)) > 255:
        raise BadInput(
            f"the config's name '{config[:40]}...' is too long for a file; give a YAML path or a preset"
        )
    if config in presets():
        place = config
        text = resources.files("pipeline.configs").joinpath(f"{config}.yaml").read_text()
    elif path.suffix in {".yaml", ".yml", ".json"} or path.exists():
        if not path.is_file():
            raise BadInput(
                f"no config file at {config}; give a YAML path or one of the presets: {', '.join(presets())}"
            )
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"the config file {config} cannot be read: {error}") from None
        place = str(path.resolve())
    else:
        near = difflib.get_close_matches(config, presets(), 1)
        hint = f"did you mean '{near[0]}'?" if near else f"the presets are {', '.join(presets())}"
        raise BadInput(f"unknown config '{config}'; {hint}")
    if place in extending:
        raise BadInput("it extends itself; remove one 'base'")
    try:
        tree = _yaml(text) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadInput(f"{config} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise BadInput(f"{config} must be a mapping of sections, not a {type(tree).__name__}")
    base = tree.pop(BASE, None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise BadInput(
            f"{config}: {BASE}: expected a preset's name or a YAML file, not {type(base).__name__}"
        )
    if base not in presets():
        base = str(path.parent / base) if Path(base).suffix or (path.parent / base).exists() else base
    try:
        return _merged(_read(base, (*extending, place)), tree)
    except BadInput as error:
        raise BadInput(f"{config}: {BASE}: {error}") from None


def _merged(base: dict[str, Any], changes: dict[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Merge sections recursively; replace any other value as a whole."""
    merged = dict(base)
    for key, value in changes.items():
        here, before = (*path, key), base.get(key)
        section = isinstance(value, dict) and isinstance(before, dict) and _is_section(here)
        merged[key] = _merged(before, value, here) if section else value  # type: ignore[arg-type]
    return merged


def _is_section(path: tuple[str, ...]) -> bool:
    try:
        return bool(_valid_names(list(path)))
    except (KeyError, TypeError):  # no setting of this name, which the validation refuses
        return False


class _Loader(yaml.SafeLoader):
    """YAML's safe types; refuse a key that stands twice in a mapping (YAML would take the last)."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if isinstance(parent, yaml.Node) and self.check_event(yaml.AliasEvent):
            anchor = self.peek_event().anchor  # type: ignore[no-untyped-call]
            if anchor in self._open:
                raise yaml.YAMLError(f"the anchor '&{anchor}' refers to itself")
        event = self.peek_event()  # type: ignore[no-untyped-call]
        anchor = None if isinstance(event, yaml.AliasEvent) else getattr(event, "anchor", None)
        self._open.append(anchor)
        node = super().compose_node(parent, index)
        self._open.pop()
        return node

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._open: list[str | None] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, yaml.Mark] = {}
        for key, _ in node.value:
            mark = key.start_mark
            # merging (<<) adds keys that stand elsewhere
            here = node.start_mark.index <= mark.index < node.end_mark.index
            if not here or not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                continue
            if first := seen.get(key.value):
                raise yaml.YAMLError(
                    f"'{key.value}' stands in line {first.line + 1} and again in line {mark.line + 1}; merge the two"
                )
            seen[key.value] = mark
        return super().construct_mapping(node, deep)


def _yaml(text: str) -> Any:
    """Parse YAML.

    Raises:
        yaml.YAMLError, ValueError: it cannot be read, or a value cannot be built, such as a date that does not exist.
        RecursionError: it is nested too deeply.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise RecursionError("it is nested too deeply") from None
    except (
        AttributeError,
        KeyError,
        IndexError,
        TypeError,
    ):  # from YAML's own constructors, as for !!bool maybe
        raise ValueError("a value is not what its tag (!!...) says") from None


def _mistyped_strings(tree: dict[str, Any]) -> set[str]:
    """Dotted keys whose values should be strings and are not."""
    try:
        Config.model_validate(tree)
    except ValidationError as error:
        return {".".join(map(str, e["loc"])) for e in error.errors() if e["type"] == "string_type"}
    return set()


def _key_and_text(override: str) -> tuple[str, str]:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise BadInput(f"--set takes key=value, such as --set train.max_steps=100, not '{override}'")
    if key.strip() == BASE:
        raise BadInput(f"--set cannot change the {BASE}; give that configuration instead")
    return key.strip(), text


def _value(text: str) -> Any:
    """Parse the value of an override: YAML, ``#`` as a character, and 1e-4 as a number."""
    try:
        value = _yaml(text)
    except (ValueError, RecursionError) as error:
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        raise BadInput(
            f"--set: '{shown}' is not a value that YAML can build ({error}); put a string in quotes: '\"...\"'"
        ) from None
    except yaml.YAMLError:
        value = text
    if "#" in text and not isinstance(value, dict | list):
        value = text  # folder names may hold one; nobody writes comments here
    # YAML 1.1 reads 1e-4 as a string
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value) if "e" in value.lower() and value[:1] in "+-.0123456789" else value
    return value


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            raise BadInput(f"--set {key}: '{parent}' is a value, not a section")
        tree = child
    tree[leaf] = value


def _explain(error: Any) -> str:
    location = [str(part) for part in error["loc"]]
    dotted = ".".join(location)
    if error["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        names = _valid_names(location[:-1]) + ([BASE] if len(location) == 1 else [])
        near = difflib.get_close_matches(location[-1], names, 1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"valid names here: {', '.join(names)}"
        return f"unknown key '{dotted}'; {hint}"
    if error["type"] == "string_type":
        return f"{dotted}: expected a string, not {type(error['input']).__name__}; write it in quotes"
    text = str(error["msg"]).removeprefix("Value error, ")
    return f"{dotted}: {text}" if dotted else text


def _valid_names(path: list[str]) -> list[str]:
    node: Any = Config
    for part in path:
        if dataclasses.is_dataclass(node):
            hints = {f.name: f for f in dataclasses.fields(node)}
            factory = hints[part].default_factory
            node = type(factory()) if callable(factory) else None
        else:
            fields = {f.alias or n: f for n, f in node.model_fields.items()}
            node = fields[part].annotation
    if dataclasses.is_dataclass(node):
        return [f.name for f in dataclasses.fields(node)]
    return [f.alias or n for n, f in node.model_fields.items()] if hasattr(node, "model_fields") else []
