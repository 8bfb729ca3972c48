"""Isolated environments, made by uv from wheels that the tests build: no network is needed."""

import asyncio
import base64
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from penstock.model.environment import BASE, BuildError, Environment, Environments
from penstock.model.shelf import NODE_ONLY, injected


def wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> str:
    """Write a wheel; the line that locks it."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = []
    with zipfile.ZipFile(path, "w") as out:
        for member, text in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record.append(f"{member},sha256={digest},{len(text.encode())}\n")
            out.writestr(member, text)
        out.writestr(f"{info}/RECORD", "".join(record) + f"{info}/RECORD,,\n")
    return f"{name}=={version} \\\n    --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def run(environment: Environment, code: str) -> dict:
    """What `code` prints as JSON, run by the environment's interpreter as workers are."""
    done = subprocess.run(
        [environment.python, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    return tmp_path / "wheels"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_INDEX_URL", "http://127.0.0.1:9/simple")
    return tmp_path / "environments"


def left(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.name != "locks" and not p.name.startswith("library-"))


SEE = """
import json, sys, tiny, penstock, msgspec, zmq, xxhash, fsspec, psutil
import penstock.worker.loop
try:
    import pytest
    other = True
except ImportError:
    other = False
print(json.dumps({"tiny": tiny.version, "penstock": penstock.__file__, "msgspec": msgspec.__version__, "other": other}))
"""


def test_two_models_have_different_versions_of_one_dependency(root, wheels):
    ours = str(Path(sys.modules["penstock"].__file__).resolve())
    locks = [wheel(wheels, "tiny", v, {"tiny.py": f"version = {v!r}\n"}) for v in ("1.0", "2.0")]
    # A dependency that brings modules of our names, and tries to be first on the path.
    shadow = wheel(
        wheels,
        "shadow",
        "1.0",
        {
            "penstock/__init__.py": "raise RuntimeError('the wrong one')\n",
            "msgspec.py": "raise RuntimeError('the wrong one')\n",
            "zzshadow.pth": "import sys; sys.path.insert(0, sys.path.pop())\n",
            "aashadow.pth": "import msgspec\n",
        },
    )

    async def main() -> list[Environment]:
        environments = Environments(root)
        return [await environments.ensure(lock + shadow, wheels) for lock in locks]

    first, second = asyncio.run(main())
    assert first.key != second.key
    for environment, version in ((first, "1.0"), (second, "2.0")):
        seen = run(environment, SEE)
        assert seen["tiny"] == version
        assert Path(seen["penstock"]).resolve() == Path(ours)
        assert seen["msgspec"] == importlib.metadata.version("msgspec")
        assert not seen["other"], "a module of the node's interpreter is visible"


def test_all_that_a_worker_imports_is_there(root, wheels):
    lock = wheel(wheels, "tiny", "1.0", {"tiny.py": ""})
    environment = asyncio.run(Environments(root).ensure(lock, wheels))
    code = """
import importlib, json, pkgutil
failed = {}
for name in ("flow", "connectors", "model", "worker", "exchange", "placement"):
    package = importlib.import_module("penstock." + name)
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.endswith("__main__"):
            try:
                importlib.import_module(found.name)
            except Exception as error:
                failed[found.name] = repr(error)
import polars, sqlalchemy, httpx, redis, penstock.client, importlib.metadata
assert importlib.metadata.version("penstock")
for name in {node_only}:
    try:
        importlib.metadata.version(name)
        failed[name] = "it is there"
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(failed))
""".replace("{node_only}", repr(sorted(NODE_ONLY)))
    assert run(environment, code) == {}


def test_nothing_required_is_the_nodes_own_interpreter(root):
    environments = Environments(root)
    assert environments.key_of("\n# nothing\n") == ""
    assert asyncio.run(environments.ensure("# nothing\n")) == BASE
    assert environments.known("") == BASE
    assert BASE.python == sys.executable
    assert not root.exists()


def test_it_is_made_once(root, wheels):
    lock = wheel(wheels, "tiny", "1.0", {"tiny.py": ""})

    async def main() -> None:
        one, other = Environments(root), Environments(root)
        key = one.key_of(lock)
        assert one.known(key) is None
        found = await asyncio.gather(*(each.ensure(lock, wheels) for each in (one, other) * 4))
        assert len(set(found)) == 1
        assert one.known(key) == found[0]
        marked = root / key / "marked"
        marked.touch()
        assert await Environments(root).ensure(lock, wheels) == found[0]
        assert marked.exists(), "it was made again"

    asyncio.run(main())
    assert len(left(root)) == 1


def test_processes_that_share_a_root_make_it_once(root, wheels):
    lock = wheel(wheels, "tiny", "1.0", {"tiny.py": ""})
    command = [sys.executable, "-c", HOLD, str(root), lock, str(wheels)]
    processes = [subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) for _ in range(3)]
    said = {process.communicate(timeout=60)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(said) == 1, "all have the same environment, made at the same time"


def test_an_error_has_the_last_words_and_leaves_nothing(root, wheels):
    lock = wheel(wheels, "tiny", "1.0", {"tiny.py": ""})
    wrong = lock.replace(lock.strip()[-20:], "0" * 20)

    async def main() -> None:
        environments = Environments(root)
        with pytest.raises(BuildError, match="tiny") as caught:
            await environments.ensure(wrong, wheels)
        assert "hash" in str(caught.value).lower()
        assert environments.known(environments.key_of(wrong)) is None
        assert left(root) == []
        with pytest.raises(BuildError, match="not a line of a lock"):
            await environments.ensure("--index-url http://elsewhere\ntiny==1.0 --hash=sha256:00\n", wheels)

    asyncio.run(main())


def test_a_lock_without_hashes_is_refused(root, wheels):
    wheel(wheels, "tiny", "1.0", {"tiny.py": ""})
    with pytest.raises(BuildError, match="hash"):
        asyncio.run(Environments(root).ensure("tiny==1.0\n", wheels))


def test_cancelled_and_late_ones_leave_nothing(root, wheels, monkeypatch):
    lock = wheel(wheels, "tiny", "1.0", {"tiny.py": ""})
    hanging = root.parent / "uv"
    hanging.write_text('#!/bin/sh\ncase $1 in venv) mkdir -p "$5/bin";; esac\nsleep 600 & wait\n')
    hanging.chmod(0o700)

    async def main() -> None:
        environments = Environments(root)
        monkeypatch.setattr("uv.find_uv_bin", lambda: str(hanging))
        with pytest.raises(BuildError, match=r"not made within 0\.3 s"):
            await environments.ensure(lock, wheels, timeout=0.3)
        assert left(root) == []
        task = asyncio.create_task(environments.ensure(lock, wheels))
        waiting = asyncio.create_task(environments.ensure(lock, wheels))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        monkeypatch.undo()
        os.environ["UV_CACHE_DIR"] = str(root.parent / "cache")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert left(root) == []
        assert run(await environments.ensure(lock, wheels), "import tiny; print(1)") == 1

    try:
        asyncio.run(main())
    finally:
        os.environ.pop("UV_CACHE_DIR", None)


def test_a_half_made_one_is_made_again(root, wheels):
    lock = wheel(wheels, "tiny", "1.0", {"tiny.py": ""})

    async def main() -> None:
        environments = Environments(root)
        half = root / environments.key_of(lock)
        (half / "bin").mkdir(parents=True)
        (half / "bin" / "python").symlink_to(sys.executable)
        (half / "rubbish").touch()
        assert environments.known(half.name) is None
        environment = await environments.ensure(lock, wheels)
        assert not (half / "rubbish").exists()
        assert run(environment, "import tiny; print(1)") == 1
        # The interpreter that it was made for has gone.
        (half / "bin" / "python").unlink()
        (half / "bin" / "python").symlink_to("/nowhere/python")
        assert environments.known(half.name) is None
        assert run(await environments.ensure(lock, wheels), "import tiny; print(1)") == 1

    asyncio.run(main())


def test_what_is_shared_cannot_be_pinned_at_another_version(root, wheels):
    tiny = wheel(wheels, "tiny", "1.0", {"tiny.py": ""})
    version = importlib.metadata.version("msgspec")
    same = f"msgspec=={version} \\\n    --hash=sha256:{'0' * 64}\n"

    async def main() -> None:
        environments = Environments(root)
        with pytest.raises(BuildError, match=rf"pins msgspec 0\.1, but .* msgspec {version}"):
            await environments.ensure(tiny + same.replace(version, "0.1"), wheels)
        assert not root.exists() or left(root) == []
        environment = await environments.ensure(tiny + same, wheels)
        assert run(environment, "import tiny, json, msgspec; print(json.dumps(msgspec.__version__))") == version
        with pytest.raises(BuildError, match=r"pins penstock 0\.0\.1"):
            await environments.ensure(f"penstock==0.0.1 --hash=sha256:{'0' * 64}\n")

    asyncio.run(main())


def test_only_what_is_not_needed_is_removed(root, wheels):
    locks = [wheel(wheels, "tiny", v, {"tiny.py": ""}) for v in ("1.0", "2.0", "3.0")]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root), locks[2], str(wheels)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None

    async def main() -> None:
        environments = Environments(root)
        keys = [(await environments.ensure(lock, wheels)).key for lock in locks]
        assert holder.stdout.readline().startswith(keys[2].encode())
        stale = root / "library-0123456789abcdef"
        stale.mkdir()
        assert await environments.keep([keys[0]]) == [keys[1]]
        assert left(root) == sorted([keys[0], keys[2]])
        assert not stale.exists()
        holder.stdin.close()
        await asyncio.to_thread(holder.wait, 20)
        assert await environments.keep([keys[0]]) == [keys[2]]
        assert left(root) == [keys[0]]
        assert run(environments.known(keys[0]), "import penstock; print(1)") == 1

    try:
        asyncio.run(main())
    finally:
        holder.kill()
        holder.wait(10)
        holder.stdin.close()
        holder.stdout.close()


HOLD = """
import asyncio, sys
from pathlib import Path
from penstock.model.environment import Environments
made = asyncio.run(Environments(Path(sys.argv[1])).ensure(sys.argv[2], Path(sys.argv[3])))
print(made.key, (Path(made.python).parents[1] / "pyvenv.cfg").stat().st_mtime_ns, flush=True)
sys.stdin.read()
"""


def test_what_is_injected():
    found = injected()
    assert {"penstock", "msgspec", "pyzmq", "polars"} <= set(found)
    assert not NODE_ONLY & set(found)
    assert "pytest" not in found
