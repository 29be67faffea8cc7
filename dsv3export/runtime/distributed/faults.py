"""What ends a job of several ranks."""

from __future__ import annotations

from dsv3export.errors import BackendError


class JobFault(BackendError):  # noqa: N818 - the noun is the field's
    """A rank died, hangs, cannot be reached or has the wrong engine: the job of all ranks ends.

    Args:
        rank: Which one.
        host: The machine it runs on; empty where that is not known.
        cause: What happened to it.
    """

    def __init__(self, rank: int, host: str, cause: str) -> None:
        self.rank, self.host, self.cause = rank, host, cause
        where = f"rank {rank} on {host}" if host else f"rank {rank}"
        super().__init__(f"{where}: {cause}")
