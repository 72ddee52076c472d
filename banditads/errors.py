"""What is refused, and what ends the process: code, sentence, field.

A `Refused` is raised before anything is journaled, so nothing has changed when it is seen. HTTP status
codes and exit codes are not here: `wire.py` and `cli.py` each hold the one table that maps these names.
"""

from __future__ import annotations


class Refused(Exception):
    """A request that cannot be granted. Nothing changed.

    >>> raise Invalid("reward must be a finite number", field="reward")
    Traceback (most recent call last):
    banditads.errors.Invalid: reward must be a finite number
    """

    code = "refused"

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.message, self.field = message, field


class Invalid(Refused):
    """A value is missing, malformed or out of range."""

    code = "invalid"


class Unknown(Refused):
    """No such event, ad or route."""

    code = "unknown"


class Conflict(Refused):
    """Something else was already said under this id."""

    code = "conflict"


class Expired(Refused):
    """The reward came after its window. It was written down, and is not learned from."""

    code = "expired"


class Unauthenticated(Refused):
    """No key, or one that is not known. Does not say which."""

    code = "unauthenticated"


class Forbidden(Refused):
    """The key may do other things, not this one."""

    code = "forbidden"


class TooMany(Refused):
    """More requests than the key's rate. `retry_after` is in whole seconds."""

    code = "too_many"

    def __init__(self, message: str, field: str = "", *, retry_after: int = 1) -> None:
        super().__init__(message, field)
        self.retry_after = retry_after


class TooLarge(Refused):
    """More bytes than this route takes."""

    code = "too_large"


class Unsupported(Refused):
    """A content type or encoding that is not spoken here."""

    code = "unsupported"


class Unavailable(Refused):
    """Cannot be written down just now. Safe to send again."""

    code = "unavailable"
    retry_after = 1  # seconds


class Fatal(Exception):
    """The process cannot start, or cannot go on."""


class Damaged(Fatal):
    """Data on disk is not what was written there. Says the file, the place and what to do."""


class InUse(Fatal):
    """Another process holds the data directory."""


class DiskFailure(Fatal):
    """The disk refused a write or an fsync that nothing can make up for."""


class Misconfigured(Fatal):
    """A setting is unknown or impossible. Says which one."""
