"""Terminal output with rich, imported on first use.

The import takes a tenth of a second, which commands that print JSON or help are spared.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


def write(*objects: Any, **options: Any) -> None:
    """Print to standard output; ``options`` are those of ``rich.console.Console.print``."""
    _console().print(*objects, **options)


def plain_table() -> Table:
    """Create an empty table without borders."""
    from rich.table import Table

    return Table(box=None, pad_edge=False)


def literal(value: str) -> Text:
    """Text in which square brackets are not markup, e.g. a file name."""
    from rich.text import Text

    return Text(value)


@lru_cache(maxsize=1)
def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)
