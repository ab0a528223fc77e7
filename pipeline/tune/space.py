"""Search space of ``agit tune``: dotted config keys, each with a range or a list of choices.

A range is one of ``uniform: [low, high]``, ``loguniform: [low, high]``, ``quniform: [low, high, step]``,
``randint: [low, high]`` (both ends included) and ``choice: [...]``; a plain list is also a choice. Trial 0 is the
unchanged configuration. The values of trial k depend only on the seed and k, so a search can be extended later
without changing its first trials.
"""

from __future__ import annotations

import difflib
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agit_core.errors import BadInput
from pipeline.config import Config, parse

Values = dict[str, Any]
SEARCHABLE = ("method.", "train.batch_size", "seed")
"""Settings that a trial may change; all others define the task, its length, or where it runs."""
_DIGITS = 4  # significant digits of sampled values


@dataclass(frozen=True)
class Range:
    """Possible values of one key: ``kind`` as in the configuration, and its arguments."""

    key: str
    kind: str
    arguments: tuple[Any, ...]

    def ends(self) -> list[Any]:
        """Values to validate: every choice, or both ends of the range."""
        if self.kind == "choice":
            return list(self.arguments)
        return [self.arguments[0], self.arguments[1]]

    def sample(self, generator: random.Random) -> Any:
        return _KINDS[self.kind].sample(generator, *self.arguments)

    @property
    def logarithmic(self) -> bool:
        return self.kind == "loguniform"

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(str(argument) for argument in self.arguments)})"


@dataclass(frozen=True)
class _Kind:
    usage: str
    sample: Callable[..., Any]
    problem: Callable[..., str | None]


def ranges(config: Config) -> list[Range]:
    """Parse ``tune.space`` and validate the ends of every range against the configuration.

    Raises:
        BadInput: an empty space, an unknown key or kind (suggests the nearest name), or an invalid value.
    """
    space = config.tune.space
    if not space:
        raise BadInput(
            "tune.space is empty; give it keys with ranges, such as "
            "{method.optimizer.learning_rate: {loguniform: [1e-4, 1e-3]}}"
        )
    parsed = [_range(key, spec) for key, spec in space.items()]
    for one in parsed:
        for value in one.ends():
            applied(config, {one.key: value}, where=f"tune.space: {one.key} = {value}")
    return parsed


def trial_values(space: list[Range], seed: int, number: int) -> Values:
    """Settings that trial ``number`` changes; empty for trial 0."""
    if number == 0:
        return {}
    # a random stream per key: adding a key does not change the values of the others
    return {one.key: one.sample(random.Random(f"{seed}:{number}:{one.key}")) for one in space}


def applied(config: Config, values: Values, where: str = "trial") -> Config:
    """Apply dotted settings to a configuration.

    Raises:
        BadInput: an unknown key (suggests the nearest name) or an invalid value.
    """
    tree = config.plain()
    for key, value in values.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise BadInput(f"{where}: '{parent}' is a value, not a section")
            node = child
        if isinstance(node.get(leaf), dict):
            raise BadInput(f"{where}: '{leaf}' is a section; name one of {', '.join(node[leaf])}")
        node[leaf] = value
    return parse(tree, where=where)


def value_of(config: Config, key: str) -> Any:
    """The value under a dotted key."""
    node: Any = config.plain()
    for part in key.split("."):
        node = node[part]
    return node


def _range(key: str, spec: Any) -> Range:
    where = f"tune.space: {key}"
    if not key.startswith(SEARCHABLE):
        raise BadInput(f"{where} cannot be searched; a trial may change method.*, train.batch_size and seed")
    if isinstance(spec, list):
        spec = {"choice": spec}
    if not isinstance(spec, dict) or len(spec) != 1:
        raise BadInput(f"{where} takes a list of choices or one of {_usages()}, not {spec!r}")
    [(kind, arguments)] = spec.items()
    if kind not in _KINDS:
        near = difflib.get_close_matches(str(kind), _KINDS, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"it takes one of {_usages()}"
        raise BadInput(f"{where}: unknown kind '{kind}'; {hint}")
    if not isinstance(arguments, list):
        raise BadInput(f"{where}: write {_KINDS[kind].usage}, not {kind}: {arguments!r}")
    problem = "it needs at least one choice" if kind == "choice" and not arguments else None
    if kind != "choice":
        arguments = [_number(argument) for argument in arguments]
        try:
            problem = _KINDS[kind].problem(*arguments)
        except TypeError:
            problem = f"got {arguments}"
    if problem is not None:
        raise BadInput(f"{where}: write {_KINDS[kind].usage}; {problem}")
    return Range(key, kind, tuple(arguments))


def _number(value: Any) -> Any:
    # YAML 1.1 reads 1e-4 as a string
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _ordered(low: float, high: float) -> str | None:
    return None if low < high else f"{low} is not below {high}"


def _positive(low: float, high: float) -> str | None:
    return _ordered(low, high) if low > 0 else f"{low} has no logarithm"


def _stepped(low: float, high: float, step: float) -> str | None:
    return _ordered(low, high) if step > 0 else f"the step {step} is not positive"


def _whole(low: int, high: int) -> str | None:
    numbers = (low, high)
    return _ordered(low, high) if all(int(n) == n for n in numbers) else "both must be whole numbers"


def _rounded(value: float) -> float:
    """Round to a few significant digits, to keep presets readable."""
    return float(f"{value:.{_DIGITS}g}")


def _log(generator: random.Random, low: float, high: float) -> float:
    return min(max(_rounded(math.exp(generator.uniform(math.log(low), math.log(high)))), low), high)


def _grid(generator: random.Random, low: float, high: float, step: float) -> float:
    steps = math.floor((high - low) / step + 1e-9)
    value = _rounded(low + step * generator.randint(0, steps))
    return int(value) if all(float(n).is_integer() for n in (low, step)) else value


_KINDS: dict[str, _Kind] = {
    "choice": _Kind("choice: [a, b, ...]", lambda g, *options: g.choice(options), lambda *_: None),
    "uniform": _Kind(
        "uniform: [low, high]", lambda g, a, b: min(max(_rounded(g.uniform(a, b)), a), b), _ordered
    ),
    "loguniform": _Kind("loguniform: [low, high]", _log, _positive),
    "quniform": _Kind("quniform: [low, high, step]", _grid, _stepped),
    "randint": _Kind("randint: [low, high]", lambda g, a, b: g.randint(int(a), int(b)), _whole),
}


def _usages() -> str:
    return ", ".join(f"'{kind.usage}'" for kind in _KINDS.values())
