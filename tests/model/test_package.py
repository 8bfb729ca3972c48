"""Packages: what goes in comes out, and only that."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import uv
from tests.model.wheels import FLOW, dependency, good_files, pack, project

from penstock.errors import UsageError
from penstock.model.manifest import read_manifest
from penstock.model.package import Limits, PackageError, build, open_package, summary, unpack

TOML = """
[project]
name = "Tiny.Model"
version = "1.0-RC1"
[tool.penstock]
flow = "tiny.flow:flow"
[tool.penstock.config]
size = { default = 3, minimum = 1, description = "of it" }
"""
CODE = {"tiny/__init__.py": "", "tiny/flow.py": FLOW, "tiny/deep/__init__.py": "X = 1\n", "tiny/data.csv": "a,b\n"}
INFO = "tiny_model-1.0rc1.dist-info"


@pytest.fixture
def source(tmp_path):
    """A model's directory without `src/`."""
    return project(tmp_path / "source", TOML, CODE)


def names(path: Path) -> set[str]:
    """The code in a package."""
    with zipfile.ZipFile(path) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_a_directory_becomes_a_wheel(source, tmp_path):
    said = []
    package = build(source, tmp_path / "out", progress=said.append)
    assert package.path == tmp_path / "out" / "tiny_model-1.0rc1-py3-none-any.whl"
    assert (package.manifest.name, package.manifest.version, package.lock) == ("Tiny.Model", "1.0-RC1", "")
    assert package.size == package.path.stat().st_size
    assert names(package.path) == set(CODE)
    assert said == ["packing 4 files"]
    assert list((tmp_path / "out").iterdir()) == [package.path]


def test_equal_input_gives_equal_bytes(source, tmp_path):
    first = build(source, tmp_path / "a")
    for file in sorted(source.rglob("*"), reverse=True):
        os.utime(file, (10**9, 10**9))
        file.chmod(0o700)
    second = build(source, tmp_path / "b")
    assert (first.digest, first.path.read_bytes()) == (second.digest, second.path.read_bytes())
    (source / "tiny/flow.py").write_text(FLOW + "# changed\n")
    assert build(source, tmp_path / "c").digest != first.digest


def test_what_is_unpacked_is_what_was_packed(source, tmp_path):
    package = build(source, tmp_path / "out")
    assert unpack(package.path, tmp_path / "tree") == package
    for name, text in CODE.items():
        assert (tmp_path / "tree" / name).read_text() == text
    assert read_manifest(tmp_path / "tree") == package.manifest
    assert sorted(entry.name for entry in (tmp_path / "tree").iterdir()) == ["tiny", INFO]


def test_installers_take_it(source, tmp_path):
    package = build(source, tmp_path / "out")
    site = tmp_path / "site"
    command = [uv.find_uv_bin(), "pip", "install", "-q", "--no-deps", "--no-index", "--python", sys.executable]
    environment = os.environ | {"UV_CACHE_DIR": str(tmp_path / "cache")}
    subprocess.run([*command, "--target", site, package.path], check=True, timeout=60, env=environment)
    assert {path.relative_to(site).as_posix() for path in (site / "tiny").rglob("*.*")} == set(CODE)
    assert (site / INFO / "METADATA").read_text().splitlines()[1:3] == ["Name: tiny-model", "Version: 1.0rc1"]
    assert read_manifest(site) == package.manifest


def test_src_layout_takes_everything_in_src(tmp_path):
    files = {f"src/{name}": text for name, text in CODE.items()} | {"src/one.py": "", "other/__init__.py": ""}
    package = build(project(tmp_path / "source", TOML, files), tmp_path / "out")
    assert names(package.path) == {*CODE, "one.py"}


def test_what_is_left_out_of_a_flat_directory(source, tmp_path):
    for name in (
        "tests/__init__.py", "docs/conf.py", "setup.py", "conftest.py", "README.md", "notes/a.txt", "venv/lib/x.py",
        ".git/config", "tiny/__pycache__/flow.pyc", "tiny/.hidden", "tiny/.cache/x", "wheels/readme.txt",
        "tiny.egg-info/PKG-INFO", "stray/pyvenv.cfg", "stray/__init__.py",
    ):  # fmt: skip
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("x")
    (source / "beside.py").write_text("x = 1\n")
    package = build(source, tmp_path / "out")
    assert names(package.path) == {*CODE, "beside.py"}


def test_a_package_of_tests_inside_the_package_stays(source, tmp_path):
    (source / "tiny/tests").mkdir()
    (source / "tiny/tests/__init__.py").touch()
    assert "tiny/tests/__init__.py" in names(build(source, tmp_path / "out").path)


def test_a_single_file(tmp_path):
    (tmp_path / "my_counts.py").write_text(FLOW)
    package = build(tmp_path / "my_counts.py", tmp_path / "out")
    assert (package.manifest.name, package.manifest.flow) == ("my-counts", "my_counts")
    assert package.path.name == "my_counts-0-py3-none-any.whl"
    named = build(Path(f"{tmp_path / 'my_counts.py'}:flow"), tmp_path / "out", name="words")
    assert (named.manifest.name, named.manifest.flow) == ("words", "my_counts:flow")


def test_a_wheel_that_is_a_package_is_copied(source, tmp_path):
    package = build(source, tmp_path / "out")
    copy = build(package.path, tmp_path / "again")
    assert (copy.digest, copy.path) == (package.digest, tmp_path / "again" / package.path.name)
    assert build(package.path, tmp_path / "out") == package
    with pytest.raises(UsageError, match=r"is the package of 'Tiny.Model', not of 'other'"):
        build(package.path, tmp_path / "again", name="other")
    with pytest.raises(PackageError, match="without a manifest") as caught:
        build(dependency(tmp_path, "tinydep", "1.0"), tmp_path / "again")
    assert "penstock model add DIR" in str(caught.value)


def test_sources_that_cannot_be_packed(source, tmp_path):
    def refuse(said: str) -> None:
        with pytest.raises(UsageError, match=said):
            build(source, tmp_path / "out")
        assert list((tmp_path / "out").iterdir()) == []

    (source / "tiny/fast.so").touch()
    refuse("fast.so is compiled code")
    (source / "tiny/fast.so").unlink()
    (source / "tiny/link.py").symlink_to("/etc/passwd")
    refuse("is a link to something outside")
    (source / "tiny/link.py").unlink()
    (source / "tiny/link").symlink_to(source / "tiny/deep")
    refuse("is a link to a directory")
    (source / "tiny/link").unlink()
    os.mkfifo(source / "tiny/pipe")
    refuse("is not a plain file")
    (source / "tiny/pipe").unlink()
    (source / "queue.py").touch()
    refuse("standard library's queue")
    (source / "queue.py").unlink()
    (source / "tiny/flow.py").rename(source / "tiny/flows.py")
    refuse("has no module 'tiny.flow'")
    (source / "tiny/flows.py").rename(source / "tiny/flow.py")
    (source / "tiny/a:b.txt").touch()
    refuse("a character that file names")
    (source / "tiny/a:b.txt").unlink()
    (source / "tiny/zeros").write_bytes(bytes(4 << 20))
    refuse("compressed more than 200 times")


def test_a_link_inside_of_the_sources_is_the_file(source, tmp_path):
    (source / "tiny/same.csv").symlink_to("data.csv")
    package = build(source, tmp_path / "out")
    unpack(package.path, tmp_path / "tree")
    assert not (tmp_path / "tree/tiny/same.csv").is_symlink()
    assert (tmp_path / "tree/tiny/same.csv").read_text() == "a,b\n"


def test_what_was_built_before_stays_when_the_next_does_not_build(source, tmp_path):
    package = build(source, tmp_path / "out")
    before = package.path.read_bytes()
    (source / "tiny/zeros").write_bytes(bytes(4 << 20))
    with pytest.raises(PackageError):
        build(source, tmp_path / "out")
    assert package.path.read_bytes() == before


def test_a_failure_while_unpacking_leaves_nothing(tmp_path, monkeypatch):
    path = pack(tmp_path / "p.whl", good_files())
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("the disk is full")))
    with pytest.raises(OSError, match="the disk is full"):
        unpack(path, tmp_path / "trees" / "tree")
    assert list((tmp_path / "trees").iterdir()) == []


def test_everything_is_synced_before_the_tree_appears(source, tmp_path, monkeypatch):
    package = build(source, tmp_path / "out")
    synced, real, rename = set(), os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    def check_then_rename(partial: Path, tree: Path) -> None:
        assert {str(path) for path in [partial, *partial.rglob("*")]} <= synced
        rename(partial, tree)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", check_then_rename)
    unpack(package.path, tmp_path / "trees" / "tree")
    assert str(tmp_path / "trees") in synced


def test_a_large_package_is_not_read_into_memory(source, tmp_path):
    with open(source / "tiny/data.bin", "wb") as file:
        for _ in range(50):
            file.write(os.urandom(1 << 20))
    tracemalloc.start()
    try:
        package = build(source, tmp_path / "out")
        open_package(package.path)
        unpack(package.path, tmp_path / "tree")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert package.size > 50 << 20
    assert peak < 8 << 20
    with pytest.raises(PackageError, match="the limit is 10"):
        open_package(package.path, Limits(file=10))


def test_the_summary_is_plain_data(source, tmp_path):
    package = build(source, tmp_path / "out")
    view = summary(package)
    assert (view["name"], view["group"], view["version"]) == ("Tiny.Model", "default", "1.0-RC1")
    assert (view["digest"], view["size"], view["requires"], view["bundled"]) == (package.digest, package.size, [], [])
    size = {"type": "integer", "default": 3, "minimum": 1, "description": "of it"}
    assert view["config"] == {"type": "object", "properties": {"size": size}, "additionalProperties": False}
