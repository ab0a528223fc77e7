"""Kinds of failure, by what the user has to do about them."""


class BadInput(ValueError):
    """A wrong call, configuration or data set. Its message is one sentence: what, where, what to do.

    The command line prints it without a traceback and exits with status 2.
    """


class RunFailed(RuntimeError):
    """A run that failed although call and configuration were valid. The same command resumes it; exit status 1."""


class Diverged(RunFailed):
    """Losses or weights that are not finite. A retry from the same state and settings fails again."""
