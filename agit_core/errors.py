"""The ways a run can end badly, told apart because people act on them differently."""


class BadInput(ValueError):
    """A wrong call, configuration or data set. Its message is one sentence: what, where, what to do.

    The command line prints it without a traceback and exits with status 2.
    """


class RunFailed(RuntimeError):
    """A run that was asked for correctly and did not finish. The same command resumes it; exit status 1."""


class Diverged(RunFailed):
    """Losses or weights that are not finite. Another try from the same state and settings ends the same way."""
