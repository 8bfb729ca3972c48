"""Questions to executors, wherever they are: by a control message on this node, by HTTP on another.

A key leads to its executor by the same hash as the records did, the plan leads from the executor to its node.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import Any, Protocol

import httpx
import msgspec

from penstock.cluster.bus import Bus
from penstock.cluster.checkpoint_parts import NumberUsed
from penstock.cluster.plan import ModelState, Plan
from penstock.cluster.runner import Runner
from penstock.cluster.service import (
    Addresses,
    Conflict,
    Found,
    Lane,
    LaneView,
    Misdirected,
    NoRoom,
    NotBegun,
    NotFound,
    Page,
    Pushed,
    Unavailable,
)
from penstock.cluster.view import View
from penstock.errors import ClusterError, ExchangeError, FlowError, UsageError
from penstock.exchange.keys import key_group, owner
from penstock.flow.graph import Topology
from penstock.worker.messages import Listing, Lookup, Push

PATH = "/internal/call"
TOKEN_HEADER = "X-Penstock-Cluster"
_TOKEN_EVERY = 1.0
"""Seconds; not more often is Redis asked because somebody has another token."""
_NO_SOURCE = "no open push source"
_ROOM_AFTER = 0.1
"""Seconds in which a source that has no room has read much of what waits."""


class Question(msgspec.Struct, tag_field="q"):
    """The root of what nodes ask each other. `timeout` in seconds."""

    model: str
    timeout: float


class AskKey(Question, tag="key"):
    """The state of one key, in one executor."""

    step: str
    executor: str
    key: Any


class AskKeys(Question, tag="keys"):
    """Keys and values of a step in these executors."""

    step: str
    executors: list[str]
    limit: int
    cursor: str | None


class AskPush(Question, tag="push"):
    """Hand records to a push source in one executor."""

    source: str
    executor: str
    records: list[Any]
    client: str | None
    seq: int | None
    lane: int | None = None


class AskResults(Question, tag="results"):
    """The latest records of `collect` sinks."""

    step: str | None
    limit: int


class AskCheckpoint(Question, tag="checkpoint"):
    """Take checkpoint `number` of what you run of the plan of this revision. The answer's value: executor -> size of
    its part in bytes and its pause in seconds, once all are durable; if the number was used before, the greatest used.
    """

    generation: int
    revision: int
    number: int


class AskCommitted(Question, tag="committed"):
    """Checkpoint `number` is complete: your workers may commit it."""

    generation: int
    number: int


class AskPackage(msgspec.Struct, tag_field="q", tag="package"):
    """A piece of a package of the library."""

    digest: str
    offset: int
    size: int
    timeout: float


class AskPromise(msgspec.Struct, tag_field="q", tag="promise"):
    """Redis cannot be reached: do you promise to take nobody for lost for one lease?"""

    node: str
    timeout: float


class Answer(msgspec.Struct):
    """`ok`: `value` is the answer. Otherwise `problem` says why; `later`: it can be tried again."""

    ok: bool
    value: Any = None
    problem: str = ""
    later: bool = False
    begun: bool = True
    """False: surely it had no effect."""


AnyQuestion = AskKey | AskKeys | AskPush | AskResults | AskCheckpoint | AskCommitted | AskPackage | AskPromise
_decode_question = msgspec.msgpack.Decoder(AnyQuestion).decode
_decode_answer = msgspec.msgpack.Decoder(Answer).decode


class Neighbourly(Protocol):
    """What other nodes may ask of this one, besides questions to executors."""

    async def piece(self, digest: str, offset: int, size: int) -> tuple[bytes, int] | None:
        """A piece of a package and its whole size; `None`: this node does not have it."""
        ...

    def promise(self) -> bool:
        """See `Participant.promise`."""
        ...


class Questions:
    """Answers what can be answered here, asks other nodes for the rest."""

    def __init__(
        self,
        node: str,
        bus: Bus,
        runner: Runner,
        neighbour: Neighbourly,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._node, self._bus, self._runner, self._transport = node, bus, runner, transport
        self._neighbour = neighbour
        self._client: httpx.AsyncClient | None = None
        self._token = ""
        self._token_at = float("-inf")
        """When it was last asked for, monotonic."""

    async def start(self) -> None:
        """Get the cluster's token: whoever can read this Redis is a node. Raises `BusDown`."""
        await self._learn_token()
        if self._client is None:
            # No bound on connections: questions about checkpoints may wait for long, look-ups must not wait for them.
            self._client = httpx.AsyncClient(
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
                trust_env=False,
                transport=self._transport,
                headers={"Content-Type": "application/msgpack"},
            )

    async def _learn_token(self) -> None:
        """As it is in Redis; when Redis has lost its memory, the one that this node has goes on if it is the first to
        say so."""
        self._token_at = asyncio.get_running_loop().time()
        key = self._bus.key("token")
        await self._bus.command("SET", key, self._token or secrets.token_hex(32), "NX")
        self._token = await self._bus.command("GET", key) or self._token

    async def _token_again(self) -> None:
        """The other side has another token: Redis may have lost its memory, and got a new one."""
        if asyncio.get_running_loop().time() > self._token_at + _TOKEN_EVERY:
            with contextlib.suppress(ClusterError):
                await self._learn_token()

    def _is_token(self, token: str) -> bool:
        return bool(self._token) and secrets.compare_digest(token.encode(), self._token.encode())

    async def close(self) -> None:
        """Close the connections to other nodes."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    # ---- answering --------------------------------------------------------------------------------------------------

    async def serve(self, token: str, body: bytes) -> bytes:
        """See `NodeService.internal`."""
        if token and not self._is_token(token):
            await self._token_again()
        if not self._is_token(token):
            raise PermissionError("the caller is not a node of this cluster")
        try:
            question = _decode_question(body)
        except msgspec.MsgspecError as error:
            return msgspec.msgpack.encode(Answer(False, problem=f"the question cannot be read: {error}"))
        return msgspec.msgpack.encode(await self._here(question))

    async def _here(self, question: AnyQuestion) -> Answer:
        try:
            match question:
                case AskKey():
                    message = Lookup(0, question.model, question.step, question.key)
                    return await self._ask_worker(question, question.executor, message)
                case AskKeys():
                    return await self._keys_here(question)
                case AskPush():
                    return await self._ask_worker(question, question.executor, _push_of(question))
                case AskCheckpoint():
                    return await self._take_checkpoint(question)
                case AskCommitted():
                    self._runner.parts.committed(question.model, question.generation, question.number)
                    return Answer(True)
                case AskPackage():
                    return Answer(True, await self._neighbour.piece(question.digest, question.offset, question.size))
                case AskPromise():
                    return Answer(True, self._neighbour.promise())
                case AskResults():
                    return Answer(True, self._runner.results(question.model, question.step, question.limit))
        except Unavailable as error:
            return Answer(False, problem=error.message, later=True, begun=not isinstance(error, NotBegun))

    async def _ask_worker(self, question: AskKey | AskPush, executor: str, message: Lookup | Push) -> Answer:
        worker = self._runner.worker_of(question.model, executor)
        if worker is None:
            raise NotBegun(f"executor {executor} of {question.model} is not running on {self._node} now")
        reply = await self._runner.workers.request(worker, message, question.timeout)
        return Answer(reply.ok, reply.value, reply.problem)

    async def _keys_here(self, question: AskKeys) -> Answer:
        items: list[Any] = []
        more = False
        plan = self._runner.plan_of(question.model)
        if plan is not None and plan.replicated:
            away = [name for name in question.executors if self._runner.worker_of(question.model, name) is None]
            if away:  # it moves, or is being replaced: a listing without it would be wrong
                raise NotBegun(f"executors {', '.join(away)} of {question.model} are not running on {self._node} now")
        for worker in self._runner.workers_of(question.model, set(question.executors)):
            message = Listing(0, question.model, question.step, question.limit, question.cursor)
            reply = await self._runner.workers.request(worker, message, question.timeout)
            if not reply.ok:
                return Answer(False, problem=reply.problem)
            items += reply.value["items"]
            more = more or bool(reply.value.get("more", len(reply.value["items"]) >= question.limit))
        return Answer(True, {"items": items, "more": more})

    async def _take_checkpoint(self, question: AskCheckpoint) -> Answer:
        q = question
        try:
            return Answer(True, await self._runner.parts.take(q.model, q.generation, q.revision, q.number, q.timeout))
        except NumberUsed as error:
            return Answer(False, error.used, error.message)

    # ---- asking -----------------------------------------------------------------------------------------------------

    async def ask(self, view: View, node: str, question: AnyQuestion) -> Answer:
        """Ask a node, this one or another. Raises `Unavailable` when there is no answer in time."""
        return await self._ask(view, node, question)

    async def _ask(self, view: View, node: str, question: AnyQuestion) -> Answer:
        """Ask a node, this one or another. Raises `Unavailable` when there is no answer in time."""
        if node == self._node:
            answer = await self._here(question)
        else:
            answer = await self._ask_elsewhere(view, node, question)
        if answer.later:
            raise (Unavailable if answer.begun else NotBegun)(answer.problem, nodes={node: answer.problem})
        return answer

    async def _ask_elsewhere(self, view: View, node: str, question: AnyQuestion) -> Answer:
        member = view.members.get(node) or view.returning.get(node)
        if member is None or not member.live:
            raise NotBegun(f"node {node} is gone", nodes={node: "its lease ran out"})
        return await self.ask_at(node, member.lease["address"], question)

    async def ask_at(self, node: str, address: str, question: AnyQuestion) -> Answer:
        """Ask the node at `address`. Raises `Unavailable` when there is no answer in time."""
        if self._client is None:
            raise Unavailable("this node is starting or stopping")
        try:
            response = await self._post(self._client, address, question)
            if response.status_code == 403:
                await self._token_again()
                response = await self._post(self._client, address, question)
            if response.status_code != 200:
                raise Unavailable(f"node {node} answered with HTTP {response.status_code}", nodes={node: response.text})
            return _decode_answer(response.content)
        except (httpx.HTTPError, msgspec.MsgspecError) as error:
            reason = str(error) or type(error).__name__
            raise Unavailable(f"node {node} does not answer: {reason}", nodes={node: reason}) from error

    async def _post(self, client: httpx.AsyncClient, address: str, question: AnyQuestion) -> httpx.Response:
        return await client.post(
            address.rstrip("/") + PATH, content=msgspec.msgpack.encode(question),
            headers={TOKEN_HEADER: self._token}, timeout=question.timeout + 1.0,
        )  # fmt: skip

    @property
    def _timeout(self) -> float:
        return self._bus.settings.request

    async def lookup(self, view: View, name: str, step: str, key: Any) -> Found:
        """See `NodeService.lookup`."""
        plan, stage = _keyed(view, name, step)
        try:
            executors = [f"{stage}.{index}" for index in plan.askable(stage, key_group(key))]
        except ExchangeError as error:
            raise UsageError(error.message) from error
        found = Found(False, None)
        for executor in executors:
            question = AskKey(name, self._timeout, step, executor, key)
            answer = await self._ask(view, plan.executors[executor].node, question)
            if not answer.ok:
                raise NotFound(answer.problem)
            found = Found(bool(answer.value["found"]), answer.value["value"])
            if found.found:
                return found
        if not found.found and isinstance(key, str) and (number := _number(key)) is not None:
            return await self.lookup(view, name, step, number)
        return found

    async def listing(self, view: View, name: str, step: str, limit: int, cursor: str | None) -> Page:
        """See `NodeService.listing`."""
        if limit < 1:
            raise UsageError(f"limit is {limit}", remedy="ask for 1 item at least")
        plan, stage = _keyed(view, name, step)
        by_node: dict[str, list[str]] = {}
        for executor in [f"{stage}.{index}" for index in plan.indexes(stage)]:
            if executor in plan.unborn():
                continue
            by_node.setdefault(plan.executors[executor].node, []).append(executor)
        items: list[tuple[Any, Any]] = []
        more = False
        for node, executors in by_node.items():
            question = AskKeys(name, self._timeout, step, executors, limit, cursor)
            answer = await self._ask(view, node, question)
            if not answer.ok:
                raise NotFound(answer.problem)
            items += [(key, value) for key, value in answer.value["items"]]
            more = more or answer.value["more"]
        items.sort(key=lambda item: _key_text(item[0]))
        more = more or len(items) > limit
        items = items[:limit]
        return Page(items, _key_text(items[-1][0]) if more and items else None)

    def addresses(self, view: View, name: str, source: str) -> Addresses:
        """See `NodeService.addresses`."""
        plan, stage = _push_source(view, name, source)
        urls = {member.id: member.lease["address"] for member in view.members.values() if member.live}
        lanes: list[LaneView] = []
        for index in range(plan.counts[stage]):
            node = _node_of(plan, f"{stage}.{index}")
            lanes.append(LaneView(lane=index, executor=f"{stage}.{index}", node=node, url=urls.get(node, "")))
        cluster = view.lineage[-1] if view.lineage else ""
        return Addresses(model=name, source=source, cluster=cluster, revision=plan.revision, lanes=lanes, nodes=urls)

    async def push(
        self, view: View, name: str, source: str, records: list[Any], client: str | None, seq: int | None, to: Lane
    ) -> Pushed | NoRoom:
        """See `NodeService.push`."""
        if to.cluster and view.lineage and to.cluster not in view.lineage:
            raise Misdirected(f"node {self._node} is of another cluster than the one that gave its address")
        plan, stage = _push_source(view, name, source)
        if not records:
            return Pushed(0)
        answer = Answer(False, problem=f"source {source!r} of {name!r} is not open")
        for lane in self._lanes(plan, stage, client if seq is not None else None, to.number):
            executor = f"{stage}.{lane}"
            question = AskPush(name, self._timeout, source, executor, records, client, seq, lane)
            answer = await self._ask(view, _node_of(plan, executor), question)
            if answer.ok:
                return Pushed(int(answer.value))
            if answer.problem and _NO_SOURCE not in answer.problem:
                raise UsageError(answer.problem)
        if not answer.problem:
            return NoRoom(_ROOM_AFTER)
        raise NotBegun(answer.problem)

    def _lanes(self, plan: Plan, stage: int, client: str | None, wanted: int | None) -> list[int]:
        """The lanes to try, in order. What may be repeated has one lane; what is sent without a number goes where it is
        near, and elsewhere when there is no room: there is no repeat that would have to find it."""
        count = plan.counts[stage]
        if wanted is not None:
            return [wanted % count]
        if client is not None:
            return [owner(key_group(client), count)]
        return sorted(range(count), key=lambda lane: _node_of(plan, f"{stage}.{lane}") != self._node)

    async def results(self, view: View, name: str, step: str | None, limit: int) -> list[Any]:
        """See `NodeService.results`. Nodes that are gone take theirs with them."""
        state = view.models.get(name)
        if state is None:
            raise NotFound(f"there is no model {name!r}", remedy="penstock model list shows those that there are")
        if step is not None:
            _check_step(state, step)
        nodes = state.plan.nodes() if state.plan is not None else {self._node}
        found: list[Any] = []
        for node in sorted(nodes):
            answer = await self._ask(view, node, AskResults(name, self._timeout, step, limit))
            found += answer.value
        return found[-limit:]


def _online(view: View, name: str) -> tuple[ModelState, Plan]:
    state = view.models.get(name)
    if state is None:
        raise NotFound(f"there is no model {name!r}", remedy="penstock model list shows those that there are")
    if state.entry.error:
        raise Conflict(
            f"{name!r} has failed: {state.entry.error}",
            remedy="take it offline, correct it, bring it online: keyed state starts empty then",
        )
    if state.entry.desired != "online":
        raise Conflict(f"{name!r} is offline", remedy=f"penstock model online {name}")
    if state.plan is None:
        raise Unavailable(f"{name!r} is being started")
    return state, state.plan


def _topology(state: ModelState) -> Topology:
    """Raises `Unavailable` on a node that has not got the package yet."""
    if state.entry.topology is None:
        raise Unavailable(f"this node does not have the package of {state.entry.name!r} yet")
    return state.entry.topology


def _push_source(view: View, name: str, source: str) -> tuple[Plan, int]:
    """The plan, and the stage of a source that takes pushed records."""
    state, plan = _online(view, name)
    topology = _topology(state)
    if source not in topology.sources:
        known = ", ".join(topology.push_sources) or "none"
        raise NotFound(f"{name!r} has no source {source!r}", remedy=f"sources that take pushed records: {known}")
    if source not in topology.push_sources:
        raise Conflict(f"source {source!r} of {name!r} does not take pushed records")
    return plan, topology.stage_of(source).id


def _push_of(question: AskPush) -> Push:
    q = question
    return Push(0, q.model, q.source, q.records, q.client, q.seq, q.lane)


def _node_of(plan: Plan, executor: str) -> str:
    """Where the executor is, or its primary."""
    return plan.executors[executor].node


def _check_step(state: ModelState, step: str) -> None:
    """Raises `NotFound` when the model has no such step."""
    try:
        _topology(state).stage_of(step)
    except FlowError as error:
        raise NotFound(error.message, remedy=error.remedy) from error


def _keyed(view: View, name: str, step: str) -> tuple[Plan, int]:
    """The plan, and the stage of a keyed step."""
    state, plan = _online(view, name)
    _check_step(state, step)
    topology = _topology(state)
    if step not in topology.keyed_steps:
        known = ", ".join(topology.keyed_steps) or "none"
        raise NotFound(f"step {step!r} of {name!r} has no state per key", remedy=f"steps that have: {known}")
    return plan, topology.stage_of(step).id


def _key_text(key: Any) -> str:
    """What workers order keys by. A tuple arrives here as a list."""
    return str(_tuples(key))


def _tuples(key: Any) -> Any:
    return tuple(_tuples(part) for part in key) if isinstance(key, list) else key


def _number(text: str) -> int | float | None:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return None
