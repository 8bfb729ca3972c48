"""The catalogue in Redis: `transaction.records.Store` and the rules of `transaction`, as atomic steps.

The rules themselves run, in Python: read everything at one moment with one script (`look.lua`), let the rule compute
the store as it leaves it, and write the difference with one script (`change.lua`) if nothing that the rule may have
looked at has changed meanwhile; otherwise read again and repeat. What must not have changed:

- `version`, a name that is new with every change and never used twice (so a Redis that was emptied, or that has fallen
  back to an older state, is never taken for the one that was read);
- every lease but for its end: they run out and come to life again without a change of version;
- on which side of the deadlines of open transactions Redis TIME is.

Leases live as `node:<id>` with an expiry. Idempotency keys, and ended transactions that were archived, live as
`idem:<key>` and `ended:<id>` for a day.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

import msgspec

from penstock.cluster.announcements import announce, worth_ringing
from penstock.cluster.bus import Bus, BusDown
from penstock.cluster.transaction import admission, coordinator, rebuild
from penstock.cluster.transaction.admission import Standing
from penstock.cluster.transaction.coordinator import Request
from penstock.cluster.transaction.preconditions import Refusal
from penstock.cluster.transaction.rebuild import Rebuilt
from penstock.cluster.transaction.records import Entry, Journal, Lease, Phase, State, Store, Tx, Vote

KEPT_MS = 24 * 3600 * 1000
"""How long idempotency keys and ended transactions are kept."""
EVENTS_KEPT = 10_000
"""About so many entries of the event log are kept."""
_FIRST_PAUSE, _LAST_PAUSE = 0.001, 0.008
_PATIENCE = 4
"""A change may take so many times the deadline of one command: on a busy cluster others may be faster for a while."""

_replace = msgspec.structs.replace
P = ParamSpec("P")
A = TypeVar("A")
T = TypeVar("T")
Rule: TypeAlias = Callable[Concatenate[Store, int, P], tuple[Store, A]]
"""(store, TIME in ms, …) -> (the store as the rule leaves it, the answer)."""
Fields: TypeAlias = Callable[[], Mapping[str, str | int | float]]
"""What the lease tells of the node."""
Command: TypeAlias = list[str]


class Runtime(msgspec.Struct, frozen=True, kw_only=True):
    """What is planned and what runs of one model, as the texts in Redis."""

    plan: str = ""
    run: Mapping[str, str] = {}
    connected: Mapping[str, str] = {}
    lost: Mapping[str, str] = {}
    failed: str = ""
    moves: Mapping[str, str] = {}
    counter: int = 0
    """The highest plan revision that there has been."""

    @property
    def empty(self) -> bool:
        """Whether nothing is planned, runs, or is left to tell."""
        return not (self.plan or self.run or self.connected or self.lost or self.failed or self.moves)


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """Redis at one moment."""

    store: Store = Store()
    """`keys` are those of the transactions in it; `CatalogueStore.begin` looks up others."""
    now: int = 0
    """TIME in ms."""
    leader: str = ""
    term: int = 0
    fields: Mapping[str, Mapping[str, str]] = {}
    """Node -> everything that its lease tells; only leases in force."""
    runtime: Mapping[str, Runtime] = {}
    """Model -> the runtime layer, of those that have one: also deleted ones, while something of them is left."""
    version: str = ""
    models_version: str = ""
    stamp: str = ""
    checkpoints: Mapping[str, str] = {}
    """Model -> what is on record of its durable checkpoints, as the text in Redis."""
    layer: Mapping[str, Runtime] = {}
    """The runtime layer with the counters of deleted models."""
    decoded: Mapping[str, Mapping[str, tuple[str, Any]]] = {}
    """Hash -> field -> its text and what that means, so that an unchanged text is not decoded again."""


EMPTY = Sight()


class CatalogueStore:
    """See the module. `node` is who calls; `lease_ms` the length of leases; `fields` describe the node in its lease.
    `replicas`: so many replicas of Redis must have a commit before it is finished. Everything raises `BusDown` when
    Redis does not answer in time: whether the change was made is unknown then."""

    def __init__(self, bus: Bus, node: str, lease_ms: int, fields: Fields = dict, *, replicas: int = 0) -> None:
        self.bus, self.node, self.lease_ms = bus, node, lease_ms
        self._fields, self._replicas = fields, replicas
        self._latest = EMPTY
        self._latest_at = float("-inf")
        self._turn = asyncio.Lock()
        self.calls = 0
        """Round trips so far."""
        self.conflicts = 0
        """Changes that had to be computed again so far."""

    @property
    def latest(self) -> Sight:
        """The latest sight, with the changes that were made from here since."""
        return self._latest

    # ---- reading -------------------------------------------------------------------------------------------------

    async def look(self, known: Sight | None = None) -> Sight:
        """Redis at this moment. What has not changed since `known` (default: the latest sight) is not sent again."""
        return (await self._look(known or self._latest))[0]

    async def transaction(self, tx_id: str) -> Tx | None:
        """A transaction, open or ended not longer than a day ago."""
        text = await self.bus.command("HGET", self.bus.key("txs"), tx_id)
        if text is None:
            text = await self.bus.command("GET", self.bus.key("ended", tx_id))
        return None if text is None else msgspec.json.decode(text, type=Tx)

    async def keyed(self, key: str) -> Tx | None:
        """The transaction that was begun with an idempotency key."""
        tx_id = await self.bus.command("GET", self.bus.key("idem", key))
        return None if tx_id is None else await self.transaction(tx_id)

    async def _look(self, known: Sight, key: str = "") -> tuple[Sight, str, str]:
        """What is seen; the id and the text of the ended transaction that have the idempotency key."""
        self.calls += 1
        arguments = [self.bus.key(""), known.version, known.models_version, known.stamp, key]
        raw = await self.bus.script("look", [self.bus.key("version")], arguments)
        self._latest_at = asyncio.get_running_loop().time()
        sight = self._latest = _sight(raw, known)
        return sight, *raw[8]

    # ---- changing ------------------------------------------------------------------------------------------------

    async def change(self, rule: Rule[P, A], *args: P.args, **kwargs: P.kwargs) -> A:
        """Apply a rule of `transaction`; its answer. The answer is true at the moment of the write, also when there is
        nothing to write."""

        def apply(store: Store, now: int) -> tuple[Store, A]:
            return rule(store, now, *args, **kwargs)

        return await self._within_deadline(apply)

    async def _within_deadline(
        self, apply: Callable[[Store, int], tuple[Store, A]], key: str = "", limit: float | None = None
    ) -> A:
        limit = limit or _PATIENCE * self.bus.deadline
        until = asyncio.get_running_loop().time() + limit
        try:
            async with asyncio.timeout(limit), self._turn:
                return await self._change(apply, key, until)
        except TimeoutError:
            raise BusDown(f"the catalogue in Redis at {self.bus.place} could not be changed in {limit:g} s") from None

    async def _change(self, apply: Callable[[Store, int], tuple[Store, A]], key: str, until: float) -> A:
        latest = None if key else self._usable()
        pause = _FIRST_PAUSE
        while True:
            if latest is None:
                sight, *idem = await self._look(self._latest, key)
                sight = _with_key(sight, key, *idem)
                now = sight.now
            else:
                sight, now = latest
            after, answer = apply(sight.store, now)
            if after is sight.store and latest is None:
                return answer
            if await self._write(sight, now, after, until):
                return answer
            self.conflicts += 1
            if latest is None:
                await asyncio.sleep(random.random() * pause)
                pause = min(2 * pause, _LAST_PAUSE)
            latest = None

    def _usable(self) -> tuple[Sight, int] | None:
        """The latest sight and the time of Redis by now, if a change may be tried from it. That TIME is never ahead of
        that of Redis, unless that was moved back: then the guards of the deadlines find out."""
        sight = self._latest
        age = int((asyncio.get_running_loop().time() - self._latest_at) * 1000) if sight.version else self.lease_ms
        now = sight.now + age
        if age >= self.lease_ms / 2 or any(lease.expires <= now for lease in sight.store.leases.values()):
            return None
        return sight, now

    async def _write(self, sight: Sight, now: int, after: Store, until: float) -> bool:
        """Write the difference. False: something has changed since `sight`. A command that lies somewhere on its way
        and comes to Redis later than `until` (of the loop's clock) has no effect."""
        before = sight.store
        latest = now + round((until - asyncio.get_running_loop().time()) * 1000)
        commands = list(_versioned(self.bus.key, before, after))
        version, models_version = sight.version, sight.models_version
        if commands:
            number = int(version.partition("-")[0] or 0) + 1
            version = f"{number}-{secrets.token_hex(6)}"
            commands.append(["SET", self.bus.key("version"), version])
            if before.models is not after.models:
                models_version = version
                commands.append(["SET", self.bus.key("models-version"), version])
        commands += self._leases(before, after, now)
        commands += map(self._event, announce(before, after, self.node))
        if worth_ringing(before, after):
            commands.append(["PUBLISH", self.bus.key("bell"), "1"])
        self.calls += 1
        arguments = [self.bus.key("node", ""), sight.version, *_guards(before, now, latest, self.node)]
        arguments += [word for command in commands for word in (str(len(command)), *command)]
        at = await self.bus.script("change", [self.bus.key("version")], arguments)
        if not at:
            return False
        runtime = sight.runtime if before.models is after.models else _shown(sight.layer, after)
        self._latest = _replace(
            sight, store=after, now=int(at), version=version, models_version=models_version, runtime=runtime
        )
        self._latest_at = asyncio.get_running_loop().time()
        return True

    def _leases(self, before: Store, after: Store, now: int) -> Iterator[Command]:
        if before.leases is after.leases:
            return
        for node in before.leases.keys() - after.leases.keys():
            yield ["DEL", self.bus.key("node", node)]
        for node, lease in after.leases.items():
            old = before.leases.get(node)
            if old is lease:
                continue
            key = self.bus.key("node", node)
            if old is None or (old.nonce, old.incarnation) != (lease.nonce, lease.incarnation):
                yield ["DEL", key]
                told = _flat(self._fields()) if node == self.node else []
                yield ["HSET", key, *told, "nonce", lease.nonce, "incarnation", str(lease.incarnation)]
                old = None
            if old is None or (old.applied, old.since) != (lease.applied, lease.since):
                yield ["HSET", key, "applied", str(lease.applied), "since", str(lease.since)]
            if old is None or old.expires != lease.expires:
                yield ["PEXPIRE", key, str(max(1, lease.expires - now))]

    def _event(self, entry: Mapping[str, str]) -> Command:
        return ["XADD", self.bus.key("log"), "MAXLEN", "~", str(EVENTS_KEPT), "*", *_flat(entry)]

    # ---- the rules -----------------------------------------------------------------------------------------------

    async def begin(self, request: Request) -> str | Refusal:
        """`coordinator.begin`."""
        return await self._within_deadline(lambda store, now: coordinator.begin(store, now, request), request.key)

    async def vote(self, tx_id: str, incarnation: int, said: Vote) -> Phase | None:
        """`coordinator.vote` of this node."""
        return await self.change(coordinator.vote, tx_id, self.node, incarnation, said)

    async def decide(self, tx_id: str) -> Phase | None:
        """`coordinator.decide`."""
        return await self.change(coordinator.decide, tx_id)

    async def abort(self, tx_id: str, reason: str) -> Phase | None:
        """`coordinator.abort`."""
        return await self.change(coordinator.abort, tx_id, reason)

    async def finish(self, tx_id: str) -> Phase | None:
        """`coordinator.finish`, once the configured replicas have the commit."""
        if self._replicas:
            await self._wait_for_replicas()
        return await self.change(coordinator.finish, tx_id)

    async def ack(self, incarnation: int, lineage: tuple[str, ...], rev: int) -> bool:
        """`coordinator.ack` of this node."""
        return await self.change(coordinator.ack, self.node, incarnation, lineage, rev)

    async def arrive(self, nonce: str, least: int) -> tuple[Standing, int]:
        """`admission.arrive` of this node."""
        return await self.change(admission.arrive, self.node, nonce, self.lease_ms, least)

    async def renew(self, nonce: str, incarnation: int) -> Standing:
        """`admission.renew` of this node, in one round trip that waits for nothing else; the lease tells the present
        fields."""
        self.calls += 1
        keys = [self.bus.key(name) for name in ("lineage", "members", "expected", "incarnations")]
        keys.append(self.bus.key("node", self.node))
        arguments: list[str | int] = [self.node, nonce, incarnation, self.lease_ms, *_flat(self._fields())]
        return Standing(await self.bus.script("renew_lease", keys, arguments))

    async def admit(self, incarnation: int, lineage: tuple[str, ...], rev: int) -> bool:
        """`admission.admit` of this node."""
        return await self.change(admission.admit, self.node, incarnation, lineage, rev)

    async def leave(self, incarnation: int) -> bool:
        """`admission.leave` of this node."""
        return await self.change(admission.leave, self.node, incarnation)

    async def forget(self, node: str, incarnation: int, *, operator: bool = False) -> bool:
        """`admission.forget`, judged by this node, the leader, or by an operator who knows. It is done within a third
        of a lease from now, or not at all."""
        judge = "" if operator else self.node
        return await self._within_deadline(
            lambda store, now: admission.forget(store, now, node, incarnation, self.lease_ms, judge),
            limit=min(self.bus.deadline, self.lease_ms / 3000),
        )

    async def archive(self) -> tuple[Tx, ...]:
        """`coordinator.archive`; `transaction` still finds what was archived."""
        return await self.change(coordinator.archive)

    async def offer(self, nonce: str, journal: Journal) -> bool:
        """`rebuild.offer` of this node's journal."""
        return await self.change(rebuild.offer, nonce, self.lease_ms, journal)

    async def install(self, offers: Mapping[str, Journal], rebuilt: Rebuilt | None) -> bool:
        """`rebuild.install`, as a lineage with a fresh name."""
        return await self.change(rebuild.install, offers, secrets.token_hex(8), rebuilt)

    async def _wait_for_replicas(self) -> None:
        """Until as many replicas as configured have everything up to now. WAIT counts from the last write of its own
        connection, and replication keeps the order, so a write of ours comes first."""
        from redis.asyncio import Redis

        milliseconds = max(1, round(self.bus.deadline * 500))
        connection = Redis.from_url(self.bus.url, single_connection_client=True, socket_timeout=self.bus.deadline)
        try:
            async with asyncio.timeout(self.bus.deadline):
                await connection.set(self.bus.key("replicated"), "1", px=milliseconds)
                reached = int(await connection.wait(self._replicas, milliseconds))
        except Exception as error:
            raise BusDown(f"the replicas of Redis at {self.bus.place} did not answer: {error}") from error
        finally:
            await connection.aclose()
        if reached < self._replicas:
            raise BusDown(f"{reached} of {self._replicas} replicas of Redis at {self.bus.place} have the commit")


# ---- from Redis ------------------------------------------------------------------------------------------------------


def _sight(raw: list[Any], known: Sight) -> Sight:
    """What `look.lua` has returned."""
    seconds, micros, version, leader, leases, catalogue, stamp, runtime, _, checkpoints = raw
    now = int(seconds) * 1000 + int(micros) // 1000
    fields = {node: _pairs(flat) for node, _, flat in leases}
    held = {node: _lease(fields[node], now + max(1, int(lasts))) for node, lasts, _ in leases}
    if catalogue is None:
        sight = _replace(known, store=_replace(known.store, leases=held))
    else:
        sight = _catalogue(catalogue, known, held)
    layer = known.layer if runtime is None else _runtime(runtime)
    leads = _pairs(leader)
    same = layer is known.layer and sight.store.models is known.store.models
    return _replace(
        sight,
        now=now,
        leader=leads.get("node", ""),
        term=int(leads.get("term", 0)),
        fields=fields,
        runtime=known.runtime if same else _shown(layer, sight.store),
        layer=layer,
        version=version,
        stamp=stamp,
        checkpoints=_pairs(checkpoints),
    )


def _catalogue(parts: list[Any], known: Sight, leases: dict[str, Lease]) -> Sight:
    lineage, rev, members, expected, incarnations, txs, offers, models_version, models = parts
    decoded = dict(known.decoded)

    def values(of: str, flat: list[str], type_: type[T]) -> dict[str, T]:
        before, now = known.decoded.get(of, {}), {}
        for name, text in _pairs(flat).items():
            had = before.get(name)
            now[name] = had if had is not None and had[0] == text else (text, msgspec.json.decode(text, type=type_))
        decoded[of] = now
        return {name: value for name, (_, value) in now.items()}

    transactions = values("txs", txs, Tx)
    store = Store(
        lineage=msgspec.json.decode(lineage, type=tuple[str, ...]) if lineage else (),
        rev=int(rev),
        members={node: int(incarnation) for node, incarnation in _pairs(members).items()},
        expected=frozenset(expected),
        incarnations={node: int(incarnation) for node, incarnation in _pairs(incarnations).items()},
        leases=leases,
        models=known.store.models if models is None else values("models", models, Entry),
        txs=transactions,
        keys={tx.key: tx.id for tx in transactions.values() if tx.key},
        offers=values("offers", offers, Journal),
    )
    return _replace(known, store=store, models_version=models_version, decoded=decoded)


def _runtime(parts: list[Any]) -> dict[str, Runtime]:
    counters, *models = parts
    highest = {name: int(counter) for name, counter in _pairs(counters).items()}
    found = {}
    for name, plan, run, connected, lost, failed, moves in models:
        found[name] = Runtime(
            plan=plan,
            run=_pairs(run),
            connected=_pairs(connected),
            lost=_pairs(lost),
            failed=failed,
            moves=_pairs(moves),
            counter=highest.get(name, 0),
        )
    return found


def _shown(layer: Mapping[str, Runtime], store: Store) -> dict[str, Runtime]:
    """The layer without the mere counters of models that were deleted."""
    gone = {name for name, entry in store.models.items() if entry.state is State.DELETED}
    return {name: runtime for name, runtime in layer.items() if not (runtime.empty and name in gone)}


def _lease(fields: Mapping[str, str], expires: int) -> Lease:
    return Lease(
        incarnation=int(fields["incarnation"]),
        nonce=fields["nonce"],
        expires=expires,
        applied=int(fields.get("applied", -1)),
        since=int(fields.get("since", 0)),
    )


def _pairs(flat: list[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _with_key(sight: Sight, key: str, tx_id: str, ended: str) -> Sight:
    """The sight with the transaction that has the idempotency key, also one that was archived."""
    if not tx_id:
        return sight
    store = _replace(sight.store, keys={**sight.store.keys, key: tx_id})
    if ended and tx_id not in store.txs:
        store = _replace(store, txs={**store.txs, tx_id: msgspec.json.decode(ended, type=Tx)})
    return _replace(sight, store=store)


# ---- to Redis --------------------------------------------------------------------------------------------------------


def _guards(store: Store, now: int, latest: int, node: str) -> Iterator[str]:
    """See `change.lua`: the time that the rule may have relied on, and every lease that it may have looked at."""
    deadlines = [tx.deadline for tx in store.open() if tx.phase is Phase.PREPARING]
    yield str(max((deadline for deadline in deadlines if deadline <= now), default=0))
    yield str(min([latest, *(deadline for deadline in deadlines if deadline > now)]))
    nodes = {node, *store.members, *store.expected, *store.leases}
    nodes.update(name for tx in store.open() for name in tx.participants)
    yield str(len(nodes))
    for name in nodes:
        lease = store.leases.get(name)
        yield name
        if lease is None:
            yield from ("", "", "", "")
        else:
            yield from (lease.nonce, str(lease.incarnation), str(lease.since), str(lease.applied))


def _versioned(key: Callable[..., str], before: Store, after: Store) -> Iterator[Command]:
    """The commands that turn `before` into `after`, but for leases."""
    if before.lineage != after.lineage:
        yield ["SET", key("lineage"), _json(after.lineage)]
    if before.rev != after.rev:
        yield ["SET", key("revision"), str(after.rev)]
    yield from _hash(key("members"), before.members, after.members, str)
    yield from _hash(key("incarnations"), before.incarnations, after.incarnations, str)
    yield from _hash(key("models"), before.models, after.models, _json)
    yield from _hash(key("txs"), before.txs, after.txs, _json)
    yield from _hash(key("offers"), before.offers, after.offers, _json)
    if added := after.expected - before.expected:
        yield ["SADD", key("expected"), *sorted(added)]
    if gone := before.expected - after.expected:
        yield ["SREM", key("expected"), *sorted(gone)]
    if before.txs is not after.txs:
        for tx_id in before.txs.keys() - after.txs.keys():
            tx = before.txs[tx_id]
            if tx.phase is Phase.FINISHED:
                tx = _replace(tx, acks=frozenset(tx.participants))  # it was settled
            yield ["SET", key("ended", tx_id), _json(tx), "PX", str(KEPT_MS)]
            if tx.key:
                yield ["SET", key("idem", tx.key), tx_id, "PX", str(KEPT_MS)]
    for name, tx_id in after.keys.items():
        if before.keys.get(name) != tx_id:
            yield ["SET", key("idem", name), tx_id, "PX", str(KEPT_MS)]


def _hash(key: str, before: Mapping[str, T], after: Mapping[str, T], text: Callable[[T], str]) -> Iterator[Command]:
    if before is after:
        return
    if gone := sorted(before.keys() - after.keys()):
        yield from (["HDEL", key, *part] for part in _parts(gone))
    new = [(name, value) for name, value in after.items() if name not in before or before[name] != value]
    for part in _parts(new):
        yield ["HSET", key, *(word for name, value in part for word in (name, text(value)))]


def _parts(items: list[T], size: int = 200) -> Iterable[list[T]]:
    """A command in Lua has room for some thousand words."""
    return (items[at : at + size] for at in range(0, len(items), size))


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _flat(fields: Mapping[str, str | int | float]) -> list[str]:
    return [str(word) for item in fields.items() for word in item]
