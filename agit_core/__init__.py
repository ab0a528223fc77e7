"""The method in plain PyTorch, and inference: ``from agit_core import Translator``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agit_core.translator import Result, Translator

__all__ = ["Result", "Translator"]


def __getattr__(name: str) -> Any:
    # lazy import: training needs neither numpy nor pillow
    if name in __all__:
        from agit_core import translator

        return getattr(translator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
