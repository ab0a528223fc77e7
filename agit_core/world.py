"""This process's place among the data-parallel ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """Rank and size, with the few collectives that training needs besides DDP's own.

    These run over gloo on the host whatever the training backend is: they carry figures and checkpoint parts.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    @classmethod
    def current(cls) -> World:
        """From ``torch.distributed`` when it is initialised, otherwise alone. Collective: every rank calls it."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls()
        return cls(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo"))

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks of a tensor, on the CPU in float64."""
        total = values.detach().to("cpu", torch.float64, copy=True)
        if self.size > 1:
            dist.all_reduce(total, group=self.group)
        return total

    def gather(self, value: Any) -> list[Any] | None:
        """Every rank's value on rank 0; None elsewhere."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, values, dst=0, group=self.group)
        return values
