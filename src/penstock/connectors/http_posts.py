"""`http`: records posted as JSON lines, in batches, each with an idempotency key."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, ClassVar

from penstock.connectors.json_lines import encode_lines
from penstock.connectors.retries import waits
from penstock.errors import ConnectorError, UsageError
from penstock.flow.connector import ConnectorContext, Sink, Writer

if TYPE_CHECKING:
    import httpx


@dataclass(frozen=True)
class HttpPosts(Sink):
    """Made by `http`."""

    url: str
    headers: Mapping[str, str] = field(repr=False)
    batch_records: int
    deadline: float
    timeout: float

    def open(self, ctx: ConnectorContext) -> Writer:
        """A client for the URL."""
        return HttpWriter(self, ctx)

    def describe(self) -> str:
        """The URL."""
        return f"http POST {self.url}"


def http(
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    batch_records: int = 1000,
    deadline: float = 60.0,
    timeout: float = 10.0,
) -> HttpPosts:
    """POST records to `url` as `application/x-ndjson`, at most `batch_records` in one request.

    Requests that fail on the way, or with a status of 429 or 5xx, are repeated for `deadline` seconds (`Retry-After`
    is honoured); each attempt takes at most `timeout` seconds. Any other status is an error. The header
    `Idempotency-Key` is the same in every repeat, and with checkpoints also after a restart, so a receiver that knows
    it sees each record once. Raises `UsageError` for impossible options.
    """
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"http: {url!r} is not an http:// or https:// URL")
    if batch_records < 1 or deadline <= 0 or timeout <= 0:
        raise UsageError("http: batch_records, deadline and timeout must be greater than 0")
    return HttpPosts(url, dict(headers or {}), batch_records, deadline, timeout)


class HttpWriter(Writer):
    """Without checkpoints requests are sent when a batch is full or the flow idle; with checkpoints at `commit`."""

    transactional: ClassVar[bool] = True

    def __init__(self, sink: HttpPosts, ctx: ConnectorContext) -> None:
        import httpx

        self._sink, self._ctx = sink, ctx
        self._client = httpx.Client(timeout=sink.timeout, headers=dict(sink.headers))
        self._records: list[Any] = []
        self._bodies: list[tuple[str, bytes]] = []
        """Requests prepared and not yet sent: idempotency key and body."""
        self._run = uuid.uuid4().hex
        """Part of the keys, kept over restarts, so that a new run never looks like a repeat of an old one."""
        self._sent = 0

    def write(self, records: list[Any]) -> None:
        """Take records; without checkpoints, full batches are sent."""
        self._records += records
        if not self._ctx.checkpointed:
            size = self._sink.batch_records
            while len(self._records) >= size:
                self._send_next(self._records[:size])
                del self._records[:size]

    def flush(self) -> None:
        """Without checkpoints: send what is left."""
        if self._records and not self._ctx.checkpointed:
            self._send_next(self._records)
            self._records = []

    def _send_next(self, records: list[Any]) -> None:
        self._post(f"{self._name()}-{self._sent}", encode_lines(records))
        self._sent += 1

    def _name(self) -> str:
        return f"{self._ctx.flow}-{self._ctx.step}-{self._run}-{self._ctx.index}"

    def prepare(self, checkpoint: int) -> Any:
        """The requests of this checkpoint, and of those that no commit has reached."""
        if not self._ctx.checkpointed:
            self.flush()
            return None
        size = self._sink.batch_records
        for number, start in enumerate(range(0, len(self._records), size)):
            body = encode_lines(self._records[start : start + size])
            self._bodies.append((f"{self._name()}-c{checkpoint}-{number}", body))
        self._records = []
        return {"run": self._run, "bodies": list(self._bodies)}

    def commit(self, pending: Any) -> None:
        """Send the requests that were not sent yet."""
        if pending is None:
            return
        waiting = {key for key, _ in self._bodies}
        for key, body in pending["bodies"]:
            if key in waiting:
                self._post(key, body)
                self._bodies = [entry for entry in self._bodies if entry[0] != key]

    def recover(self, pendings: Sequence[Any]) -> None:
        """Send again what may not have been sent; the keys tell the receiver what it has already."""
        self._run = next((pending["run"] for pending in pendings if pending), self._run)
        for pending in pendings:
            self._bodies += [tuple(entry) for entry in (pending["bodies"] if pending else [])]
            self.commit(pending)

    def _post(self, key: str, body: bytes) -> None:
        """One request, repeated until it succeeds or the deadline is over. Raises `ConnectorError`."""
        import httpx

        headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": key}
        problem = ""
        for _ in waits(self._sink.deadline):
            try:
                response = self._client.post(self._sink.url, content=body, headers=headers)
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if response.is_success:
                return
            problem = f"status {response.status_code} {response.reason_phrase}: {response.text[:200]!r}"
            if response.status_code != 429 and response.status_code < 500:
                raise ConnectorError(
                    f"POST {self._sink.url} answered {problem}",
                    remedy="the receiver refuses these records or this address; check the URL, the token and the body",
                )
            threading.Event().wait(min(_retry_after(response), self._sink.deadline / 4))
        raise ConnectorError(
            f"POST {self._sink.url} did not succeed for {self._sink.deadline:g} s: {problem}",
            remedy="check that the receiver is up and reachable",
        )

    def close(self) -> None:
        """Send everything that is left."""
        try:
            if self._ctx.checkpointed:
                size = self._sink.batch_records
                for key, body in self._bodies:
                    self._post(key, body)
                self._bodies = []
                for start in range(0, len(self._records), size):
                    self._send_next(self._records[start : start + size])
                self._records = []
            else:
                self.flush()
        finally:
            self._client.close()

    def abort(self) -> None:
        """Close the client."""
        self._client.close()


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the receiver asks to wait; 0 when it says nothing (then the usual back-off applies)."""
    text = response.headers.get("Retry-After", "")
    if text.isdigit():
        return float(text)
    try:
        from datetime import UTC, datetime

        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0
