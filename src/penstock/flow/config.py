"""`ps.config`: the settings a model is run with, read-only for its code.

The author states names and defaults once; whoever runs the model may override them (`--set threshold=5`, or the body
of an `online` request). The worker installs the overrides before it imports the author's module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from penstock.errors import FlowError

__all__ = ["Config", "Scope", "UnknownSetting", "activate", "config", "current", "install"]


class UnknownSetting(FlowError, KeyError):
    """A setting that nobody declared or gave; also a `KeyError`, so that `config.get` and `in` work."""

    __str__ = Exception.__str__


@dataclass
class Scope:
    """One model's settings: several models may run in one process."""

    defaults: dict[str, Any]
    given: dict[str, Any]


class Config(Mapping[str, Any]):
    """Settings by name: what was given to this run, else the author's defaults."""

    def __init__(self) -> None:
        self._scope = Scope({}, {})

    @property
    def _defaults(self) -> dict[str, Any]:
        return self._scope.defaults

    @property
    def _given(self) -> dict[str, Any]:
        return self._scope.given

    def defaults(self, values: Mapping[str, Any] | None = None, /, **named: Any) -> None:
        """Declare settings and their defaults. Once any is declared, a given setting must be among them; a given
        text is converted to the type of its default. Raises `FlowError` when that is not possible."""
        self._defaults.update(values or {}, **named)
        self.check()

    def check(self) -> None:
        """Raise `FlowError` for given settings that no default declares."""
        unknown = sorted(set(self._given) - set(self._defaults)) if self._defaults else []
        if unknown:
            raise UnknownSetting(
                None, f"unknown setting {unknown[0]!r}", remedy=f"the settings are: {', '.join(sorted(self._defaults))}"
            )
        for name in self._given:
            self[name]

    def __getitem__(self, name: str) -> Any:
        if name in self._given:
            return _like(name, self._given[name], self._defaults.get(name))
        if name in self._defaults:
            return self._defaults[name]
        known = ", ".join(sorted(self)) or "none"
        raise UnknownSetting(
            None,
            f"there is no setting {name!r}",
            remedy=f"give it a default: ps.config.defaults({name}=…); known settings: {known}",
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._defaults | self._given)

    def __len__(self) -> int:
        return len(self._defaults | self._given)

    def __repr__(self) -> str:
        return f"config({dict(self)!r})"


def _like(name: str, given: Any, default: Any) -> Any:
    """A text from a command line as the type of the default."""
    if not isinstance(given, str) or default is None or isinstance(default, str):
        return given
    kind = type(default)
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError:
        pass
    try:
        return msgspec.json.decode(given, type=kind)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise FlowError(
            None, f"setting {name}={given!r} is not a {kind.__name__}", remedy=f"for example {name}={default!r}"
        ) from error


config = Config()


def install(given: Mapping[str, Any]) -> Scope:
    """Make `given` the overrides from now on, with no defaults declared. Called before the author's module is imported;
    give the scope to `activate` before code of that model runs again."""
    scope = Scope({}, dict(given))
    activate(scope)
    return scope


def activate(scope: Scope) -> None:
    """Let `ps.config` speak of the model that this scope was installed for."""
    config._scope = scope


def current() -> Scope:
    """The scope that `ps.config` speaks of."""
    return config._scope
