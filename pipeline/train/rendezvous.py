"""Where the ranks of a private Ray instance meet: a file that only this user can reach, instead of a port.

PyTorch's own meeting point, a ``TCPStore``, listens on every interface of the machine and asks for no key.
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
    """Ray Train's PyTorch set-up for workers that share this machine.

    Attributes:
        folder: an existing local folder that other users cannot enter.
    """

    folder: str = ""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _LocalBackend


class _LocalBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: LocalTorchConfig) -> None:
        """Called by Ray Train's controller for each new group of workers, which never meets an old one's file."""
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
