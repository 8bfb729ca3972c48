"""What a call to a cluster can raise.

ClientError          a call that did not succeed; carries the problem details of the answer
├── Unreachable      nobody answered
├── Busy             429 until the deadline
├── RolledBack       503: an operation that some node could not do, so that no node has done it
├── Unfinished       an operation that still goes on at the deadline
└── Rejected         another 4xx
    ├── NotFound     404
    ├── Conflict     409
    └── Refused      401, 403
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from penstock.errors import PenstockError

if TYPE_CHECKING:
    from penstock.client.sending import PushResult


class ClientError(PenstockError):
    """A call that did not succeed. `status` is the HTTP status (`None`: no answer), `problem` the decoded
    problem+json body, `nodes` its reasons per node where the operation concerned several."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        problem: Mapping[str, Any] | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.status = status
        self.problem: dict[str, Any] = dict(problem or {})
        self.pushed: PushResult | None = None
        """Of a push: what is acknowledged all the same."""
        self.before: int | None = None
        """Of a push: records of the input before the request that failed."""

    def of_push(self, result: PushResult) -> None:
        """Tell what was acknowledged before it."""
        self.pushed = result
        if result.accepted:
            records = "record is" if result.accepted == 1 else "records are"
            self.message += f"\n  {result.accepted:,} {records} acknowledged all the same"
            self.message += f", {result.pending:,} more may have been taken" if result.pending else ""
            self.args = (self.message if self.remedy is None else f"{self.message}\n  -> {self.remedy}",)

    @property
    def nodes(self) -> dict[str, str]:
        """Node name -> why it refused or failed, when the answer says so."""
        found = self.problem.get("nodes")
        return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}

    @property
    def detail(self) -> str:
        """What was wrong, without the reasons per node."""
        return str(self.problem.get("detail") or self.message)

    @property
    def first_line(self) -> str:
        """The shortest form, for a line of progress."""
        return self.detail.partition("\n")[0]

    @property
    def operation(self) -> str:
        """The id of the operation that it is about; empty: of none."""
        return str(self.problem.get("operation") or "")


class Unreachable(ClientError):
    """Nobody answered at the address before the deadline."""


class RolledBack(ClientError):
    """The operation was rolled back: nothing has changed anywhere. `nodes` says why, `operation` which it was (503)."""


class Unfinished(ClientError):
    """The operation goes on by itself beyond the deadline; `operation` is its id."""


class Rejected(ClientError):
    """The request cannot be done as asked (another 4xx)."""


class NotFound(Rejected):
    """There is no such model, source, step or key (404)."""


class Conflict(Rejected):
    """The model is not in a state that allows it (409)."""


class Refused(Rejected):
    """The token is missing, wrong, or may not do this (401, 403)."""


class Busy(ClientError):
    """Still under pressure when the deadline came (429)."""


BY_STATUS: dict[int, type[ClientError]] = {401: Refused, 403: Refused, 404: NotFound, 409: Conflict, 429: Busy}
"""The class of an error by the status of the answer."""
