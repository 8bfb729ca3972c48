from __future__ import annotations

import datetime as dt
import random
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from decimal import Decimal

import msgspec
import pytest
import sqlalchemy as sa
from tests.connectors.conftest import read_until, wait_for
from tests.plugins.services import address

from penstock import codec
from penstock.connectors import sql
from penstock.connectors.sql_engine import Database
from penstock.errors import ConnectorError, UsageError
from penstock.flow.batch import Keyed
from penstock.flow.connector import EndOfInput

SERVERS = {"mariadb": "mariadb://root@{}:{}/test", "postgresql": "postgresql://postgres@{}:{}/test"}


ON_SERVERS = [pytest.param(name, marks=pytest.mark.services(name)) for name in SERVERS]


@pytest.fixture(params=["sqlite", *ON_SERVERS])
def url(request, tmp_path, unique):
    """A database; what the test made in it is dropped at the end."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/test.db"
        return
    url = SERVERS[request.param].format(*address(request.param))
    yield url
    execute(url, f"DROP TABLE IF EXISTS {unique}")
    database = Database(url, 10)
    if database.transaction(lambda c: sa.inspect(c).has_table("penstock_positions")):
        database.transaction(lambda c: c.execute(sa.text(f"DELETE FROM penstock_positions WHERE flow = '{unique}'")))
    database.close()


@pytest.fixture
def checkpointed(ctx, unique):
    return replace(ctx, flow=unique, checkpointed=True)


def execute(url, *statements):
    database = Database(url, 10)
    for statement in statements:
        database.transaction(lambda c, s=statement: c.execute(sa.text(s)))
    database.close()


def rows(url, table, order="1"):
    database = Database(url, 10)
    found = database.transaction(
        lambda c: [tuple(r) for r in c.execute(sa.text(f"SELECT * FROM {table} ORDER BY {order}"))]
    )
    database.close()
    return found


class Reading(msgspec.Struct):
    sensor: str
    value: float


def test_a_missing_table_is_made_from_the_first_records(url, unique, ctx):
    record = {
        "id": 2**40,
        "name": "ä😀",
        "value": 1.5,
        "ok": True,
        "raw": b"\x00\xff",
        "at": dt.datetime(2024, 1, 2, 3, 4, 5, 678901),
        "day": dt.date(2024, 1, 2),
        "money": Decimal("12.50"),
        "more": {"a": [1]},
        "none": None,
    }
    writer = sql(url, unique).open(ctx)
    writer.write([record, {**record, "id": 1, "value": 2}])
    writer.flush()
    writer.close()
    (second, first) = rows(url, unique, "id")
    assert first[:3] == (2**40, "ä😀", 1.5)
    assert bytes(first[4]) == b"\x00\xff"
    assert first[8] == '{"a":[1]}'
    assert second[2] == 2.0
    database = Database(url, 10)
    table = database.transaction(lambda c: sa.Table(unique, sa.MetaData(), autoload_with=c))
    got = database.transaction(lambda c: c.execute(sa.select(table).order_by(table.c.id.desc())).first())
    database.close()
    assert (bool(got.ok), got.at, got.day, got.money) == (True, record["at"], record["day"], record["money"])


def test_records_of_every_shape(url, unique, ctx):
    writer = sql(url, unique).open(ctx)
    writer.write([Keyed("a", {"n": 1}), Keyed("b", {"n": 2})])
    writer.close()
    assert rows(url, unique) == [("a", 1), ("b", 2)]
    execute(url, f"DROP TABLE {unique}")
    writer = sql(url, unique, key="sensor").open(ctx)
    writer.write([Reading("a", 1.0), Reading("A", 2.0), Reading("a", 3.0)])
    writer.close()
    assert sorted(rows(url, unique)) == [("A", 2.0), ("a", 3.0)]


def test_upsert_replaces_rows_by_key(url, unique, ctx):
    sink = sql(url, unique, key=["k", "day"])
    for value in (1, 2):
        writer = sink.open(ctx)
        writer.write([{"k": k, "day": dt.date(2024, 1, 1), "v": value * k} for k in range(3)])
        writer.close()
    assert [(k, v) for k, _, v in rows(url, unique)] == [(0, 0), (1, 2), (2, 4)]
    writer = sql(url, unique, key="k").open(ctx)
    with pytest.raises(ConnectorError, match="no primary key or unique index over exactly"):
        writer.write([{"k": 1, "v": 2}])
    writer.abort()


def test_values_that_do_not_fit_are_refused(url, unique, ctx):
    execute(url, f"CREATE TABLE {unique} (n INTEGER, t VARCHAR(50))")
    writer = sql(url, unique).open(ctx)
    writer.write([{"n": 1.0, "t": "x"}, {"n": 2, "t": 3}])
    with pytest.raises(ConnectorError, match=r"column 'n' .* has the float 1.5"):
        writer.write([{"n": 1.5, "t": "x"}])
    with pytest.raises(ConnectorError, match=r"has no column 'other'; it has \['n', 't'\]"):
        writer.write([{"other": 1}])
    writer.close()
    assert rows(url, unique) == [(1, "x"), (2, "3")]


def through_codec(pending):
    return codec.loads(codec.dumps(pending))


def test_rows_and_position_are_committed_once(url, unique, checkpointed):
    sink = sql(url, unique)
    writer = sink.open(checkpointed)
    writer.write([{"n": 1, "at": dt.datetime(2024, 1, 1)}])
    first = through_codec(writer.prepare(1))
    writer.write([{"n": 2, "at": dt.datetime(2024, 1, 2)}])
    second = through_codec(writer.prepare(2))
    writer.write([{"n": 3, "at": dt.datetime(2024, 1, 3)}])
    assert rows(url, unique) == []
    writer.commit(first)
    writer.commit(first)
    assert [row[0] for row in rows(url, unique)] == [1]
    writer.abort()
    for _ in range(2):
        restored = sink.open(checkpointed)
        restored.recover([second])
        restored.abort()
    assert [row[0] for row in rows(url, unique)] == [1, 2]


def test_a_checkpoint_that_was_given_up_loses_nothing(url, unique, checkpointed):
    writer = sql(url, unique).open(checkpointed)
    writer.write([{"n": 1}])
    writer.prepare(1)
    writer.write([{"n": 2}])
    writer.commit(through_codec(writer.prepare(2)))
    assert rows(url, unique) == [(1,), (2,)]
    writer.write([{"n": 3}])
    writer.prepare(3)
    writer.write([{"n": 4}])
    writer.close()
    assert rows(url, unique) == [(1,), (2,), (3,), (4,)]


def test_a_new_run_starts_with_its_own_position(url, unique, checkpointed):
    for run in range(2):
        writer = sql(url, unique).open(checkpointed)
        for checkpoint in (1, 2):
            writer.write([{"run": run, "n": checkpoint}])
            writer.commit(writer.prepare(checkpoint))
        writer.close()
    assert rows(url, unique, "run, n") == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_another_executor_commits_for_one_that_is_gone(url, unique, checkpointed):
    sink = sql(url, unique)
    writers = [sink.open(replace(checkpointed, index=i, executors=2)) for i in range(2)]
    pendings = []
    for i, writer in enumerate(writers):
        writer.write([{"n": i}])
        pendings.append(through_codec(writer.prepare(1)))
    writers[1].commit(pendings[1])
    for writer in writers:
        writer.abort()
    only = sink.open(checkpointed)
    only.recover(pendings)
    only.close()
    assert rows(url, unique) == [(0,), (1,)]


def test_an_older_checkpoint_than_the_table_is_refused(url, unique, checkpointed):
    writer = sql(url, unique).open(checkpointed)
    writer.write([{"n": 1}])
    first = writer.prepare(1)
    writer.commit(first)
    writer.write([{"n": 2}])
    writer.commit(writer.prepare(2))
    writer.abort()
    restored = sql(url, unique).open(checkpointed)
    with pytest.raises(ConnectorError, match="rows up to checkpoint 2, but checkpoint 1 was restored"):
        restored.recover([first])
    restored.abort()


@pytest.mark.parametrize("url", ON_SERVERS, indirect=True)
def test_a_lost_connection_is_taken_up_again(url, unique, ctx):
    writer = sql(url, unique).open(ctx)
    writer.write([{"n": 1}])
    writer.flush()
    engine = writer._database.engine
    with engine.connect() as connection:
        mysql = engine.dialect.name in ("mysql", "mariadb")
        number = connection.scalar(sa.text("SELECT CONNECTION_ID()" if mysql else "SELECT pg_backend_pid()"))
    execute(url, f"KILL {number}" if mysql else f"SELECT pg_terminate_backend({number})")
    writer.write([{"n": 2}])
    writer.flush()
    writer.close()
    assert rows(url, unique) == [(1,), (2,)]


def test_a_locked_sqlite_database_is_waited_for_and_then_named(tmp_path, ctx):
    url = f"sqlite:///{tmp_path}/x.db"
    execute(url, "CREATE TABLE t (n INTEGER)")
    database = Database(url, 10)
    writer = sql(url, "t", deadline=0.2).open(ctx)
    with database.engine.connect() as connection:
        connection.execute(sa.text("INSERT INTO t VALUES (0)"))
        writer.write([{"n": 1}])
        with pytest.raises(ConnectorError, match=r"could not be used for 0\.2 s: database is locked"):
            writer.flush()
    writer.flush()
    writer.close()
    database.close()
    assert rows(url, "t") == [(1,)]


def test_unreachable_and_wrong_databases_are_named(tmp_path, ctx):
    with pytest.raises(ConnectorError, match=r"127\.0\.0\.1:1.* could not be used for 0.3 s"):
        sql("postgresql://user:secret@127.0.0.1:1/db", "t", deadline=0.3).open(ctx)
    with pytest.raises(ConnectorError, match="unable to open database file"):
        sql(f"sqlite:///{tmp_path}/none/x.db", "t").open(ctx)
    with pytest.raises(ConnectorError, match="oracle"):
        sql("oracle+oracledb://x/y", "t").open(ctx)
    shown = sql("mariadb://u:secret@h/db", "t")
    assert "secret" not in f"{shown!r} {shown.describe()}"


@pytest.mark.services("mariadb")
def test_a_wrong_database_name_is_not_tried_for_long(ctx):
    with pytest.raises(ConnectorError, match="Unknown database"):
        sql("mariadb://root@{}:{}/no_such_db".format(*address("mariadb")), "t").open(ctx)


def test_impossible_options():
    for arguments, options in (
        (("out.db", "t"), {}),
        (("sqlite:///x",), {}),
        (("sqlite:///x", "t"), {"mode": "upsert"}),
        (("sqlite:///x", "t"), {"mode": "replace"}),
        (("sqlite:///x", "t"), {"follow": True}),
        (("sqlite:///x", "t"), {"poll": 0}),
    ):
        with pytest.raises(UsageError, match="sql"):
            sql(*arguments, **options)


# ---- reading --------------------------------------------------------------------------------------------------------


def drain(reader):
    records = []
    try:
        wait_for(lambda: records.extend(reader.read(7)))
    except EndOfInput:
        return records
    finally:
        reader.close()


@pytest.mark.parametrize("incremental", ["id", "tie", None])
def test_rows_are_read_and_every_offset_continues(url, unique, ctx, incremental):
    execute(url, f"CREATE TABLE {unique} (id INTEGER, tie INTEGER)")
    execute(url, f"INSERT INTO {unique} VALUES " + ", ".join(f"({i}, {i // 9})" for i in range(60)))
    source = sql(url, query=f"SELECT id, tie FROM {unique} ORDER BY id", incremental=incremental)
    expected = [{"id": i, "tie": i // 9} for i in range(60)]
    reader = source.open("query", None, ctx)
    wait_for(lambda: reader._inbox.exhausted or len(reader._inbox) == 60)
    seen = 0
    while seen < 60:
        seen += len(reader.read(7))
        assert len(drain(source.open("query", through_codec(reader.offset()), ctx))) == 60 - seen
    reader.close()
    if incremental != "tie":
        assert drain(source.open("query", None, ctx)) == expected


def test_new_rows_are_followed(url, unique, ctx):
    execute(url, f"CREATE TABLE {unique} (id INTEGER)", f"INSERT INTO {unique} VALUES (1), (2)")
    woken = threading.Event()
    ctx.wake = woken.set
    reader = sql(url, unique, incremental="id", follow=True, poll=0.02).open(unique, None, ctx)
    assert read_until(reader, 2) == [{"id": 1}, {"id": 2}]
    woken.clear()
    execute(url, f"INSERT INTO {unique} VALUES (3)")
    assert woken.wait(20)
    assert read_until(reader, 1) == [{"id": 3}]
    reader.close()


def test_a_query_that_cannot_be_run(url, unique, ctx):
    reader = sql(url, unique, incremental="id", deadline=5).open(unique, None, ctx)
    with pytest.raises(ConnectorError, match=unique):
        read_until(reader, 1)
    reader.close()


# ---- kills ----------------------------------------------------------------------------------------------------------

KILLED = """
import os, sys
import sqlalchemy as sa
from penstock import codec
from penstock.connectors import sql
from penstock.connectors.sql_engine import Database
from penstock.flow.connector import ConnectorContext

url, name, log = sys.argv[1:4]

def run(kill_at):
    calls = 0

    def maybe(*_, **__):
        nonlocal calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), 9)

    writer = sql(url, name).open(ConnectorContext(name, "s", checkpointed=True))
    for event in ("before_cursor_execute", "after_cursor_execute", "commit"):
        sa.event.listen(writer._database.engine, event, maybe)
    state = codec.loads(open(log, "rb").read()) if os.path.exists(log) else None
    if state:
        writer.recover([state["pending"]])
    n, checkpoint = (state["n"], state["checkpoint"]) if state else (0, 0)
    while n < 30:
        writer.write([{"n": i} for i in range(n, n + 5)])
        n += 5
        checkpoint += 1
        pending = writer.prepare(checkpoint)
        maybe()
        with open(log + ".new", "wb") as f:  # the durable checkpoint: position and pending together
            f.write(codec.dumps({"n": n, "checkpoint": checkpoint, "pending": pending}))
        os.rename(log + ".new", log)
        maybe()
        writer.commit(pending)
        maybe()
    writer.close()

for kill_at in map(int, sys.argv[4:]):  # each in a process of its own, which is killed at that moment
    child = os.fork()
    if child == 0:
        run(kill_at)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.faults
def test_a_kill_at_any_statement_neither_loses_nor_doubles_a_row(url, unique, tmp_path):
    kills = 0
    chance = random.Random(11)
    for call in chance.sample(range(1, 60), 5):
        execute(url, f"DROP TABLE IF EXISTS {unique}")
        moments = [str(call), str(chance.randrange(4, 20)), "1000000"]  # killed twice, then left alone
        done = subprocess.run(
            [sys.executable, "-c", KILLED, url, unique, str(tmp_path / f"log{call}"), *moments],
            capture_output=True,
            text=True,
            timeout=60,
        )
        ends = list(map(int, done.stdout.split()))
        assert len(ends) == 3, done.stderr
        assert set(ends) <= {0, -signal.SIGKILL}, done.stderr
        kills += ends.count(-signal.SIGKILL)
        assert rows(url, unique) == [(n,) for n in range(30)]
    assert kills >= 6


def test_an_empty_table_ends_at_once(tmp_path, ctx):
    url = f"sqlite:///{tmp_path}/x.db"
    execute(url, "CREATE TABLE t (n INTEGER)")
    assert drain(sql(url, "t").open("t", None, ctx)) == []
