"""A model's manifest: what its author says about it, in pyproject.toml, in the head of a single file, or in a package.

The head of a single file is inline script metadata (PEP 723); in a package the manifest is `penstock.json`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from penstock.errors import UsageError
from penstock.model.replication import replication_of
from penstock.model.requirement import normalized_version, parse_requirement, python_admits
from penstock.model.setting import Setting, as_schema, check_setting, convert, did_you_mean, read_setting, type_of

__all__ = [
    "MANIFEST_FILE",
    "RECOVERIES",
    "Manifest",
    "Setting",
    "check_manifest",
    "checked_config",
    "config_schema",
    "defaults",
    "manifest_file",
    "read_manifest",
]

MANIFEST_FILE = "penstock.json"
RECOVERIES = ("none", "passive", "active")

_FIELDS = (
    "name",
    "group",
    "version",
    "flow",
    "requires",
    "requires-python",
    "config",
    "recovery",
    "replication",
    "tasks",
)
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
_GROUP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_LETTERS = "letters, digits, '.', '_' and '-', 100 of them at most, beginning and ending with a letter or digit"
_OPENING, _CLOSING = "# /// script", "# ///"
_VERSION = "0"
"""Of a model whose author states none."""
_TEXT_LIMIT = 1 << 20
"""Bytes of a manifest."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a package says about its model."""

    name: str | None = None
    """`None` only for a single file that gives itself no name; a package always has one."""
    group: str = "default"
    version: str = _VERSION
    flow: str
    """`module:object`, or `module` that has one flow."""
    requires: tuple[str, ...] = ()
    """Requirements (PEP 508) that its code imports."""
    requires_python: str = ""
    config: dict[str, Setting] = {}
    recovery: str = "none"
    replication: dict[str, int | float] = {}
    """Settings of `penstock.settings.Replication` that differ from the defaults."""
    tasks: tuple[str, ...] = ()


def read_manifest(source: Path) -> Manifest:
    """The manifest of a directory with pyproject.toml, a single Python file, or an unpacked package.

    A file without a head is a manifest without name. Raises `UsageError` that names the field, what it says and what
    to do.
    """
    if source.is_dir():
        packed = manifest_file(source)
        return _read_tree(packed) if packed is not None else _read_project(source)
    if source.suffix == ".py" and source.is_file():
        return _read_script(source)
    what = "a file of another kind" if source.exists() else "nothing"
    raise UsageError(f"there is {what} at {str(source)!r}", remedy="give a .py file or a model's directory")


def manifest_file(tree: Path) -> Path | None:
    """The manifest inside an unpacked package; `None` when the directory is something else."""
    return next(iter(sorted(tree.glob(f"*.dist-info/{MANIFEST_FILE}"))), None)


def checked_config(manifest: Manifest, given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, in the types of the manifest. A manifest without settings admits everything: then the code alone
    declares them. Raises `UsageError` that names the setting, what was received, and what to do."""
    if not manifest.config:
        return dict(given)
    values = {}
    for name, value in given.items():
        setting = manifest.config.get(name)
        if setting is None:
            raise UsageError(f"there is no setting {name!r}", remedy=did_you_mean(name, manifest.config))
        values[name], wrong = convert(setting, value)
        if wrong is not None:
            example = f"; for example {name}={setting.default!r}" if setting.default is not None else ""
            about = f": {setting.description}" if setting.description else ""
            raise UsageError(
                f"setting {name} = {value!r}, but {wrong}", remedy=f"{name}{about or ' is ' + setting.type}{example}"
            )
    return values


def check_python(manifest: Manifest, what: str) -> None:
    """Raise `UsageError` when `what` does not run on this Python."""
    if manifest.requires_python and not python_admits(manifest.requires_python):
        here = ".".join(map(str, sys.version_info[:3]))
        raise UsageError(
            f"{what} requires Python {manifest.requires_python}, and this is {here}",
            remedy="run it on a machine with such a Python, or change requires-python",
        )


def defaults(manifest: Manifest) -> dict[str, Any]:
    """The values of all settings that have to be given by nobody; `None` where the manifest states no default."""
    return {name: setting.default for name, setting in manifest.config.items() if not setting.required}


def config_schema(manifest: Manifest) -> dict[str, Any]:
    """The settings as a JSON Schema of the configuration."""
    return as_schema(manifest.config)


def check_manifest(manifest: Manifest, place: str) -> Manifest:
    """The manifest, when each of its fields can be true; defaults of settings in their types. Raises `UsageError` that
    begins with `place`."""
    if manifest.name is not None and not _NAME.fullmatch(manifest.name):
        _refuse(place, "name", manifest.name, "is not a name", f"use {_LETTERS}")
    if not _GROUP.fullmatch(manifest.group):
        _refuse(place, "group", manifest.group, "is not a name", f"use {_LETTERS}")
    if manifest.recovery not in RECOVERIES:
        near = did_you_mean(manifest.recovery, RECOVERIES)
        _refuse(place, "recovery", manifest.recovery, f"is not one of {', '.join(RECOVERIES)}", near)
    replication_of(manifest.replication, place=f"{place}: replication")
    module, colon, attribute = manifest.flow.partition(":")
    if not all(module.split(".")) or set(module) & set("/\\"):
        _refuse(place, "flow", manifest.flow, "does not begin with a module", 'write flow = "module:object"')
    if colon and not all(part.isidentifier() for part in attribute.split(".")):
        _refuse(place, "flow", manifest.flow, "does not end with an object", 'write flow = "module:object"')
    settings = {}
    for name, setting in manifest.config.items():
        if not name.isidentifier():
            _refuse(place, "config", name, "is not a setting's name", "use letters, digits and '_'")
        settings[name] = check_setting(setting, _failure(place, name))
    # What is not stated is not judged, so that reading a plain file needs no `packaging`.
    if manifest.version != _VERSION:
        _without_fault(place, "version", manifest.version, normalized_version)
    if manifest.requires_python:
        _without_fault(place, "requires-python", manifest.requires_python, python_admits)
    for requirement in manifest.requires:
        _without_fault(place, "requires", requirement, parse_requirement)
    return msgspec.structs.replace(manifest, config=settings)


def _read_project(directory: Path) -> Manifest:
    file = directory / "pyproject.toml"
    if not file.is_file():
        raise UsageError(
            f"{directory} has no pyproject.toml", remedy="give a .py file, or add one with [tool.penstock]"
        )
    document = _toml(_text(file), file)
    project = document.get("project", {})
    table = document.get("tool", {}).get("penstock") if isinstance(document.get("tool"), dict) else None
    if not isinstance(table, dict) or not isinstance(project, dict) or "flow" not in table:
        raise UsageError(f'{file} does not say [tool.penstock] flow = "module:object"', remedy="add that line")
    given = {
        "name": project.get("name"),
        "version": project.get("version"),
        "requires": project.get("dependencies"),
        "requires-python": project.get("requires-python"),
    }
    return _manifest(
        {key: value for key, value in given.items() if value is not None} | table, f"[tool.penstock] in {file}"
    )


def _read_script(file: Path) -> Manifest:
    head = _script_head(file)
    document = _toml(head, file) if head else {}
    tool = document.get("tool", {})
    table = tool.get("penstock", {}) if isinstance(tool, dict) else {}
    place = f"[tool.penstock] in the head of {file}"
    if not isinstance(table, dict):
        raise UsageError(f"{place} is not a table", remedy="write [tool.penstock] on a line of its own")
    given = {"requires": document.get("dependencies"), "requires-python": document.get("requires-python")}
    manifest = _manifest({k: v for k, v in given.items() if v is not None} | {"flow": file.stem} | table, place)
    if manifest.flow.partition(":")[0] != file.stem:
        _refuse(
            place,
            "flow",
            manifest.flow,
            f"is not of this file, whose module is {file.stem!r}",
            f'write flow = "{file.stem}:object", or nothing',
        )
    return manifest


def _script_head(file: Path) -> str:
    """The TOML in a file's head (PEP 723); empty when there is none."""
    # Whatever encoding the source has: its head is ASCII or UTF-8, and Python itself judges the rest.
    lines = file.read_bytes().decode("utf-8", "replace").splitlines()
    starts = [n for n, line in enumerate(lines) if line == _OPENING]
    if not starts:
        return ""
    if len(starts) > 1:
        raise UsageError(f"{file} has {len(starts)} blocks {_OPENING!r}", remedy="join them into one")
    end = begin = starts[0] + 1
    while end < len(lines) and (lines[end] == "#" or lines[end].startswith("# ")):
        end += 1
    closings = [n for n in range(begin, end) if lines[n] == _CLOSING]
    if not closings:
        raise UsageError(
            f"{file}:{begin}: the block {_OPENING!r} has no end", remedy=f"end it with a line {_CLOSING!r}"
        )
    return "\n".join(line[2:] for line in lines[begin : closings[-1]])


def _read_tree(file: Path) -> Manifest:
    """What the package says; its fields were checked before it was unpacked, so a worker needs no `packaging` here."""
    if file.stat().st_size > _TEXT_LIMIT:
        raise UsageError(f"{file} has more than {_TEXT_LIMIT} bytes", remedy="build the package again")
    try:
        return msgspec.json.decode(file.read_bytes(), type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{file} is not a manifest: {error}", remedy="build the package again with this release"
        ) from error


def _manifest(table: Mapping[str, Any], place: str) -> Manifest:
    """The manifest that a table of TOML says; `place` is how errors call the table."""
    for field in table:
        if field not in _FIELDS:
            raise UsageError(f"{place}: there is no field {field!r}", remedy=did_you_mean(field, _FIELDS))
    values: dict[str, Any] = {}
    for field, value in table.items():
        if field in ("requires", "tasks"):
            values[field] = _texts(place, field, value)
        elif field == "config":
            values[field] = _settings(place, value)
        elif field == "replication":
            if not isinstance(value, dict):
                _refuse(place, field, value, "is not a table", "write [tool.penstock.replication] and a line for each")
            values[field] = value
        elif not isinstance(value, str):
            _refuse(place, field, value, f"is {type_of(value) or 'no text'}", f'write {field} = "…"')
        else:
            values[field.replace("-", "_")] = value
    return check_manifest(Manifest(**values), place)


def _settings(place: str, table: Any) -> dict[str, Setting]:
    if not isinstance(table, dict):
        _refuse(place, "config", table, "is not a table", "write [tool.penstock.config] and a line for each setting")
    return {name: read_setting(value, _failure(place, name)) for name, value in table.items()}


def _failure(place: str, setting: str) -> Callable[[str, str], UsageError]:
    return lambda what, remedy: UsageError(f"{place}: config.{setting}: {what}", remedy=remedy)


def _texts(place: str, field: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        _refuse(place, field, value, "is not a list of texts", f'write {field} = ["…"]')
    return tuple(value)


def _without_fault(place: str, field: str, value: str, check: Callable[[str], object]) -> None:
    try:
        check(value)
    except UsageError as error:
        raise UsageError(f"{place}: {field}: {error.message}", remedy=error.remedy) from error


def _refuse(place: str, field: str, value: Any, wrong: str, remedy: str) -> NoReturn:
    raise UsageError(f"{place}: {field} = {value!r} {wrong}", remedy=remedy)


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8: {error}") from error


def _toml(text: str, file: Path) -> dict[str, Any]:
    import tomllib  # not in workers: packages have their manifest as JSON

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file} is not valid TOML: {error}", remedy="correct that line") from error
