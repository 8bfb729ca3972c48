"""Deliberately broken rules: a simulator that does not find them proves nothing."""

from __future__ import annotations

import msgspec
import pytest
from tests.cluster.transaction.hosts import Violation
from tests.cluster.transaction.scenarios import (
    a_newcomer_at_a_bad_moment,
    away_for_everybody,
    cut_off,
    cut_off_among_failing_calls,
    emptied_again_and_again,
    emptied_while_one_returns,
)
from tests.cluster.transaction.simulator import FAULTS, World, simulate

from penstock.cluster.transaction import admission, answers, coordinator, participant, rebuild
from penstock.cluster.transaction import instructions as do
from penstock.cluster.transaction.admission import Standing
from penstock.cluster.transaction.contact import Contact
from penstock.cluster.transaction.coordinator import Verdict
from penstock.cluster.transaction.participant import Participant
from penstock.cluster.transaction.preconditions import Why
from penstock.cluster.transaction.records import Phase, changed, unlocked

replace = msgspec.structs.replace
MUTANTS = {}


def mutant(shows, *faults, seeds=400, run=None):
    """`shows`: the words of the violation. `faults`: what has to go wrong for it, to find it soon; or `run`: what it
    shows in."""

    def register(function):
        MUTANTS[function.__name__] = (function, shows, run or (lambda seed: simulate(seed, set(faults))), seeds)
        assert set(faults) <= set(FAULTS)
        return function

    return register


@mutant("went from committing to aborted", "slow", "late")
def what_is_committing_can_be_aborted(patch):
    def abort(store, now, tx_id, reason):
        tx = store.txs.get(tx_id)
        if tx is None or not tx.open:
            return store, None
        return coordinator._aborted(store, tx, reason), Phase.ABORTED

    def take_part(self, seen, tx, now):
        if now - self._first_seen[tx.id] > 0.1 and tx.phase is Phase.COMMITTING:
            self._ask(do.Abort(tx.id, "too slow"))
        original(self, seen, tx, now)

    original = Participant._take_part
    patch.setattr(coordinator, "abort", abort)
    patch.setattr(Participant, "_take_part", take_part)


@mutant("without a yes of")
def a_majority_is_enough(patch):
    def verdict(store, now, tx):
        if len(tx.votes) * 2 > len(tx.participants) and all(vote.yes for vote in tx.votes.values()):
            return Verdict.COMMIT, ""
        return original(store, now, tx)

    original = coordinator.verdict
    patch.setattr(coordinator, "verdict", verdict)


@mutant("without a yes of", "refuse")
def a_no_is_overheard(patch):
    def verdict(store, now, tx):
        return original(store, now, replace(tx, votes=dict.fromkeys(tx.votes, coordinator.Vote(True))))

    original = coordinator.verdict
    patch.setattr(coordinator, "verdict", verdict)


@mutant("though .* was lost", "slow", "clock")
def the_lost_are_not_looked_for(patch):
    def verdict(store, now, tx):
        said = original(store, now, tx)
        lost = all(vote.yes for vote in tx.votes.values()) and "was lost" in said[1] and now < tx.deadline
        return (Verdict.COMMIT, "") if lost and tx.participants.keys() == tx.votes.keys() else said

    original = coordinator.verdict
    patch.setattr(coordinator, "verdict", verdict)


@mutant("after its deadline", "late", "slow", "pause")
def deadlines_are_not_looked_at(patch):
    def verdict(store, now, tx):
        return original(store, 0 if tx.participants.keys() == tx.votes.keys() else now, tx)

    original = coordinator.verdict
    patch.setattr(coordinator, "verdict", verdict)


@mutant("does not hold the lock")
def a_locked_model_may_be_changed(patch):
    def check(operation, entry, base):
        return original(operation, entry and unlocked(entry), base)

    original = coordinator.check
    patch.setattr(coordinator, "check", check)


@mutant("which is online|which is offline|which is deleted")
def any_state_will_do(patch):
    def check(operation, entry, base):
        refusal = original(operation, entry, base)
        return refusal if refusal is not None and refusal.why is not Why.STATE else None

    original = coordinator.check
    patch.setattr(coordinator, "check", check)


@mutant("is locked by|still locked|does not hold", "refuse")
def an_abort_forgets_the_lock(patch):
    def aborted(store, tx, reason):
        return coordinator._put(store, replace(tx, phase=Phase.ABORTED, reason=reason))

    patch.setattr(coordinator, "_aborted", aborted)


@mutant("gave .* first", "calls")
def keys_are_not_looked_at(patch):
    def begin(store, now, request):
        return original(replace(store, keys={}), now, request)

    original = coordinator.begin
    patch.setattr(coordinator, "begin", begin)


@mutant("which is not committed like that")
def what_is_prepared_is_applied(patch):
    def saw(self, seen, now):
        original(self, seen, now)
        for tx in seen.store.open():
            name = tx.operation.model
            self._targets[name] = unlocked(changed(self._targets.get(name), tx, seen.store.rev + 1))

    original = Participant._saw
    patch.setattr(Participant, "_saw", saw)


@mutant("has lost", "flush", seeds=2500)
def a_decision_is_not_journalled(patch):
    def finish(self, seen, tx):
        self._ask(do.Finish(tx.id))

    patch.setattr(Participant, "_finish", finish)


@mutant("does not have the files", "power", seeds=1500)
def staging_is_swept_at_a_restart(patch):
    def restart(self, host):
        if host.machine is None:
            host.staged.clear()
        original(self, host)

    original = World.restart
    patch.setattr(World, "restart", restart)


@mutant("and .* does not have it")
def an_acknowledgement_comes_before_the_journal(patch):
    def synchronise(self, seen):
        lease = seen.store.leases.get(self.name)
        if lease is not None and lease.applied < seen.store.rev:
            self._ask(do.Ack(self.incarnation, seen.store.lineage, seen.store.rev))
        original(self, seen)

    original = Participant._synchronise
    patch.setattr(Participant, "_synchronise", synchronise)


@mutant("does not have it|is not a member|is still", "joiner", "crash", "slow", seeds=1500)
def a_joiner_is_admitted_at_any_time(patch):
    def admit(store, now, node, incarnation, lineage, rev):
        after, said = original(replace(store, txs={}), now, node, incarnation, store.lineage, store.rev)
        return (replace(after, txs=store.txs), said) if said else (store, said)

    def synchronise(self, seen):
        if not self._member():
            self._ask(do.Admit(self.incarnation, seen.store.lineage, seen.store.rev))
        original_synchronise(self, seen)

    original, original_synchronise = admission.admit, Participant._synchronise
    patch.setattr(admission, "admit", admit)
    patch.setattr(Participant, "_synchronise", synchronise)


@mutant("trusts itself", "pause", "cut")
def a_lost_lease_is_not_noticed(patch):
    patch.setattr(Participant, "_expire", lambda self, now: None)
    patch.setattr(Participant, "trusted", lambda self, now: not self._fenced)


@mutant("has lost|has brought back", "flush", "crash", "power", seeds=1500)
def a_rebuilding_node_does_not_wait(patch):
    def hasty(offers, without=()):
        return rebuild.rebuild(offers, without=[f"n{i}" for i in range(9)])

    patch.setattr(participant, "rebuild", hasty)


@mutant("runs|not up to date|is not ready|not a member|has left|no answer", "flush", "joiner", "pause")
def only_the_bell_is_listened_to(patch):
    def saw(self, seen, now):
        original(self, seen, now)
        self._look_at = float("inf")

    original = Participant._saw
    patch.setattr(Participant, "_saw", saw)


@mutant("has left")
def nothing_is_tidied(patch):
    patch.setattr(Participant, "_tidy", lambda self, store: None)


@mutant("is not ready|no catalogue", "flush")
def an_empty_store_is_not_noticed(patch):
    patch.setattr(Participant, "_offer", lambda self, store, now: None)


@mutant("is not a member|runs", "pause", "outage", "slow")
def a_fenced_node_does_not_come_back(patch):
    def arrive(store, now, node, nonce, length, least):
        if node in store.incarnations:
            return store, (Standing.REFUSED, 0)
        return original(store, now, node, nonce, length, least)

    original = admission.arrive
    patch.setattr(admission, "arrive", arrive)


@mutant("somebody was stopped|forgotten", run=lambda seed: away_for_everybody(seed, emptied=False))
def a_lease_that_has_run_out_is_over(patch):
    def renew(store, now, node, *rest):
        after, said = original(store, now, node, *rest)
        return (store, Standing.REFUSED) if said is Standing.REVIVED else (after, said)

    original = admission.renew
    patch.setattr(admission, "renew", renew)


@mutant("somebody was stopped", run=lambda seed: away_for_everybody(seed, emptied=True))
def nobody_asks_the_peers(patch):
    patch.setattr(Participant, "_suspend", lambda self, now: None)


@mutant("n0 was cut off, and goes on", run=cut_off)
def everybody_promises_at_any_time(patch):
    def promise(self, now):
        self._promised_until = now + self._lease
        return True

    patch.setattr(Contact, "promise", promise)


@mutant("trusts itself, and was struck off", run=cut_off_among_failing_calls)
def a_promise_binds_nobody(patch):
    def may_judge(self, now):
        self._promised_until = float("-inf")
        return original(self, now)

    original = Contact.may_judge
    patch.setattr(Contact, "may_judge", may_judge)


@mutant("trusts itself, and was struck off", "cut", "peers")
def silence_is_a_promise(patch):
    def promised(self, all_, sent_at, now):
        original(self, True, sent_at, now)

    original = Participant._promised
    patch.setattr(Participant, "_promised", promised)


@mutant("trusts itself, and was struck off", "cut")
def everybody_believes_to_be_alone(patch):
    patch.setattr(Participant, "_judges", lambda self: {self.name})


@mutant("trusts itself, and was struck off", "cut", "calls", "away", seeds=3000)
def trust_lasts_for_a_lease_from_the_answer(patch):
    def promised(self, all_, sent_at, now):
        original(self, all_, now + 2 / 3 * self._lease, now)

    original = Participant._promised
    patch.setattr(Participant, "_promised", promised)


@mutant("trusts itself, and was struck off", "clock")
def those_who_have_just_come_back_judge(patch):
    patch.setattr(admission, "_judges", lambda store, now, judge, length: True)
    granted = Contact.granted
    patch.setattr(Contact, "granted", lambda self, now, goes_on: granted(self, now, goes_on=True))


@mutant("and .* does not have it", "away", "slow", "late", seeds=3000)
def whose_lease_has_run_out_need_not_have_it(patch):
    def settled(store, tx):
        live = {node for node, lease in store.leases.items() if lease.expires > clock[0]}
        return tx.phase is Phase.FINISHED and tx.participants.keys() & live <= tx.acks

    def call(self, script, *args):
        clock[0] = self.time
        return original(self, script, *args)

    clock = [0]
    original = World.call
    patch.setattr(World, "call", call)
    patch.setattr(answers, "settled", settled)


@mutant("another catalogue", run=emptied_while_one_returns, seeds=1000)
def not_every_journal_names_everybody(patch):
    def hasty(offers, without=()):
        named = {node for offer in offers.values() for node in offer.members}
        offers = {node: replace(offer, members=tuple(named)) for node, offer in offers.items()}
        return rebuild.rebuild(offers, without)

    patch.setattr(participant, "rebuild", hasty)


@mutant("trusts itself, and was struck off", run=a_newcomer_at_a_bad_moment)
def newcomers_are_admitted_before_the_others_name_them(patch):
    patch.setattr(admission, "_applied", lambda store, now, node: store.rev)


@mutant("another catalogue", run=emptied_again_and_again, seeds=1000)
def newcomers_write_down_the_catalogue_at_once(patch):
    patch.setattr(participant, "known", lambda store, now, node: True)


@mutant("has lost|brought back|another catalogue", run=emptied_again_and_again, seeds=3000)
def offers_of_an_earlier_round_count(patch):
    def offer(store, now, nonce, length, journal):
        return original(store, now, nonce, length, replace(journal, round=round_of(store), opens=not store.offers))

    def all_count(offers, without=()):
        return rebuild.rebuild({n: replace(offer, opens=False) for n, offer in offers.items()}, without)

    original, round_of = rebuild.offer, rebuild.round_of
    patch.setattr(rebuild, "offer", offer)
    patch.setattr(participant, "rebuild", all_count)


@mutant("not settled, and is gone", "slow", "pause")
def what_is_not_settled_is_archived(patch):
    patch.setattr(coordinator, "settled", lambda store, tx: tx.phase is Phase.FINISHED)
    patch.setattr(coordinator, "ARCHIVED_AFTER", -1500)


@pytest.mark.parametrize("name", MUTANTS)
def test_the_simulator_finds(name, monkeypatch):
    change, shows, run, seeds = MUTANTS[name]
    change(monkeypatch)

    def find() -> None:
        for seed in range(seeds):
            run(seed)

    with pytest.raises(Violation, match=shows):
        find()
