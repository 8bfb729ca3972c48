"""From a file or directory that an author wrote to a checked `Graph`. Runs the author's module: workers only."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

from penstock.errors import FlowError, UsageError
from penstock.flow import config as flow_config
from penstock.flow.builder import Flow
from penstock.flow.graph import Graph
from penstock.model.manifest import (
    Manifest,
    check_python,
    checked_config,
    defaults,
    manifest_file,
    read_manifest,
)

__all__ = ["load_graph", "migration_of", "parse_target", "split_target", "unload"]

_before: dict[Path, frozenset[str]] = {}
"""folder that was loaded from -> the modules that had been imported before that."""
_trees: dict[str, list[Path]] = {}
"""group/name -> the packages of the model that are loaded; the last one is in force."""
_aside: dict[Path, dict[str, ModuleType]] = {}
"""package that is loaded and not in force -> its modules."""
_migrations: dict[Path, Callable[[str, Any], Any]] = {}
"""What was loaded -> the `migrate` function of the flow's module."""
_modules_in_tree: dict[Path, set[str]] = {}
"""package that is loaded -> its modules and packages at the top."""


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

    `target`: a Python file, a directory with `[tool.penstock]` in its pyproject.toml, or an unpacked package;
    optionally `path:object`. `config` is what `ps.config` gives, besides the defaults of the manifest. Of two packages
    of one model the later replaces the earlier: its modules are its own, also where both have the same names; functions
    of the earlier one go on with the modules that they have. Raises `UsageError` (no such file or flow, a setting that
    is not as the manifest says), `FlowError` (a flow that does not build), or whatever the author's module raises
    while it is imported.
    """
    path, attribute = split_target(target)
    manifest = read_manifest(path)
    if manifest_file(path) is None:  # the node has checked that of a package
        check_python(manifest, str(path))
    scope = _install_config(manifest, config or {})
    module, _, declared = manifest.flow.partition(":")
    folder = path
    replacing: AbstractContextManager[None] = _replacing(path, f"{manifest.group}/{manifest.name}")
    if path.is_file():
        folder, module, replacing = path.parent, path.stem, nullcontext()
    elif manifest_file(path) is None:
        folder, replacing = path / "src" if (path / "src").is_dir() else path, nullcontext()
    with replacing:
        imported = _import(folder, module)
        graph = _flow_of(imported, attribute or declared or None).build()
        _check_defaults(manifest, scope)
    _migrations.pop(path, None)
    if callable(migrate := getattr(imported, "migrate", None)):
        _migrations[path] = migrate
    return graph


def migration_of(target: str) -> Callable[[str, Any], Any] | None:
    """The author's `migrate(from_version, state)` of a target that `load_graph` has loaded, if there is one: it turns
    the keyed state of an earlier version (step -> key -> state) into this version's."""
    return _migrations.get(Path(parse_target(target)[0]).resolve())


def unload(target: str) -> None:
    """Forget the modules of a package, directory or file that was loaded, so that their memory can be given back. Of
    several packages of one model, the one loaded before is then in force again."""
    path = Path(parse_target(target)[0]).resolve()
    for folder in (path.parent,) if path.suffix == ".py" else (path, path / "src"):
        if folder in _before:
            _put_aside(folder)
            del _before[folder]
    _modules_in_tree.pop(path, None)
    _aside.pop(path, None)
    _migrations.pop(path, None)
    for model, trees in list(_trees.items()):
        if path not in trees:
            continue
        in_force = trees[-1] == path
        trees.remove(path)
        if not trees:
            del _trees[model]
        elif in_force:
            _bring_back(trees[-1])


def _install_config(manifest: Manifest, given: dict[str, Any]) -> flow_config.Scope:
    values = checked_config(manifest, given)
    for name, setting in manifest.config.items():
        if setting.required and name not in values:
            about = f": {setting.description}" if setting.description else ""
            raise UsageError(f"setting {name!r} has to be given", remedy=f"it is of type {setting.type}{about}")
    scope = flow_config.install(values)
    # A required setting counts as declared: the code may declare more, and then has to find all that is given.
    scope.defaults.update({name: values.get(name) for name in manifest.config} | defaults(manifest))
    return scope


def _check_defaults(manifest: Manifest, scope: flow_config.Scope) -> None:
    """What the manifest tells everybody has to be what the code uses."""
    for name, default in defaults(manifest).items():
        said = scope.defaults.get(name)
        if default is not None and said != default:
            raise UsageError(
                f"setting {name!r} has two defaults: {default!r} in the manifest, {said!r} in the code",
                remedy="state it once",
            )


@contextmanager
def _replacing(tree: Path, model: str) -> Iterator[None]:
    """Make room for a package's modules: those of the model's package before are put aside, and come back when the new
    one cannot be loaded. Raises `UsageError` when another model in this process has a module of the same name."""
    own = {entry.name.removesuffix(".py") for entry in tree.iterdir() if entry.is_dir() or entry.suffix == ".py"}
    earlier = list(_trees.get(model, ()))
    _check_room(own, {tree, *earlier})
    if earlier:
        _aside[earlier[-1]] = _put_aside(earlier[-1])
    before = _aside.pop(tree, None)
    _trees[model] = [*(one for one in earlier if one != tree), tree]
    _modules_in_tree[tree] = own
    try:
        yield
    except BaseException:
        if before is None:
            unload(str(tree))
        else:
            _put_aside(tree)
            _aside[tree], _trees[model] = before, earlier
            _bring_back(earlier[-1])
        raise


def _check_room(names: set[str], trees: set[Path]) -> None:
    """Raise `UsageError` when one of the names is a module from elsewhere than these packages."""
    for other, there in _modules_in_tree.items():
        if other not in trees and (shared := sorted(there & names)):
            raise _taken(shared[0], str(other))
    for name in sorted(names & sys.modules.keys()):
        origin = _origin(sys.modules[name])
        if not origin or not trees & set(Path(origin).parents):
            raise _taken(name, origin or "the standard library")


def _bring_back(tree: Path) -> None:
    sys.path.insert(0, str(tree))
    sys.modules.update(_aside.pop(tree, {}))


def _import(folder: Path, name: str) -> ModuleType:
    """Import the module anew, with all that it imported from its folder before: files may have changed, and module
    level code reads `ps.config` again."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    if folder in _before:
        _forget(folder)
    if name in sys.modules:
        raise _taken(name, str(_origin(sys.modules[name]) or "the standard library"))
    importlib.invalidate_caches()
    _before.setdefault(folder, frozenset(sys.modules))
    return importlib.import_module(name)


def _forget(folder: Path) -> dict[str, ModuleType]:
    """Remove the modules that came from the folder since it was first loaded from; gives them back."""
    later = {name: module for name, module in list(sys.modules.items()) if name not in _before[folder]}
    own = [name for name, module in later.items() if _home(_origin(module)) == str(folder)]
    return {name: sys.modules.pop(name) for name in own}


def _put_aside(folder: Path) -> dict[str, ModuleType]:
    """Forget the folder's modules, and that modules may come from there."""
    modules = _forget(folder) if folder in _before else {}
    sys.path[:] = [entry for entry in sys.path if entry != str(folder)]
    sys.path_importer_cache.pop(str(folder), None)
    return modules


def _home(origin: str | None) -> str | None:
    """The entry of `sys.path` that a module came from: the innermost, because a virtual environment may lie inside of
    the author's folder, and what is installed there is not the author's."""
    inside = [entry for entry in sys.path if entry and origin and origin.startswith(entry.rstrip("/") + "/")]
    return max(inside, key=len, default=None)


def _origin(module: ModuleType) -> str | None:
    """The file of a module, or the directory of a package without one."""
    file = getattr(module, "__file__", None)
    if isinstance(file, str):
        return file
    try:
        return next(iter(getattr(module, "__path__", ())), None)
    except (KeyError, TypeError):  # a namespace package whose parent is gone
        return None


def _taken(name: str, origin: str) -> UsageError:
    return UsageError(
        f"a module named {name!r} is already imported from {origin}",
        remedy="give the flow's file another name, or run it in another group",
    )


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
