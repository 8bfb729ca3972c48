"""Leases and terms against real servers."""

from __future__ import annotations

import asyncio

import pytest
from tests.cluster.nodes import asynchronous, settings, until
from tests.plugins.services import address

from penstock.clock import SystemClock
from penstock.cluster.bus import Bus
from penstock.cluster.leader import Election
from penstock.cluster.membership import Membership
from penstock.cluster.view import EMPTY, look
from penstock.errors import ClusterError


@pytest.fixture(params=["valkey", pytest.param("redis", marks=pytest.mark.services("redis"))])
def url(request):
    if request.param == "valkey":
        return request.getfixturevalue("valkey")
    host, port = address("redis")
    return f"redis://{host}:{port}/0"


class Node:
    """Membership and election without workers."""

    def __init__(self, url, prefix, name, **changes):
        self.bus = Bus(url, settings(prefix, **changes))
        self.told = []
        self.membership = Membership(self.bus, name, lambda: {"address": "x"}, SystemClock(), self.joined, self.lost)
        self.election = Election(self.bus, name, self.membership, SystemClock(), lambda: None)

    async def joined(self, incarnation):
        self.told.append(("joined", incarnation))

    async def lost(self, reason):
        self.told.append(("lost", reason))

    async def clean(self):
        """Leave nothing in a shared Redis."""
        for key in await self.bus.command("KEYS", self.bus.key("*")):
            await self.bus.command("DEL", key)
        await self.bus.close()


@asynchronous
async def test_a_restarted_node_has_a_higher_incarnation_and_the_old_one_is_refused(url, prefix):
    old = Node(url, prefix, "n", lease=0.3)
    await old.membership.join()
    assert old.membership.member
    new = Node(url, prefix, "n", lease=0.3)
    await new.membership.join()  # once the old lease has run out
    assert (old.membership.incarnation, new.membership.incarnation) == (1, 2)
    await old.membership._renew()
    assert not old.membership.member
    keys = [old.bus.key(k) for k in ("members", "node:n")]
    assert await old.bus.script("renew", keys, ["n", 1, old.membership._nonce, 1000]) == 0
    report = ["members", "run:m", "connected:m", "lost:m", "plan:m", "rev"]
    keys = [old.bus.key(k) for k in report]
    assert await old.bus.script("report", keys, ["n", 1, "", "", "0.0", '{"epoch":[1,1],"node":"n"}']) == 0
    assert await old.bus.hash(old.bus.key("run:m")) == {}
    await old.bus.close()
    await new.clean()


@asynchronous
async def test_two_living_nodes_cannot_have_one_name(url, prefix):
    first = Node(url, prefix, "n", lease=0.4)
    await first.membership.join()
    staying = asyncio.create_task(first.membership.run())
    second = Node(url, prefix, "n", lease=0.4)
    with pytest.raises(ClusterError, match="another node named 'n'"):
        await second.membership.join()
    staying.cancel()
    await asyncio.gather(staying, return_exceptions=True)
    assert first.told == []
    await second.bus.close()
    await first.clean()


@asynchronous
async def test_a_node_whose_lease_is_gone_notices_and_joins_again(url, prefix):
    node = Node(url, prefix, "n", lease=0.6)
    await node.membership.join()
    staying = asyncio.create_task(node.membership.run())
    await node.bus.command("DEL", node.bus.key("node:n"))
    await until(lambda: len(node.told) == 2)
    assert node.told[0][0] == "lost"
    assert node.told[1] == ("joined", 2)
    for key in await node.bus.command("KEYS", node.bus.key("*")):  # everything is forgotten
        await node.bus.command("DEL", key)
    await until(lambda: len(node.told) == 4)
    assert node.told[3] == ("joined", 3)
    staying.cancel()
    await asyncio.gather(staying, return_exceptions=True)
    await node.clean()


@asynchronous
async def test_one_leads_the_term_grows_and_a_write_of_an_older_term_is_refused(url, prefix):
    a, b = (Node(url, prefix, name, leader_lease=0.5, lease=5.0) for name in "ab")
    for node in (a, b):
        await node.membership.join()
        await node.election.claim()
    assert (a.election.term, b.election.term) == (1, 0)
    await a.bus.command("DEL", a.bus.key("leader"))  # its lease runs out
    await b.election.claim()
    assert b.election.term == 2
    keys = [a.bus.key(k) for k in ("leader", "plan:m", "connected:m", "lost:m", "rev")]
    assert await a.bus.script("plan_drop", keys, ["a", 1]) == -1
    assert await b.bus.script("plan_drop", keys, ["b", 2]) == 1
    await a.election.claim()
    assert a.election.term == 0
    assert (await look(a.bus, EMPTY)).leader == "b"
    await b.bus.command("DEL", b.bus.key("term"), b.bus.key("leader"))  # Redis has lost its memory
    await a.election.claim()
    assert a.election.term == 3
    await b.bus.close()
    await a.clean()


@asynchronous
async def test_who_is_no_member_cannot_lead(url, prefix):
    node = Node(url, prefix, "n")
    await node.election.claim()
    assert node.election.state.held(0.0) == 0
    assert await node.bus.command("EXISTS", node.bus.key("leader")) == 0
    await node.clean()
