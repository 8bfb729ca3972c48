"""Packages of people who mean harm, or whose network cut them off. Each has to be refused, with nothing written."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from tests.model.wheels import MANIFEST, good_files, pack, record_of

from penstock.model.archive import Limits, PackageError
from penstock.model.package import open_package, unpack

LINK = (stat.S_IFLNK | 0o777) << 16
INFO = "tiny-1.dist-info"


@pytest.fixture
def refused(tmp_path):
    """`refused(path, words)`: neither opened nor unpacked, and nothing is left behind."""

    def check(path: Path, *said: str, limits: Limits | None = None) -> None:
        before = sorted(tmp_path.rglob("*"))
        for attempt in (lambda: open_package(path, limits), lambda: unpack(path, tmp_path / "trees" / "t", limits)):
            with pytest.raises(PackageError) as caught:
                attempt()
            for words in said:
                assert words in str(caught.value)
            (tmp_path / "trees").exists() and (tmp_path / "trees").rmdir()  # empty, or this fails
        assert sorted(tmp_path.rglob("*")) == before

    return check


def rewrite(path: Path, old: bytes, new: bytes, count: int = 1, last: bool = False) -> Path:
    """Change bytes of the file in place: the first ones, or the last."""
    data = path.read_bytes()
    assert data.count(old) >= count
    if last:
        head, _, tail = data.rpartition(old)
        path.write_bytes(head + new + tail)
    else:
        path.write_bytes(data.replace(old, new, count))
    return path


def central(path: Path, name: str, offset: int, form: str, value: int) -> Path:
    """Change a field of a member's header in the directory at the end."""
    data = bytearray(path.read_bytes())
    start = data.rindex(name.encode()) - 46
    struct.pack_into(form, data, start + offset, value)
    path.write_bytes(data)
    return path


def local(path: Path, name: str, offset: int, form: str, value: int) -> Path:
    """Change a field of the header in front of a member."""
    data = bytearray(path.read_bytes())
    start = data.index(name.encode()) - 30
    struct.pack_into(form, data, start + offset, value)
    path.write_bytes(data)
    return path


def test_the_good_one_is_good(tmp_path):
    path = pack(tmp_path / "p.whl", good_files(**{"data/ü b.csv": b"1\n", "empty.txt": b""}))
    package = open_package(path)
    assert package.manifest.name == "tiny"
    assert unpack(path, tmp_path / "tree") == package
    found = {str(file.relative_to(tmp_path / "tree")) for file in (tmp_path / "tree").rglob("*") if file.is_file()}
    assert found == {*good_files(), "data/ü b.csv", "empty.txt", f"{INFO}/RECORD"}
    assert (tmp_path / "tree/data/ü b.csv").read_bytes() == b"1\n"


def test_a_tree_that_is_there_is_not_touched(tmp_path):
    path = pack(tmp_path / "p.whl", good_files())
    for existing in ("tree", "link"):
        (tmp_path / "tree").mkdir(exist_ok=True)
        if existing == "link":
            (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        with pytest.raises(PackageError, match="is there already"):
            unpack(path, tmp_path / existing)
    assert list((tmp_path / "tree").iterdir()) == []


NAMES = {
    "/etc/passwd": "leads out",
    "../evil.py": "leads out",
    "a/../../evil.py": "leads out",
    "a/./b.py": "leads out",
    "a//b.py": "leads out",
    "C:/evil.py": "a character",
    "a\\..\\evil.py": "a character",
    "a\nb.py": "a character",
    "a\u202eb.py": "a character",
    "a/": "is a directory",
    "a. ": "not a name on every file system",
    "a./b.py": "not a name on every file system",
    "x" * 256: "not a name on every file system",
    "x/" * 300 + "y": "longer than 512",
    "penstock/__init__.py": "stand in for penstock",
    "penstock.py": "stand in for penstock",
    "Penstock/x.py": "stand in for penstock",
    "json/__init__.py": "standard library's json",
    "socket.py": "standard library's socket",
    "math.cpython-311-x86_64-linux-gnu.so": "standard library's math",
    "evil.pth": "run code when Python starts",
    "tiny-1.data/scripts/evil": "outside of the package",
    "tiny.pyc": "is compiled",
    "__pycache__/tiny.cpython-311.pyc": "is compiled",
}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:30])
def test_names(tmp_path, refused, name):
    refused(pack(tmp_path / "p.whl", good_files(**{name: b"x = 1\n"})), NAMES[name])


def test_a_name_with_nul(tmp_path, refused):
    path = pack(tmp_path / "p.whl", good_files(**{"aXb.py": b"x"}))
    refused(rewrite(path, b"aXb.py", b"a\0b.py", 2), "a character")


def test_a_name_that_is_not_utf_8(tmp_path, refused):
    path = pack(tmp_path / "p.whl", good_files(**{"aXb.py": b"x"}))
    refused(rewrite(path, b"aXb.py", b"a\xffb.py", 2), "not UTF-8")


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("data.txt", "DATA.txt", "would be one file"),
        ("stra\u00dfe.txt", "STRASSE.txt", "would be one file"),
        ("\u00e9.txt", "e\u0301.txt", "would be one file"),
        ("a", "a/b.py", "a file and the directory"),
        ("A", "a/c/b.py", "a file and the directory"),
    ],
)
def test_two_names_for_one_file(tmp_path, refused, first, second, said):
    refused(pack(tmp_path / "p.whl", good_files(**{first: b"1", second: b"2"})), said)


def test_the_same_name_twice(tmp_path, refused):
    path = pack(tmp_path / "p.whl", good_files(**{"a1.py": b"1", "a2.py": b"2"}))
    refused(rewrite(path, b"a2.py", b"a1.py", 2), "two files 'a1.py'")


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        (LINK, "is a link"),
        (stat.S_IFIFO << 16, "not a plain file"),
        (stat.S_IFCHR << 16, "not a plain file"),
        (stat.S_IFDIR << 16, "not a plain file"),
        (0x10, "not a plain file"),
        (0x400, "not a plain file"),
    ],
)
def test_links_and_special_files(tmp_path, refused, attributes, said):
    def change(info: zipfile.ZipInfo) -> None:
        if info.filename == "link":
            info.external_attr = attributes

    refused(pack(tmp_path / "p.whl", good_files(link=b"/etc/passwd"), change=change), "link", said)


def test_the_mode_of_a_member_does_not_get_through(tmp_path):
    def change(info: zipfile.ZipInfo) -> None:
        info.external_attr = (stat.S_IFREG | 0o6777) << 16

    unpack(pack(tmp_path / "p.whl", good_files(), change=change), tmp_path / "tree")
    assert stat.S_IMODE((tmp_path / "tree/tiny.py").stat().st_mode) & ~0o644 == 0


def broken_record(content: bytes, **replaced: bytes) -> bytes:
    files = good_files(**{"a.py": content})
    return record_of({**files, **replaced})


RECORDS = {
    "another hash": (broken_record(b"x", **{"a.py": b"y"}), "a.py is not the file that RECORD lists"),
    "another size": (broken_record(b"x").replace(b",1\n", b",2\n"), "a.py is not the file that RECORD lists"),
    "not listed": (record_of(good_files()), "RECORD does not list 'a.py'"),
    "missing": (broken_record(b"x", **{"b.py": b"y"}), "RECORD lists 'b.py', which is missing"),
    "listed twice": (broken_record(b"x") + b"a.py,sha256=AAAA,1\n", "listed twice"),
    "no hash": (record_of(good_files()) + b"a.py,,1\n", "not a SHA-256"),
    "a weak hash": (record_of(good_files()) + b"a.py,md5=AAAA,1\n", "not a SHA-256"),
    "no size": (broken_record(b"x").replace(b",1\n", b",\n"), "not a size"),
    "a negative size": (broken_record(b"x").replace(b",1\n", b",-1\n"), "not a size"),
    "not CSV": (b'"', "RECORD cannot be read"),
    "two fields": (b"a,b\n", "RECORD cannot be read"),
    "not text": (b"\xff", "RECORD cannot be read"),
}


@pytest.mark.parametrize("case", RECORDS)
def test_record(tmp_path, refused, case):
    record, said = RECORDS[case]
    refused(pack(tmp_path / "p.whl", good_files(**{"a.py": b"x"}), record=record), said)


def test_without_record_and_with_two_dist_infos(tmp_path, refused):
    path = tmp_path / "p.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in good_files().items():
            archive.writestr(name, content)
    refused(path, "no tiny-1.dist-info/RECORD")
    refused(pack(path, good_files(**{"other-1.dist-info/METADATA": b""})), "several .dist-info")
    refused(pack(path, {"tiny.py": b""}, info="x"), "no .dist-info")


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [(8, "<H", 0x0800), (10, "<H", 0), (16, "<I", 1), (20, "<I", 1), (24, "<I", 1)],
    ids=["flags", "method", "crc", "packed", "size"],
)
def test_a_directory_that_differs_from_the_headers(tmp_path, refused, offset, form, value):
    path = pack(tmp_path / "p.whl", good_files())
    refused(central(path, "tiny.py", offset, form, value), "tiny.py", "different things")


def test_a_name_that_differs_from_the_header(tmp_path, refused):
    path = pack(tmp_path / "p.whl", good_files())
    refused(rewrite(path, b"tiny.py", b"evil.py", last=True), "evil.py", "different things")


def test_encrypted_members(tmp_path, refused):
    path = pack(tmp_path / "p.whl", good_files())
    refused(central(local(path, "tiny.py", 6, "<H", 1), "tiny.py", 8, "<H", 1), "tiny.py is encrypted")


@pytest.mark.parametrize("flag", [0x0008, 0x0020, 0x2000])
def test_forms_that_only_some_readers_know(tmp_path, refused, flag):
    path = pack(tmp_path / "p.whl", good_files())
    refused(central(local(path, "tiny.py", 6, "<H", flag), "tiny.py", 8, "<H", flag), "form that is not accepted")


def test_a_compression_that_is_not_deflate(tmp_path, refused):
    def change(info: zipfile.ZipInfo) -> None:
        info.compress_type = zipfile.ZIP_BZIP2

    refused(pack(tmp_path / "p.whl", good_files(), change=change), "compressed by method 12")


def lying(path: Path, size: int) -> Path:
    """A member `bomb.txt` of 4 MiB whose headers and RECORD say `size`."""
    content = bytes(4 << 20)
    files = good_files(**{"bomb.txt": content})
    record = record_of(files).replace(f",{len(content)}\n".encode(), f",{size}\n".encode())
    pack(path, files, record=record)
    return central(local(path, "bomb.txt", 22, "<I", size), "bomb.txt", 24, "<I", size)


def test_a_bomb_that_lies_about_its_size(tmp_path, refused):
    refused(lying(tmp_path / "p.whl", 1000), "bomb.txt is longer than its header says")
    refused(lying(tmp_path / "p.whl", (4 << 20) + 1), "header says", limits=Limits(ratio=2000))


def test_an_honest_bomb(tmp_path, refused):
    path = pack(tmp_path / "p.whl", good_files(**{"bomb.txt": bytes(4 << 20)}))
    refused(path, "bomb.txt is compressed more than 200 times")
    many = pack(tmp_path / "q.whl", good_files(**{f"bomb{n}.txt": bytes(1 << 20) for n in range(20)}))
    refused(many, "it is compressed more than 200 times")


def test_members_that_share_their_data(tmp_path, refused):
    """The bomb of overlapping files: two directory entries for one member's bytes."""
    path = pack(tmp_path / "p.whl", good_files(**{"a1.py": b"1", "a2.py": b"1"}))
    data = path.read_bytes()
    first, second = data.index(b"a1.py") - 30, data.rindex(b"a2.py") - 46
    changed = bytearray(data)
    struct.pack_into("<I", changed, second + 42, first)
    path.write_bytes(changed)
    refused(path, "does not begin where the file before it ends")


def test_limits(tmp_path, refused):
    path = pack(tmp_path / "p.whl", good_files(**{"data.bin": os.urandom(20_000)}))
    open_package(path, Limits(members=6, size=30_000, member=20_000, file=30_000))
    refused(path, "it has 6 files", "the limit is 5", limits=Limits(members=5))
    refused(path, "it unpacks to", "the limit is 20,100", limits=Limits(size=20_100))
    refused(path, "data.bin has 20,000 bytes", limits=Limits(member=19_999))
    refused(path, "bytes", "the limit is 1,000", limits=Limits(file=1000))


def test_a_directory_that_hides_how_many_files_there_are(tmp_path, refused):
    path = pack(tmp_path / "p.whl", good_files())
    data = bytearray(path.read_bytes())
    struct.pack_into("<HH", data, len(data) - 14, 1, 1)
    path.write_bytes(data)
    refused(path, "is not a package")


def test_data_that_belongs_to_no_file(tmp_path, refused):
    path = pack(tmp_path / "p.whl", good_files())
    good = path.read_bytes()
    for data in (b"MZ" + good, good + b"x", good[:-2] + b"\x01\x00x"):
        path.write_bytes(data)
        refused(path, "is not a package")
    path.write_bytes(good)
    between = bytearray(good)
    start = struct.unpack_from("<I", good, len(good) - 6)[0]
    between[start:start] = b"hidden"
    struct.pack_into("<I", between, len(between) - 6, start + 6)
    path.write_bytes(between)
    refused(path, "data that belongs to no file")


def test_data_behind_the_end_of_a_member(tmp_path, refused):
    """Deflate ends before the member does: another reader could see the rest."""
    content = b"x = 1\n"
    squeezed = zlib.compressobj(wbits=-15)
    data = squeezed.compress(content) + squeezed.flush()
    files = good_files(**{"a.py": data + b"hidden"})

    def change(info: zipfile.ZipInfo) -> None:
        if info.filename == "a.py":
            info.compress_type = zipfile.ZIP_STORED

    path = pack(tmp_path / "p.whl", files, record=record_of({**files, "a.py": content}), change=change)
    for edit, method, crc, size in ((local, 8, 14, 22), (central, 10, 16, 24)):
        edit(path, "a.py", method, "<H", 8)
        edit(path, "a.py", crc, "<I", zlib.crc32(content))
        edit(path, "a.py", size, "<I", len(content))
    refused(path, "a.py has data behind its end")


def test_damaged_content(tmp_path, refused):
    path = pack(tmp_path / "p.whl", good_files(**{"data.bin": bytes(range(256)) * 40}))
    data = bytearray(path.read_bytes())
    start = data.index(b"data.bin") + 8
    for offset in (0, 20, 60):
        changed = bytearray(data)
        changed[start + offset] ^= 0xFF
        path.write_bytes(changed)
        refused(path, "data.bin")


def test_cut_off_at_every_length(tmp_path):
    path = pack(tmp_path / "p.whl", good_files())
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(PackageError):
            open_package(path)


def test_any_single_changed_byte_is_refused_or_harmless(tmp_path):
    """Nothing but a `PackageError` comes out of a damaged file, and what is accepted has the same content."""
    path = pack(tmp_path / "p.whl", good_files())
    data, good = path.read_bytes(), open_package(path)
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x5A]) + data[position + 1 :])
        try:
            package = open_package(path)
        except PackageError:
            continue
        assert (package.manifest, package.lock) == (good.manifest, good.lock)  # times and versions in headers


MANIFESTS = {
    "no JSON": (b"{", "penstock.json"),
    "a field of another release": (MANIFEST[:-1] + b', "later": 1}', "later"),
    "no name": (b'{"flow": "tiny:flow"}', "no name"),
    "a name as path": (b'{"name": "../../x", "flow": "tiny:flow"}', "'../../x' is not a name"),
    "another name": (b'{"name": "other", "version": "1", "flow": "tiny:flow"}', "its manifest is of other-1"),
    "no such module": (b'{"name": "tiny", "version": "1", "flow": "gone:flow"}', "no module for its flow"),
    "deep": (b"[" * 100_000, "penstock.json"),
    "a requirement without end": (
        MANIFEST[:-1] + b', "requires": ["x; ' + b"(" * 100_000 + b'"]}',
        "is not a requirement",
    ),
    "a version without end": (MANIFEST.replace(b'"1"', b'"' + b"9" * 5000 + b'"'), "is not a version"),
    "a Python without end": (MANIFEST[:-1] + b', "requires_python": ">=' + b"9" * 5000 + b'"}', "is not understood"),
    "a setting of no type": (MANIFEST[:-1] + b', "config": {"n": {"type": "int"}}}', "'int' is not known"),
    "what is required is not locked": (MANIFEST[:-1] + b', "requires": ["numpy"]}', "requires numpy"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_the_manifest_of_somebody_else(tmp_path, refused, case):
    manifest, said = MANIFESTS[case]
    refused(pack(tmp_path / "p.whl", good_files(**{f"{INFO}/penstock.json": manifest})), said)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (b"Name: other\nVersion: 1\n\nName: tiny\n", "the rest of other-1"),
        (b"Name: tiny\nName: other\nVersion: 1\n", "one name and one version"),
        (b"Name: tiny\nVersion: 2\n", "the rest of tiny-2"),
        (b"Name: tiny\nVersion: x\n", "METADATA: 'x' is not a version"),
        (b"", "one name and one version"),
        (b"\xff", "METADATA is not UTF-8"),
    ],
)
def test_metadata_of_something_else(tmp_path, refused, metadata, said):
    refused(pack(tmp_path / "p.whl", good_files(**{f"{INFO}/METADATA": metadata})), said)


@pytest.mark.parametrize(
    "lock",
    [
        b"--index-url https://evil.example/simple\n",
        b"-r /etc/passwd\n",
        b"-e .\n",
        b"numpy\n",
        b"numpy==1.0\n",
        b"numpy @ file:///tmp/x.whl --hash=sha256:" + b"0" * 64,
        b"numpy==1.0 --hash=md5:" + b"0" * 32,
        b"numpy==1.0 --hash=sha256:" + b"0" * 64 + b" --no-binary :all:",
        b"\xff",
    ],
)
def test_the_lock_of_somebody_else(tmp_path, refused, lock):
    refused(pack(tmp_path / "p.whl", good_files(**{f"{INFO}/penstock.lock": lock})), "penstock.lock")


def test_a_carried_wheel_that_the_lock_does_not_list(tmp_path, refused):
    files = good_files(**{f"{INFO}/wheels/x-1-py3-none-any.whl": b"x"})
    refused(pack(tmp_path / "p.whl", files), "not a wheel that penstock.lock lists")
    files = good_files(**{f"{INFO}/wheels/deep/x-1-py3-none-any.whl": b"x"})
    refused(pack(tmp_path / "p.whl", files), "is not a wheel")


def test_a_wheel_that_is_not_pure(tmp_path, refused):
    wheel = b"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp311-cp311-linux_x86_64\n"
    refused(pack(tmp_path / "p.whl", good_files(**{f"{INFO}/WHEEL": wheel})), "not a pure wheel")


def test_what_is_no_file_at_all(tmp_path, refused):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    refused(tmp_path / "pipe", "is not a file")
    refused(tmp_path / "empty", "no zip file")
    refused(tmp_path / "gone", "cannot be read")
    with pytest.raises(PackageError):
        open_package(tmp_path)
