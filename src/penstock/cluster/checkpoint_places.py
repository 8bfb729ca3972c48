"""Where the cluster's durable checkpoints are, and how the control plane gets at them without waiting for ever.

{root}/{cluster}/{catalogue}/{group}/{name}/{generation}/{flow}/chk-…    (`penstock.worker.store` has the rest)

`catalogue` is the name that the catalogue got when it was founded, so that two clusters of one name that share a root,
or a new cluster in an old place, never meet each other's checkpoints. A generation is one time of a model being online:
what an earlier one left is never restored.

A file store can hang (NFS, a bucket behind a broken network), and a thread that hangs cannot be ended. So each caller
has one thread at a time, waits for it no longer than its deadline, and starts no other before that one has returned.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterable
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import quote, unquote

import fsspec

from penstock.errors import CheckpointError, ClusterError, PenstockError
from penstock.worker.store import CheckpointStore

P = ParamSpec("P")
T = TypeVar("T")
Generation = tuple[str, int]
"""A model (`group/name`) and one of its generations."""


def kept(recovery: str) -> bool:
    """Whether a model of this recovery class has durable checkpoints in a cluster."""
    return recovery != "none"


class Thread:
    """Runs calls that may block, one after the other."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._running: asyncio.Future[Any] | None = None

    async def run(self, deadline: float, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `call` returns. Raises what it raises, as `CheckpointError` unless it is a `PenstockError`, and
        `CheckpointError` when it, or an earlier call that still runs, is not done within `deadline` seconds."""
        try:
            async with asyncio.timeout(deadline):
                while self._running is not None and not self._running.done():
                    await asyncio.wait({self._running})
                self._running = future = _started(lambda: call(*args, **kwargs))
                return await asyncio.shield(future)
        except TimeoutError:
            raise CheckpointError(f"{self._what} does not answer within {deadline:g} s") from None


def _started(call: Callable[[], T]) -> asyncio.Future[T]:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    future.add_done_callback(lambda done: done.exception())  # it is not an error that nobody waits any more

    def work() -> None:
        result: Any = None
        error: Exception | None = None
        try:
            result = call()
        except PenstockError as known:
            error = known
        except Exception as unknown:
            error = CheckpointError(f"{type(unknown).__name__}: {unknown}")
            error.__cause__ = unknown
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
            loop.call_soon_threadsafe(_settle, future, result, error)

    # A daemon: the end of the process does not wait for a store that hangs.
    threading.Thread(target=work, name="checkpoint-store", daemon=True).start()
    return future


def _settle(future: asyncio.Future[T], result: T, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


NO_STORE = "it has no store for durable checkpoints"
REMEDY = (
    "start every node with the same --checkpoints URL (a directory that all machines share, s3://…), or bring it "
    "online with recovery `none`"
)


class Places:
    """Paths below one root (any fsspec URL). `root` None: there is no store."""

    def __init__(self, root: str | None, cluster: str) -> None:
        self.root = root
        self._cluster = cluster

    def __str__(self) -> str:
        return "nowhere" if self.root is None else without_password(self.root)

    @property
    def mark(self) -> str:
        """Different for different roots, and tells nothing of them; empty without a store. Nodes compare it."""
        return "" if self.root is None else hashlib.sha256(self.root.encode()).hexdigest()[:16]

    def check(self, recovery: str, other: str, node: str) -> None:
        """Raises `ClusterError` when a model of this recovery class cannot be online here: without a store, or with
        another one than `node`, whose `mark` is `other`."""
        if kept(recovery) and not self.mark:
            raise ClusterError(f"recovery {recovery!r} needs durable checkpoints, and {NO_STORE}", remedy=REMEDY)
        if kept(recovery) and self.mark != other:
            raise ClusterError(f"its --checkpoints is another one than that of node {node}", remedy=REMEDY)

    def url(self, lineage: tuple[str, ...], model: str, generation: int) -> str | None:
        """What `Load.checkpoint_url` says of a generation of a model; `None` without a store or a catalogue."""
        if self.root is None or not lineage:
            return None
        group, _, name = model.partition("/")
        return "/".join([self._catalogue(lineage), _folder(group), _folder(name), str(generation)])

    def _catalogue(self, lineage: tuple[str, ...]) -> str:
        assert self.root is not None
        return "/".join([self.root.rstrip("/"), _folder(self._cluster), _folder(lineage[0])])

    def store(self, lineage: tuple[str, ...], model: str, generation: int, flow: str) -> Place:
        """The checkpoints of a generation. Raises `CheckpointError` when there is no store."""
        url = self.url(lineage, model, generation)
        if url is None:
            raise CheckpointError("this node has no store for checkpoints", remedy=REMEDY)
        return Place(url, flow, f"the checkpoint store at {self}")

    # ---- what is not needed any more: these block -----------------------------------------------------------------

    def generations(self, lineage: tuple[str, ...], models: Iterable[str] | None = None) -> list[Generation]:
        """Every generation of these models (default: of all) of which something is there. Raises what the store
        raises."""
        fs, root = fsspec.core.url_to_fs(self._catalogue(lineage))
        fs.invalidate_cache()
        if models is None:
            models = [f"{g}/{name}" for g in _names(fs, root) for name in _names(fs, f"{root}/{_folder(g)}")]
        return [
            (model, int(generation))
            for model in models
            for generation in _names(fs, "/".join([root, *map(_folder, model.split("/"))]))
            if generation.isdecimal()
        ]

    def remove(self, lineage: tuple[str, ...], model: str, generation: int) -> None:
        """Remove the checkpoints of a generation, and the folder of the model when nothing is left in it."""
        fs, path = fsspec.core.url_to_fs(self.url(lineage, model, generation))
        with contextlib.suppress(FileNotFoundError):
            fs.rm(path, recursive=True)
        with contextlib.suppress(OSError, NotImplementedError):
            fs.rmdir(path.rpartition("/")[0])


class Place:
    """The checkpoints of one generation of a model, from a coroutine. Everything raises `CheckpointError`."""

    def __init__(self, url: str, flow: str, what: str) -> None:
        self.url, self._flow = url, flow
        self.shown = without_password(url)
        self._thread = Thread(what)
        self._store: CheckpointStore | None = None

    async def run(
        self,
        deadline: float,
        method: Callable[Concatenate[CheckpointStore, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Call a method of the store; `Thread.run` says what may come of it."""

        def call() -> T:
            if self._store is None:
                self._store = CheckpointStore(self.url, self._flow)
            return method(self._store, *args, **kwargs)

        return await self._thread.run(deadline, call)


def without_password(url: str) -> str:
    """A URL as it can be shown."""
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}" if separator else url


def _names(fs: Any, path: str) -> list[str]:
    try:
        found = fs.ls(path, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(unquote(str(name).rstrip("/").rpartition("/")[2]) for name in found)


def _folder(name: str) -> str:
    """A name that people choose, as the name of one folder."""
    return quote(name, safe="").replace(".", "%2E") if name.startswith(".") else quote(name, safe="")
