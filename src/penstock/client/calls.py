"""What can be asked of a cluster: each function describes requests and does no I/O. Changes are in `changes`, pushes in
`pushing`."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import httpx
import msgspec

from penstock.client.conversation import Call, Conversation, Session, converse
from penstock.errors import UsageError


def _json(answer: httpx.Response) -> Any:
    return msgspec.json.decode(answer.content)


def mapping(answer: httpx.Response) -> dict[str, Any]:
    """Reads an answer that is an object."""
    return msgspec.json.decode(answer.content, type=dict[str, Any])


def items(answer: httpx.Response) -> list[dict[str, Any]]:
    """Reads an answer that is a list of objects."""
    return msgspec.json.decode(answer.content, type=list[dict[str, Any]])


def nothing(answer: httpx.Response) -> None:
    """Reads an answer without a body."""


def segment(text: str) -> str:
    """`text` as one path segment; dots are escaped where a URL would take them for a relative path."""
    quoted = quote(text, safe="")
    return quoted.replace(".", "%2E") if quoted in (".", "..") else quoted


def model_path(model: str) -> str:
    """`group/name` (or `name` in the group `default`) as two path segments."""
    group, slash, name = model.rpartition("/")
    if not name or (slash and not group) or "/" in group:
        raise UsageError(f"{model!r} is not a model's name", remedy="write NAME or GROUP/NAME")
    return f"{segment(group or 'default')}/{segment(name)}"


def stream_path(stream: str) -> str:
    """`group/name/source` (or `name/source` in the group `default`) as three path segments."""
    parts = stream.split("/")
    if len(parts) == 2:
        parts.insert(0, "default")
    if len(parts) != 3 or not all(parts):
        raise UsageError(f"{stream!r} is not a stream's name", remedy="write MODEL/SOURCE or GROUP/MODEL/SOURCE")
    return "/".join(segment(part) for part in parts)


def health(session: Session) -> Conversation[dict[str, Any]]:
    """Whether the node is alive. Raises `Unreachable` at once rather than waiting for it."""
    return converse(session, Call("GET", "/healthz", mapping), deadline=0.0)


def ready(session: Session) -> Conversation[bool]:
    """Whether the node is synchronised with its cluster and takes work."""
    call = Call("GET", "/readyz", lambda answer: answer.status_code == 200, accept=(503,))
    return converse(session, call, deadline=0.0)


def nodes(session: Session) -> Conversation[list[dict[str, Any]]]:
    """The members of the cluster."""
    return converse(session, Call("GET", "/v1/nodes", items, repeatable=True))


def models(session: Session) -> Conversation[list[dict[str, Any]]]:
    """Every model of the cluster."""
    return converse(session, Call("GET", "/v1/models", items, repeatable=True))


def model(session: Session, name: str) -> Conversation[dict[str, Any]]:
    """One model. Raises `NotFound`."""
    return converse(session, Call("GET", f"/v1/models/{model_path(name)}", mapping, repeatable=True))


def results(session: Session, name: str, step: str | None = None, *, limit: int = 100) -> Conversation[list[Any]]:
    """The latest records that reached the model's `collect` sinks, oldest first."""
    query = {"limit": str(limit)} | ({} if step is None else {"step": step})
    path = f"/v1/models/{model_path(name)}/results"
    return converse(session, Call("GET", path, _json, query=query, repeatable=True))


def placement(session: Session, name: str | None = None) -> Conversation[list[dict[str, Any]]]:
    """Which executor runs on which node, of one model or of all that are placed."""
    query = {} if name is None else {"model": name}
    return converse(session, Call("GET", "/v1/placement", items, query=query, repeatable=True))


def rebalance(
    session: Session, *, dry_run: bool = False, strategy: str | None = None, model: str | None = None
) -> Conversation[dict[str, Any]]:
    """A better placement for what is measured: `before`, `after`, `moves`, `reason`; unless `dry_run`, what is worth it
    is begun. `strategy`: default: the cluster's. `model`: only its executors move. Raises `Conflict` when what would
    have to move cannot, `Rejected` when no placement keeps a limit."""
    body = {"dry_run": dry_run, "strategy": strategy, "model": model}
    return converse(
        session,
        Call(
            "POST",
            "/v1/rebalance",
            mapping,
            headers={"content-type": "application/json"},
            body=msgspec.json.encode({name: value for name, value in body.items() if value is not None}),
            repeatable=dry_run,
        ),
    )


def metrics(session: Session) -> Conversation[dict[str, Any]]:
    """The latest metrics: `nodes`, `models` with their executors, and `channels` (model -> traffic matrix)."""
    return converse(session, Call("GET", "/v1/metrics", mapping, repeatable=True))


def log(
    session: Session, name: str | None = None, *, limit: int = 100, after: str | None = None
) -> Conversation[list[dict[str, Any]]]:
    """The last entries of the cluster's log (of one model), or the first ones after the id `after`; oldest first."""
    query = {"limit": str(limit)}
    if name is not None:
        query["model"] = name
    if after is not None:
        query["after"] = after
    return converse(session, Call("GET", "/v1/log", items, query=query, repeatable=True))


def _typed_key(key: Any) -> tuple[str, dict[str, str]]:
    """A key as a path segment, and the query that says how to read it."""
    if isinstance(key, str):
        return segment(key), {}
    if isinstance(key, int) and not isinstance(key, bool):
        return str(key), {"type": "int"}
    return segment(msgspec.json.encode(key).decode()), {"type": "json"}


def state(session: Session, name: str, step: str, key: Any) -> Conversation[Any]:
    """The value that the keyed step `step` holds for `key` (text, a whole number, or any JSON value).
    Raises `NotFound` when there is none."""
    last, query = _typed_key(key)
    path = f"/v1/state/{model_path(name)}/{segment(step)}/{last}"
    return converse(session, Call("GET", path, lambda answer: mapping(answer)["value"], query=query, repeatable=True))


def list_state(
    session: Session, name: str, step: str, *, limit: int = 100, cursor: str | None = None
) -> Conversation[dict[str, Any]]:
    """One page of a step's state: `{"items": [{"key", "value"}, …], "cursor": … or null}`."""
    query = {"limit": str(limit)} | ({} if cursor is None else {"cursor": cursor})
    path = f"/v1/state/{model_path(name)}/{segment(step)}"
    return converse(session, Call("GET", path, mapping, query=query, repeatable=True))
