"""Both clients push into a real gateway."""

from __future__ import annotations

import asyncio
import threading
import time

import httpx
import pytest
from tests.gateway.fake_service import FakeService
from tests.test_client import Awaiting, Blocking, write_flow

from penstock.client import AsyncClient, Busy, Client, Conflict, NotFound, Rejected, Unreachable
from penstock.cluster.service import Unavailable
from penstock.errors import UsageError
from penstock.gateway.app import create_app


@pytest.fixture(params=[Blocking, Awaiting])
def connect(request):
    return request.param


@pytest.fixture
def service(tmp_path):
    found = FakeService(room=10**9)
    found.lanes = ["node-1", "node-2", "node-1"]
    found.urls = {"node-1": "http://127.0.0.1:8700", "node-2": "http://127.0.0.1:8701"}
    client = Blocking(create_app(found))
    client.add_model(write_flow(tmp_path))
    client.online("words")
    return found


def test_many_records_are_spread_over_the_lanes(connect, service):
    client = connect(create_app(service))
    records = [f"{n}" for n in range(60_000)]
    progress = []
    result = client.push("words/in", iter(records), on_progress=progress.append)
    assert sorted(service.records, key=int) == records
    assert (result.accepted, result.through, result.requests, result.resent) == (60_000, 60_000, 12, 0)
    assert set(result.lanes) == {0, 1, 2}
    assert sum(result.lanes.values()) == 60_000
    assert [p.requests for p in progress] == list(range(1, 13))
    assert len(set(service.pushes)) == len(service.pushes)


def test_one_piece_after_the_other_goes_to_the_same_lane(service):
    client = Blocking(create_app(service))
    for _ in range(20):
        client.push("words/in", ["a"])
    assert {(lane, client) for lane, client, _, _ in service.pushes} == {service.pushes[0][:2]}
    assert [seq for _, _, seq, _ in service.pushes] == list(range(1, 21))


def test_in_order_when_that_is_asked_for(connect, service):
    records = [f"{n}" for n in range(22_000)]
    result = connect(create_app(service)).push("words/in", records, ordered=True)
    assert service.records == records
    assert len(result.lanes) == 1


def test_numbers_that_the_caller_gives(connect, service):
    client = connect(create_app(service))
    for _ in range(2):  # as after a restart of the caller
        assert client.push("words/in", ["a"] * 7000, client="me", seq=5).accepted == 7000
    assert [(lane, client, seq) for lane, client, seq, _ in sorted(service.pushes)] == [(0, "me", 5), (0, "me", 6)]
    assert len(service.records) == 7000
    with pytest.raises(UsageError, match="belong together"):
        client.push("words/in", ["a"], client="me")


def test_pushes_at_the_same_time_have_numbers_of_their_own(service):
    async def main():
        async with AsyncClient(transport=httpx.ASGITransport(create_app(service))) as client:
            await asyncio.gather(*(client.push("words/in", [f"{n}"] * 3) for n in range(30)))

    asyncio.run(main())
    assert len(service.records) == 90
    numbered = [(client, seq) for _, client, seq, _ in service.pushes]
    assert len(set(numbered)) == 30


def test_an_asynchronous_input(service):
    async def records():
        for n in range(11_000):
            if n % 1000 == 0:
                await asyncio.sleep(0)
            yield f"{n}"

    async def main():
        async with AsyncClient(transport=httpx.ASGITransport(create_app(service))) as client:
            return await client.push("words/in", records(), ordered=True)

    assert asyncio.run(main()).accepted == 11_000
    assert service.records == [f"{n}" for n in range(11_000)]


def test_a_slow_input_does_not_hold_back_what_it_has_given(service):
    """The last record is given only after the first one has arrived, which it does without a full piece."""

    def records():
        yield "first"
        deadline = time.monotonic() + 20
        while "first" not in service.records:
            assert time.monotonic() < deadline, "it was not sent"
            time.sleep(0.005)
        yield "last"

    assert Blocking(create_app(service)).push("words/in", records()).accepted == 2


def test_the_input_is_read_by_the_callers_thread(service):
    seen = set()

    def records():
        for n in range(6000):
            seen.add(threading.get_ident())
            yield str(n)

    Blocking(create_app(service)).push("words/in", records())
    assert seen == {threading.get_ident()}


def test_no_more_is_read_than_the_window_holds(service):
    """An endless input under pressure: what is read is bounded, and the push gives up at its deadline."""
    service.room = 0
    read = 0

    def records():
        nonlocal read
        while True:
            read += 1
            yield "x" * 1000

    with pytest.raises(Busy, match="no room") as caught:
        Blocking(create_app(service)).push("words/in", records(), window=200_000, deadline=0.3)
    assert read < 5000
    assert (caught.value.pushed.accepted, caught.value.status) == (0, 429)


@pytest.mark.parametrize(
    ("stream", "error"), [("words/none", NotFound), ("none/in", NotFound), ("words", UsageError), ("a//b", UsageError)]
)
def test_what_cannot_be_pushed_to(connect, service, stream, error):
    with pytest.raises(error):
        connect(create_app(service)).push(stream, ["a"])


def test_an_error_says_what_is_acknowledged(connect, service):
    client = connect(create_app(service))
    bodies = [b'"a"\n"b"\n', b'"c"\n"d"\n"e"\n', b'"f"\nnope\n', b'"g"\n']
    with pytest.raises(Rejected, match="line 2 is not JSON") as caught:
        client.push_ndjson("words/in", bodies, ordered=True)
    error = caught.value
    assert "5 records are acknowledged" in str(error)
    assert (error.pushed.accepted, error.pushed.through, error.before, error.problem["line"]) == (5, 5, 5, 2)
    assert service.records == list("abcde")


def test_a_model_that_goes_offline_ends_the_push(connect, service):
    def bodies():
        yield b'"a"\n'
        service.catalogue["default/words"].status = "offline"
        for _ in range(1000):
            yield b'"b"\n'

    with pytest.raises(Conflict, match="offline"):
        connect(create_app(service)).push_ndjson("words/in", bodies())


def test_an_input_that_fails(connect, service):
    def records():
        yield from ("a" for _ in range(5000))
        raise ZeroDivisionError("in the input")

    with pytest.raises(ZeroDivisionError, match="in the input") as caught:
        connect(create_app(service)).push("words/in", records())
    assert caught.value.__notes__ == ["before that, 5,000 records were pushed and acknowledged"]
    assert len(service.records) == 5000


class Flaky(httpx.AsyncBaseTransport):
    """Loses what `lose(number, request)` says: `before` it arrives, or its answer `after`."""

    def __init__(self, app, lose):
        self.inner, self.lose, self.number = httpx.ASGITransport(app), lose, 0
        self.asked = []

    async def handle_async_request(self, request):
        self.number += 1
        self.asked.append((request.method, request.url.host, request.url.port))
        lost = self.lose(self.number, request)
        if lost == "before":
            raise httpx.ConnectError("refused")
        answer = await self.inner.handle_async_request(request)
        if lost == "after":
            await answer.aread()
            raise httpx.ReadError("reset")
        return answer


def flaky_push(service, lose, records=20_000, **options):
    transport = Flaky(create_app(service), lose)

    async def main():
        async with AsyncClient(transport=transport) as client:
            return await client.push("words/in", (str(n) for n in range(records)), **options)

    return asyncio.run(main()), transport


def test_answers_that_are_lost(service):
    result, _ = flaky_push(service, lambda number, request: "after" if number in (2, 4) else None)
    assert sorted(map(int, service.records)) == list(range(20_000))
    assert (result.accepted, result.resent) == (20_000, 2)


def test_a_node_that_cannot_be_reached_is_gone_round(service):
    def lose(number, request):
        return "before" if request.url.port == 8701 else None

    result, transport = flaky_push(service, lose)
    assert sorted(map(int, service.records)) == list(range(20_000))
    assert result.lanes[1] > 0  # by way of another node
    assert 0 < transport.asked.count(("POST", "127.0.0.1", 8701)) <= 4


def test_it_goes_on_by_other_nodes_when_its_own_is_gone(service):
    def lose(number, request):
        return "before" if number > 1 and request.url.port == 8700 else None

    assert flaky_push(service, lose)[0].accepted == 20_000
    assert sorted(map(int, service.records)) == list(range(20_000))


def test_an_address_that_leads_to_another_cluster(service, tmp_path):
    """A tunnel: what is told as 127.0.0.1 is another machine's, and here another cluster listens there."""
    other = FakeService(room=10**9)
    other.name = "another"
    setup = Blocking(create_app(other))
    setup.add_model(write_flow(tmp_path))
    setup.online("words")
    ours, theirs = httpx.ASGITransport(create_app(service)), httpx.ASGITransport(create_app(other))

    class Tunnel(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request):
            return await (ours if request.url.port == 9000 else theirs).handle_async_request(request)

    async def main():
        async with AsyncClient("http://127.0.0.1:9000", transport=Tunnel()) as client:
            return await client.push("words/in", (str(n) for n in range(20_000)))

    assert asyncio.run(main()).accepted == 20_000
    assert sorted(map(int, service.records)) == list(range(20_000))
    assert other.records == []


def test_an_executor_that_is_restarted_is_waited_for(connect, service):
    push, tries = service.push, []

    async def unready(*args):
        tries.append(args)
        if len(tries) < 3:
            raise Unavailable("it is being restarted", retry_after=0.05)
        return await push(*args)

    service.push = unready
    result = connect(create_app(service)).push("words/in", ["a"])
    assert (result.accepted, result.resent, len(tries)) == (1, 2, 3)
    assert len({(client, seq) for _, _, _, client, seq, _ in tries}) == 1


def test_nobody_there():
    with Client("http://127.0.0.1:1", deadline=0.2) as client, pytest.raises(Unreachable, match="penstock up"):
        client.push("words/in", ["a"])


def test_cancelling_leaves_nothing(service):
    async def endless():
        while True:
            yield "x"
            await asyncio.sleep(0)

    async def main():
        async with AsyncClient(transport=httpx.ASGITransport(create_app(service))) as client:
            pushing = asyncio.create_task(client.push("words/in", endless()))
            while not service.records:
                await asyncio.sleep(0.01)
            pushing.cancel()
            await asyncio.gather(pushing, return_exceptions=True)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
