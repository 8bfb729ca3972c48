"""What can go wrong in a simulated cluster, and what leaders and peers do about it."""

from __future__ import annotations

from tests.cluster.transaction.hosts import Host, Violation

from penstock.cluster.transaction import admission, coordinator
from penstock.cluster.transaction import instructions as do
from penstock.cluster.transaction.records import Store

LEASE, POLL, TICK = 4.5, 1.5, 0.45
STORM, CALM = 7.0, 80.0
FAULTS = (
    "calls",
    "crash",
    "power",
    "pause",
    "outage",
    "away",
    "cut",
    "peers",
    "stale",
    "clock",
    "flush",
    "joiner",
    "refuse",
    "late",
    "apply",
    "retire",
    "slow",
)


class Trouble:
    """A part of `simulator.World`."""

    # ---- the store and the peers out of reach --------------------------------------------------------------------

    def away(self, host):
        """Whether `host` cannot reach the store now."""
        return self.stormy and self.now < max(self.down_until, host.cut_until)

    def silence(self):
        """Seconds until a call to a store that is away has failed: refused at once, or not answered."""
        return 0.02 if self.rng.random() < 0.5 else LEASE / 6

    def ask_peers(self, host, process, instruction):
        """Every peer is asked at its own time, and so answers; who says no is asked again."""
        said, until = {}, self.now + LEASE / 6
        for name in sorted(instruction.members):
            self.after(self.slow(), self.ask_peer, host, process, instruction, name, said)
        self.after(until - self.now, self.promised, host, process, instruction, said)

    def ask_peer(self, host, process, instruction, name, said):
        peer = self.hosts.get(name)
        if "answered" in said:
            return
        silent = peer is None or peer.machine is None or peer.paused_until > self.now
        muted = self.stormy and self.now < max(host.mute_until, 0.0 if peer is None else peer.mute_until)
        if not (silent or muted) and peer.machine.promise(self.now * peer.drift):
            said[name] = True
            if len(said) == len(instruction.members):
                self.promised(host, process, instruction, said)
        else:
            self.after(self.rng.uniform(0.05, 0.15), self.ask_peer, host, process, instruction, name, said)

    def promised(self, host, process, instruction, said):
        if "answered" in said:
            return
        all_ = len(said) == len(instruction.members)
        said["answered"] = True
        self.stats["promised"] += all_
        self.after(self.slow(), self.tell, host, process, do.Done(instruction, do.Promised(all_)))

    # ---- leaders -------------------------------------------------------------------------------------------------

    def lead(self):
        """Every node that may judge does: about nodes whose lease has run out."""
        for host in list(self.hosts.values()):
            self.judge(host)
        if self.store.lineage:
            for tx in self.call(coordinator.archive):
                self.stats["archived"] += 1
                self.archived[tx.id] = tx
        self.after(1.0, self.lead)

    def judge(self, host):
        machine = host.machine
        if machine is None or host.paused_until > self.now or self.away(host):
            return
        if machine.may_judge(self.now * host.drift):
            self.after(min(self.slow(), LEASE * 0.3), self.forget, host.name)

    def forget(self, judge):
        if not self.store.lineage:
            return
        newcomer = judge not in self.store.members.keys() | self.store.expected
        for node in sorted({*self.store.members, *self.store.expected}):
            incarnation = self.store.members.get(node, 0)
            if self.call(admission.forget, node, incarnation, int(LEASE * 1000), judge):
                self.stats["forgotten"] += 1
                self.check_fenced(node, newcomer)

    def check_fenced(self, node, newcomer):
        """Nobody who is struck off goes on. Two bounds: `newcomer`, the only node that reaches the store, is unknown to
        those who have promised each other to wait; and `jumped`: Redis TIME went on by more than the third of a lease,
        and by less than one, so that some leases have run out too early and others have not."""
        host = self.hosts[node]
        if self.jumped or newcomer or host.machine is None:
            return
        if host.machine.trusted(self.now * host.drift):
            raise Violation(f"{node} trusts itself, and was struck off")

    # ---- faults --------------------------------------------------------------------------------------------------

    def trouble(self):
        rng, faults = self.rng, self.faults
        host = rng.choice(list(self.hosts.values()))
        self.stats["trouble"] += 1
        match rng.choice(sorted(faults) or ["none"]):
            case "crash":
                self.crash(host, back=rng.choice((0.05, 1.0, 7.0)))
            case "power":
                if rng.random() < 0.4:
                    self.stats["power cuts"] += 1
                    for each in self.hosts.values():
                        self.crash(each, back=rng.uniform(0.1, 2.0))
            case "pause":
                host.paused_until = self.now + rng.choice((0.5, 3.5, 9.0))
            case "outage":
                self.down_until = self.now + rng.choice((0.3, 6.0))
            case "away":
                self.go_away(rng.choice((1, 2, 3)) * LEASE, emptied=rng.random() < 0.4 and "retire" not in faults)
            case "cut":
                host.cut_until = self.now + rng.choice((0.7, 1.5, 3)) * LEASE
            case "peers":
                host.mute_until = self.now + rng.choice((0.2, 1, 3)) * LEASE
            case "clock":
                self.jumped = self.jumped or self.now < self.shifted_at + LEASE
                self.shifted_at = self.now
                self.shift += rng.choice((-60_000, -1000, 1000, 60_000))
            case "flush":
                if self.store.lineage and rng.random() < 0.5:
                    self.flush()
            case "joiner":
                self.join()
            case "retire":
                if not self.retired and len(self.hosts) > 2:
                    self.retired.add(host.name)
                    self.crash(host)
            case _:
                pass

    def join(self):
        if len(self.hosts) < 5:
            new = Host(f"n{len(self.hosts)}", founder=False)
            self.hosts[new.name] = new
            self.stats["joiners"] += 1
            self.start(new)

    def go_away(self, seconds, emptied):
        """The store is away for everybody, and comes back as it was, with all leases run out, or empty."""
        self.down_until = max(self.down_until, self.now + seconds)
        if emptied:
            self.after(seconds, self.flush)

    def flush(self):
        self.stats["flushes"] += 1
        self.archived.clear()
        self.store = Store()
