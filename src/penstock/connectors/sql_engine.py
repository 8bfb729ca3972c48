"""Connections to databases: drivers, time limits, and which failures are worth another attempt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc

from penstock.connectors.retries import waits
from penstock.errors import ConnectorError, PenstockError

T = TypeVar("T")

_DRIVERS = {
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
}
_EXTRAS = {"pymysql": "mariadb", "psycopg": "postgresql"}
_HOPELESS_MYSQL = {1044, 1045, 1049, 1054, 1064, 1142, 1146}
"""Access denied, no such database, column or table, syntax: waiting does not help."""
_LIMITS: dict[str, dict[str, Any]] = {
    "sqlite": {"timeout": 1.0, "check_same_thread": False},
    "postgresql": {"connect_timeout": 10},
}
_MYSQL_LIMITS = {"connect_timeout": 10, "read_timeout": 60, "write_timeout": 60, "charset": "utf8mb4"}


def shown(url: str) -> str:
    """The URL without its password."""
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except exc.ArgumentError:
        return "(a malformed URL)"


class Database:
    """One executor's way to a database; work that fails because the connection was lost is done again."""

    def __init__(self, url: str, deadline: float) -> None:
        self.where, self.deadline = shown(url), deadline
        try:
            parsed = sa.make_url(url)
            parsed = parsed.set(drivername=_DRIVERS.get(parsed.drivername, parsed.drivername))
            backend = parsed.get_backend_name()
            limits = _MYSQL_LIMITS if backend in ("mysql", "mariadb") else _LIMITS.get(backend, {})
            self.engine = sa.create_engine(parsed, connect_args=limits, pool_size=1, max_overflow=1)
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get(error.name or "", "all")
            raise ConnectorError(
                f"the driver for {self.where} is not installed: {error}", remedy=f"pip install 'penstock[{extra}]'"
            ) from error
        except exc.ArgumentError as error:
            raise ConnectorError(f"not a database URL: {error}", remedy="for example sqlite:///out.db") from error

    @property
    def dialect(self) -> str:
        """`sqlite`, `postgresql`, `mysql` or `mariadb`."""
        return self.engine.dialect.name

    def transaction(self, work: Callable[[sa.Connection], T]) -> T:
        """Do `work` in one transaction, again after a lost connection until the deadline; the work has to bear being
        repeated. Raises `ConnectorError`."""
        last: exc.DBAPIError | None = None
        for _ in waits(self.deadline):
            try:
                with self.engine.begin() as connection:
                    return work(connection)
            except exc.DBAPIError as error:
                if not worth_retrying(error):
                    raise self.failed(error) from error
                last = error
                self.engine.dispose()
        assert last is not None
        raise ConnectorError(
            f"{self.where} could not be used for {self.deadline:g} s: {_cause(last)}",
            remedy="check that the database is up and reachable; with checkpoints the run continues where it was",
        ) from last

    def failed(self, error: exc.SQLAlchemyError) -> PenstockError:
        """An error of the database as one of ours."""
        cause = _cause(error)
        if "disk is full" in cause:
            return ConnectorError(f"{self.where}: the disk is full", remedy="make room, then start the run again")
        return ConnectorError(f"{self.where}: {cause}", remedy="check the URL, the rights and the table's columns")

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()


def _cause(error: exc.SQLAlchemyError) -> str:
    original = getattr(error, "orig", None) or error
    return " ".join(str(original).split())[:500]


def worth_retrying(error: exc.DBAPIError) -> bool:
    """Whether the failure may pass: a lost or refused connection, a lock, a deadlock; not a wrong statement."""
    original = error.orig
    if type(original).__module__.startswith("sqlite3"):
        return "locked" in str(original) or "busy" in str(original)
    state = getattr(original, "sqlstate", None)
    if isinstance(state, str):
        return state[:2] in ("08", "40", "53", "57")
    if isinstance(error, exc.OperationalError) or error.connection_invalidated:
        code = original.args[0] if original is not None and original.args else None
        text = str(original)
        return code not in _HOPELESS_MYSQL and "does not exist" not in text and "authentication failed" not in text
    return isinstance(error, exc.InterfaceError)
