"""The local-file library on real disks: complete or not there, whatever is sent, cancelled, damaged or killed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from tests.cluster.packages import Peer, Stuck, assert_consistent, asynchronous, opened, packed, several

from penstock.cluster import descriptions, disk, uploads
from penstock.cluster import library as library_module
from penstock.cluster.disk import sha256
from penstock.cluster.library import (
    DiskError,
    LibraryError,
    NotInLibrary,
    TooLarge,
    TransferError,
)
from penstock.cluster.service import NotFound, Unavailable
from penstock.errors import UsageError
from penstock.model.package import Limits, PackageError

ROOT = Path(__file__).parents[2]
NOBODY = "0" * 64


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Some small packages."""
    return several(tmp_path_factory.mktemp("wheels"))


@pytest.fixture
def wheel(wheels):
    """A package."""
    return wheels[0]


async def chunks(data, size=1000):
    for start in range(0, len(data), size):
        yield data[start : start + size]


def peers(wheel, **faults):
    return [Peer("n1", wheel.read_bytes(), **faults)]


def content(root):
    """Every file that is not a directory, without the trees."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir())


# ---- the way of a package -------------------------------------------------------------------------------------------


@asynchronous
async def test_from_an_upload_to_the_library_and_out_again(tmp_path, wheel):
    library = await opened(tmp_path / "l")
    received = await library.receive(chunks(wheel.read_bytes()), limit=2**20)
    digest = received.digest
    assert (received.path.read_bytes(), digest) == (wheel.read_bytes(), sha256(wheel))
    staged = await library.stage("t1", digest, [])
    assert library.staged() == {"t1"}
    assert (staged.digest, staged.manifest.name) == (digest, "model0")
    assert library.staged_tree("t1") == str(staged.path.parent / "tree")
    assert not library.has(digest)
    await library.drop_upload(digest)
    await library.adopt("t1", digest)
    await library.adopt("t1", digest)
    await library.discard("t1")
    assert library.staged() == set()
    assert library.has(digest)
    package = library.package(digest)
    assert package.path == tmp_path / "l" / "library" / digest / "package.whl"
    assert (library.tree(digest) / "words" / "b.py").read_text() == "B = 2\n"
    assert library.stats()["packages"] == 1
    assert library.stats()["bytes"] > package.size
    assert_consistent(tmp_path / "l")
    again = await opened(tmp_path / "l")
    assert again.package(digest) == package
    assert again.stats() == library.stats()
    assert await again.keep([]) == [digest]
    assert again.stats() == {"packages": 0, "bytes": 0}
    assert content(tmp_path / "l") == []


@asynchronous
async def test_what_is_staged_outlives_the_process_and_uploads_do_not(tmp_path, wheel):
    library = await opened(tmp_path)
    digest = (await library.receive(chunks(wheel.read_bytes()), limit=2**20)).digest
    await library.stage("t1", digest, [])
    (tmp_path / "staging" / "t2").mkdir()
    library = await opened(tmp_path)
    assert library.staged() == {"t1"}
    assert content(tmp_path / "uploads") == []
    source = Peer("n1", wheel.read_bytes())
    await library.stage("t1", digest, [source])
    await library.stage("t3", digest, [source])
    assert source.asked == []
    await library.adopt("t1", digest)
    assert_consistent(tmp_path)


@asynchronous
async def test_peers_read_from_wherever_a_package_is(tmp_path, wheel):
    data, digest = wheel.read_bytes(), sha256(wheel)
    library = await opened(tmp_path)
    assert await library.read(digest, 0, 10) is None
    await library.receive(chunks(data), limit=2**20)
    assert await library.read(digest, 0, 10) == (data[:10], len(data))
    await library.stage("t1", digest, [])
    await library.drop_upload(digest)
    assert await library.read(digest, 5, 2**40) == (data[5:], len(data))
    await library.adopt("t1", digest)
    assert await library.read(digest, len(data), 1) == (b"", len(data))
    for wrong in ("../../etc/passwd", digest.upper(), "", digest + "\n"):
        with pytest.raises(UsageError, match="is not a digest"):
            await library.read(wrong, 0, 1)
    with pytest.raises(UsageError):
        await library.read(digest, -1, 1)


@asynchronous
async def test_a_library_is_a_source_for_another(tmp_path, wheel):
    class Node:
        name = "n1"

        def __init__(self, library):
            self.read = library.read

    first, second = await opened(tmp_path / "1"), await opened(tmp_path / "2")
    digest = sha256(wheel)
    await first.obtain(digest, peers(wheel))
    assert (await second.obtain(digest, [Node(first)])).digest == digest
    assert_consistent(tmp_path / "2")


@asynchronous
async def test_what_is_not_there_is_told(tmp_path, wheel):
    library, digest = await opened(tmp_path), sha256(wheel)
    for ask in (library.package, library.tree):
        with pytest.raises(NotFound, match=f"package {digest[:12]} is not in the library"):
            ask(digest)
    with pytest.raises(NotInLibrary, match="neither staged"):
        await library.adopt("t1", digest)
    with pytest.raises(NotInLibrary):
        library.staged_tree("t1")
    with pytest.raises(TransferError, match="no other node"):
        await library.obtain(digest, [])
    await library.discard("t1")
    await library.drop_upload(digest)
    for tx in ("..", "a/b", "", "x" * 200):
        with pytest.raises(UsageError, match="is not the id of a transaction"):
            await library.stage(tx, digest, [])
    assert content(tmp_path) == []


# ---- uploads --------------------------------------------------------------------------------------------------------


@asynchronous
async def test_a_refused_upload_leaves_nothing(tmp_path, wheel):
    data = wheel.read_bytes()
    library = await opened(tmp_path, Limits(members=100))

    async def broken():
        yield data[:2000]
        raise ConnectionResetError("the client went away")

    for sent, limit, expected in [
        (chunks(data), len(data) - 1, TooLarge),
        (chunks(data[:-1]), 2**20, PackageError),
        (chunks(b"no zip" * 100), 2**20, PackageError),
        (chunks(b""), 2**20, UsageError),
        (broken(), 2**20, ConnectionResetError),
    ]:
        with pytest.raises(expected):
            await library.receive(sent, limit=limit)
        assert content(tmp_path) == []
    assert (await library.receive(chunks(data), limit=len(data))).size == len(data)


@asynchronous
async def test_an_upload_that_stalls_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "SILENCE", 0.05)
    library = await opened(tmp_path)

    async def stalled():
        yield b"PK"
        await asyncio.Event().wait()

    with pytest.raises(UsageError, match="nothing came for"):
        await library.receive(stalled(), limit=100)
    assert content(tmp_path) == []


@asynchronous
async def test_uploads_at_the_same_time_and_again(tmp_path, wheels):
    library = await opened(tmp_path)
    sent = [library.receive(chunks(path.read_bytes(), 7), limit=2**20) for path in wheels * 2]
    received = await asyncio.gather(*sent)
    assert [package.digest for package in received] == [sha256(path) for path in wheels * 2]
    assert content(tmp_path / "uploads") == sorted(f"{sha256(path)}.whl" for path in wheels)


# ---- durable --------------------------------------------------------------------------------------------------------


class Syncs:
    """Sees that nothing appears under a name that counts before it is fsynced, and the name before anybody is told."""

    def __init__(self, root, monkeypatch):
        self.synced, self.owed, self.counted = set(), set(), 0
        fsync, rename = os.fsync, os.rename

        def seen_fsync(descriptor):
            fsync(descriptor)
            about = os.fstat(descriptor)
            self.synced.add(about.st_ino)
            self.owed.discard(about.st_ino)

        def seen_rename(source, target):
            source, target = Path(source), Path(target)
            if target.relative_to(root).parts[0] in ("library", "staging", "uploads"):
                missing = [path for path in [source, *source.rglob("*")] if path.stat().st_ino not in self.synced]
                assert not missing
                self.counted += 1
            rename(source, target)
            self.owed |= {source.parent.stat().st_ino, target.parent.stat().st_ino}

        monkeypatch.setattr(os, "fsync", seen_fsync)
        monkeypatch.setattr(os, "rename", seen_rename)

    async def done(self, work):
        """After `work` no name is owed to the disk."""
        await work
        assert not self.owed


@asynchronous
async def test_what_counts_is_fsynced_before_it_is_there(tmp_path, wheels, monkeypatch):
    library = await opened(tmp_path)
    first, second = sha256(wheels[0]), sha256(wheels[1])
    syncs = Syncs(tmp_path, monkeypatch)
    await syncs.done(library.receive(chunks(wheels[0].read_bytes()), limit=2**20))
    await syncs.done(library.stage("t1", first, []))
    await syncs.done(library.stage("t2", second, peers(wheels[1])))
    await syncs.done(library.adopt("t1", first))
    await syncs.done(library.obtain(second, []))
    await syncs.done(library.discard("t2"))
    await syncs.done(library.keep([first]))
    assert syncs.counted == 5


# ---- several at once, and cancelled ---------------------------------------------------------------------------------


@asynchronous
async def test_transactions_with_one_digest_fetch_it_once(tmp_path, wheel):
    library, digest = await opened(tmp_path), sha256(wheel)
    source = Peer("n1", wheel.read_bytes(), most=500)
    await asyncio.gather(*(library.stage(f"t{number}", digest, [source]) for number in range(5)))
    assert len(source.asked) == len(set(source.asked)) > 2
    assert library.staged() == {f"t{number}" for number in range(5)}
    await asyncio.gather(*(library.adopt(f"t{number}", digest) for number in range(5)), library.obtain(digest, []))
    await asyncio.gather(*(library.discard(f"t{number}") for number in range(5)))
    assert library.staged() == set()
    assert_consistent(tmp_path)
    assert await library.check([digest]) == []


@asynchronous
async def test_when_the_first_is_cancelled_the_second_goes_on(tmp_path, wheel):
    library, digest = await opened(tmp_path), sha256(wheel)
    stuck = Stuck("n1", wheel.read_bytes(), 0)
    first = asyncio.create_task(library.stage("t1", digest, [stuck]))
    second = asyncio.create_task(library.stage("t2", digest, peers(wheel)))
    await asyncio.sleep(0.02)
    assert not second.done()
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    await second
    assert library.staged() == {"t2"}
    assert_consistent(tmp_path)


@asynchronous
async def test_a_cancelled_stage_ends_only_when_its_thread_has_and_discard_waits_for_it(tmp_path, wheel, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    real = library_module.unpack

    def slow(*arguments):
        begun.set()
        assert go_on.wait(30)
        return real(*arguments)

    monkeypatch.setattr(library_module, "unpack", slow)
    library, digest = await opened(tmp_path), sha256(wheel)
    staging = asyncio.create_task(library.stage("t1", digest, peers(wheel)))
    while not begun.is_set():
        await asyncio.sleep(0.001)
    discarding = asyncio.create_task(library.discard("t1"))
    for _ in range(3):
        staging.cancel()
        await asyncio.sleep(0.01)
    assert not staging.done()
    assert not discarding.done()
    go_on.set()
    await discarding
    assert staging.cancelled()
    assert content(tmp_path) == []
    assert_consistent(tmp_path)


@asynchronous
async def test_stages_that_are_cancelled_anywhere_leave_nothing_behind(tmp_path, wheel):
    library, digest, rng = await opened(tmp_path), sha256(wheel), random.Random(1)
    ended = 0
    for number in range(60):
        source = Peer("n1", wheel.read_bytes(), most=700)
        task = asyncio.create_task(library.stage(f"t{number}", digest, [source]))
        await asyncio.sleep(rng.random() * 0.03)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
            ended += 1
        assert_consistent(tmp_path)
        await library.discard(f"t{number}")
        assert content(tmp_path) == []
    assert ended < 60


@asynchronous
async def test_obtain_adopt_check_and_keep_do_not_disturb_each_other(tmp_path, wheels):
    library, rng = await opened(tmp_path), random.Random(2)
    digests = {sha256(path): path for path in wheels}

    async def work(name):
        for _ in range(12):
            digest = rng.choice(list(digests))
            await library.obtain(digest, peers(digests[digest]))
            await library.stage(name, digest, peers(digests[digest]))
            await library.adopt(name, digest)
            await library.check([digest])
            await library.discard(name)
            if rng.random() < 0.4:
                await library.keep(rng.sample(list(digests), 2))

    await asyncio.gather(*(work(f"t{number}") for number in range(4)))
    assert_consistent(tmp_path)
    assert {digest for digest in digests if library.has(digest)} == {p.name for p in (tmp_path / "library").iterdir()}


# ---- damage ---------------------------------------------------------------------------------------------------------


def flip(path, place=100):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


TREE_DAMAGE = {
    "changed": lambda folder: flip(folder / "tree" / "words" / "a.py"),
    "emptied": lambda folder: (folder / "tree" / "words" / "a.py").write_text(""),
    "missing": lambda folder: (folder / "tree" / "words" / "a.py").unlink(),
    "extra": lambda folder: (folder / "tree" / "words" / "c.py").write_text("import os\n"),
    "link": lambda folder: (folder / "tree" / "elsewhere").symlink_to("/etc"),
    "record": lambda folder: flip(next(folder.glob("tree/*.dist-info/RECORD"))),
    "gone": lambda folder: shutil.rmtree(folder / "tree"),
}
PACKAGE_DAMAGE = {
    "flipped": lambda folder: flip(folder / "package.whl", 1000),
    "cut": lambda folder: os.truncate(folder / "package.whl", 1000),
    "lost": lambda folder: (folder / "package.whl").unlink(),
    "folder": lambda folder: shutil.rmtree(folder),
    "file": lambda folder: (shutil.rmtree(folder), folder.write_text("?")),
}


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("damage", [*TREE_DAMAGE, *PACKAGE_DAMAGE])
@asynchronous
async def test_damage_is_found_and_repaired(tmp_path, wheels, damage, restart):
    library = await opened(tmp_path)
    digest, other = sha256(wheels[0]), sha256(wheels[1])
    await library.obtain(digest, peers(wheels[0]))
    await library.obtain(other, peers(wheels[1]))
    (TREE_DAMAGE | PACKAGE_DAMAGE)[damage](tmp_path / "library" / digest)
    if restart:
        library = await opened(tmp_path)
    assert await library.check([digest, other, NOBODY]) == sorted([digest, NOBODY])
    assert not library.has(digest)
    assert library.has(other)
    source = Peer("n1", wheels[0].read_bytes())
    await library.obtain(digest, [source])
    assert bool(source.asked) is (damage in PACKAGE_DAMAGE)
    assert await library.check([digest, other]) == []
    assert_consistent(tmp_path)
    assert content(tmp_path / "damaged") == []


@asynchronous
async def test_cached_bytecode_is_no_damage_and_does_not_stay(tmp_path, wheel):
    library, digest = await opened(tmp_path), sha256(wheel)
    await library.obtain(digest, peers(wheel))
    cache = library.tree(digest) / "words" / "__pycache__"
    cache.mkdir()
    (cache / "a.cpython-311.pyc").write_bytes(b"damaged")
    assert await library.check([digest]) == []
    assert not cache.exists()


@asynchronous
async def test_a_damaged_copy_is_not_used_for_a_transaction(tmp_path, wheel):
    library, digest = await opened(tmp_path), sha256(wheel)
    await library.obtain(digest, peers(wheel))
    flip(tmp_path / "library" / digest / "package.whl")
    with pytest.raises(TransferError):
        await library.stage("t1", digest, [])
    await library.stage("t1", digest, peers(wheel))
    flip(tmp_path / "staging" / "t1" / digest / "tree" / "words" / "a.py")
    await library.stage("t1", digest, peers(wheel))
    await library.adopt("t1", digest)
    assert_consistent(tmp_path)


@asynchronous
async def test_what_is_damaged_in_staging_does_not_enter_the_library(tmp_path, wheel):
    library, digest = await opened(tmp_path), sha256(wheel)
    await library.stage("t1", digest, peers(wheel))
    flip(tmp_path / "staging" / "t1" / digest / "package.whl")
    with pytest.raises(LibraryError, match="was damaged"):
        await library.adopt("t1", digest)
    assert not library.has(digest)
    assert library.staged() == set()
    await library.obtain(digest, peers(wheel))
    assert_consistent(tmp_path)


@asynchronous
async def test_a_package_that_does_not_unpack_is_refused_by_every_way(tmp_path, wheel):
    library = await opened(tmp_path)
    data = b"no package at all"
    digest = hashlib.sha256(data).hexdigest()
    for way in (library.obtain(digest, [Peer("n1", data)]), library.stage("t1", digest, [Peer("n1", data)])):
        with pytest.raises(PackageError):
            await way
    assert content(tmp_path) == []


@asynchronous
async def test_keep_removes_everything_that_is_not_named(tmp_path, wheels):
    library = await opened(tmp_path)
    first, second, third = (sha256(path) for path in wheels)
    for path in wheels:
        await library.obtain(sha256(path), peers(path))
    (tmp_path / "library" / "notes.txt").write_text("?")
    (tmp_path / "library" / "folder").mkdir()
    (tmp_path / "library" / first / "core").write_text("?")
    flip(tmp_path / "library" / third / "package.whl")
    assert await library.check([first, second, third]) == [third]
    await library.stage("t1", second, [])
    assert sorted(await library.keep([first, NOBODY])) == sorted([second, "folder", "notes.txt"])
    assert (library.has(first), library.has(second)) == (True, False)
    assert content(tmp_path / "damaged") == []
    assert library.staged() == {"t1"}
    assert_consistent(tmp_path)


# ---- descriptions ---------------------------------------------------------------------------------------------------


@asynchronous
async def test_descriptions_go_with_their_package(tmp_path, wheel):
    library, digest = await opened(tmp_path), sha256(wheel)
    library.remember(digest, "{}", b'{"early":1}')
    assert library.recall(digest, "{}") is None
    await library.stage("t1", digest, peers(wheel))
    library.remember(digest, "{}", b'{"a":1}')
    await library.adopt("t1", digest)
    library.remember(digest, '{"x":1}', b'{"a":2}')
    library = await opened(tmp_path)
    assert (library.recall(digest, "{}"), library.recall(digest, '{"x":1}')) == (b'{"a":1}', b'{"a":2}')
    assert library.recall(digest, '{"x":2}') is None
    assert await library.check([digest]) == []
    for path in (tmp_path / "library" / digest / "descriptions").iterdir():
        path.write_bytes(b"\0" * 7)
    assert library.recall(digest, "{}") is None
    assert_consistent(tmp_path)


@asynchronous
async def test_only_the_latest_descriptions_stay(tmp_path, wheel):
    library, digest = await opened(tmp_path), sha256(wheel)
    await library.obtain(digest, peers(wheel))
    for number in range(descriptions.KEPT + 5):
        library.remember(digest, str(number), b"%d" % number)
        path = max((tmp_path / "library" / digest / "descriptions").iterdir(), key=lambda p: p.stat().st_mtime_ns)
        os.utime(path, (number, number))
    kept = [number for number in range(descriptions.KEPT + 5) if library.recall(digest, str(number)) is not None]
    assert kept == list(range(5, descriptions.KEPT + 5))


# ---- full and broken disks ------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system can only be mounted by root on Linux")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@asynchronous
async def test_a_full_disk_is_told_and_leaves_room_again(tmp_path, small_disk, wheel):
    big = packed(tmp_path, "big", noise=1_200_000)  # the package fits, its tree does not fit beside it
    huge = packed(tmp_path, "huge", noise=4_000_000)
    library = await opened(small_disk / "l")
    with pytest.raises(DiskError, match=r"the disk is full at .*\d+ bytes are needed, \d+ are free"):
        await library.receive(chunks(huge.read_bytes(), 2**16), limit=2**30)
    with pytest.raises(DiskError, match=f"{huge.stat().st_size} bytes are needed"):
        await library.obtain(sha256(huge), peers(huge))
    with pytest.raises(DiskError, match=r"full at .*tmp.*\d{7} bytes are needed"):
        await library.stage("t1", sha256(big), peers(big))
    assert content(small_disk) == []
    await library.obtain(sha256(wheel), peers(wheel))
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    library.remember(sha256(wheel), "{}", b"[" + b"1," * 5000 + b"1]")
    assert library.recall(sha256(wheel), "{}") is None
    filler.unlink()
    assert_consistent(small_disk / "l")
    assert await library.keep([]) == [sha256(wheel)]


@asynchronous
async def test_links_are_not_needed(tmp_path, wheel, monkeypatch):
    def refuse(source, target):
        Path(source).stat()
        raise PermissionError(1, "Operation not permitted")

    library, digest = await opened(tmp_path), sha256(wheel)
    monkeypatch.setattr(disk.os, "link", refuse)
    await library.receive(chunks(wheel.read_bytes()), limit=2**20)
    await library.stage("t1", digest, [])
    await library.adopt("t1", digest)
    assert_consistent(tmp_path)


@asynchronous
async def test_running_out_of_descriptors_is_no_damage(tmp_path, wheel, monkeypatch):
    library, digest = await opened(tmp_path), sha256(wheel)
    await library.obtain(digest, peers(wheel))

    def refuse(path, limits):
        try:
            raise OSError(24, "Too many open files")
        except OSError as error:
            raise PackageError("it cannot be read") from error

    with monkeypatch.context() as patched:
        patched.setattr(library_module, "open_package", refuse)
        with pytest.raises(DiskError, match="Too many open files"):
            await library.check([digest])
    assert library.has(digest)
    assert await library.check([digest]) == []


@asynchronous
async def test_uploads_take_a_bounded_part_of_the_disk(tmp_path, monkeypatch):
    wheels = several(tmp_path)
    size = max(path.stat().st_size for path in wheels)
    monkeypatch.setattr(uploads, "MOST_KEPT", 2 * size + 10)
    library = await opened(tmp_path / "node")
    first = await library.receive(chunks(wheels[0].read_bytes()), limit=size)
    await library.receive(chunks(wheels[1].read_bytes()), limit=size)
    with pytest.raises(Unavailable, match="uploads"):
        await library.receive(chunks(wheels[2].read_bytes()), limit=size)
    await library.drop_upload(first.digest)
    await library.receive(chunks(wheels[2].read_bytes()), limit=size)
    assert len(list((tmp_path / "node" / "uploads").iterdir())) == 2
