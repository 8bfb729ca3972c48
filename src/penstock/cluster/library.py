"""The local-file library of a node: every package that the catalogue names, on this node's own disk.

    library/<digest>/package.whl           the package; tree/ is it unpacked, descriptions/ what was found out about it
    staging/<transaction>/<digest>/…       the same, prepared for a transaction that has not ended
    uploads/<digest>.whl                   received from a user by this process
    damaged/<digest>/…                     was in the library until a check found it broken
    tmp/…                                  half-done or on its way out: worthless

What is in the first four is complete: it is made in `tmp`, fsynced, and renamed to its place. So a kill at any moment
leaves only what `open` removes.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import re
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import msgspec

from penstock.cluster import descriptions, disk
from penstock.cluster.disk import DiskError, LibraryError, on_disk
from penstock.cluster.installed import flaw, unpacked_size
from penstock.cluster.service import NotFound
from penstock.cluster.transfer import Source, TransferError, fetch
from penstock.cluster.uploads import TooLarge, Uploads
from penstock.errors import UsageError
from penstock.model.archive import PackageError
from penstock.model.package import Limits, Package, open_package, unpack

__all__ = ["DiskError", "Library", "LibraryError", "NotInLibrary", "Source", "TooLarge", "TransferError"]

PACKAGE, TREE, DESCRIPTIONS = "package.whl", "tree", "descriptions"
READ_LIMIT = 4 * 2**20
"""Bytes that `read` gives at most."""
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_TRANSACTION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}")


class NotInLibrary(LibraryError, NotFound):
    """The library does not have this package."""


class Library:
    """The packages under `root`, which belongs to this process alone. `limits`: what a package may be.

    Every method may raise `DiskError`. Whatever is cancelled has changed nothing more once the cancellation is through.
    """

    def __init__(self, root: Path, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._root = root
        self._library, self._staging = root / "library", root / "staging"
        self._damaged, self._tmp = root / "damaged", root / "tmp"
        self._uploads = Uploads(root / "uploads", self.limits)
        self._packages: dict[str, Package] = {}
        """What is in `library`. It changes in the same thread as the disk, so a cancellation does not part them."""
        self._sizes: dict[str, int] = {}
        self._numbers = itertools.count()
        self._turns = _Turns()
        self._shelf = asyncio.Lock()
        """Held by whoever adds to `library` or takes from it."""

    async def open(self) -> None:
        """Make the directories, remove what earlier processes left half-done, and check every package and tree as
        `check` does. Call it first, once."""
        for folder in await on_disk(self._root, self._prepare):
            await on_disk(folder, partial(self._read_in, folder))

    def _prepare(self) -> list[Path]:
        """Tidy up. The directories of the packages."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        uploads = self._root / "uploads"
        for folder in (self._library, self._staging, self._damaged, self._tmp, uploads):
            disk.make_directory(folder)
        with suppress(PermissionError):  # what is above may belong to somebody else
            disk.make_directory(self._root)
        disk.empty(self._tmp)
        disk.empty(uploads)
        for staged in list(self._staging.iterdir()):
            if not _TRANSACTION.fullmatch(staged.name) or not staged.is_dir() or not any(staged.iterdir()):
                disk.remove(staged)
        disk.sync_directory(self._staging)
        return sorted(folder for folder in self._library.iterdir() if _DIGEST.fullmatch(folder.name))

    def _read_in(self, folder: Path) -> bool:
        """Know the package in a directory of the library if all of it is sound; else move it out of the way."""
        package = self._sound(folder)
        if package is None:
            self._set_aside(folder.name)
            return False
        self._packages[folder.name], self._sizes[folder.name] = package, _disk_size(folder)
        disk.remove(self._damaged / folder.name)
        return True

    # ---- uploads -------------------------------------------------------------------------------------------------

    async def receive(self, chunks: AsyncIterator[bytes], *, limit: int) -> Package:
        """Take a package from a user: at most `limit` bytes, checked, fsynced. It stays until `drop_upload` or the end
        of the process. Raises `TooLarge`, `PackageError`, `UsageError` (it stalled), and what `chunks` raises; nothing
        is left then."""
        return await self._uploads.receive(chunks, limit=limit)

    async def drop_upload(self, digest: str) -> None:
        """Remove an upload; nothing there is no error."""
        await self._uploads.drop(_checked(digest))

    # ---- transactions --------------------------------------------------------------------------------------------

    def staged(self) -> set[str]:
        """The transactions for which there is anything in staging."""
        return {folder.name for folder in self._staging.iterdir() if _entries(folder)}

    def staged_tree(self, tx: str) -> str:
        """Where the package that is staged for a transaction is unpacked. Raises `NotInLibrary`."""
        staged = _entries(self._staging / _checked_tx(tx))
        if len(staged) != 1:
            raise NotInLibrary(f"{len(staged)} packages are staged for transaction {tx}", remedy="stage one first")
        return str(staged[0] / TREE)

    async def stage(self, tx: str, digest: str, sources: Sequence[Source]) -> Package:
        """Have a package ready for transaction `tx`, verified, unpacked and fsynced: from what is on this node (checked
        again) or else from the first source that gives it. Raises `TransferError`, `PackageError`. May be repeated."""
        target = self._staged(tx, digest)
        async with self._turns.of(f"tx {tx}"), self._turns.of(digest):
            package = await on_disk(target, partial(self._sound, target))
            if package is not None:
                return package
            async with self._made(digest, sources) as made:
                await on_disk(target, partial(self._put, made.path.parent, target))
            return msgspec.structs.replace(made, path=target / PACKAGE)

    def _put(self, made: Path, target: Path) -> None:
        disk.make_directory(target.parent)
        self._throw_away(target)
        disk.move(made, target)

    async def adopt(self, tx: str, digest: str) -> None:
        """Move what was staged into the library. Done already, or there already: nothing to do. Raises `NotInLibrary`
        when it is in neither, `LibraryError` when the staged copy was damaged meanwhile; then it is gone."""
        staged = self._staged(tx, digest)
        async with self._turns.of(f"tx {tx}"), self._shelf:
            await on_disk(staged, partial(self._adopt, staged))

    def _adopt(self, staged: Path) -> None:
        digest = staged.name
        if not staged.is_dir():
            if digest not in self._packages:
                raise NotInLibrary(
                    f"package {digest[:12]} is neither staged for transaction {staged.parent.name} nor in the library",
                    remedy="obtain it from another node",
                )
            return
        if digest in self._packages:
            if self._sound(self._library / digest) is not None:
                return
            self._set_aside(digest)
        try:
            self._place(digest, staged)
        except LibraryError:
            self._throw_away(staged)
            raise
        finally:
            with suppress(OSError):  # something else is staged there
                staged.parent.rmdir()

    def _place(self, digest: str, made: Path) -> Package:
        """Into the library, which does not have it. Raises `LibraryError` when it is not what it should be."""
        package = self._sound_package(made, digest)
        if package is None:
            raise LibraryError(f"the copy of package {digest[:12]} in {made} was damaged", remedy="obtain it again")
        target = self._library / digest
        self._throw_away(target)  # nothing, or something that was not taken for a package
        size = _disk_size(made)
        disk.move(made, target)
        package = self._packages[digest] = msgspec.structs.replace(package, path=target / PACKAGE)
        self._sizes[digest] = size
        disk.remove(self._damaged / digest)
        return package

    async def discard(self, tx: str) -> None:
        """Remove everything of a transaction; waits for a `stage` of it that is still under way."""
        folder = self._staging / _checked_tx(tx)
        async with self._turns.of(f"tx {tx}"):
            await on_disk(folder, partial(self._throw_away, folder))

    def _throw_away(self, path: Path) -> None:
        """Gone at once, and from the disk soon."""
        gone = self._fresh()
        with suppress(FileNotFoundError):
            disk.move(path, gone)
            disk.remove(gone)

    # ---- synchronisation -----------------------------------------------------------------------------------------

    async def obtain(self, digest: str, sources: Sequence[Source]) -> Package:
        """Have a package in the library, from what is on this node or else from a source. Raises as `stage`."""
        _checked(digest)
        async with self._turns.of(digest):
            if (held := self._packages.get(digest)) is not None:
                return held
            async with self._made(digest, sources) as made, self._shelf:
                return await on_disk(made.path, partial(self._add, digest, made.path.parent))

    def _add(self, digest: str, made: Path) -> Package:
        return self._packages.get(digest) or self._place(digest, made)

    async def check(self, digests: Collection[str]) -> list[str]:
        """Which of these packages are not soundly in the library: package and tree are hashed again. Broken ones are
        moved out of the way, for `obtain` to bring them back (without the network where only the tree is broken)."""
        lacking = []
        for digest in sorted(set(digests)):
            async with self._shelf:
                if not await on_disk(self._library, partial(self._read_in, self._library / _checked(digest))):
                    lacking.append(digest)
        return lacking

    def _set_aside(self, digest: str) -> None:
        self._packages.pop(digest, None)
        self._sizes.pop(digest, None)
        if (self._library / digest).exists():
            disk.remove(self._damaged / digest)
            disk.move(self._library / digest, self._damaged / digest)

    async def keep(self, digests: Collection[str]) -> list[str]:
        """Remove everything from the library but these packages, also files that nobody knows. What went, by name."""
        wanted = frozenset(digests)
        async with self._shelf:
            return await on_disk(self._library, partial(self._keep, wanted))

    def _keep(self, wanted: frozenset[str]) -> list[str]:
        gone = []
        for entry in sorted(self._library.iterdir()):
            if entry.name not in wanted or entry.name not in self._packages:
                self._packages.pop(entry.name, None)
                self._sizes.pop(entry.name, None)
                gone.append(entry.name)
                self._throw_away(entry)
                continue
            for inner in entry.iterdir():
                if inner.name not in (PACKAGE, TREE, DESCRIPTIONS):
                    disk.remove(inner)
        for entry in list(self._damaged.iterdir()):
            if entry.name not in wanted or entry.name in self._packages:
                disk.remove(entry)
        return gone

    # ---- what is there -------------------------------------------------------------------------------------------

    def has(self, digest: str) -> bool:
        """Whether the library has the package."""
        return digest in self._packages

    def package(self, digest: str) -> Package:
        """A package of the library. Raises `NotInLibrary`."""
        try:
            return self._packages[digest]
        except KeyError:
            raise NotInLibrary(
                f"package {digest[:12]} is not in the library of this node",
                remedy="it is obtained from another node when this one synchronises",
            ) from None

    def tree(self, digest: str) -> Path:
        """Where a package of the library is unpacked. Raises `NotInLibrary`."""
        return self.package(digest).path.parent / TREE

    def wheels(self, tree: str | Path) -> Path | None:
        """The directory of the wheels that came inside a package, by its tree; `None`: it brought none."""
        return next(Path(tree).glob("*.dist-info/wheels"), None)

    async def read(self, digest: str, offset: int, size: int) -> tuple[bytes, int] | None:
        """For other nodes: at most `size` bytes of a package from `offset`, and the size of the whole; `None` when this
        node does not have it, wherever."""
        if offset < 0 or size < 1:
            raise UsageError(f"{size} bytes at {offset} of a package cannot be read", remedy="ask for 1 byte at least")
        _checked(digest)
        return await on_disk(self._library, partial(self._read, digest, offset, min(size, READ_LIMIT)))

    def _read(self, digest: str, offset: int, size: int) -> tuple[bytes, int] | None:
        for path in self._copies(digest):
            with suppress(FileNotFoundError, NotADirectoryError), path.open("rb", buffering=0) as file:
                return os.pread(file.fileno(), size, offset), os.fstat(file.fileno()).st_size
        return None

    def stats(self) -> dict[str, int]:
        """How many packages the library has, and how many bytes of disk they take."""
        return {"packages": len(self._packages), "bytes": sum(list(self._sizes.values()))}

    # ---- descriptions --------------------------------------------------------------------------------------------

    def remember(self, digest: str, config: str, description: bytes) -> None:
        """Keep a small JSON text about a package (in the library or staged) under a configuration. Best effort: it may
        be forgotten at any time, and a disk that refuses is no error."""
        for folder in self._folders(digest):
            with suppress(OSError):
                if (folder / PACKAGE).is_file():
                    descriptions.write(folder / DESCRIPTIONS, config, description, self._fresh())
                    return

    def recall(self, digest: str, config: str) -> bytes | None:
        """What was remembered; `None`: nothing, or nothing readable."""
        found = (descriptions.read(folder / DESCRIPTIONS, config) for folder in self._folders(digest))
        return next((text for text in found if text is not None), None)

    # ---- how things come to be -----------------------------------------------------------------------------------

    @asynccontextmanager
    async def _made(self, digest: str, sources: Sequence[Source]) -> AsyncIterator[Package]:
        """The package in a directory of `tmp`, complete and fsynced, to be moved; what is not moved goes at the end."""
        folder = self._fresh()
        path = folder / PACKAGE
        try:
            await on_disk(folder, partial(disk.make_directory, folder))
            if not await on_disk(folder, partial(self._copy_here, digest, path)):
                await fetch(digest, sources, path, limit=self.limits.file)
            yield await self._unpacked(digest, path)
        finally:
            with suppress(DiskError):  # `open` removes it then
                await on_disk(folder, partial(disk.remove, folder))

    def _copy_here(self, digest: str, target: Path) -> bool:
        """Take the package from this node's own disk, if a copy there has the digest."""
        for path in self._copies(digest):
            with suppress(NotADirectoryError):
                if disk.link(path, target):
                    if disk.sha256(target) == digest:
                        return True
                    disk.remove(target)
        return False

    async def _unpacked(self, digest: str, path: Path) -> Package:
        try:
            package = await disk.in_thread(partial(self._unpack, path))
        except OSError as error:
            needed = await on_disk(path, partial(unpacked_size, path, self.limits))
            raise disk.disk_error(error, path.parent, needed) from error
        if package.digest != digest:
            raise LibraryError(f"package {digest[:12]} changed on the disk while it was unpacked in {path.parent}")
        return msgspec.structs.replace(package, path=path)

    def _unpack(self, path: Path) -> Package:
        package = unpack(path, path.parent / TREE, self.limits)
        disk.sync_directory(path.parent)
        return package

    # ---- places --------------------------------------------------------------------------------------------------

    def _fresh(self) -> Path:
        """A path in `tmp` that nobody uses."""
        return self._tmp / str(next(self._numbers))

    def _staged(self, tx: str, digest: str) -> Path:
        return self._staging / _checked_tx(tx) / _checked(digest)

    def _folders(self, digest: str) -> Iterator[Path]:
        """Where the package may be complete, with its tree."""
        yield self._library / _checked(digest)
        yield from sorted(self._staging.glob(f"*/{digest}"))

    def _copies(self, digest: str) -> Iterator[Path]:
        """Where the file of the package may be."""
        yield self._library / digest / PACKAGE
        yield self._uploads.path(digest)
        yield from sorted(self._staging.glob(f"*/{digest}/{PACKAGE}"))
        yield self._damaged / digest / PACKAGE

    def _sound_package(self, folder: Path, digest: str = "") -> Package | None:
        """The package in `folder`, if it is what the name of the folder says."""
        path = folder / PACKAGE
        try:
            package = open_package(path, self.limits)
        except (PackageError, OSError) as error:
            reason = error.__cause__ if isinstance(error, PackageError) else error
            if isinstance(reason, OSError) and reason.errno not in _DAMAGE:
                raise reason from None  # too many open files, say: that is no damage
            return None
        return msgspec.structs.replace(package, path=path) if package.digest == (digest or folder.name) else None

    def _sound(self, folder: Path) -> Package | None:
        """The same, if the tree is right as well."""
        package = self._sound_package(folder)
        if package is None or flaw(package.path, folder / TREE, self.limits) is not None:
            return None
        return package


class _Turns:
    """One after the other, for each name. A name is forgotten when nobody waits for it."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def of(self, name: str) -> AsyncIterator[None]:
        lock, users = self._locks.get(name, (asyncio.Lock(), 0))
        self._locks[name] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[name]
            if users == 1:
                del self._locks[name]
            else:
                self._locks[name] = (lock, users - 1)


def _checked(digest: str) -> str:
    """Digests become file names: nothing else may."""
    if not _DIGEST.fullmatch(digest):
        raise UsageError(
            f"{digest[:80]!r} is not a digest of a package", remedy="it is 64 hexadecimal digits (SHA-256)"
        )
    return digest


def _checked_tx(tx: str) -> str:
    if not _TRANSACTION.fullmatch(tx):
        raise UsageError(f"{tx[:80]!r} is not the id of a transaction", remedy="letters, digits, and - _ . : inside")
    return tx


def _entries(folder: Path) -> list[Path]:
    """What is in a directory; nothing when it is none, or goes at this moment."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _disk_size(folder: Path) -> int:
    """Bytes in all files under `folder`."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
