"""Ports for servers that start in a while, and whose pages may call them."""

from __future__ import annotations

import random
import socket
from pathlib import Path

import prefect.settings
import pytest

from infra.stack_state import Stack, free_port, taken


def test_a_free_port_is_none_that_an_outgoing_connection_may_have_by_then() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert all(port < first or port > last for port in (free_port() for _ in range(50)))


def test_two_processes_with_the_same_seed_do_not_choose_the_same() -> None:
    random.seed(0)
    one = free_port()
    random.seed(0)
    assert free_port() != one


def test_a_port_is_taken_on_all_addresses_by_a_server_on_one() -> None:
    with socket.create_server(("127.0.0.2", free_port())) as server:
        port = server.getsockname()[1]
        assert taken(port, "")
        assert not taken(port)


def test_prefects_api_is_called_by_its_own_pages_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"s3_id": "x", "s3_secret": "x", "ray_token": "x", "prefect": "x", "mlflow": "x"}
    stack = Stack(tmp_path, {"s3": 1, "prefect": 4321, "mlflow": 2, "ray": 3}, "token", tmp_path, keys)
    name = "PREFECT_SERVER_CORS_ALLOWED_ORIGINS"
    monkeypatch.setenv(name, stack.environment[name])
    told = prefect.settings.Settings().server.api.cors_allowed_origins
    assert told.split(",") == ["http://127.0.0.1:4321", "http://localhost:4321"]
