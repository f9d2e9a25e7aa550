"""Errors that end a program with one sentence."""

from jebm.checkpoints import CorruptCheckpointError


class ConfigError(ValueError):
    """The user asked for something impossible; raised before any work."""


class Diverged(RuntimeError):
    """Training has left the finite numbers."""


class ProcessFailed(RuntimeError):
    """Another process of the same run has ended with an error."""


# Ended with one sentence and a non-zero exit; anything else is a bug: show its trace.
USER_ERRORS = (ConfigError, Diverged, ProcessFailed, CorruptCheckpointError, OSError)
