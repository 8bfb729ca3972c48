"""What can be done to models over the whole cluster: each function describes requests and does no I/O but packing.

A change is asked for with an idempotency key, so that it can be sent again after a broken connection. The node answers
with the end, or with an operation that goes on, which is then looked at until it has ended.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypedDict, Unpack

import httpx
import msgspec

from penstock.client.calls import items, mapping, model_path, segment
from penstock.client.conversation import Call, Conversation, Pause, Session, Work, converse
from penstock.client.errors import ClientError, RolledBack, Unfinished
from penstock.errors import UsageError

OPERATION_TIMEOUT = 120.0
"""Seconds that a change may take in all, unless its nodes are given longer to prepare."""
SETTLING = 60.0
"""Seconds that a change may take beyond the time that its nodes have to prepare."""
ANSWER = 10.0
"""Seconds after which a node answers with what is known then; going on, it is asked again."""
QUICK_ANSWER = 0.3
"""The same when somebody looks on and wants to see what is awaited."""
LEAST_PATIENCE = 15.0
"""Seconds that a node gets to answer, however soon the deadline is. It may take longer than asked for: before it begins
anything it checks the package, makes the model's environment and tries it out."""
MOVE_TIMEOUT = 90.0
"""Seconds that a node may take to answer how a move has ended."""
STARTING = frozenset({"starting", "degraded"})
STOPPING = frozenset({"stopping"})
"""Statuses that pass by themselves."""
POLL = (0.1, 1.0)
"""First and longest pause between two looks at an operation, in seconds."""
KEPT_SAYING = frozenset({"waiting", "ready", "done"})
"""What a node says of an operation that it does not refuse."""

Say = Callable[[str], None]


class PackageLike(Protocol):
    """A package that is made already, as `penstock.model.package.build` gives it."""

    @property
    def path(self) -> Path:
        """The wheel."""
        ...


class Options(TypedDict, total=False):
    """How a change is asked for: keywords of every call that changes a model.

    `timeout`: seconds that the nodes have to prepare. `deadline`: seconds until `Unfinished` is raised while the
    operation goes on by itself; default: 120, or a minute more than `timeout`. `wait` False: do not wait for the end,
    return the operation. `key`: an idempotency key of your own, to repeat the call after a restart of the caller.
    `dry_run`: change nothing, return the plan. `on_progress` is told in words what is awaited.
    """

    timeout: float | None
    deadline: float | None
    wait: bool
    key: str | None
    dry_run: bool
    on_progress: Say


def add_model(
    session: Session,
    source: str | Path | PackageLike,
    *,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    bundle: bool = False,
    **options: Unpack[Options],
) -> Conversation[dict[str, Any]]:
    """Add the flow in a file, a directory or a wheel to every node of the cluster: it is packed here and uploaded.

    `config`: values for `ps.config`, where its author's are not right. `bundle`: carry what it requires inside the
    package. Returns the model. Raises `Conflict` when it exists, `RolledBack` with the reasons of the nodes, `Rejected`
    and `UsageError` for what does not build."""
    query = {} if name is None else {"name": name}
    with tempfile.TemporaryDirectory(prefix="penstock-package-") as folder:
        package = yield from _package(source, Path(folder), bundle, options)
        body = package if not config else Form(package, dict(config))
        return (yield from _changed(session, "POST", "/v1/models", body, query, options))


def update_model(
    session: Session,
    name: str,
    source: str | Path | PackageLike | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    live: bool = False,
    bundle: bool = False,
    **options: Unpack[Options],
) -> Conversation[dict[str, Any]]:
    """Give a model another package, another configuration, or both. `live`: while it is online, keeping its state.
    Raises `NotFound`, `Conflict`, `RolledBack`, `Rejected`."""
    if source is None and config is None:
        raise UsageError("an update changes the package or the configuration", remedy="give source=, config= or both")
    path = f"/v1/models/{model_path(name)}"
    query = {"live": "true"} if live else {}
    before = (yield from converse(session, _model(name)))["generation"] if live else 0
    end = session.clock() + _deadline(options)
    if source is None:
        view = yield from _changed(session, "PUT", path, {"config": dict(config or {})}, query, options)
    else:
        with tempfile.TemporaryDirectory(prefix="penstock-package-") as folder:
            package = yield from _package(source, Path(folder), bundle, options)
            body = package if config is None else Form(package, dict(config))
            view = yield from _changed(session, "PUT", path, body, query, options)
    return (yield from _taken_over(session, view, before, end, options)) if live else view


def rollback(
    session: Session, name: str, to: int | None = None, *, live: bool = False, **options: Unpack[Options]
) -> Conversation[dict[str, Any]]:
    """Bring back the version of generation `to`, default: the one before the present one. `live`: while it is online;
    that also calls off a live update that is under way. Raises `NotFound`, `Conflict`, `RolledBack`."""
    path = f"/v1/models/{model_path(name)}/rollback"
    if not live:
        return (yield from _changed(session, "POST", path, {"to": to}, {}, options))
    before = (yield from converse(session, _model(name)))["generation"]
    end = session.clock() + _deadline(options)
    view = yield from _changed(session, "POST", path, {"to": to, "live": True}, {}, options)
    return (yield from _taken_over(session, view, before, end, options))


def delete_model(session: Session, name: str, **options: Unpack[Options]) -> Conversation[dict[str, Any] | None]:
    """Delete a model that is offline. Returns `None` (the plan with `dry_run`, the operation without `wait`).
    Raises `NotFound`, `Conflict`, `RolledBack`."""
    reply = yield from _settled(session, "DELETE", f"/v1/models/{model_path(name)}", None, {}, options)
    return reply.body if reply.plan or reply.pending else None


def online(
    session: Session,
    name: str,
    *,
    config: Mapping[str, Any] | None = None,
    executors: int | None = None,
    recovery: str | None = None,
    replication: Mapping[str, float] | None = None,
    **options: Unpack[Options],
) -> Conversation[dict[str, Any]]:
    """Bring a model online; returns when it runs. `executors` per stage; `replication`: how its standbys are kept up to
    date, see docs/cluster.md. Raises `NotFound`, `Conflict`, `RolledBack`,
    `Rejected`, and `ClientError` with the author's error when it cannot run."""
    body = {"config": None if config is None else dict(config), "executors": executors, "recovery": recovery}
    if replication is not None:
        body["replication"] = dict(replication)
    path = f"/v1/models/{model_path(name)}/online"
    return (yield from _changed(session, "POST", path, body, {}, options, until=STARTING))


def move(session: Session, name: str, executor: str, node: str, *, wait: bool = True) -> Conversation[dict[str, Any]]:
    """Have the primary of an executor (`stage.index`) on another node while everything runs: `done`, or `reason` when
    it stays where it is. `wait` False: do not wait for the end. Raises `NotFound`, and `Conflict` for a model that has
    no replicas or does not run."""
    path = f"/v1/models/{model_path(name)}/move"
    return converse(
        session,
        Call(
            "POST",
            path,
            mapping,
            query={} if wait else {"wait": "0"},
            headers={"content-type": "application/json", **_user(session)},
            body=msgspec.json.encode({"executor": executor, "node": node}),
            repeatable=True,
            timeout=MOVE_TIMEOUT,
        ),
    )


def split(session: Session, name: str, what: str) -> Conversation[dict[str, Any]]:
    """Have an executor of a keyed step give half of its key groups to a new one, while everything runs. `what`: an
    executor (`stage.index`), or a step. It is begun; events tell the end. Raises `NotFound`, and `Conflict` for a model
    without replicas and for a step that cannot be divided."""
    return converse(
        session,
        Call(
            "POST",
            f"/v1/models/{model_path(name)}/split",
            mapping,
            headers={"content-type": "application/json", **_user(session)},
            body=msgspec.json.encode({"what": what}),
            repeatable=False,
        ),
    )


def offline(session: Session, name: str, **options: Unpack[Options]) -> Conversation[dict[str, Any]]:
    """Take a model offline; its state is dropped. Raises `NotFound`, `Conflict`, `RolledBack`."""
    path = f"/v1/models/{model_path(name)}/offline"
    return (yield from _changed(session, "POST", path, None, {}, options, until=STOPPING))


def versions(session: Session, name: str) -> Conversation[list[dict[str, Any]]]:
    """The versions of a model, the present one first. Raises `NotFound`."""
    return converse(session, Call("GET", f"/v1/models/{model_path(name)}/versions", items, repeatable=True))


def operations(session: Session) -> Conversation[list[dict[str, Any]]]:
    """Changes of models that go on, and those that ended a short while ago; the latest first."""
    return converse(session, Call("GET", "/v1/operations", items, repeatable=True))


def operation(session: Session, id: str) -> Conversation[dict[str, Any]]:
    """One operation: its phase, and what each node says. Raises `NotFound`."""
    return converse(session, Call("GET", _operation_path(id), mapping, repeatable=True))


def cancel_operation(session: Session, id: str) -> Conversation[dict[str, Any]]:
    """Roll an operation back. Raises `NotFound`, and `Conflict` when it is decided already."""
    return converse(session, Call("DELETE", _operation_path(id), mapping, headers=_user(session), repeatable=True))


def logs(
    session: Session, name: str, *, limit: int = 100, after: str | None = None
) -> Conversation[list[dict[str, Any]]]:
    """What the model's code printed and logged, and its errors: the last entries, or the first ones after the id
    `after`; oldest first. Raises `NotFound`."""
    query = {"limit": str(limit)} | ({} if after is None else {"after": after})
    return converse(session, Call("GET", logs_path(name), items, query=query, repeatable=True))


def logs_path(name: str) -> str:
    """Where the log of a model is."""
    return f"/v1/models/{model_path(name)}/logs"


def _operation_path(id: str) -> str:
    if not id:
        raise UsageError("an operation's id is empty", remedy="see `penstock operations`")
    return f"/v1/operations/{segment(id)}"


# ---- packing ---------------------------------------------------------------------------------------------------------


def _package(source: str | Path | PackageLike, folder: Path, bundle: bool, options: Options) -> Conversation[Path]:
    """The package of `source`, made in `folder` unless it is one already. Raises `UsageError` and `PackageError`."""
    if not isinstance(source, str | Path):
        return source.path
    say = options.get("on_progress") or _nobody
    path = Path(source).expanduser()

    def build() -> Path:
        from penstock.model.package import build

        return build(path, folder, bundle=bundle, progress=say).path

    say(f"packing {path.name}")
    built: Path = yield Work(build)
    return built


class Form(msgspec.Struct, frozen=True):
    """A body with a package and a configuration."""

    package: Path
    config: dict[str, Any]


# ---- asking, and waiting for the end ---------------------------------------------------------------------------------


class _Reply(msgspec.Struct):
    """What a node answered to a change."""

    body: Any
    pending: bool = False
    plan: bool = False


def _nobody(text: str) -> None:
    pass


def _read(answer: httpx.Response) -> _Reply:
    body = msgspec.json.decode(answer.content) if answer.content else None
    return _Reply(body, pending=answer.status_code == 202)


def _deadline(options: Options) -> float:
    """Seconds that the whole of it may take."""
    given, timeout = options.get("deadline"), options.get("timeout")
    if given is not None:
        return given
    return OPERATION_TIMEOUT if timeout is None else max(OPERATION_TIMEOUT, timeout + SETTLING)


def _call(session: Session, method: str, path: str, body: Any, query: dict[str, str], options: Options) -> Call[_Reply]:
    """The request of a change."""
    wait = 0.0 if not options.get("wait", True) else QUICK_ANSWER if "on_progress" in options else ANSWER
    query = query | {"wait": f"{min(wait, _deadline(options)):g}"}
    timeout = options.get("timeout")
    if timeout is not None:
        query["timeout"] = f"{timeout:g}"
    if options.get("dry_run"):
        query["dry_run"] = "true"
    headers = {"idempotency-key": options.get("key") or uuid.uuid4().hex} | _user(session)
    content, kind = _content(body)
    if kind:
        headers["content-type"] = kind
    patience = max(LEAST_PATIENCE, _deadline(options))
    return Call(method, path, _read, query=query, headers=headers, body=content, repeatable=True, timeout=patience)


def _user(session: Session) -> dict[str, str]:
    return {"penstock-user": session.user} if session.user else {}


def _content(body: Any) -> tuple[bytes | tuple[bytes | Path, ...] | None, str]:
    """A body and its media type: a package as it is, a form, JSON, or nothing."""
    if body is None:
        return None, ""
    if isinstance(body, Path):
        return (body,), "application/octet-stream"
    if not isinstance(body, Form):
        return msgspec.json.encode(body), "application/json"
    boundary = uuid.uuid4().hex
    field = f'--{boundary}\r\ncontent-disposition: form-data; name="%s"\r\n\r\n'
    config = (field % "config").encode() + msgspec.json.encode(body.config) + b"\r\n"
    package = (field % "package").encode()
    end = f"\r\n--{boundary}--\r\n".encode()
    return (config + package, body.package, end), f"multipart/form-data; boundary={boundary}"


def _changed(
    session: Session,
    method: str,
    path: str,
    body: Any,
    query: dict[str, str],
    options: Options,
    until: frozenset[str] = frozenset(),
) -> Conversation[dict[str, Any]]:
    """Ask for a change and wait for its end; the model as it is then. `until`: statuses that must have passed."""
    end = session.clock() + _deadline(options)
    reply = yield from _settled(session, method, path, body, query, options)
    found: dict[str, Any] = reply.body
    if until and not reply.pending and not reply.plan:
        return (yield from _passed(session, found, until, end, options))
    return found


def _settled(
    session: Session, method: str, path: str, body: Any, query: dict[str, str], options: Options
) -> Conversation[_Reply]:
    """Ask for a change; wait until its operation has ended, if that is wanted."""
    say = options.get("on_progress") or _nobody
    end = session.clock() + _deadline(options)
    if isinstance(body, Path | Form):
        say("uploading the package, which the node checks first")
    # A model that starts is asked for again and again until it runs, so that the whole time counts.
    patience = _deadline(options) if path.endswith("/online") else None
    reply = yield from converse(
        session, _call(session, method, path, body, query, options), patience, lambda error: say(error.first_line)
    )
    reply.plan = bool(options.get("dry_run"))
    if not reply.pending or not options.get("wait", True):
        return reply
    last = yield from _ended(session, reply.body, end, say)
    if method == "DELETE":
        return _Reply(None)
    return _Reply((yield from converse(session, _model(last["model"]))))


def _model(name: str) -> Call[dict[str, Any]]:
    return Call("GET", f"/v1/models/{model_path(name)}", mapping, repeatable=True)


def _ended(session: Session, operation: dict[str, Any], end: float, say: Say) -> Conversation[dict[str, Any]]:
    """Look at an operation until nothing is awaited any more. Raises `RolledBack`, `Unfinished`."""
    pause, longest = POLL
    call = Call("GET", _operation_path(operation["id"]), mapping, repeatable=True)
    while not operation["settled"]:
        say(progress(operation))
        if session.clock() + pause > end:
            raise _unfinished(operation)
        yield Pause(pause)
        pause = min(longest, pause * 1.3)
        operation = yield from converse(session, call)
    if operation["phase"] == "aborted":
        raise _rolled_back(operation)
    return operation


def _passed(
    session: Session, view: dict[str, Any], passing: frozenset[str], end: float, options: Options
) -> Conversation[dict[str, Any]]:
    """Look at a model until its status is none of `passing`. Raises `ClientError` with its error when it failed."""
    say = options.get("on_progress") or _nobody
    pause, longest = POLL
    while (status := view["status"]) in passing and not _runs(view):
        waiting = sorted({e["node"] for e in view["executors"] if e["state"] == "starting" and e["node"]})
        say(f"{view['name']} is {status}" + (f": waiting for {', '.join(waiting)}" if waiting else ""))
        if session.clock() + pause > end:
            raise Unfinished(
                f"{view['name']} is still {status}",
                remedy=f"it goes on by itself: `penstock model show {view['name']}`",
            )
        yield Pause(pause)
        pause = min(longest, pause * 1.3)
        view = yield from converse(session, _model(view["name"]))
    if status == "failed" and passing is STARTING:
        raise ClientError(view["error"] or f"{view['name']} failed", remedy=f"see `penstock model logs {view['name']}`")
    return view


def _taken_over(
    session: Session, view: dict[str, Any], before: int, end: float, options: Options
) -> Conversation[dict[str, Any]]:
    """Look at a model until its new version has taken over. `before`: its generation before that. Raises `ClientError`
    when the one before goes on."""
    if "update" not in view or not options.get("wait", True):
        return view  # a plan, or an operation
    say = options.get("on_progress") or _nobody
    pause, longest = POLL
    while (update := view["update"]) is not None and update["phase"] != "failed":
        say(f"{view['name']}: {update['phase']}, {update['executors']} of {len(view['executors'])} run the new version")
        if session.clock() + pause > end:
            remedy = f"it goes on by itself: `penstock model show {view['name']}`"
            raise Unfinished(f"{view['name']} is still being updated", remedy=remedy)
        yield Pause(pause)
        pause = min(longest, pause * 1.3)
        view = yield from converse(session, _model(view["name"]))
    # An update that was called off is no failure of the rollback that has done so.
    if update is not None and update["generation"] > before:
        remedy = "correct the new version and try again"
        raise ClientError(f"{view['name']} goes on as it was: {update['error']}", remedy=remedy)
    return view


def _runs(view: dict[str, Any]) -> bool:
    """Whether a model with replicas runs, though it has no standbys yet, as on a single node."""
    executors = view["executors"] if view.get("recovery", "none") != "none" else []
    return bool(executors) and all(executor["state"] in ("running", "finished") for executor in executors)


def awaited(operation: Mapping[str, Any]) -> list[str]:
    """The nodes that an operation waits for."""
    nodes: Mapping[str, str] = operation["nodes"]
    passed = {"done"} if operation["phase"] in ("committing", "finished") else {"ready", "done"}
    return sorted(node for node, said in nodes.items() if said not in passed)


def progress(operation: Mapping[str, Any]) -> str:
    """What an operation waits for, in words."""
    nodes = awaited(operation)
    waiting = f", waiting for {', '.join(nodes)}" if nodes else ""
    return f"{operation['kind']} {operation['model']}: {operation['phase']}{waiting}"


def _unfinished(operation: dict[str, Any]) -> Unfinished:
    return Unfinished(
        f"{progress(operation)}; the deadline has come",
        problem={"operation": operation["id"]},
        remedy=f"it goes on by itself: `penstock operations {operation['id']}`",
    )


def _rolled_back(operation: dict[str, Any]) -> RolledBack:
    """The error of an operation that no node has carried out."""
    said = {node: text for node, text in operation["nodes"].items() if text not in KEPT_SAYING}
    reason = f": {operation['reason']}" if operation["reason"] else ""
    detail = f"{operation['kind']} of {operation['model']} was rolled back{reason}"
    lines = "".join(f"\n  {node}: {text}" for node, text in said.items())
    return RolledBack(detail + lines, problem={"detail": detail, "nodes": said, "operation": operation["id"]})
