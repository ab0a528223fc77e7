"""Whether a server answers over HTTP: asked without any client of its own, told without credentials."""

from __future__ import annotations

import base64
import http.client
import urllib.error
import urllib.request
from urllib.parse import unquote, urlsplit, urlunsplit

from pipeline.redact import redact

REFUSALS = (401, 403)
"""Statuses of a server that is there and wants a key."""


def ask(url: str, timeout: float) -> tuple[int | None, str | None]:
    """The status of the answer (None: nothing answers in HTTP) and, unless that is a success, what is wrong.

    ``http://user:password@host`` is asked with these credentials, as the servers' own clients do.
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
    # urllib would take the password for a port
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=host)))
    if user:
        request.add_header("Authorization", f"Basic {base64.b64encode(unquote(user).encode()).decode()}")
    return request
