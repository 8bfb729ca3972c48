"""Several operations at once, and what is to be seen while one is under way."""

from __future__ import annotations

import asyncio

import pytest
from tests.cluster.nodes import asynchronous
from tests.faults.operations.changes import KINDS, happened
from tests.faults.operations.cluster import Cluster
from tests.faults.operations.course import MODEL
from tests.faults.operations.rest import at_rest
from tests.faults.operations.stream import Stream

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]


@asynchronous
async def test_of_two_on_one_model_one_wins(valkey, prefix, packages, tmp_path):
    """Both are asked at the same moment, of two nodes; the third one's vote is held back while both are under way."""
    async with Cluster(valkey, prefix, packages, tmp_path) as cluster:
        before = (await at_rest(cluster)).models.get(MODEL)
        for turn, kind in enumerate(KINDS):
            one, two, third = (("a", "b", "c"), ("b", "c", "a"), ("c", "a", "b"))[turn % 3]
            rival = {"update": "delete", "delete": "online"}.get(kind, kind)
            await cluster[third].order("hold before SendVote")
            asking = [asyncio.create_task(cluster.ask(k, n)) for k, n in ((kind, one), (rival, two))]
            await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            await cluster[third].order("release")
            answers = await asyncio.gather(*asking)
            assert sorted(answer.what for answer in answers) == ["done", "refused"], answers
            refusal = next(answer for answer in answers if answer.what == "refused")
            assert refusal.status in (409, 503), refusal
            assert "is being changed by operation" in refusal.body["detail"] or refusal.status == 409, refusal
            winner = kind if answers[0].what == "done" else rival
            after = (await at_rest(cluster)).models.get(MODEL)
            if winner == kind:
                assert happened(kind, before, after, packages)
            else:  # the other way round as well, so that the next one is possible
                await _continue(cluster, kind, winner)
                after = (await at_rest(cluster)).models.get(MODEL)
            before = after


async def _continue(cluster: Cluster, kind: str, winner: str) -> None:
    """From where the rival has led to where `kind` would have."""
    way = {"delete": ("add", "update"), "online": ("offline", "delete")}[winner]
    for step in way:
        answer = await cluster.insist(step, "a")
        assert answer.what == "done", (kind, winner, answer)


@asynchronous
async def test_two_on_two_models_both_succeed(valkey, prefix, packages, tmp_path):
    async with Cluster(valkey, prefix, packages, tmp_path) as cluster:
        for kind in KINDS:
            answers = await asyncio.gather(cluster.ask(kind, "a", model="chain"), cluster.ask(kind, "b", model="other"))
            assert [answer.what for answer in answers] == ["done", "done"], answers
            models = (await at_rest(cluster)).models
            assert {models[f"default/{name}"].state for name in ("chain", "other")} == {models[MODEL].state}


@asynchronous
async def test_the_old_version_serves_until_the_commit(valkey, prefix, packages, tmp_path):
    """While a vote is missing, every node tells of the model as it was, and a flow that is to stop goes on."""
    async with Cluster(valkey, prefix, packages, tmp_path) as cluster:
        stream = Stream(cluster, "b")
        for kind in KINDS:
            before = [await seen(cluster, name) for name in cluster.alive()]
            await cluster["c"].order("hold before SendVote")
            asking = asyncio.create_task(cluster.ask(kind, "a"))
            await cluster["c"].reached("before SendVote")
            assert [await seen(cluster, name) for name in cluster.alive()] == before
            if kind == "offline":
                await stream.push(20)
                await stream.agrees()
            await cluster["c"].order("release")
            assert (await asking).what == "done"
            await at_rest(cluster)


async def seen(cluster: Cluster, name: str) -> tuple | None:
    """The model as a node tells of it."""
    response = await cluster.get(name, "/v1/models/default/chain")
    if response.status_code == 404:
        return None
    model = response.json()
    return model["generation"], model["digest"], model["desired"], model["status"]
