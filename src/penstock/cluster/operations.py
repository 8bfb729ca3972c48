"""Operations on models as callers see them: checked here, begun as a transaction, waited for, answered.

The node that is asked is no coordinator: it begins the transaction and waits for its end like a client. When it dies,
the others end what it began; the caller asks any node with the same idempotency key.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from penstock.cluster import upgrading
from penstock.cluster.change_plan import change_plan
from penstock.cluster.checkpoint_places import REMEDY, kept
from penstock.cluster.names import DEFAULT_GROUP, full_name
from penstock.cluster.participation import Participation
from penstock.cluster.plan import NONE, Plan, runs_unprotected, status
from penstock.cluster.preparation import Preparation
from penstock.cluster.service import (
    Ask,
    Conflict,
    NotFound,
    OperationView,
    Outcome,
    RolledBack,
    Unavailable,
    VersionView,
)
from penstock.cluster.store import CatalogueStore, Sight
from penstock.cluster.transaction.answers import Done, answer
from penstock.cluster.transaction.coordinator import Request, lost, settled
from penstock.cluster.transaction.participant import PATIENCE
from penstock.cluster.transaction.preconditions import Refusal, Why
from penstock.cluster.transaction.records import Entry, Kind, Operation, Phase, State, Store, Tx
from penstock.cluster.view import Options, View, decode_config
from penstock.errors import ClusterError, UsageError
from penstock.flow.graph import Topology
from penstock.model.manifest import RECOVERIES
from penstock.model.package import Package
from penstock.model.replication import replication_of
from penstock.placement.plan import stage_counts
from penstock.settings import ClusterSettings, Replication

_LONGEST = 3600.0
"""Seconds that a caller may give the nodes to prepare."""
_RUN = frozenset({"online", "unprotected", "finished", "failed", "changed"})
"""What a model that is to go online ends up as."""
_PROTECTED_AFTER = 5.0
"""Seconds that a caller waits at most, once the model runs, until its standbys could take over."""
PATIENCE_LIVE = upgrading.PATIENCE + 30.0
"""Seconds that a caller waits at most for a new version to take over."""
_NOTHING: Mapping[str, Any] = {}
_APPLYING = 30.0
"""Seconds that putting a finished operation in effect may take before the caller is told that it goes on."""


class Operations:
    """What the node agent answers about operations."""

    def __init__(
        self,
        node: str,
        store: CatalogueStore,
        participation: Participation,
        preparation: Preparation,
        settings: ClusterSettings,
        view: Callable[[], View],
    ) -> None:
        self._node, self._store, self._participation = node, store, participation
        self._preparation, self._settings, self._view = preparation, settings, view

    # ---- one method per operation -----------------------------------------------------------------------------------

    async def add(self, digest: str, name: str | None, config: dict[str, Any] | None, ask: Ask) -> Outcome:
        """See `NodeService.add_model`."""
        tx, given = _fresh(), _encoded(config or {})
        async with self._preparation.examined(tx, digest, given) as (package, topology):
            manifest = package.manifest
            wanted = full_name(name or f"{manifest.group or DEFAULT_GROUP}/{manifest.name or topology.flow}")
            options = _options(manifest.recovery, replication=replication_of(manifest.replication))
            operation = Operation(
                kind=Kind.ADD, model=wanted, digest=digest, config=given, version=manifest.version, options=options
            )
            return await self._perform(tx, operation, ask, package, topology)

    async def update(
        self, name: str, digest: str | None, config: dict[str, Any] | None, live: bool, ask: Ask
    ) -> Outcome:
        """See `NodeService.update_model`."""
        name = full_name(name)
        told = {} if config is None else {"config": _encoded(config)}
        if digest is not None:
            told["digest"] = digest
        if (earlier := await self._repeated(Kind.UPDATE, name, ask, told)) is not None:
            return await self._when_updated(name, earlier, ask) if live else earlier
        entry = self._entry(name)
        if live:
            self._check_live(entry)
        if digest is None and config is None:
            raise UsageError(f"nothing of {name!r} is to change", remedy="give a package, a configuration, or both")
        given = entry.config if config is None else _encoded(config)
        if digest is None:
            topology = await self._preparation.reexamine(entry.digest, given)
            operation = Operation(kind=Kind.UPDATE, model=name, config=given, live=live)
            if live:
                self._check_shape(entry, topology)
            outcome = await self._perform(_fresh(), operation, ask, None, topology, entry.generation)
            return await self._when_updated(name, outcome, ask) if live else outcome
        tx = _fresh()
        async with self._preparation.examined(tx, digest, given) as (package, topology):
            manifest = package.manifest
            operation = Operation(
                kind=Kind.UPDATE, model=name, digest=digest, config=given, version=manifest.version, live=live,
                options=None if live
                else _options(manifest.recovery, replication=replication_of(manifest.replication)),
            )  # fmt: skip
            if live:
                self._check_shape(entry, topology)
            outcome = await self._perform(tx, operation, ask, package, topology, entry.generation)
        return await self._when_updated(name, outcome, ask) if live else outcome

    def _check_live(self, entry: Entry, digest: str = "", config: str = "") -> None:
        """Raises `Conflict` for a model that cannot be updated while it is online. One update at a time; going back to
        the version that still runs calls it off."""
        if entry.state is not State.ONLINE:
            raise Conflict(
                f"{entry.name!r} is {entry.state.value}: there is nothing to update live", remedy="leave out --live"
            )
        if msgspec.json.decode(entry.options, type=Options).recovery == NONE:
            raise Conflict(
                f"{entry.name!r} runs with recovery 'none': there is no second replica that could take over",
                remedy="bring it online with --recovery passive or active, or update it while it is offline",
            )
        state = self._view().models.get(entry.name)
        plan = None if state is None else state.plan
        if state is None or plan is None or state.entry.error:
            problem = "" if state is None else state.entry.error
            raise Conflict(f"{entry.name!r} does not run{f': {problem}' if problem else ' yet'}")
        runs = (plan.digest, plan.config)
        if (digest, decode_config(config or "{}")) == runs and plan.upgrade is not None:
            return
        if plan.upgrade is not None or (entry.digest, decode_config(entry.config)) != runs:
            raise Conflict(
                f"{entry.name!r} is being updated already",
                remedy="wait for its end (penstock events --follow), or call it off: penstock model rollback --live",
            )

    def _check_shape(self, entry: Entry, topology: Topology) -> None:
        """Raises `UsageError` when the executors of two versions do not correspond."""
        known = self._preparation.describe(entry.digest, entry.config)
        if known is not None and (why := upgrading.difference(known, topology)):
            raise UsageError(
                f"{entry.name!r} cannot be updated live: {why}",
                remedy="update it while it is offline: keyed state starts empty then",
            )

    async def take_back(self, name: str, plan: Plan) -> None:
        """A live update has failed, and the version before it runs: let the catalogue say so. Nothing is done when the
        model has changed since."""
        entry, failed = self._entry(name), plan.failed_upgrade
        runs = (plan.digest, plan.config)
        known = [version for version in entry.history if (version.digest, decode_config(version.config)) == runs]
        if failed is None or entry.generation != failed.revision or entry.lock or not known:
            return
        version = known[-1]
        operation = Operation(
            kind=Kind.UPDATE, model=name, digest=version.digest, config=version.config, options=version.options,
            version=version.version, back_to=version.generation, live=True, undo=True,
        )  # fmt: skip
        tx, ask = _fresh(), Ask(user="penstock")
        async with self._preparation.examined(tx, version.digest, version.config) as (package, topology):
            await self._perform(tx, operation, ask, package, topology, entry.generation)

    async def rollback(self, name: str, to: int | None, live: bool, ask: Ask) -> Outcome:
        """See `NodeService.rollback`."""
        name = full_name(name)
        if (earlier := await self._repeated(Kind.UPDATE, name, ask)) is not None:
            return await self._when_updated(name, earlier, ask) if live else earlier
        entry = self._entry(name)
        if not entry.history:
            raise Conflict(f"{name!r} has no earlier version")
        by_generation = {version.generation: version for version in entry.history}
        if to is not None and to not in by_generation:
            known = ", ".join(str(generation) for generation in by_generation)
            raise UsageError(f"{name!r} has no version of generation {to}", remedy=f"there are: {known}")
        version = entry.history[-1] if to is None else by_generation[to]
        if live:
            self._check_live(entry, version.digest, version.config)
        operation = Operation(
            kind=Kind.UPDATE, model=name, digest=version.digest, config=version.config,
            options=None if live else version.options, version=version.version, back_to=version.generation, live=live,
        )  # fmt: skip
        tx = _fresh()
        async with self._preparation.examined(tx, version.digest, version.config) as (package, topology):
            if live:
                self._check_shape(entry, topology)
            outcome = await self._perform(tx, operation, ask, package, topology, entry.generation)
        return await self._when_updated(name, outcome, ask) if live else outcome

    async def delete(self, name: str, ask: Ask) -> Outcome:
        """See `NodeService.delete_model`."""
        return await self._perform(_fresh(), Operation(kind=Kind.DELETE, model=full_name(name)), ask)

    async def online(
        self,
        name: str,
        config: dict[str, Any] | None,
        executors: int | None,
        recovery: str | None,
        replication: Mapping[str, float] | None,
        ask: Ask,
    ) -> Outcome:
        """See `NodeService.online`."""
        name = full_name(name)
        told = {} if config is None else {"config": _encoded(config)}
        options = {key: value for key, value in (("executors", executors), ("recovery", recovery)) if value is not None}
        if (earlier := await self._repeated(Kind.ONLINE, name, ask, told, options)) is not None:
            return await self._when_running(name, earlier, ask)
        entry = self._entry(name)
        before = msgspec.json.decode(entry.options, type=Options)
        recovery = recovery or before.recovery
        if recovery not in RECOVERIES:
            raise UsageError(
                f"there is no recovery class {recovery!r}", remedy=f"choose one of {', '.join(RECOVERIES)}"
            )
        if kept(recovery) and self._settings.checkpoints is None:
            text = f"recovery {recovery!r} needs durable checkpoints, and node {self._node} has no store for them"
            raise UsageError(text, remedy=REMEDY)
        given = entry.config if config is None else _encoded(config)
        topology = await self._preparation.reexamine(entry.digest, given)
        stage_counts(topology, executors)
        chosen = replication_of(replication or {}, before.replication)
        operation = Operation(kind=Kind.ONLINE, model=name, config=given, options=_options(recovery, executors, chosen))
        outcome = await self._perform(_fresh(), operation, ask, None, topology, entry.generation)
        return await self._when_running(name, outcome, ask)

    async def offline(self, name: str, ask: Ask) -> Outcome:
        """See `NodeService.offline`."""
        return await self._perform(_fresh(), Operation(kind=Kind.OFFLINE, model=full_name(name)), ask)

    # ---- about operations -------------------------------------------------------------------------------------------

    def versions(self, name: str) -> list[VersionView]:
        """See `NodeService.versions`."""
        entry = self._entry(full_name(name))
        now = VersionView(
            generation=entry.generation, version=entry.version, digest=entry.digest,
            config=decode_config(entry.config), changed=entry.changed / 1000, user=entry.user, current=True,
        )  # fmt: skip
        earlier = [
            VersionView(
                generation=v.generation, version=v.version, digest=v.digest, config=decode_config(v.config),
                changed=v.changed / 1000, user=v.user,
            )
            for v in entry.history
        ]  # fmt: skip
        return [now, *reversed(earlier)]

    def list(self) -> list[OperationView]:
        """See `NodeService.operations`."""
        sight = self._sight()
        txs = sorted(sight.store.txs.values(), key=lambda tx: tx.begun, reverse=True)
        return [operation_view(sight.store, tx) for tx in txs]

    async def show(self, id: str) -> OperationView:
        """See `NodeService.operation`."""
        sight = self._sight()
        tx = await self._store.transaction(id)
        if tx is None:
            raise NotFound(f"there is no operation {id!r}", remedy="they are kept for a day after their end")
        return operation_view(sight.store, tx)

    async def cancel(self, id: str, user: str) -> OperationView:
        """See `NodeService.cancel_operation`."""
        view = await self.show(id)
        if view.phase == "preparing":
            await self._store.abort(id, f"it was cancelled{f' by {user}' if user else ''}")
            view = await self.show(id)
        if view.phase != "aborted":
            raise Conflict(f"operation {id} is {view.phase}: it is too late to cancel it")
        return view

    # ---- carrying out -----------------------------------------------------------------------------------------------

    def _sight(self) -> Sight:
        sight = self._participation.sight
        if not sight.store.lineage:
            raise Unavailable(self._participation.problem or "this node has not seen the catalogue yet")
        return sight

    def _entry(self, name: str) -> Entry:
        entry = self._sight().store.models.get(name)
        if entry is None or entry.state is State.DELETED:
            raise NotFound(f"there is no model {name!r}", remedy="penstock model list shows those that there are")
        return entry

    async def _perform(
        self,
        id: str,
        operation: Operation,
        ask: Ask,
        package: Package | None = None,
        topology: Topology | None = None,
        base: int | None = None,
    ) -> Outcome:
        """`base`: the generation that was looked at; the operation is refused when it is another one by then."""
        if ask.dry_run:
            plan = change_plan(self._sight().store, self._view(), operation, package, topology)
            await self._preparation.forget(id)
            return Outcome(plan=plan)
        return await self._outcome(await self._begin(id, operation, ask, base), ask)

    async def _repeated(
        self, kind: Kind, name: str, ask: Ask, told: Mapping[str, Any] = _NOTHING, options: Mapping[str, Any] = _NOTHING
    ) -> Outcome | None:
        """The outcome of the operation that was begun with this idempotency key before, if there was one. Without a
        key, and for a dry run, there is none. `told` and `options`: what the caller has said of the
        operation and of its options."""
        if not ask.key or ask.dry_run:
            return None
        tx = await self._store.keyed(ask.key)
        if tx is None or (tx.operation.kind, tx.operation.model) != (kind, name):
            return None  # BEGIN says what is wrong with a key that was used for something else
        chosen = msgspec.json.decode(tx.operation.options or "{}", type=Options)
        other = any(getattr(tx.operation, field) != value for field, value in told.items())
        if other or any(getattr(chosen, field) != value for field, value in options.items()):
            raise UsageError(f"the key {ask.key!r} was used for another request", remedy="use a fresh key")
        return await self._outcome(tx.id, ask)

    async def _outcome(self, id: str, ask: Ask) -> Outcome:
        tx = await self._ended(id, ask)
        operation = tx.operation
        view = operation_view(self._sight().store, tx)
        if tx.phase is Phase.ABORTED:
            raise RolledBack(
                f"{operation.name} of {operation.model} was rolled back on every node: {tx.reason}",
                remedy="nothing has changed; correct the reason and try again",
                nodes={node: why for node, why in view.nodes.items() if why not in ("waiting", "ready")},
                operation=tx.id,
            )
        return Outcome(operation=view)

    async def _begin(self, id: str, operation: Operation, ask: Ask, base: int | None) -> str:
        timeout = self._settings.operation if ask.timeout is None else ask.timeout
        if not 0 < timeout <= _LONGEST:
            raise UsageError(f"the timeout is {timeout:g} s", remedy=f"give more than 0 and at most {_LONGEST:g} s")
        request = Request(
            id=id, operation=operation, by=self._node, timeout=round(timeout * 1000), base=base, key=ask.key,
            user=ask.user,
        )  # fmt: skip
        answered = await self._store.begin(request)
        if answered != id:
            await self._preparation.forget(id)
        if isinstance(answered, Refusal):
            raise _refused(answered)
        self._participation.look_soon()
        return answered

    async def _ended(self, id: str, ask: Ask) -> Tx:
        """The transaction when it is settled or aborted, or as it is when the caller has waited long enough."""
        tx = await self._known(id)
        limit = tx.timeout / 1000 * PATIENCE + _APPLYING
        try:
            async with asyncio.timeout(limit if ask.wait is None else min(limit, ask.wait)):
                while not _over(self._sight(), tx):
                    await self._participation.wait_for(partial(_ended, id), self._settings.poll)
                    tx = await self._known(id)
        except TimeoutError:
            pass
        return tx

    async def _known(self, id: str) -> Tx:
        tx = self._participation.sight.store.txs.get(id) or await self._store.transaction(id)
        if tx is None:
            raise Unavailable(f"nothing is known of operation {id}: Redis lost its memory; look at the model's state")
        return tx

    async def _when_running(self, name: str, outcome: Outcome, ask: Ask) -> Outcome:
        if outcome.operation is not None and not outcome.pending:
            await self._running(name, outcome.operation, ask)
        return outcome

    async def _running(self, name: str, operation: OperationView, ask: Ask) -> None:
        """Wait until the model runs. Raises `ClusterError` when it cannot, `Unavailable` at the deadline."""
        limit = self._settings.worker_start + self._settings.request
        seconds = limit if ask.wait is None else max(0.0, min(limit, ask.wait))
        await self._participation.wait_for(lambda _: self._status(name, operation) in _RUN, seconds)
        if self._status(name, operation) == "unprotected" and len(self._view().live()) > 1:
            patience = min(seconds, _PROTECTED_AFTER)
            await self._participation.wait_for(lambda _: self._status(name, operation) != "unprotected", patience)
        match self._status(name, operation):
            case "online" | "unprotected" | "finished":
                return
            case "failed":
                raise ClusterError(
                    f"{name!r} cannot run: {self._view().models[name].entry.error}",
                    remedy="take it offline, correct it, bring it online again: keyed state starts empty",
                )
            case "changed":
                raise Conflict(f"{name!r} was changed by somebody else meanwhile")
            case "starting" | "degraded" if ask.wait is not None:
                return  # the caller wanted to wait no longer
            case state:
                raise Unavailable(
                    f"{name!r} is {state} after {seconds:g} s, not yet online",
                    remedy="it goes on in the background: look at its status and at the events",
                )

    async def _when_updated(self, name: str, outcome: Outcome, ask: Ask) -> Outcome:
        """Wait until the new version runs. Raises `Conflict` when it cannot, and `Unavailable` at the deadline."""
        if outcome.operation is None or outcome.pending:
            return outcome
        revision = outcome.operation.revision
        seconds = PATIENCE_LIVE if ask.wait is None else max(0.0, min(PATIENCE_LIVE, ask.wait))
        await self._participation.wait_for(lambda _: self._updated(name, revision) is not None, seconds)
        if (how := self._updated(name, revision)) is None and ask.wait is None:
            raise Unavailable(
                f"{name!r} has not taken the new version over after {seconds:g} s",
                remedy="it goes on in the background: look at its status and at the events",
            )
        if how:
            raise Conflict(f"{name!r} goes on as it was: {how}", remedy="correct the new version and try again")
        return outcome

    def _updated(self, name: str, revision: int) -> str | None:
        """Why a live update failed; empty when it is done, `None` while it is under way."""
        known = self._view().models.get(name)
        plan = None if known is None else known.plan
        if known is None or plan is None:
            return "it is not online any more"
        failed = plan.failed_upgrade
        if failed is not None and failed.revision == revision:
            return f"the new version failed: {failed.error}"
        if known.entry.error:
            return known.entry.error
        if known.entry.revision < revision or plan.upgrade is not None or upgrading.wanted(known.entry, plan):
            return None
        return ""

    def _status(self, name: str, operation: OperationView) -> str:
        known = self._view().models.get(name)
        if known is None or known.entry.revision > operation.revision:
            return "changed"
        if known.entry.revision < operation.revision:
            return "starting"
        return "unprotected" if runs_unprotected(known) else status(known)


def _fresh() -> str:
    return secrets.token_hex(8)


def _encoded(config: dict[str, Any]) -> str:
    return msgspec.json.encode(config, order="deterministic").decode()


def _options(recovery: str = "none", executors: int | None = None, replication: Replication | None = None) -> str:
    options = Options(executors=executors, recovery=recovery, replication=replication or Replication())
    return msgspec.json.encode(options).decode()


def _ended(id: str, sight: Sight) -> bool:
    tx = sight.store.txs.get(id)
    return tx is not None and _over(sight, tx)


def _over(sight: Sight, tx: Tx) -> bool:
    return tx.phase is Phase.ABORTED or isinstance(answer(sight.store, sight.now, tx), Done)


def _refused(refusal: Refusal) -> Exception:
    remedy = refusal.remedy or None
    match refusal.why:
        case Why.MISSING:
            return NotFound(refusal.reason, remedy=remedy)
        case Why.STATE:
            return Conflict(refusal.reason, remedy=remedy)
        case Why.KEY:
            return UsageError(refusal.reason, remedy=remedy)
        case Why.UNAVAILABLE:
            return Unavailable(refusal.reason, remedy=remedy, nodes=dict(refusal.nodes))


def operation_view(store: Store, tx: Tx) -> OperationView:
    """A transaction for people."""
    return OperationView(
        id=tx.id,
        kind=tx.operation.name,
        model=tx.operation.model,
        phase=tx.phase.value,
        settled=tx.phase is Phase.ABORTED or settled(store, tx),
        reason=tx.reason,
        nodes=_by_node(store, tx),
        revision=tx.rev,
        user=tx.user,
        node=tx.by,
        started=tx.begun / 1000,
        deadline=tx.deadline / 1000,
    )


def _by_node(store: Store, tx: Tx) -> dict[str, str]:
    said: dict[str, str] = {}
    gone = set(lost(store, tx)) if tx.phase is Phase.FINISHED else set()
    refused = any(not vote.yes for vote in tx.votes.values())  # then `reason` is made of what they said, of any form
    told = {} if refused else dict(part.partition(": ")[::2] for part in tx.reason.split("; "))
    for node in sorted(tx.participants):
        vote = tx.votes.get(node)
        if vote is not None and not vote.yes:
            said[node] = vote.reason
        elif tx.phase is Phase.FINISHED:
            said[node] = (
                "done" if node in tx.acks else "lost: it synchronises when it returns" if node in gone else "ready"
            )
        elif vote is not None:
            said[node] = "ready"
        else:
            said[node] = told.get(node) or "waiting"
    return said
