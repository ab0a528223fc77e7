"""A Prefect server's API, asked without Prefect."""

from __future__ import annotations

from typing import Any

import httpx

from tests.pipeline.training import wait_for


def ask(method: str, url: str, **options: Any) -> Any:
    """The JSON of the answer; asks again, as Prefect's own client does, while the server's database is busy."""

    def answered() -> httpx.Response | None:
        answer = httpx.request(method, url, timeout=60, **options)
        return None if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE else answer

    answer: httpx.Response = wait_for(answered, f"an answer of {url}", 120)
    return answer.raise_for_status().json()
