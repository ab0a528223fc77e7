"""The training job on a Ray cluster through the Job Submission API: submit, attach, follow, stop."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shlex
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from agit_core.errors import BadInput, RunFailed
from pipeline import logs
from pipeline.config import ClusterConfig
from pipeline.launch.specs import parse_verdict, write_spec
from pipeline.records import Owner, Spec
from pipeline.redact import redact
from pipeline.train import events, lease

log = logging.getLogger(__name__)
output = logging.getLogger("pipeline.train.output")

_ANSWER_SECONDS = 60.0
_LOG_SECONDS = 3.0
_STOP_SECONDS = 60.0
_NO_AGENT = "No available agent"
"""Ray's error while the head's agent, which starts jobs, is not running (``ray/dashboard/modules/job/job_head.py``)."""
T = TypeVar("T")

PYTHON = (
    "$(tr '\\0' '\\n' < /proc/$(tr '\\0' '\\n' < /proc/$PPID/environ 2>/dev/null"
    " | sed -n 's/^RAY_RAYLET_PID=//p')/cmdline 2>/dev/null"
    " | sed -n 's/^--python_worker_command=\\([^ ]*\\) .*/\\1/p' | grep . || echo python)"
)
"""Shell command for the interpreter of the head's workers (Ray's job supervisor, which runs this, is one of them).

The first on the PATH is only the fallback: it is another one if Ray was started from an inactive environment."""
_TAIL_LINES = 200
_NOT_FOUND = 127
"""A shell's exit status where there is no such program."""


class _Client(JobSubmissionClient):
    """Client with a timeout: Ray's own waits forever if the head accepts a request but never responds."""

    def _do_request(self, *call: Any, **how: Any) -> Any:
        return super()._do_request(*call, **{"timeout": _ANSWER_SECONDS, **how})

    def session(self) -> str:
        """Session name of the cluster, which is unique to it."""
        answer = self._do_request("GET", "/api/version")
        answer.raise_for_status()
        return str(answer.json()["session_name"])


def _connect(config: ClusterConfig) -> tuple[_Client, dict[str | None, JobDetails], str]:
    """The cluster's client, its jobs by submission id, and its session.

    Raises:
        BadInput: it does not answer.
    """
    try:
        client = _Client(config.address)
        return client, {job.submission_id: job for job in client.list_jobs()}, client.session()
    except Exception as error:  # a ConnectionError, or a RuntimeError with the server's answer
        raise BadInput(
            f"the Ray cluster at cluster.address {redact(config.address)} does not answer "
            f"({_shortened(error, 200)}); check the address and that its dashboard runs"
        ) from None


def _place(config: ClusterConfig) -> dict[str, Any]:
    """What the specification says of the cluster, which is stored: no password."""
    return {"address": redact(config.address)}


class ClusterJob:
    """A job with the submission id ``RUN_ID-ATTEMPT``.

    Ray refuses to reuse a submission id, even of a stopped job. Each attempt therefore has a new number, while the run
    keeps its id and resumes from its checkpoint.
    """

    def __init__(self, client: _Client, submission_id: str, patience_s: float) -> None:
        self.submission_id = submission_id
        self._client = client
        self._patience_s = patience_s
        self._status = JobStatus.PENDING
        self._shown = 0
        self._polled = 0.0

    @classmethod
    def start_or_attach(cls, config: ClusterConfig, spec: Spec, patience_s: float) -> ClusterJob:
        """Attach to the running job of this run, or submit a new one.

        Raises:
            BadInput: the cluster does not respond, or refuses the job's environment.
            RunFailed: another job is training this run, or the cluster was lost meanwhile or accepts no jobs.
        """
        client, known, session = _connect(config)
        attempt, run_uri = 1, spec.run_uri
        while (name := f"{spec.run_id}-{attempt}") in known:
            if known[name].status in (JobStatus.PENDING, JobStatus.RUNNING):
                return cls(client, name, patience_s)._attached()
            attempt += 1
        # if two machines submit this attempt at once, only one submission succeeds, and both follow that job
        token = f"{session}/{name}"
        place = _place(config)
        owner = Owner(host=socket.gethostname(), submission_id=name, token=token, **place)
        lease.refuse_second(run_uri, **place)
        if attempt > 1:
            events.record_interruption(run_uri)
        spec_uri = write_spec(spec, attempt, owner)
        return cls(client, name, patience_s)._submitted(
            config,
            entrypoint=f'"{PYTHON}" -m {spec.job} {shlex.quote(spec_uri)}',
            runtime_env=_environment(config, token),
            metadata={"run_id": spec.run_id},
        )

    def _submitted(self, config: ClusterConfig, **submission: Any) -> ClusterJob:
        until = time.monotonic() + self._patience_s
        while True:
            try:
                self._client.submit_job(submission_id=self.submission_id, **submission)
            except Exception as error:
                # the response may have been lost, or another machine was faster
                if self.submission_id in {
                    info.submission_id for info in self._patiently(self._client.list_jobs)
                }:
                    return self._attached()
                # a starting head responds before it can start jobs
                if _NO_AGENT not in str(error) or time.monotonic() >= until:
                    raise _refusal(config, error) from None
                log.warning(
                    "the Ray cluster at %s takes no jobs yet: its head has no agent", redact(config.address)
                )
                time.sleep(2)
            else:
                log.info("submitted job %s", self.submission_id)
                return self

    def _attached(self) -> ClusterJob:
        # skip the output so far: the previous follower has shown it
        self._shown = len(self._patiently(lambda: self._client.get_job_logs(self.submission_id)))
        log.info("attached to the running job %s", self.submission_id)
        return self

    def wait(self, seconds: float) -> bool:
        """Wait for at most ``seconds`` while forwarding new output; return whether the job has ended."""
        until = time.monotonic() + seconds
        while True:
            self._status = self._patiently(lambda: self._client.get_job_status(self.submission_id))
            ended = self._status.is_terminal()
            if ended or time.monotonic() - self._polled >= _LOG_SECONDS:
                self._pass_output_on()
            left = until - time.monotonic()
            if ended or left <= 0:
                return ended
            time.sleep(min(left, 0.5))

    def ended(self) -> str | None:
        """None after success, otherwise a description of how the job ended."""
        if self._status == JobStatus.SUCCEEDED:
            return None
        if self._status == JobStatus.STOPPED:
            raise RunFailed(f"job {self.submission_id} was stopped; the same command resumes the run")
        with contextlib.suppress(Exception):
            # Ray's message begins with what it always says, and ends with the job's last lines
            message = self._client.get_job_info(self.submission_id).message
            return " ".join(str(message).split())[-300:]
        return "failed"

    def verdict(self) -> dict[str, str] | None:
        """Cause of the failure: what the job printed, or what can only be its cause."""
        lines = self._patiently(lambda: self._client.get_job_logs(self.submission_id)).splitlines()
        printed = next(filter(None, (parse_verdict(line) for line in reversed(lines))), None)
        if printed is None and self._status != JobStatus.SUCCEEDED:
            return hopeless(lines, self._client.get_job_info(self.submission_id).driver_exit_code)
        return printed

    def stop(self) -> None:
        """Stop the job and wait until it has ended."""
        with contextlib.suppress(OSError, RuntimeError):
            self._client.stop_job(self.submission_id)
            until = time.monotonic() + _STOP_SECONDS
            while time.monotonic() < until:
                if self._client.get_job_status(self.submission_id).is_terminal():
                    return
                time.sleep(0.5)
            log.warning("job %s has not stopped after %d s", self.submission_id, _STOP_SECONDS)

    def _pass_output_on(self) -> None:
        self._polled = time.monotonic()
        with contextlib.suppress(OSError, RuntimeError):
            text = self._client.get_job_logs(self.submission_id)
            # forward complete lines only
            end = len(text) if self._status.is_terminal() else text.rfind("\n") + 1
            for line in text[self._shown : end].splitlines():
                output.info(line)
            self._shown = max(self._shown, end)

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Retry a request while the cluster's head does not respond; a timeout is an OSError of the client."""
        until = time.monotonic() + self._patience_s
        while True:
            try:
                return ask()
            except (OSError, RuntimeError) as error:
                if time.monotonic() >= until:
                    raise RunFailed(
                        f"the Ray cluster of job {self.submission_id} does not answer any more "
                        f"({_shortened(error, 200)}); the same command resumes the run"
                    ) from None
                time.sleep(2)


def hopeless(lines: list[str], status: int | None) -> dict[str, str] | None:
    """A verdict about a job that gave none and would end like this again: a missing package, or a wrong call.

    Args:
        lines: its output.
        status: its exit status.
    """
    tail = [" ".join(line.split()) for line in lines[-_TAIL_LINES:] if line.strip()]
    missing = next((m for m in (_MISSING.search(line) for line in reversed(tail)) if m), None)
    if missing is not None:
        message = (
            f"the Python of the cluster's nodes has no package '{missing[1]}'; install agit there with its "
            "dependencies, best by the image of infra/docker, or start Ray from the environment that has it"
        )
        return {"kind": "BadInput", "message": message}
    if status == _NOT_FOUND:
        message = "the head of the cluster has no `python` on its PATH; start Ray from the environment that has agit"
        return {"kind": "BadInput", "message": message}
    if status == 2:
        last = tail[-1][-300:] if tail else "no output"
        return {"kind": "BadInput", "message": f"the job ended with status 2, a wrong call: {last}"}
    return None


def probe(config: ClusterConfig, seconds: float = 120.0) -> str:
    """Versions of agit and Python on the cluster, as a job finds them there.

    Raises:
        BadInput: the cluster does not answer, or its nodes lack the package.
        RunFailed: it takes no jobs, or does not run this one in time.
    """
    client = _connect(config)[0]
    name = f"agit-doctor-{secrets.token_hex(4)}"
    job = ClusterJob(client, name, seconds)
    job._submitted(
        config, entrypoint=f'"{PYTHON}" -c {shlex.quote(_PROBE)}', runtime_env=_environment(config, name)
    )
    if not job.wait(seconds):
        job.stop()
        raise RunFailed(
            f"the Ray cluster at {redact(config.address)} did not run a job within {seconds:.0f} s"
        )
    if (verdict := job.verdict()) is not None:
        raise BadInput(verdict["message"])
    if (ended := job.ended()) is not None:
        raise RunFailed(f"a job that only imports agit ended there with: {ended}")
    lines = client.get_job_logs(name).splitlines()
    return next((line.partition(_FOUND)[2] for line in reversed(lines) if _FOUND in line), "nothing")


_FOUND = "AGIT-FOUND "
_PROBE = (
    "import platform; from importlib import metadata; import pipeline.stage_job, torch; "
    f"print({_FOUND!r} + 'agit', metadata.version('agit') + ', Python', platform.python_version())"
)
_MISSING = re.compile(r"(?:ModuleNotFoundError: |: )No module named '?([\w.]+)'?")


def _refusal(config: ClusterConfig, error: Exception) -> BadInput | RunFailed:
    """Error for a job that the cluster did not accept."""
    address = redact(config.address)
    if _NO_AGENT in str(error):
        return RunFailed(
            f"the Ray cluster at {address} takes no jobs: the agent on its head node did not start, often "
            "because another Ray on that machine has its port; look into dashboard_agent.log there and start the "
            "head with another `--dashboard-agent-listen-port`"
        )
    if isinstance(error, OSError):
        return RunFailed(f"the Ray cluster at {address} did not take the job; look into its dashboard's log")
    # an invalid runtime environment
    return BadInput(
        f"the Ray cluster at {address} refuses the job ({_shortened(error, 300)}); "
        "check cluster.working_dir and cluster.env"
    )


def _shortened(error: Exception, length: int) -> str:
    return str(redact(" ".join(str(error).split())))[:length]


def _environment(config: ClusterConfig, token: str) -> dict[str, Any]:
    """The job's runtime environment."""
    logging_format = {logs.VARIABLE: os.environ[logs.VARIABLE]} if logs.as_json() else {}
    variables = {"PYTHONUNBUFFERED": "1", lease.TOKEN: token, **logging_format, **config.env}
    return {"env_vars": variables} | ({"working_dir": config.working_dir} if config.working_dir else {})
