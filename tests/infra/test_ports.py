"""Ports for servers that start in a while."""

from __future__ import annotations

import random
import socket
from pathlib import Path

from infra.stack_state import free_port, taken


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
