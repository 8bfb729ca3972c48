"""What an operation on a model means on this node: the hands of `transaction.participant`.

`prepare` does everything that can fail and that nobody sees: fetch the package, check it, make its environment, import
it and run its self-test in a throw-away process, have a worker wait. `apply` puts in effect what the catalogue says.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Mapping

import msgspec

from penstock.cluster.event_log import EventLog
from penstock.cluster.hosted import Place
from penstock.cluster.library import Library
from penstock.cluster.neighbours import Neighbours
from penstock.cluster.runner import Runner
from penstock.cluster.store import Sight
from penstock.cluster.transaction.records import Entry, Kind, Operation, Phase, State, Store, Tx
from penstock.cluster.verification import Verifier
from penstock.cluster.view import Options, decode_config
from penstock.errors import ClusterError, PenstockError
from penstock.flow.graph import Topology
from penstock.model.environment import Environment, Environments
from penstock.model.manifest import Manifest, check_python, checked_config
from penstock.model.package import Package

_UNTIL_PLANNED = 3.0
"""Seconds that a worker waits for the plan of the model that it was started for."""
_REMEMBERED = 4096
"""Flows whose description is kept in memory."""


class Preparation:
    """Prepares, applies and discards operations; implements `participation.Hands`."""

    def __init__(
        self,
        library: Library,
        environments: Environments,
        verifier: Verifier,
        runner: Runner,
        neighbours: Neighbours,
        events: EventLog,
        sight: Callable[[], Sight],
    ) -> None:
        self._library, self._environments, self._verifier = library, environments, verifier
        self._runner, self._neighbours, self._events, self._sight = runner, neighbours, events, sight
        self._described: OrderedDict[tuple[str, str], Topology] = OrderedDict()
        self._keys: dict[str, str] = {}
        """Package -> key of its environment."""
        self._examining: set[str] = set()
        """Operations that may be about to begin."""
        self._busy = 0
        self._idle = asyncio.Condition()
        self._cleaning = False

    # ---- what this node knows ---------------------------------------------------------------------------------------

    def describe(self, digest: str, config: str) -> Topology | None:
        """What the flow of a package looks like with a configuration (JSON text), if it was verified here."""
        known = self._described.get((digest, config))
        if known is None and (text := self._library.recall(digest, config)) is not None:
            with contextlib.suppress(msgspec.MsgspecError):
                known = msgspec.json.decode(text, type=Topology)
                self._learn(digest, config, known)
        return known

    def _learn(self, digest: str, config: str, topology: Topology) -> None:
        self._described[digest, config] = topology
        while len(self._described) > _REMEMBERED:
            self._described.popitem(last=False)

    def manifest(self, digest: str) -> Manifest | None:
        """Of a package in the library."""
        return self._library.package(digest).manifest if self._library.has(digest) else None

    def place(self, digest: str) -> Place | None:
        """Where a package's code is on this node and what runs it; `None` when it is not ready here."""
        key = self._keys.get(digest)
        environment = None if key is None else self._environments.known(key)
        if environment is None or not self._library.has(digest):
            return None
        return Place(str(self._library.tree(digest)), environment)

    # ---- before an operation ----------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def examined(self, operation: str, digest: str, given: str) -> AsyncIterator[tuple[Package, Topology]]:
        """Verify a package, received here or known to some node, for an operation that is to begin inside under this
        id. Raises what its author would see. What is left of an operation that did not begin is tidied away later."""
        self._examining.add(operation)
        try:
            async with self._working():
                try:
                    package = await self._library.stage(operation, digest, self._neighbours.sources(""))
                    topology = await self._verified(package, self._library.staged_tree(operation), given)
                except PenstockError:
                    await self.forget(operation)
                    raise
            yield package, topology
        finally:
            self._examining.discard(operation)

    async def forget(self, operation: str) -> None:
        """Remove what was staged for an operation that surely has not begun, as far as that can be done now."""
        with contextlib.suppress(PenstockError):
            await self._library.discard(operation)

    async def reexamine(self, digest: str, given: str) -> Topology:
        """The same for a package that is in the library, with another configuration."""
        async with self._working():
            return await self._verified(self._library.package(digest), str(self._library.tree(digest)), given)

    async def _verified(self, package: Package, tree: str, given: str) -> Topology:
        known = self.describe(package.digest, given)
        check_python(package.manifest, f"package {package.digest[:12]}")
        environment = await self._environment(package, tree)
        if known is not None:
            return known
        config = checked_config(package.manifest, decode_config(given))
        verified = await self._verifier.verify(tree, config, environment=environment)
        self._learn(package.digest, given, verified.topology)
        self._library.remember(package.digest, given, msgspec.json.encode(verified.topology))
        return verified.topology

    async def _environment(self, package: Package, tree: str) -> Environment:
        wheels = self._library.wheels(tree) if package.bundled else None
        environment = await self._environments.ensure(package.lock, wheels)
        self._keys[package.digest] = environment.key
        return environment

    # ---- the hands of the participant -------------------------------------------------------------------------------

    def staged(self) -> set[str]:
        """See `Hands`."""
        return self._library.staged()

    def lacking(self, models: Mapping[str, Entry]) -> set[str]:
        """See `Hands`."""
        return {name for name, entry in models.items() if entry.digest and not self._library.has(entry.digest)}

    async def prepare(self, tx: Tx) -> None:
        """See `Hands`."""
        operation, sight = tx.operation, self._sight()
        entry = sight.store.models.get(operation.model)
        given = operation.config
        if given is None:
            given = entry.config if entry is not None else "{}"
        async with self._working():
            if operation.digest:
                package = await self._library.stage(tx.id, operation.digest, self._neighbours.sources(tx.by))
                await self._verified(package, self._library.staged_tree(tx.id), given)
                if operation.live:
                    await self._worker(tx, operation.digest)
            elif operation.kind in (Kind.UPDATE, Kind.ONLINE):
                if entry is None:
                    raise ClusterError(f"this node does not know {operation.model!r}")
                package = await self._sound(entry.digest, tx.by)
                await self._verified(package, str(self._library.tree(entry.digest)), given)
                if operation.kind is Kind.ONLINE:
                    self._check_store(tx, sight)
                if operation.kind is Kind.ONLINE or operation.live:
                    await self._worker(tx, entry.digest)

    async def _sound(self, digest: str, first: str) -> Package:
        """A package of the library as it is on the disk now: what was damaged there is brought back before it runs."""
        if await self._library.check([digest]):
            await self._library.obtain(digest, self._neighbours.sources(first))
        return self._library.package(digest)

    def _check_store(self, tx: Tx, sight: Sight) -> None:
        """Whether this node and the one that was asked have the same store for durable checkpoints, if one is needed.
        Raises `ClusterError`."""
        recovery = msgspec.json.decode(tx.operation.options or "{}", type=Options).recovery
        places = self._runner.places
        places.check(recovery, sight.fields.get(tx.by, {}).get("checkpoints", places.mark), tx.by)

    async def _worker(self, tx: Tx, digest: str) -> None:
        key = self._keys.get(digest)
        environment = None if key is None else self._environments.known(key)
        if environment is None:
            raise ClusterError(f"the package of {tx.operation.model!r} is not ready on this node")
        await self._runner.workers.reserve(tx.id, tx.operation.model.partition("/")[0], environment)

    async def discard(self, tx: str) -> None:
        """See `Hands`."""
        ended = self._sight().store.txs.get(tx)
        if ended is not None and ended.phase is Phase.FINISHED and _runs(ended.operation):
            # The leader's plan is about to come, and may have work for it.
            asyncio.get_running_loop().call_later(_UNTIL_PLANNED, self._runner.workers.release_reserved, tx)
        else:
            self._runner.workers.release_reserved(tx)
        await self._library.discard(tx)

    async def drop_upload(self, digest: str) -> None:
        """See `Hands`."""
        await self._library.drop_upload(digest)

    async def stop_executors(self, reason: str) -> None:
        """See `Hands`."""
        self._events.say("node.fenced", f"this node stopped its executors: {reason}", level="error")
        await self._runner.fence()

    async def ask_peers(self, members: Collection[str]) -> bool:
        """See `Hands`."""
        return await self._neighbours.promise(members)

    async def apply(self, entry: Entry) -> None:
        """See `Hands`: idempotent."""
        if entry.state is not State.ONLINE:
            await self._runner.withdraw(entry.name)
        if entry.state is State.DELETED or not entry.generation:
            return
        async with self._working():
            package = await self._have(entry)
            tree = str(self._library.tree(entry.digest))
            try:
                await self._verified(package, tree, entry.config)
            except PenstockError as error:
                if entry.state is State.ONLINE:
                    raise
                text = f"{entry.name} cannot go online on this node: {error.message}"
                self._events.say("node.problem", text, model=entry.name, level="warning")
        if entry.state is State.ONLINE:
            self._runner.allow(entry.name, entry.run)

    async def _have(self, entry: Entry) -> Package:
        if not self._library.has(entry.digest):
            if entry.tx in self._library.staged():
                await self._library.adopt(entry.tx, entry.digest)
            else:
                await self._library.obtain(entry.digest, self._neighbours.sources(""))
        return self._library.package(entry.digest)

    # ---- tidying ----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _working(self) -> AsyncIterator[None]:
        """Inside, nothing is tidied away."""
        async with self._idle:
            await self._idle.wait_for(lambda: not self._cleaning)
            self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1

    async def tidy(self, store: Store) -> bool:
        """Remove packages, environments and remains of operations that nothing in the catalogue needs; whether that
        was done. `store` has to be in effect on this node. Does nothing while something is prepared or applied."""
        if self._busy or self._cleaning or store.open():
            return False
        self._cleaning = True
        try:
            needed = digests(store.models.values())
            for left in self._library.staged() - self._examining:
                await self.discard(left)
            await self._library.keep(needed)
            await self._environments.keep({self._keys[digest] for digest in needed if digest in self._keys})
            for key in [key for key in self._described if key[0] not in needed]:
                del self._described[key]
            self._keys = {digest: key for digest, key in self._keys.items() if digest in needed}
            return True
        finally:
            self._cleaning = False
            async with self._idle:
                self._idle.notify_all()

    async def complete(self, store: Store) -> bool:
        """Fetch packages of earlier versions that this node does not have, so that `rollback` does not depend on the
        others; whether it has them all now."""
        needed = sorted(digests(store.models.values()))
        for digest in needed:
            if not self._library.has(digest):
                async with self._working():
                    with contextlib.suppress(PenstockError):
                        await self._library.obtain(digest, self._neighbours.sources(""))
        return all(self._library.has(digest) for digest in needed)


def _runs(operation: Operation) -> bool:
    return operation.kind is Kind.ONLINE or operation.live


def digests(entries: Collection[Entry]) -> set[str]:
    """The packages that the catalogue needs: of the models and of the versions that can be brought back."""
    found = {entry.digest for entry in entries if entry.digest and entry.state is not State.DELETED}
    return found | {version.digest for entry in entries for version in entry.history if version.digest}
