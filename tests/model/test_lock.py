"""Locks: resolved by uv from wheels made on the spot, never from the network."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import uv
from tests.model.wheels import FLOW, dependency, project

from penstock.errors import UsageError
from penstock.model.lock import make_lock, parse_lock
from penstock.model.package import build, open_package, unpack

TOML = '[project]\nname = "tiny"\nversion = "1"\ndependencies = {}\n[tool.penstock]\nflow = "tiny:flow"\n'


@pytest.fixture(autouse=True)
def links(tmp_path, monkeypatch):
    """An index of two versions of one package, and of one that needs the older."""
    folder = tmp_path / "links"
    dependency(folder, "tinydep", "1.0")
    dependency(folder, "tinydep", "2.0")
    dependency(folder, "oldfriend", "1.0", "tinydep<2")
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def model(tmp_path):
    """`model(["tinydep"])`: a model's directory that requires this."""
    return lambda requires: project(tmp_path / "model", TOML.format(json.dumps(requires)), {"tiny.py": FLOW})


@pytest.fixture
def lock(tmp_path):
    """`lock(["tinydep"])`: what `make_lock` gives, in `tmp_path/source`."""

    def make(requires: list[str], **options):
        for name in ("source", "scratch"):
            (tmp_path / name).mkdir(exist_ok=True)
        return make_lock(requires, tmp_path / "source", tmp_path / "scratch", **options)

    return make


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def line(links: Path, name: str, version: str) -> str:
    return f"{name}=={version} \\\n    --hash=sha256:{sha256(links / f'{name}-{version}-py3-none-any.whl')}\n"


def test_nothing_required_is_no_lock(lock):
    assert lock([]).text == ""
    assert lock(["penstock>=0.1"]) == ("", {}, ("penstock>=0.1",))


def test_everything_that_is_needed_with_its_hashes(lock, links):
    said = []
    locked = lock(["oldfriend", "penstock"], progress=said.append)
    assert locked.text == line(links, "oldfriend", "1.0") + line(links, "tinydep", "1.0")
    assert locked.wheels == {}
    assert said == ["resolving oldfriend"]
    assert lock(["tinydep"]).text == line(links, "tinydep", "2.0")


def test_a_requirement_that_cannot_be_met_is_named_with_the_words_of_uv(lock):
    with pytest.raises(
        UsageError, match=r"(?s)^tinydep>=3 cannot be resolved: .*only tinydep<=2.0 is available"
    ) as caught:
        lock(["tinydep>=3"])
    assert "change what the manifest requires" in str(caught.value)
    with pytest.raises(UsageError, match=r"(?s)nosuch cannot be resolved: .*nosuch was not found"):
        lock(["nosuch", "tinydep"])
    with pytest.raises(UsageError, match="oldfriend, tinydep>1 cannot be resolved"):
        lock(["oldfriend", "tinydep>1"])


@pytest.mark.parametrize(
    ("requirement", "said"),
    [
        ("tinydep @ https://host.example/tinydep-1.0-py3-none-any.whl", "https cannot be locked"),
        ("tinydep @ git+https://host.example/tinydep", "cannot be locked"),
        ("tinydep @ file:gone-1.0-py3-none-any.whl", "there is no wheel"),
        ("other @ file:../links/tinydep-1.0-py3-none-any.whl", "is another package"),
        ("penstock[mqtt]", "paho-mqtt"),
    ],
)
def test_what_cannot_be_locked(lock, requirement, said):
    with pytest.raises(UsageError) as caught:
        lock([requirement])
    assert said in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("requirements.lock", "tinydep==1.0 --hash=sha256:{}\n"),
        ("penstock.lock", "tinydep==1.0\n"),
        ("uv.lock", 'version = 1\n[[package]]\nname = "tinydep"\nversion = "1.0"\nsource = {{ registry = "x" }}\n'),
    ],
)
def test_versions_that_the_project_has_locked_are_kept(lock, links, tmp_path, name, text):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / name).write_text(text.format("0" * 64))
    assert lock(["tinydep"]).text == line(links, "tinydep", "1.0")
    with pytest.raises(UsageError, match="own lock"):
        lock(["tinydep>1"])


def test_bundle_carries_every_wheel(model, links, tmp_path):
    package = build(model(["oldfriend"]), tmp_path / "out", bundle=True)
    assert package.bundled == ("oldfriend-1.0-py3-none-any.whl", "tinydep-1.0-py3-none-any.whl")
    assert package.lock == line(links, "oldfriend", "1.0") + line(links, "tinydep", "1.0")
    assert package == open_package(package.path)


def test_wheels_beside_the_model_are_used_and_carried(model, links, tmp_path):
    source = model(["oldfriend"])
    own = dependency(source / "wheels", "oldfriend", "1.5", "tinydep")
    dependency(source / "wheels", "unneeded", "1.0")
    package = build(source, tmp_path / "out")
    assert package.bundled == ("oldfriend-1.5-py3-none-any.whl",)
    assert package.lock == line(own.parent, "oldfriend", "1.5") + line(links, "tinydep", "2.0")


def test_a_wheel_by_its_path_is_carried_and_the_path_stays_here(model, tmp_path):
    own = dependency(tmp_path / "elsewhere", "special", "3.0")
    for where in (f"file:{own}", f"file://{own}", "file:../elsewhere/special-3.0-py3-none-any.whl"):
        package = build(model([f"special @ {where} ; python_version > '3'"]), tmp_path / "out")
        assert package.bundled == ("special-3.0-py3-none-any.whl",)
        assert package.lock == line(own.parent, "special", "3.0")
        assert package.manifest.requires == ("special==3.0 ; python_version > '3'",)
        assert str(tmp_path).encode() not in package.path.read_bytes()


def test_a_carried_bundle_installs_without_index(model, links, tmp_path, monkeypatch):
    package = build(model(["oldfriend"]), tmp_path / "out", bundle=True)
    unpack(package.path, tmp_path / "tree")
    (info,) = (tmp_path / "tree").glob("*.dist-info")
    monkeypatch.delenv("UV_FIND_LINKS")
    options = ["--no-index", "--find-links", info / "wheels", "--require-hashes", "--python", sys.executable]
    command = [uv.find_uv_bin(), "pip", "install", "-q", *options, "--target", tmp_path / "site"]
    subprocess.run([*command, "-r", info / "penstock.lock"], check=True, timeout=60)
    assert (tmp_path / "site/tinydep.py").read_text() == "VERSION = '1.0'\n"


def test_an_index_that_changes_a_file_while_it_is_fetched(lock, links, tmp_path, monkeypatch):
    from penstock.model import lock as module

    real = module._compile

    def compile_then_change(*arguments):
        text = real(*arguments)
        dependency(links, "tinydep", "2.0", "oldfriend")
        return text

    monkeypatch.setattr(module, "_compile", compile_then_change)
    with pytest.raises(UsageError, match=r"tinydep-2.0-py3-none-any.whl is not the file that the index lists"):
        lock(["tinydep"], bundle=True)


def test_a_lock_is_read_in_its_plain_form_only():
    text = "A_b==1.0 \\\n  --hash=sha256:" + "1" * 64 + " \\\n  --hash=sha256:" + "0" * 64 + "\n# comment\n\n"
    (pin,) = parse_lock(text)
    assert (pin.name, pin.version, pin.hashes) == ("a-b", "1.0", ("0" * 64, "1" * 64))
    assert parse_lock(f"{pin}\n") == (pin,)
    with pytest.raises(UsageError, match="is not a line of a lock"):
        parse_lock(text + text)
