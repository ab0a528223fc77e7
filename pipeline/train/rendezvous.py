"""Rendezvous of the ranks on a private Ray instance through a file that only this user can access.

PyTorch's default, a ``TCPStore``, listens on all interfaces of the machine without authentication.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend


@dataclass
class LocalTorchConfig(TorchConfig):
    """Ray Train's PyTorch configuration for workers on this machine.

    Attributes:
        folder: existing local folder that is not accessible to other users.
    """

    folder: str = ""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _LocalBackend


class _LocalBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: LocalTorchConfig) -> None:
        """Set up a new worker group (called by Ray Train's controller); each group uses a new file."""
        meeting = f"file://{backend_config.folder}/ranks-{uuid.uuid4().hex}"
        worker_group.execute(_stay_on_loopback)
        worker_group.execute(_set_torch_distributed_env_vars)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank,
                    _setup_torch_process_group,
                    backend=backend_config.backend,
                    world_rank=rank,
                    world_size=len(worker_group),
                    init_method=meeting,
                    timeout_s=backend_config.timeout_s,
                )
                for rank in range(len(worker_group))
            ]
        )


def _stay_on_loopback() -> None:
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
