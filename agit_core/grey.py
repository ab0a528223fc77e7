"""Grey images of 32 bits. Apart from :mod:`agit_core.pictures`, for processes that do without torch."""

from __future__ import annotations

from typing import Any

import numpy as np


def grey_of_wide(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """32-bit grey as uint8: [0, 1], [0, 255] or [0, 65535], told apart by the largest value.

    Raises:
        ValueError: values outside of these, or not numbers.
    """
    low, top = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    if not (low >= 0 and top <= 65535):
        raise ValueError("32-bit values outside [0, 65535]")
    scale = 255.0 if top <= 1 else 1.0 if top <= 255 else 255.0 / 65535.0
    return np.rint(values * scale).astype(np.uint8)
