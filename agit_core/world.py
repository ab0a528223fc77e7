"""Rank and size of the data-parallel group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """Rank and world size, with the collectives that training needs in addition to DDP's.

    They exchange figures and checkpoint parts on the host and always use gloo, whatever the training backend.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    @classmethod
    def current(cls) -> World:
        """The group of ``torch.distributed``, or a single rank if it is not initialised. Collective."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls()
        return cls(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo"))

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over all ranks, on the CPU in float64. Collective."""
        total = values.detach().to("cpu", torch.float64, copy=True)
        if self.size > 1:
            dist.all_reduce(total, group=self.group)
        return total

    def gather(self, value: Any) -> list[Any] | None:
        """List of every rank's value on rank 0; None on other ranks. Collective."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, values, dst=0, group=self.group)
        return values
