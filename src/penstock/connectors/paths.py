"""From what a user writes as a path to the files that are meant, with an error that helps when there are none."""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Sequence

from penstock.errors import ConnectorError, UsageError

Pattern = str | os.PathLike[str]


def as_patterns(paths: Pattern | Sequence[Pattern]) -> tuple[str, ...]:
    """The user's path, glob pattern or list of these, as text. Raises `UsageError` for anything else."""
    listed = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    if not isinstance(listed, (list, tuple)) or not listed:
        raise UsageError(f"a path, a glob pattern or a list of these was expected, not {paths!r}")
    patterns = []
    for path in listed:
        if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
            raise UsageError(f"a path or a glob pattern was expected, not {path!r}")
        patterns.append(os.path.expanduser(os.fspath(path)))
    return tuple(patterns)


def expand(patterns: Sequence[str]) -> list[str]:
    """The files that the patterns name, sorted, each once. A directory stands for the visible files in it.

    Raises `ConnectorError` when a pattern names nothing; the message lists what looks like it.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        matches = _matches(pattern)
        if not matches:
            raise missing(pattern)
        found.update(dict.fromkeys(matches))
    return sorted(found)


def _matches(pattern: str) -> list[str]:
    if os.path.isdir(pattern):
        return _visible_files(pattern)
    if os.path.exists(pattern):
        return [pattern]
    matches: list[str] = []
    for match in glob.glob(pattern, recursive=True):
        matches += _visible_files(match) if os.path.isdir(match) and "**" not in pattern else []
        if os.path.isfile(match):
            matches.append(match)
    return matches


def _visible_files(directory: str) -> list[str]:
    names = (name for name in os.listdir(directory) if not name.startswith((".", "_")))
    return [path for path in (os.path.join(directory, name) for name in names) if os.path.isfile(path)]


def missing(pattern: str) -> ConnectorError:
    """The error for a path or pattern that names no file."""
    directory = os.path.dirname(pattern) or "."
    if glob.has_magic(directory) or not os.path.isdir(directory):
        if glob.has_magic(directory):
            return ConnectorError(f"no file matches {pattern!r}", remedy="check the pattern")
        return ConnectorError(
            f"no file {pattern!r}: the directory {directory!r} does not exist (working directory: {os.getcwd()})",
            remedy="check the path; a relative path starts at the working directory",
        )
    if os.path.isdir(pattern):
        return ConnectorError(f"the directory {pattern!r} holds no file to read", remedy="name the files, or a pattern")
    names = sorted(os.listdir(directory))
    near = difflib.get_close_matches(os.path.basename(pattern), names, n=3, cutoff=0.5)
    what = f"no file matches {pattern!r}" if glob.has_magic(pattern) else f"no file {pattern!r}"
    if near:
        return ConnectorError(what, remedy="did you mean " + " or ".join(repr(_beside(pattern, n)) for n in near) + "?")
    shown = ", ".join(map(repr, names[:5])) + (" …" if len(names) > 5 else "")
    return ConnectorError(what, remedy=f"{os.path.abspath(directory)} holds {shown or 'no files at all'}")


def _beside(pattern: str, name: str) -> str:
    return os.path.join(os.path.dirname(pattern), name)
