"""From a file or directory that an author wrote to a checked `Graph`. Runs the author's module: workers only."""

from __future__ import annotations

import importlib
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

from penstock.errors import FlowError, UsageError
from penstock.flow import config as flow_config
from penstock.flow.builder import Flow
from penstock.flow.graph import Graph

__all__ = ["load_graph", "parse_target", "split_target"]

_loaded: dict[Path, set[str]] = {}
"""folder -> the modules that were imported from it."""


def parse_target(target: str) -> tuple[str, str | None]:
    """`path` or `path:object` as the path's text and the object's name; a file whose name has a colon is a path."""
    text, colon, name = target.rpartition(":")
    return (text, name) if colon and not Path(target).exists() else (target, None)


def split_target(target: str) -> tuple[Path, str | None]:
    """`path` or `path:object` as the absolute path and the object's name. Raises `UsageError` when nothing is there."""
    text, attribute = parse_target(target)
    path = Path(text)
    if not path.exists():
        near = sorted(p.name for p in path.parent.glob("*.py"))[:8] if path.parent.is_dir() else []
        remedy = f"in {path.parent} there are: {', '.join(near)}" if near else "check the path"
        raise UsageError(f"there is no flow at {str(path)!r}", remedy=remedy)
    if path.is_file() and path.suffix != ".py":
        raise UsageError(f"{str(path)!r} is not a Python file", remedy="give a .py file or a model's directory")
    return path.resolve(), attribute


def load_graph(target: str, config: dict[str, Any] | None = None) -> Graph:
    """Import the target and build its flow.

    `target`: a Python file, or a directory with `[tool.penstock]` in its pyproject.toml (`flow = "module:object"`),
    optionally `path:object`. `config` is what `ps.config` gives. Raises `UsageError` (no such file or flow),
    `FlowError` (a flow that does not build), or whatever the author's module raises while it is imported.
    """
    path, attribute = split_target(target)
    flow_config.install(config or {})
    if path.is_dir():
        folder, module_name, declared = _declared(path)
        attribute = attribute or declared
    else:
        folder, module_name = path.parent, path.stem
    module = _import(folder, module_name)
    return _flow_of(module, attribute).build()


def _declared(directory: Path) -> tuple[Path, str, str | None]:
    """Folder, module and object that a model directory declares."""
    manifest = directory / "pyproject.toml"
    if not manifest.is_file():
        raise UsageError(
            f"{directory} has no pyproject.toml", remedy="give a .py file, or add one with [tool.penstock]"
        )
    try:
        table = tomllib.loads(manifest.read_text("utf-8")).get("tool", {}).get("penstock", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{manifest} is not valid TOML: {error}") from error
    declared = table.get("flow")
    if not isinstance(declared, str):
        raise UsageError(f'{manifest} does not say [tool.penstock] flow = "module:object"', remedy="add that line")
    module, _, attribute = declared.partition(":")
    source = directory / "src"
    return (source if source.is_dir() else directory), module, attribute or None


def _import(folder: Path, name: str) -> ModuleType:
    """Import the module anew, with all that it imported from its folder before: files may have changed, and module
    level code reads `ps.config` again."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    for known in _loaded.pop(folder, ()):
        sys.modules.pop(known, None)
    known_file = getattr(sys.modules.get(name), "__file__", "the standard library") if name in sys.modules else None
    if known_file is not None:
        raise UsageError(
            f"a module named {name!r} is already imported from {known_file}",
            remedy="give the flow's file another name, or run it in another group",
        )
    importlib.invalidate_caches()
    before = set(sys.modules)
    try:
        return importlib.import_module(name)
    finally:
        new = {key: getattr(sys.modules[key], "__file__", None) for key in set(sys.modules) - before}
        _loaded[folder] = {key for key, file in new.items() if file is not None and folder in Path(file).parents}


def _flow_of(module: ModuleType, attribute: str | None) -> Flow:
    if attribute is not None:
        found: Any = module
        for part in attribute.split("."):
            if not hasattr(found, part):
                names = [name for name, value in vars(module).items() if isinstance(value, Flow)]
                remedy = f"it has: {', '.join(names)}" if names else 'add: flow = ps.Flow("name")'
                raise UsageError(f"{module.__file__} defines no {attribute!r}", remedy=remedy)
            found = getattr(found, part)
        if callable(found) and not isinstance(found, Flow):
            found = found()
        if not isinstance(found, Flow):
            raise UsageError(f"{module.__name__}:{attribute} is {type(found).__name__}, not a penstock.Flow")
        return found
    flows = {name: value for name, value in vars(module).items() if isinstance(value, Flow)}
    distinct = {id(flow): flow for flow in flows.values()}
    if "flow" in flows:
        return flows["flow"]
    if len(distinct) == 1:
        return next(iter(distinct.values()))
    if not distinct:
        raise FlowError(None, f"{module.__file__} defines no flow", remedy='add: flow = ps.Flow("name")')
    names = list(flows)
    raise UsageError(
        f"{module.__file__} defines several flows: {', '.join(names)}",
        remedy=f"say which: {module.__file__}:{names[0]}",
    )
