"""Every error a user can meet, as one tree.

    MillraceError
    |-- UserError          exit 2    the input or the configuration is wrong; the message says how to mend it
    |-- IntegrityError     exit 3    stored bytes are not what their manifest says, or a contract failed
    |-- MachineError       exit 4    something this machine should provide is missing
    |-- TryLaterError      exit 75   disk full, a service is down, another process holds the lock
    `-- Preempted          exit 143  stopped on request after a clean checkpoint

A message is one line: what is wrong, where (file, row, field), how to mend it.
"""


class MillraceError(Exception):
    """Root of the tree. `exit_code` is what the command line returns."""

    exit_code = 1


class UserError(MillraceError):
    """The input or the configuration is wrong."""

    exit_code = 2


class IntegrityError(MillraceError):
    """Stored bytes differ from their manifest, or data broke its contract."""

    exit_code = 3


class MachineError(MillraceError):
    """Something this machine should provide is missing."""

    exit_code = 4


class TryLaterError(MillraceError):
    """The same command can succeed later: disk full, service down, lock held."""

    exit_code = 75


class Preempted(MillraceError):  # noqa: N818, the field's word
    """Stopped on request (SIGTERM) after a clean checkpoint; running again resumes."""

    exit_code = 143
