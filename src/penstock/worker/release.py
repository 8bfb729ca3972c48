"""Letting go of what an executor holds, also when some of it fails to close."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def release_all(releases: Iterable[Callable[[], None]]) -> list[Exception]:
    """Call every one of them, in order; the errors that came up on the way."""
    errors: list[Exception] = []
    for release in releases:
        try:
            release()
        except Exception as error:
            errors.append(error)
    return errors
