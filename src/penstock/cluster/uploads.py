"""Packages that users have sent to this node, until the nodes of the cluster have them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec

from penstock.cluster.cancellation import check_cancelled, times_cancelled
from penstock.cluster.disk import DiskError, Part, move, on_disk, remove, sync_directory
from penstock.cluster.service import Unavailable
from penstock.errors import UsageError
from penstock.model.package import Limits, Package, open_package

SILENCE = 60.0
"""Seconds without a byte after which an upload is given up."""
MOST_KEPT = 4 * 2**30
"""Bytes that uploads may take on a node, those that are coming in included."""
_GATHERED = 2**20


class TooLarge(UsageError):
    """An upload has more bytes than it may have."""


class Uploads:
    """Checked packages as `folder/<digest>.whl`, written to `folder/*.part` first. They do not outlive the process."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder, self._limits = folder, limits
        self._count = 0
        self._sizes: dict[Path, int] = {}

    def path(self, digest: str) -> Path:
        """Where a package is, if it is there."""
        return self._folder / f"{digest}.whl"

    async def receive(self, chunks: AsyncIterator[bytes], *, limit: int) -> Package:
        """See `Library.receive`."""
        self._count += 1
        part = Part(self._folder / f"{self._count}.part")
        try:
            await on_disk(part.path, part.open)
            await self._write(chunks, part, limit)
            return await on_disk(part.path, partial(self._accept, part), needed=part.size)
        finally:
            self._sizes.pop(part.path, None)
            part.close()
            with suppress(DiskError):
                await on_disk(part.path, partial(remove, part.path))

    async def _write(self, chunks: AsyncIterator[bytes], part: Part, limit: int) -> None:
        gathered, size = [], 0
        while (chunk := await _next(chunks)) is not None:
            size += len(chunk)
            if part.size + size > limit:
                raise TooLarge(
                    f"the package has more than {limit} bytes",
                    remedy="leave out data that the model can read from elsewhere, or raise the node's limit",
                )
            self._check_room(part.path, part.size + size)
            gathered.append(chunk)
            if size >= _GATHERED:
                await on_disk(part.path, partial(part.write, b"".join(gathered)), needed=part.size + size)
                gathered, size = [], 0
        await on_disk(part.path, partial(part.write, b"".join(gathered)), needed=part.size + size)

    def _check_room(self, path: Path, size: int) -> None:
        self._sizes[path] = size
        if (together := sum(list(self._sizes.values()))) > MOST_KEPT:
            raise Unavailable(
                f"uploads take {together:,} bytes on this node, {MOST_KEPT:,} is the most",
                remedy="try again in some minutes, or ask another node: what is not used is removed",
            )

    def _accept(self, part: Part) -> Package:
        if not part.size:
            raise UsageError("the upload is empty", remedy="send the package as the body of the request")
        package = open_package(part.path, self._limits)
        if package.digest != part.digest():
            raise OSError(f"what was written to {part.path} reads differently")
        part.sync()
        path = self.path(package.digest)
        move(part.path, path)
        self._sizes[path] = package.size
        return msgspec.structs.replace(package, path=path)

    async def drop(self, digest: str) -> None:
        """Remove an upload; nothing there is no error."""
        await on_disk(self._folder, partial(self._drop, self.path(digest)))

    def _drop(self, path: Path) -> None:
        remove(path)
        self._sizes.pop(path, None)
        sync_directory(self._folder)


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    """The next chunk; `None` after the last."""
    before = times_cancelled()
    try:
        async with asyncio.timeout(SILENCE):
            chunk = await anext(chunks, None)
    except TimeoutError:
        check_cancelled(before)
        raise UsageError(f"the upload was given up: nothing came for {SILENCE:g} s") from None
    check_cancelled(before)
    return chunk
