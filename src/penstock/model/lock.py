"""The lock of a package: what it requires, to the exact version and hash, and the wheels that it carries along.

uv resolves. What comes out is written anew in one plain form, `name==version` and SHA-256 hashes, because a lock is
read by nodes that did not make it: no option, address or path gets through.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from penstock.errors import UsageError
from penstock.model.requirement import (
    normalized_name,
    normalized_version,
    parse_requirement,
    same_version,
    wheel_parts,
)

if TYPE_CHECKING:
    from packaging.requirements import Requirement

__all__ = ["LOCK_FILE", "Locked", "Pin", "make_lock", "parse_lock"]

LOCK_FILE = "penstock.lock"
LOCK_LIMIT = 4 << 20
"""Bytes of a lock."""

_TIMEOUT = 600.0
"""Seconds that resolving, and each download, may take."""
_PIN = re.compile(
    r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==([A-Za-z0-9.!+_-]+)((?: --hash=sha256:[0-9a-f]{64})+)"
)
_LOOSE_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==([A-Za-z0-9.!+_-]+)", re.MULTILINE)
_WORDS_OF_UV = 1200
"""Characters of uv's own explanation that an error repeats."""


class Pin(NamedTuple):
    """A required package, to the exact version, and the files that may be installed for it."""

    name: str
    version: str
    hashes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name}=={self.version}" + "".join(f" \\\n    --hash=sha256:{one}" for one in self.hashes)


class Locked(NamedTuple):
    """What was resolved."""

    text: str
    """Empty: nothing has to be installed."""
    wheels: dict[str, Path]
    """The wheels to carry along, by their names."""
    requires: tuple[str, ...]
    """What is required, without paths of this machine."""


def parse_lock(text: str) -> tuple[Pin, ...]:
    """The pins of a lock. Raises `UsageError` for anything else in it."""
    pins: dict[str, Pin] = {}
    for line in text.replace("\\\n", " ").splitlines():
        plain = " ".join(line.split())
        if not plain or plain.startswith("#"):
            continue
        found = _PIN.fullmatch(plain)
        if found is None or (name := normalized_name(found[1])) in pins:
            raise UsageError(
                f"{plain[:120]!r} is not a line of a lock (one for each package: name==version and its hashes)",
                remedy="build the package again",
            )
        hashes = tuple(sorted(one.partition(":")[2] for one in found[3].split()))
        pins[name] = Pin(name, normalized_version(found[2]), hashes)
    return tuple(pins[name] for name in sorted(pins))


def make_lock(
    requires: Sequence[str],
    folder: Path,
    scratch: Path,
    *,
    bundle: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Locked:
    """Resolve `requires` for the running Python and platform.

    `folder` is where the model's source is: wheels in its `wheels/`, and those required by `name @ file:…`, are used
    and carried along; versions in its uv.lock, requirements.lock or penstock.lock are kept. With `bundle` every
    required wheel is carried along. Wheels that have to be fetched are put into `scratch`. Raises `UsageError`
    with uv's reason when there is no solution.
    """
    required, local = _split_local(requires, folder)
    needed = [one for one in required if not _is_penstock(one)]
    if not needed:
        return Locked("", {}, required)
    say = progress or (lambda text: None)
    say(f"resolving {', '.join(needed)}")
    constraints = [*_versions_of_own_lock(folder), *_versions_of(local)]
    links = _find_links(local, scratch)
    if bundle:
        pins, wheels = _resolve_wheels(needed, constraints, links, folder, scratch, say)
    else:
        pins, wheels = _resolve(needed, constraints, links, folder), {}
    for file, path in local.items():
        name, version = wheel_parts(file)
        if name in pins and same_version(pins[name].version, version):
            wheels[file] = path
    for name, hashes in _hashes_by_package(wheels).items():
        pins[name] = pins[name]._replace(hashes=hashes)
    text = "".join(f"{pins[name]}\n" for name in sorted(pins) if name != "penstock")
    return Locked(text, dict(sorted(wheels.items())), required)


def _find_links(local: Mapping[str, Path], scratch: Path) -> list[str]:
    """Where uv is to look besides the index: the author's wheels, and no other file beside them; `UV_FIND_LINKS`."""
    links = [one.strip() for one in os.environ.get("UV_FIND_LINKS", "").split(",") if one.strip()]
    links = [one if "://" in one else os.path.abspath(one) for one in links]
    if local:
        own = scratch / "local"
        own.mkdir()
        for name, path in local.items():
            (own / name).symlink_to(path.resolve())
        links.append(str(own))
    return links


def _is_penstock(text: str) -> bool:
    """Penstock is there on every node, and never installed for a model."""
    requirement = parse_requirement(text)
    if requirement.name == "penstock" and requirement.extras:
        raise UsageError(
            f"{text!r} asks for extras of penstock itself, which a package cannot bring along",
            remedy="require the client library by its own name, for example paho-mqtt>=2.1",
        )
    return requirement.name == "penstock"


def _split_local(requires: Sequence[str], folder: Path) -> tuple[tuple[str, ...], dict[str, Path]]:
    """The requirements, all by version, and the wheels that the author has put there, by name."""
    local = {path.name: path for path in sorted((folder / "wheels").glob("*.whl")) if path.is_file()}
    for file in local:
        wheel_parts(file)
    required = []
    for given in requires:
        text, requirement = " ".join(given.split()), parse_requirement(given)
        if requirement.url is not None:
            path = _local_wheel(requirement, text, folder)
            local[path.name] = path
            extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
            _, marked, marker = text.partition(" ;")
            text = f"{requirement.name}{extras}=={wheel_parts(path.name)[1]}{marked}{marker}"
        required.append(text)
    return tuple(required), local


def _local_wheel(requirement: Requirement, text: str, folder: Path) -> Path:
    """The wheel that is required by `name @ file:…`."""
    address = urlsplit(requirement.url or "")
    remedy = "require a version of it, or put its wheel into wheels/ and require its name"
    if address.scheme != "file":
        raise UsageError(f"{text!r}: {address.scheme or 'a path'} cannot be locked", remedy=remedy)
    path = folder / url2pathname(address.path)
    if path.suffix != ".whl" or not path.is_file():
        raise UsageError(f"{text!r}: there is no wheel at {path}", remedy=remedy)
    if wheel_parts(path.name)[0] != requirement.name:
        raise UsageError(f"{text!r}: {path.name} is another package", remedy="correct the name")
    return path.resolve()


def _versions_of(wheels: Collection[str]) -> list[str]:
    """Constraints to the versions that the author has put there, for packages with one of them."""
    versions: dict[str, set[str]] = {}
    for wheel in wheels:
        name, version = wheel_parts(wheel)
        versions.setdefault(name, set()).add(version)
    return [f"{name}=={next(iter(found))}" for name, found in versions.items() if len(found) == 1]


def _versions_of_own_lock(folder: Path) -> list[str]:
    """Constraints to the versions that the project has locked for itself."""
    own = folder / "uv.lock"
    if own.is_file():
        try:
            packages = tomllib.loads(own.read_text("utf-8")).get("package", [])
            found = [(one["name"], one["version"]) for one in packages if "registry" in one.get("source", {})]
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{own} is not a lock of uv: {error}", remedy="run uv lock") from error
    else:
        files = [folder / name for name in ("requirements.lock", LOCK_FILE)]
        text = next((file.read_text("utf-8", "replace") for file in files if file.is_file()), "")
        found = _LOOSE_PIN.findall(text)
    names = [name for name, _ in found]
    # A package that is locked to several versions, each for another platform, is left to the resolver.
    return [f"{name}=={version}" for name, version in found if names.count(name) == 1]


def _resolve(needed: Sequence[str], constraints: Sequence[str], links: Sequence[str], folder: Path) -> dict[str, Pin]:
    """Every package that is needed, with the hashes of all its files."""
    text = _compile(needed, constraints, links, folder, ("--generate-hashes",))
    try:
        return {pin.name: pin for pin in parse_lock(text)}
    except UsageError as error:
        raise UsageError(f"the requirements cannot be locked: {error.message}") from error


def _resolve_wheels(
    needed: Sequence[str],
    constraints: Sequence[str],
    links: Sequence[str],
    folder: Path,
    scratch: Path,
    say: Callable[[str], None],
) -> tuple[dict[str, Pin], dict[str, Path]]:
    """Every package that is needed, and its wheel for this Python and platform."""
    options = ("--format", "pylock.toml", "--generate-hashes", "--only-binary", ":all:")
    document = tomllib.loads(_compile(needed, constraints, links, folder, options))
    pins, wheels = {}, {}
    for package in document.get("packages", []):
        name, version = normalized_name(package["name"]), normalized_version(package["version"])
        if name == "penstock":
            continue
        entry = _only_wheel(f"{name}=={version}", package.get("wheels", []))
        where = entry.get("path") or entry["url"]
        wheel = entry.get("name") or unquote(where.rpartition("/")[2])
        wheel_parts(wheel)
        wheels[wheel] = _fetch(where, folder, scratch / wheel, entry["hashes"]["sha256"], say)
        pins[name] = Pin(name, version, (entry["hashes"]["sha256"],))
    return pins, wheels


def _only_wheel(package: str, entries: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    if not entries:
        raise UsageError(f"{package} has no wheel for this platform", remedy="build one and put it into wheels/")
    pure = [one for one in entries if str(one.get("url") or one.get("path")).endswith("-none-any.whl")]
    if len(entries) > 1 and len(pure) != 1:
        raise UsageError(f"uv lists {len(entries)} wheels for {package}", remedy="update uv, or put one into wheels/")
    return entries[0] if len(entries) == 1 else pure[0]


def _fetch(where: str, folder: Path, target: Path, sha256: str, say: Callable[[str], None]) -> Path:
    """The wheel as a file here, its bytes checked."""
    address = urlsplit(where)
    if address.scheme in ("http", "https"):
        say(f"fetching {target.name}")
        _download(where, target)
        path = target
    else:
        path = folder / (url2pathname(address.path) if address.scheme == "file" else where)
    if _sha256(path) != sha256:
        raise UsageError(f"{path.name} is not the file that the index lists", remedy="try again")
    return path


def _download(url: str, target: Path) -> None:
    import httpx

    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=60) as answer, open(target, "wb") as file:
            answer.raise_for_status()
            for chunk in answer.iter_bytes():
                file.write(chunk)
    except httpx.HTTPError as error:
        raise UsageError(
            f"{target.name} cannot be fetched: {error}", remedy="try again, or put it into wheels/"
        ) from error


def _compile(
    needed: Sequence[str],
    constraints: Sequence[str],
    links: Sequence[str],
    folder: Path,
    options: Sequence[str],
) -> str:
    """What `uv pip compile` says."""
    import uv

    environment = {"UV_SYSTEM_CERTS": "true"} | os.environ | {"UV_NO_PROGRESS": "1"}
    command = [uv.find_uv_bin(), "pip", "compile", "--quiet", "--color", "never", "--no-header", "--no-annotate"]
    command += ["--python", sys.executable, "--directory", str(folder), *options]
    if environment.get("UV_NO_INDEX", "").lower() in ("1", "true", "yes", "on"):
        command.append("--no-index")  # uv has this option, but no variable for it
    environment.pop("UV_FIND_LINKS", None)  # relative paths in it are relative to here
    for link in links:
        command += ["--find-links", link]
    with tempfile.TemporaryDirectory(prefix="penstock-lock-") as directory:
        own = Path(directory, "constraints.txt")
        own.write_text("\n".join(constraints), "utf-8")
        try:
            done = subprocess.run(
                [*command, "--constraints", str(own), "-"],
                input="\n".join(needed),
                capture_output=True,
                encoding="utf-8",
                env=environment,
                timeout=_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise UsageError(
                f"uv found no solution in {_TIMEOUT:.0f} s", remedy="is the package index there?"
            ) from error
        except OSError as error:
            raise UsageError(f"uv cannot be started: {error}", remedy="install uv") from error
    if done.returncode:
        raise _unresolved(needed, constraints, done.stderr)
    return done.stdout


def _unresolved(needed: Sequence[str], constraints: Sequence[str], words: str) -> UsageError:
    text = "\n".join(line.rstrip() for line in words.strip().removeprefix("error: ").splitlines() if line.strip())
    said = normalized_name(text)
    named = [one for one in needed if re.search(rf"(?<![\w-]){re.escape(parse_requirement(one).name)}(?![\w-])", said)]
    kept = " (versions of the project's own lock and of wheels/ are kept)" if constraints else ""
    return UsageError(
        f"{', '.join(named or needed)} cannot be resolved: {text[:_WORDS_OF_UV]}",
        remedy=f"change what the manifest requires, or put the missing wheels into wheels/{kept}",
    )


def _hashes_by_package(wheels: Mapping[str, Path]) -> dict[str, tuple[str, ...]]:
    hashes: dict[str, list[str]] = {}
    for name, path in wheels.items():
        hashes.setdefault(wheel_parts(name)[0], []).append(_sha256(path))
    return {name: tuple(sorted(found)) for name, found in hashes.items()}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
