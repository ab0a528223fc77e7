"""Lines and tables on the terminal by rich, which is imported when the first of them is printed.

The import costs a tenth of a second, which commands that print JSON or help need not wait for.
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
    """An empty table without lines."""
    from rich.table import Table

    return Table(box=None, pad_edge=False)


def literal(value: str) -> Text:
    """Text whose square brackets are not markup, such as a file's name."""
    from rich.text import Text

    return Text(value)


@lru_cache(maxsize=1)
def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)
