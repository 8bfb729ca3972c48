"""The leader's keeper of checkpoints: with nodes and Redis in memory, and a store on disk."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil

import msgspec
import pytest
from tests.cluster.catalogue_in_redis import asynchronous
from tests.cluster.checkpoint_scene import FLOW, GENERATION, LINEAGE, NAME, Scene, plan, record, state
from tests.cluster.nodes import until

from penstock.cluster.checkpoint_places import Places, Thread
from penstock.cluster.checkpoint_sweep import needed
from penstock.cluster.checkpointing import Keeper, finished, ready
from penstock.cluster.decisions import DropPlan, GiveUp, WritePlan
from penstock.cluster.stewardship import _rests_on_checkpoint
from penstock.errors import CheckpointError
from penstock.worker.store import CheckpointStore


@asynchronous
async def test_a_checkpoint_is_complete_when_all_nodes_have_answered(tmp_path):
    async with Scene(tmp_path) as scene:
        scene.look()
        await until(lambda: scene.complete(2))
        number, manifest = scene.store().latest()
        assert (manifest["model"], manifest["generation"], manifest["checkpoint"]) == (NAME, GENERATION, number)
        assert manifest["counts"] == {"0": 1, "1": 1}
        assert manifest["steps"] == [["numbers", "digit"], ["count", "out"]]
        assert set(manifest["parts"]) == {"0.0", "1.0"}
        assert scene.store().read_part(number, "1.0") == b"1.0 at %d" % number
        await until(lambda: {("a", 2), ("b", 2)} <= set(scene.nodes.told))
        assert scene.redis.record.bytes == sum(manifest["parts"].values())
        assert scene.redis.record.pause == 0.001
        assert scene.events.said == []
    assert sorted(number for node, number in scene.nodes.told if node == "a") == sorted(
        {number for _, number in scene.nodes.told}
    ), "each was told once, in order"


@asynchronous
async def test_only_the_last_ones_are_kept(tmp_path):
    async with Scene(tmp_path, checkpoints_kept=2) as scene:
        scene.look()
        await until(lambda: scene.complete(5))
    assert 2 <= len(scene.manifests()) <= 3  # the last one may have come after the last look around


@asynchronous
async def test_a_plan_that_changes_gives_the_checkpoint_up_and_the_next_number_is_another(tmp_path):
    async with Scene(tmp_path, checkpoint_interval=0.05) as scene:
        scene.nodes.silent = {"b"}
        scene.look()
        await until(lambda: ("a", 1) in scene.nodes.asked)
        scene.nodes.silent = set()
        scene.look(plan(revision=2, epoch=2))
        await until(lambda: scene.complete(2))
        assert not any(number == 1 for _, number in scene.nodes.told)
        assert 1 not in scene.manifests()
        assert "chk-00000001" not in scene.folders()
        assert (scene.redis.record.failed, scene.events.said) == (0, []), "a promotion is no failure"


@asynchronous
async def test_what_redis_refuses_at_the_end_does_not_count(tmp_path):
    async with Scene(tmp_path, checkpoint_interval=60.0) as scene:
        scene.redis.before_complete = lambda: setattr(scene.redis, "sha", "another plan")
        scene.look()
        await until(lambda: ("b", 1) in scene.nodes.asked)
        await until(lambda: scene.redis.sha == "another plan" and "chk-00000001" not in scene.folders())
        assert scene.nodes.told == []
        assert scene.redis.record.number == 0
        assert scene.store().latest() is None


@asynchronous
async def test_a_leader_that_was_overtaken_writes_no_manifest(tmp_path):
    async with Scene(tmp_path) as scene:
        scene.term = 3
        scene.look(term=3)
        scene.term = 0  # its lease has run out by its own clock, and nobody has told it yet
        await until(lambda: {("a", 1), ("b", 1)} <= set(scene.nodes.asked))
        await until(lambda: scene.keeper._models[NAME].task.done())
        assert scene.store().latest() is None
        assert scene.nodes.told == []
        scene.term = 3  # its lease was renewed after all
        scene.look()
        await until(lambda: scene.complete(2))


@asynchronous
async def test_a_new_term_goes_on_with_later_numbers(tmp_path):
    async with Scene(tmp_path) as scene:
        scene.look()
        await until(lambda: scene.complete(1))
        scene.redis.term = scene.term = 4
        scene.redis.used, scene.redis.record = 0, None  # and Redis has lost its memory
        before = scene.store().latest()[0]
        scene.look()
        await until(lambda: scene.redis.corrected[1:])
        assert scene.redis.corrected[-1] >= before, "the store remembers"
        await until(lambda: scene.complete(before + 1))
        assert len(scene.nodes.asked) == len(set(scene.nodes.asked)), "no number was asked for twice"


@asynchronous
async def test_numbers_that_nodes_have_seen_are_passed_over(tmp_path):
    async with Scene(tmp_path) as scene:
        scene.nodes.used = 41
        scene.look()
        await until(lambda: scene.complete(42))
        assert scene.store().latest()[0] >= 42


@asynchronous
async def test_failures_are_on_record_and_checkpoints_resume_by_themselves(tmp_path):
    async with Scene(tmp_path) as scene:
        scene.nodes.failing = {"b": "node b: checkpoint file x cannot be written: No space left on device"}
        scene.look()
        await until(lambda: scene.redis.record is not None and scene.redis.record.in_a_row >= 3)
        assert "No space left" in scene.redis.record.error
        assert scene.events.kinds() == ["checkpoint.failed"], "the same reason is told once"
        assert "there is none yet" in scene.events.said[0][1]
        failed = scene.redis.record.failed
        scene.nodes.failing = {}
        await until(lambda: scene.complete(1))
        assert (scene.redis.record.in_a_row, scene.redis.record.error) == (0, "")
        assert scene.redis.record.failed >= failed
        assert scene.events.kinds() == ["checkpoint.failed", "checkpoint.resumed"]
        await until(lambda: len(scene.folders()) <= 3)  # of the failed ones nothing is left


@asynchronous
async def test_pauses_between_failures_grow(tmp_path):
    async with Scene(tmp_path, checkpoint_interval=0.05) as scene:
        scene.nodes.failing = {"a": "no"}
        scene.look()
        await until(lambda: scene.redis.record is not None and scene.redis.record.in_a_row >= 4)
        keeping = scene.keeper._models[NAME]
        left = keeping._due - scene.keeper._means.clock.monotonic()
        assert left > 0.4, "0.05 s doubled four times"


@asynchronous
async def test_a_node_that_says_nothing_is_given_up_after_the_timeout(tmp_path):
    async with Scene(tmp_path, checkpoint_timeout=0.1) as scene:
        scene.nodes.silent = {"b"}
        scene.look()
        await until(lambda: scene.redis.record is not None and scene.redis.record.failed == 1)
        assert "not complete after" in scene.redis.record.error
        assert scene.nodes.told == []
        scene.nodes.silent = set()
        await until(lambda: scene.complete(2))


@asynchronous
async def test_a_store_that_the_machines_do_not_share_is_noticed(tmp_path):
    async with Scene(tmp_path) as scene:
        scene.nodes.lying = {"b"}
        scene.look()
        await until(lambda: scene.redis.record is not None and scene.redis.record.failed >= 1)
        assert "executor 1.0 on node b" in scene.redis.record.error
        assert "one place that all machines share" in scene.redis.record.error
        assert scene.store().latest() is None


@asynchronous
async def test_a_store_that_cannot_be_used_is_told_and_tried_again(tmp_path):
    root = tmp_path / "store"
    root.write_text("a file, where a directory is needed")
    async with Scene(root) as scene:
        scene.look()
        await until(lambda: scene.redis.record is not None and scene.redis.record.failed >= 2)
        assert "cannot be" in scene.redis.record.error
        root.unlink()
        await until(lambda: scene.complete(1))


@asynchronous
async def test_nothing_is_asked_while_redis_is_away(tmp_path):
    async with Scene(tmp_path) as scene:
        scene.look()
        await until(lambda: scene.complete(1))
        scene.redis.away = True
        await asyncio.sleep(0.05)
        asked = len(scene.nodes.asked)
        await asyncio.sleep(0.1)
        assert len(scene.nodes.asked) <= asked + 2
        scene.redis.away = False
        last = scene.redis.record.number
        await until(lambda: scene.complete(last + 1))


@asynchronous
async def test_nothing_happens_before_everything_runs(tmp_path):
    async with Scene(tmp_path) as scene:
        for more in ({"states": "loaded"}, {"connected": {"a": 1}}, {"recovery": "none"}, {"desired": "offline"}):
            scene.look(**more)
            await asyncio.sleep(0.03)
        assert scene.nodes.asked == []
        scene.look(plan(revision=2))
        await until(lambda: scene.complete(1))
        scene.look(recovery="none")
        assert scene.keeper._models == {}


@asynchronous
async def test_a_finished_model_gets_one_more_checkpoint(tmp_path):
    async with Scene(tmp_path) as scene:
        scene.look()
        await until(lambda: scene.complete(2))
        scene.look(states="finished")
        last = scene.redis.record.number
        await until(lambda: scene.keeper._models[NAME]._final)
        final = scene.redis.record.number
        assert final > last
        await asyncio.sleep(0.1)
        scene.look(states="finished")
        await asyncio.sleep(0.1)
        assert scene.redis.record.number == final


def test_when_a_model_is_ready():
    assert ready(state(plan()))
    assert ready(state(plan(), states="finished"))
    assert not ready(state(plan(), states="loaded"))
    assert not ready(state(None))
    assert not ready(state(plan(), connected={"a": 1}))
    later = msgspec.structs.replace(state(plan()), plan=plan(revision=2, epoch=2))
    assert not ready(later), "what is reported is of earlier incarnations"
    assert finished(state(plan(), states="finished"))
    assert not finished(state(plan()))
    assert not finished(state(None))


# ---- what is not needed any more -------------------------------------------------------------------------------------


@asynchronous
async def test_what_was_taken_offline_or_deleted_is_removed(tmp_path):
    async with Scene(tmp_path) as scene:
        for generation in (2, 5, 9):
            scene.store(generation).write_part(1, "0.0", b"x")
        other = Places(str(tmp_path), "cluster").url(LINEAGE, "other/gone", 3)
        os.makedirs(f"{other}/{FLOW}/chk-00000001")
        scene.redis.record = record(7)
        offline = state(None, desired="offline", record=scene.redis.record)
        scene.keeper.look(scene.view(offline, checkpoints={NAME: scene.redis.record}), 3)
        folder = tmp_path / "cluster" / LINEAGE[0]
        await until(lambda: not os.path.exists(other) and os.listdir(folder / "default" / "counts") == ["9"])
        await until(lambda: scene.redis.record is None)
        assert not (folder / "other" / "gone").exists()
        assert scene.events.said == []


@pytest.mark.parametrize("root", ["{}", "memory://sweep{}"])
def test_generations_in_any_store(tmp_path, root):
    places = Places(root.format(tmp_path), "cluster")
    assert places.generations(LINEAGE) == []
    for model, generation in (("a/x", 3), ("a/x", 12), ("b/.y", 4)):
        CheckpointStore(places.url(LINEAGE, model, generation), FLOW).write_part(1, "0.0", b"state")
    assert sorted(places.generations(LINEAGE)) == [("a/x", 3), ("a/x", 12), ("b/.y", 4)]
    assert sorted(places.generations(LINEAGE, ["b/.y", "c/z"])) == [("b/.y", 4)]
    places.remove(LINEAGE, "a/x", 3)
    places.remove(LINEAGE, "a/x", 99)
    assert sorted(places.generations(LINEAGE)) == [("a/x", 12), ("b/.y", 4)]
    assert CheckpointStore(places.url(LINEAGE, "a/x", 12), FLOW).read_part(1, "0.0") == b"state"


@asynchronous
async def test_checkpoints_of_another_catalogue_are_left_alone(tmp_path):
    async with Scene(tmp_path) as scene:
        foreign = Places(str(tmp_path), "cluster").url(("another",), NAME, GENERATION)
        os.makedirs(foreign)
        scene.store(2).write_part(1, "0.0", b"x")
        scene.look()
        await until(lambda: scene.complete(1))
        scene.look()
        await until(lambda: not os.path.exists(scene.places.url(LINEAGE, NAME, 2)))
        assert [number for _, number in scene.places.generations(("another",))] == [GENERATION]


def test_what_may_still_be_needed():
    scene = Scene("/nowhere")
    running, stopped = state(plan(), record=record(3)), state(None, desired="offline")
    assert needed(scene.view(running), NAME, GENERATION)
    assert not needed(scene.view(running), NAME, 4)
    assert needed(scene.view(state(plan())), NAME, 4), "the present generation has no checkpoint yet"
    assert needed(scene.view(stopped), NAME, GENERATION + 1), "later than what this view can know"
    assert not needed(scene.view(stopped), NAME, GENERATION)
    stopping = msgspec.structs.replace(running, entry=stopped.entry)
    assert needed(scene.view(stopping), NAME, GENERATION)
    assert needed(scene.view(msgspec.structs.replace(stopping, plan=None)), NAME, GENERATION)
    assert not needed(scene.view(), NAME, GENERATION)


# ---- restoring -------------------------------------------------------------------------------------------------------


@asynchronous
async def test_before_anything_is_restored_the_store_is_asked(tmp_path):
    async with Scene(tmp_path) as scene:
        scene.look()
        await until(lambda: scene.complete(3))
        scene.nodes.failing = {"b": "an executor on node b is gone"}
        lost = {"states": "lost"}
        scene.redis.record = record(1)  # Redis fell back to an earlier state
        scene.look(**lost)
        assert not scene.keeper.settled(state(scene.plan, record=scene.redis.record, **lost))
        asked = len(scene.redis.corrected)
        await until(lambda: len(scene.redis.corrected) > asked)
        last = scene.manifests()[-1]
        assert last >= 3
        assert scene.redis.record.number == last
        scene.look(**lost)
        assert not scene.keeper.settled(state(scene.plan, record=record(1), **lost)), "this view is older"
        assert scene.keeper.settled(state(scene.plan, record=scene.redis.record, **lost))


@asynchronous
async def test_a_store_that_was_emptied_leaves_nothing_to_restore(tmp_path):
    async with Scene(tmp_path) as scene:
        scene.look()
        await until(lambda: scene.complete(2))
        scene.nodes.failing = {"b": "an executor on node b is gone"}
        await until(lambda: scene.redis.record.in_a_row)
        scene.look(states="lost")
        lost = state(scene.plan, states="lost", record=scene.redis.record)
        shutil.rmtree(tmp_path)
        assert not scene.keeper.settled(lost)
        await until(lambda: scene.redis.record.number == 0)
        scene.look(states="lost")
        assert scene.keeper.settled(state(scene.plan, states="lost", record=scene.redis.record))


@asynchronous
async def test_nothing_is_settled_while_the_store_does_not_answer(tmp_path):
    root = tmp_path / "store"
    async with Scene(root) as scene:
        scene.store().write_part(4, "0.0", b"x")
        scene.store().write_manifest(4, {"steps": [], "parts": {"0.0": 13}, "at": 99.5})
        whole = scene.damage(4)
        scene.look(None, states="lost")
        new = state(None, record=None)
        await until(lambda: scene.redis.record is not None and scene.redis.record.in_a_row >= 2)
        assert "chk-00000004 to go on from the checkpoint before it" in scene.redis.record.error
        assert not scene.keeper.settled(new)
        scene.damage(4, whole)
        await until(lambda: scene.redis.corrected == [4])
        assert (scene.redis.record.at, scene.redis.record.bytes) == (99.5, 13)


@asynchronous
async def test_a_restore_does_not_wait_for_a_checkpoint_under_way(tmp_path):
    async with Scene(tmp_path, checkpoint_timeout=600.0) as scene:
        scene.nodes.silent = {"b"}
        seen = scene.look()
        await until(lambda: ("a", 1) in scene.nodes.asked)
        assert not scene.keeper.settled(seen.models[NAME])
        await until(lambda: len(scene.redis.corrected) == 2)


@asynchronous
async def test_a_record_that_redis_has_lost_is_written_again(tmp_path):
    async with Scene(tmp_path, checkpoint_interval=600.0) as scene:
        scene.look()
        await until(lambda: scene.complete(1))
        scene.redis.record = None
        scene.times = itertools.count(int(scene.keeper._models[NAME]._record.at) + 100)
        scene.look()
        await until(lambda: scene.complete(1))


@asynchronous
async def test_without_a_store_nothing_is_kept_and_nothing_waited_for(tmp_path):
    async with Scene(tmp_path) as scene:
        keeper = Keeper(scene.keeper._means, Places(None, "cluster"))
        seen = scene.look(term=0)
        keeper.look(seen, 3)
        assert keeper._models == {}
        assert keeper.settled(seen.models[NAME])
        assert not scene.keeper.settled(seen.models[NAME]), "it has a store, and has not asked it yet"
        await keeper.close()


def test_decisions_that_wait_for_the_store():
    def restored(restores):
        return WritePlan(msgspec.structs.replace(plan(revision=2), restores=restores))

    new, running = state(None), state(plan(), record=record(3))
    assert _rests_on_checkpoint(new, restored(0)), "the first plan: the cluster may have been down"
    assert _rests_on_checkpoint(running, restored(1))
    assert not _rests_on_checkpoint(running, restored(0)), "a promotion waits for nobody"
    assert _rests_on_checkpoint(state(plan()), GiveUp("nothing to restore from"))
    assert not _rests_on_checkpoint(running, GiveUp("an error of its author"))
    assert not _rests_on_checkpoint(running, DropPlan())


# ---- the store in threads --------------------------------------------------------------------------------------------


@asynchronous
async def test_a_store_that_hangs_holds_one_thread_and_nobody_else():
    import threading

    hung = threading.Event()
    calls = []

    def call(name):
        calls.append(name)
        if name == "hangs":
            hung.wait(20)
        return name

    thread = Thread("the store")
    assert await thread.run(5, call, "first") == "first"
    with pytest.raises(CheckpointError, match=r"the store does not answer within 0.05 s"):
        await thread.run(0.05, call, "hangs")
    with pytest.raises(CheckpointError, match="does not answer"):
        await thread.run(0.05, call, "second")
    assert calls == ["first", "hangs"], "nothing was begun behind it"
    hung.set()
    assert await thread.run(5, call, "third") == "third"


@asynchronous
async def test_what_a_store_raises_is_an_error_of_checkpoints():
    def broken():
        raise ValueError("odd")

    with pytest.raises(CheckpointError, match="ValueError: odd"):
        await Thread("the store").run(5, broken)


def test_names_become_folders_and_passwords_are_not_shown():
    places = Places("ftp://me:secret@host/root", "a/b")
    assert places.url(("x",), "g/.n", 3) == "ftp://me:secret@host/root/a%2Fb/x/g/%2En/3"
    assert "secret" not in str(places)
    assert Places(None, "c").url(("x",), "g/n", 1) is None
    assert Places("/root", "c").url((), "g/n", 1) is None
