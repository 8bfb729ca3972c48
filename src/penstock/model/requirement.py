"""Names, versions and requirements of Python's packages: what the `packaging` library says of them, with errors for
authors.

`packaging` is imported when it is first asked: workers load flows, and `penstock run` starts, without it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from penstock.errors import UsageError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

__all__ = [
    "normalized_name",
    "normalized_version",
    "parse_requirement",
    "python_admits",
    "same_version",
    "wheel_parts",
    "wheel_stem",
]


def parse_requirement(text: str) -> Requirement:
    """A requirement (PEP 508), its name normalised. Raises `UsageError`."""
    from packaging.requirements import Requirement

    try:
        found = Requirement(text)
    except (ValueError, RecursionError) as error:  # the parser of markers is recursive
        raise UsageError(f"{text!r} is not a requirement", remedy="write it like 'numpy>=2' or 'numpy'") from error
    found.name = normalized_name(found.name)
    return found


def normalized_name(name: str) -> str:
    """A package's name in lower case, with `-` for any run of `-`, `_` and `.`."""
    from packaging.utils import canonicalize_name

    return canonicalize_name(name)


def normalized_version(version: str) -> str:
    """A version as PEP 440 writes it: `1.0-RC1` as `1.0rc1`. Raises `UsageError` for what is not a version."""
    from packaging.version import Version

    try:
        return str(Version(version))
    except ValueError as error:
        raise UsageError(f"{version!r} is not a version", remedy="write it like 1.4.0, 2.0rc1 or 2026.11") from error


def same_version(one: str, other: str) -> bool:
    """Whether two texts mean one version: `1.0` and `1.0.0` do."""
    from packaging.utils import canonicalize_version

    return canonicalize_version(one) == canonicalize_version(other)


def wheel_stem(name: str, version: str) -> str:
    """`name-version` as file names of wheels and `.dist-info` directories begin (PEP 427)."""
    return f"{normalized_name(name).replace('-', '_')}-{normalized_version(version)}"


def wheel_parts(file: str) -> tuple[str, str]:
    """Package and version of a wheel, normalised, by its file's name. Raises `UsageError`."""
    from packaging.utils import parse_wheel_filename

    try:
        name, version, _, _ = parse_wheel_filename(file)
    except ValueError as error:
        raise UsageError(f"{file!r} is not the name of a wheel", remedy="a wheel is NAME-VERSION-TAGS.whl") from error
    return name, str(version)


def python_admits(requires_python: str, version: tuple[int, ...] = sys.version_info[:3]) -> bool:
    """Whether `requires_python` (`>=3.11,<3.14`) admits a version of Python. Raises `UsageError` if malformed."""
    from packaging.specifiers import SpecifierSet

    try:
        return SpecifierSet(requires_python).contains(".".join(map(str, version)), prereleases=True)
    except ValueError as error:
        raise UsageError(
            f"requires-python: {requires_python!r} is not understood", remedy="write it like '>=3.11,<3.14'"
        ) from error
