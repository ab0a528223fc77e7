"""HTTP health checks of servers, independent of their client libraries; messages contain no credentials."""

from __future__ import annotations

import base64
import http.client
import urllib.error
import urllib.request
from urllib.parse import unquote, urlsplit, urlunsplit

from pipeline.redact import redact

REFUSALS = (401, 403)
"""Statuses of a running server that requires a key."""


def ask(url: str, timeout: float) -> tuple[int | None, str | None]:
    """Request a URL; return the status (None: no HTTP response) and the problem, if any.

    Credentials in ``http://user:password@host`` are sent, as the servers' own clients do.
    """
    try:
        with urllib.request.urlopen(_request(url), timeout=timeout) as answer:
            answer.read()
            return answer.status, None
    except urllib.error.HTTPError as error:
        return error.code, str(error)
    except http.client.HTTPException as error:
        return None, f"no answer in HTTP: {redact(' '.join(str(error).split())) or type(error).__name__}"
    except (OSError, ValueError) as error:
        return None, redact(" ".join(str(error).split()))


def _request(url: str) -> urllib.request.Request:
    # urllib would parse the password as a port
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=host)))
    if user:
        request.add_header("Authorization", f"Basic {base64.b64encode(unquote(user).encode()).decode()}")
    return request
