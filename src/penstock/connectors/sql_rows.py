"""Records as rows: column types from the first records, and values that fit the columns of an existing table."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from penstock.connectors import json_lines
from penstock.errors import ConnectorError
from penstock.flow.batch import Keyed

Fit = Callable[[Any], Any]
_SCALARS = (str, int, float, bool, bytes, Decimal, dt.datetime, dt.date, dt.time, type(None))
_BACKENDS = ("mysql", "mariadb")


def row_of(record: Any) -> dict[str, Any]:
    """A record as column name -> value; values that are no scalars become JSON text."""
    return {name: value if isinstance(value, _SCALARS) else _json(value) for name, value in _fields(record).items()}


def _fields(record: Any) -> dict[str, Any]:
    if type(record) is dict:
        return {str(name): value for name, value in record.items()}
    if type(record) is Keyed:
        inner = record.value
        composite = isinstance(inner, (dict, msgspec.Struct)) or dataclasses.is_dataclass(inner)
        return {"key": record.key, **(_fields(inner) if composite else {"value": inner})}
    if isinstance(record, msgspec.Struct):
        return {name: getattr(record, name) for name in record.__struct_fields__}
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    if hasattr(record, "_asdict"):
        return dict(record._asdict())
    return {"value": record}


def _json(value: Any) -> str:
    return json_lines.encode(value).decode("utf-8")


def table_for(name: str, rows: list[dict[str, Any]], key: tuple[str, ...]) -> sa.Table:
    """A new table whose column types suit `rows`. Raises `ConnectorError` when a key column is in none of them."""
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for column, value in row.items():
            columns.setdefault(column, []).append(value)
    absent = [column for column in key if column not in columns]
    if absent:
        raise ConnectorError(
            f"key column {absent[0]!r} of table {name!r} is in no record; they have {sorted(columns)}",
            remedy="name a field of the records in key=",
        )
    made = [
        sa.Column(column, _type_for(values, column in key), primary_key=column in key, autoincrement=False)
        for column, values in columns.items()
    ]
    return sa.Table(
        name,
        sa.MetaData(),
        *made,
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
    )


def _type_for(values: list[Any], key: bool) -> sa.types.TypeEngine[Any]:
    kinds = {type(value) for value in values} - {type(None)}
    if kinds == {bool}:
        return sa.Boolean()
    if kinds and kinds <= {int, bool}:
        big = any(not -(2**63) <= value < 2**63 for value in values if value is not None)
        return sa.Numeric(38, 0) if big else sa.BigInteger()
    if kinds and kinds <= {int, float, bool}:
        return sa.Double()
    if kinds and kinds <= {int, Decimal}:
        return sa.Numeric(38, 12)
    if kinds == {bytes}:
        return sa.LargeBinary(255) if key else sa.LargeBinary().with_variant(mysql.LONGBLOB(), *_BACKENDS)
    if kinds == {dt.datetime}:
        aware = any(value.tzinfo is not None for value in values if value is not None)
        return sa.DateTime(timezone=aware).with_variant(mysql.DATETIME(fsp=6), *_BACKENDS)
    if kinds == {dt.date}:
        return sa.Date()
    if kinds == {dt.time}:
        return sa.Time().with_variant(mysql.TIME(fsp=6), *_BACKENDS)
    if key:
        return sa.Text().with_variant(mysql.VARCHAR(255), *_BACKENDS)
    return sa.Text().with_variant(mysql.LONGTEXT(), *_BACKENDS)


class Misfit(ValueError):
    """A value that would be changed by its column."""


def _whole(value: Any) -> Any:
    if isinstance(value, (float, Decimal)) and value == int(value):
        return int(value)
    if isinstance(value, int):
        return int(value)
    raise Misfit


def _number(value: Any) -> Any:
    if isinstance(value, (int, float, Decimal)):
        return float(value)
    raise Misfit


def _exact(value: Any) -> Any:
    if isinstance(value, float):
        return Decimal(repr(value))
    if isinstance(value, (int, Decimal)):
        return value
    raise Misfit


def _text(value: Any) -> Any:
    return value if isinstance(value, str) else _json(value).strip('"')


def _boolean(value: Any) -> Any:
    if isinstance(value, bool) or value in (0, 1):
        return bool(value)
    raise Misfit


def _binary(value: Any) -> Any:
    if isinstance(value, bytes):
        return value
    raise Misfit


def _moment(zoned: bool) -> Fit:
    def fit(value: Any) -> Any:
        moment = dt.datetime.fromisoformat(value) if isinstance(value, str) else value
        if not isinstance(moment, dt.datetime):
            raise Misfit
        if zoned:
            return moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC)
        return moment if moment.tzinfo is None else moment.astimezone(dt.UTC).replace(tzinfo=None)

    return fit


def _day(value: Any) -> Any:
    day = dt.date.fromisoformat(value) if isinstance(value, str) else value
    if isinstance(day, dt.datetime) or not isinstance(day, dt.date):
        raise Misfit
    return day


def fit_for(column: sa.Column[Any], dialect: str) -> Fit | None:
    """How values get into a column without being changed by it; `None` when the database is to decide."""
    kind = column.type
    if isinstance(kind, sa.Boolean) or (isinstance(kind, mysql.TINYINT) and kind.display_width == 1):
        return _boolean
    if isinstance(kind, sa.Integer):
        return _whole
    if isinstance(kind, sa.Float):
        return _number
    if isinstance(kind, sa.Numeric):
        return _exact
    if isinstance(kind, sa.String) and not isinstance(kind, sa.Enum):
        return _text
    if isinstance(kind, (sa.LargeBinary, sa.types._Binary)):
        return _binary
    if isinstance(kind, sa.DateTime):
        return _moment(zoned=dialect == "postgresql" and bool(kind.timezone))
    if isinstance(kind, sa.Date):
        return _day
    return None


class RowShape:
    """The columns of an existing table, and how records get into them."""

    def __init__(self, table: sa.Table, dialect: str) -> None:
        self.table = table
        self.fits = {column.name: fit_for(column, dialect) for column in table.columns}

    def fitted(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with a value for every column it may set. Raises `ConnectorError` naming column, value and remedy."""
        unknown = row.keys() - self.fits.keys()
        if unknown:
            raise ConnectorError(
                f"table {self.table.name!r} has no column {min(unknown)!r}; it has {sorted(self.fits)}",
                remedy="map the records to these columns, or write to a new table",
            )
        fitted: dict[str, Any] = {}
        for name, value in row.items():
            fit = self.fits[name]
            try:
                fitted[name] = value if fit is None or value is None else fit(value)
            except (ValueError, OverflowError, ArithmeticError):
                raise ConnectorError(
                    f"column {name!r} of table {self.table.name!r} is {self.table.columns[name].type}, "
                    f"but a record has the {type(value).__name__} {value!r:.80}",
                    remedy="convert the field before the sink, or write to a new table",
                ) from None
        return fitted
