"""Packages and sources for tests of the library. It imports no node, so that child processes start fast."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import tempfile
import zipfile
from pathlib import Path

from penstock.cluster.library import Library
from penstock.cluster.transfer import CHUNK
from penstock.errors import ClusterError
from penstock.model.package import build

FLOW = 'import penstock as ps\n\nflow = ps.Flow("words")\n'


def asynchronous(test):
    """Run a coroutine function as a test."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        asyncio.run(test(*args, **kwargs))

    return run


def packed(out: Path, name: str, *, files=None, noise=0) -> Path:
    """A package: a flow, `files` (name -> text) and `noise` random bytes."""
    with tempfile.TemporaryDirectory() as source:
        folder = Path(source)
        module = folder / "words"
        module.mkdir()
        (module / "__init__.py").write_text(FLOW)
        for inside, text in (files or {}).items():
            (module / inside).write_text(text)
        if noise:
            with (module / "noise.bin").open("wb") as file:
                for _ in range(noise // CHUNK + 1):
                    file.write(os.urandom(min(noise, CHUNK)))
        (folder / "pyproject.toml").write_text(
            f'[project]\nname = "{name}"\nversion = "1"\n\n[tool.penstock]\nflow = "words:flow"\n'
        )
        return build(folder, out).path


async def opened(root, limits=None):
    """A library in use."""
    library = Library(root, limits)
    await library.open()
    return library


def assert_complete(folder, digest):
    """What is in `folder` is the package and exactly its files, found out without the code under test."""
    assert hashlib.sha256((folder / "package.whl").read_bytes()).hexdigest() == digest
    with zipfile.ZipFile(folder / "package.whl") as archive:
        wanted = {name: archive.read(name) for name in archive.namelist()}
    tree = folder / "tree"
    found = {path.relative_to(tree).as_posix(): path.read_bytes() for path in tree.rglob("*") if not path.is_dir()}
    assert found == wanted
    assert {path.name for path in folder.iterdir()} <= {"package.whl", "tree", "descriptions"}


def assert_consistent(root):
    """Nothing half-done is anywhere."""
    assert {path.name for path in root.iterdir()} == {"library", "staging", "uploads", "damaged", "tmp"}
    assert not list((root / "tmp").iterdir())
    for path in root.rglob("*"):
        if path.is_dir() and "tree" not in path.parts:
            assert path.stat().st_mode & 0o777 == 0o700, path
    for folder in [*(root / "library").iterdir(), *(root / "staging").glob("*/*")]:
        assert_complete(folder, folder.name)


def several(out: Path) -> list[Path]:
    """Three small packages."""
    files = {"a.py": "A = 1\n" * 500, "b.py": "B = 2\n", "data.txt": "x" * 3000}
    return [packed(out, f"model{number}", files=files | {"n.py": f"N = {number}\n"}) for number in range(3)]


class Peer:
    """A source. `dies`: from this offset on it cannot be reached; `short`: bytes after which it has no more; `size`:
    what it says; `flip`: the byte that is wrong; `most`: bytes that it gives at a time; `lacks`: it never had it."""

    def __init__(self, name, data, *, dies=None, short=None, size=None, flip=None, most=CHUNK, lacks=False, extra=b""):
        self.name, self.asked = name, []
        self._data = data if flip is None else data[:flip] + bytes([data[flip] ^ 1]) + data[flip + 1 :]
        self._size = len(data) if size is None else size
        self._dies, self._short, self._most, self._lacks, self._extra = dies, short, most, lacks, extra

    async def read(self, digest, offset, size):
        """See `Source`."""
        assert 0 < size <= CHUNK
        self.asked.append(offset)
        await asyncio.sleep(0)
        if self._lacks:
            return None
        if self._dies is not None and offset >= self._dies:
            raise ClusterError(f"{self.name} is gone")
        return self._data[: self._short][offset : offset + min(size, self._most)] + self._extra, self._size


class Stuck(Peer):
    """Answers its first questions only."""

    def __init__(self, name, data, answers):
        super().__init__(name, data)
        self._answers = answers

    async def read(self, digest, offset, size):
        """See `Source`."""
        if len(self.asked) == self._answers:
            await asyncio.Event().wait()
        return await super().read(digest, offset, size)
