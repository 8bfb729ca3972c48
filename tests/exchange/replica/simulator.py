"""Chains of replicated executors in one thread, in any order that a seed asks for.

Each step does one thing that could happen next: a message arrives (late, twice, out of order or not at all), a worker
processes, streams, checkpoints, falls silent, stops for a while or dies; the leader notices something (rightly or not),
starts a standby, promotes, hands over to another node or version. The leader's record is moved by the real functions,
and hosts learn of it late.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgspec

from penstock.exchange.replica import assignment as record
from penstock.exchange.replica.assignment import Assignment, Mode
from penstock.exchange.replica.core import Feed, ReplicaSettings
from penstock.exchange.replica.instructions import Party, Send
from penstock.exchange.replica.messages import Caught, Complete, Data, Diverged, Message, Refused
from penstock.exchange.replica.order_log import EVENT

from .world import Host, Sink, Source, Violation, chain

SHAPES: dict[str, tuple[tuple[str, str], ...]] = {
    "one": (("s0", "g0"), ("s1", "g0"), ("g0", "k0"), ("g0", "k1")),
    "three into one": (("s0", "g0"), ("s1", "g0"), ("s2", "g0"), ("g0", "k0")),
    "chain": (("s0", "g0"), ("s1", "g0"), ("g0", "g1"), ("s2", "g1"), ("g1", "k0")),
    "twice": (("s0", "g0"), ("s1", "g0"), ("g0", "g1"), ("g0", "g1"), ("g1", "k0")),
    "three in a row": (("s0", "g0"), ("s1", "g0"), ("g0", "g1"), ("g1", "g2"), ("g2", "k0")),
}
"""Channels (producer, consumer): s source, g replicated executor, k sink."""


@dataclass
class Group:
    """A replicated executor as the leader sees it."""

    name: str
    inputs: list[int]
    outputs: list[int]
    settings: ReplicaSettings
    modes: list[Mode]
    record: Assignment
    hosts: dict[str, Host] = field(default_factory=dict)
    caught: dict[str, Any] = field(default_factory=dict)
    handing: str = ""
    failed: bool = False
    number: int = 0
    version: int = 1


class Simulation:
    """The run that belongs to a seed."""

    def __init__(self, seed: int, shape: str | None = None) -> None:
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.channels = SHAPES[shape or rng.choice(list(SHAPES))]
        self.loss = rng.choice((0.0, 0.0, 0.03, 0.1))
        self.twice = rng.choice((0.0, 0.03))
        self.window = rng.choice((1, 3, 12, 100))
        self.stop_chance = rng.choice((0.0, 0.003, 0.01))
        self.crashes = rng.choice((0, 1, 2, 4))
        self.deaf = rng.choice((0.0, 0.7, 1.0))
        self.crash_chance = rng.choice((0.003, 0.01, 0.02))
        self.moves = rng.choice((0, 0, 1, 2))
        self.checkpoint_chance = rng.choice((0.02, 0.1, 0.4))
        self.stats: Counter[str] = Counter()
        self.network: list[tuple[str, Message | Assignment, str]] = []
        self.sources = {c: Source(c, rng.choice((5, 12, 20))) for c, (p, _) in enumerate(self.channels) if p[0] == "s"}
        self.sinks = {c: Sink(c) for c, (_, k) in enumerate(self.channels) if k[0] == "k"}
        self.groups: dict[str, Group] = {}
        for name in sorted({end for pair in self.channels for end in pair if end[0] == "g"}):
            self.groups[name] = self._group(name)
        self.names = list(self.groups.values())
        self.spoiling = rng.random() < 0.1
        if self.spoiling:
            self.crashes = self.moves = 0
            self.stop_chance = 0.0  # what it computes otherwise must not be promoted before it is found
        self.calm = False

    def _group(self, name: str) -> Group:
        rng = self.rng
        settings = ReplicaSettings(
            feed=rng.choice((Feed.FORWARD, Feed.FORWARD, Feed.DIRECT)),
            digest_every=rng.choice((1, 4)),
            credit_bytes=rng.choice((300, 3000)),
            backlog_bytes=rng.choice((150, 1000, 100000)),
            handover_lag=rng.choice((0, 3)),
        )
        modes = rng.choice(([Mode.PASSIVE], [Mode.ACTIVE], [Mode.PASSIVE, Mode.ACTIVE], [Mode.PASSIVE, Mode.PASSIVE]))
        inputs = [c for c, (_, consumer) in enumerate(self.channels) if consumer == name]
        outputs = [c for c, (producer, _) in enumerate(self.channels) if producer == name]
        group = Group(name, inputs, outputs, settings, modes, record.first(f"{name}.0"))
        self._host(group, group.record, 1)
        return group

    def _host(self, group: Group, assignment: Assignment, version: int) -> Host:
        name = f"{group.name}.{group.number}"
        group.number += 1
        host = Host(name, assignment, group.inputs, group.outputs, group.settings, version, self.rng)
        group.hosts[name] = host
        return host

    # ---- network ----------------------------------------------------------------------------------------------------

    def post(self, sender: str, sends: list[Send] | None) -> None:
        for send in sends or ():
            for target in self._targets(send):
                self._put(target, send.message, sender)

    def _targets(self, send: Send) -> list[str]:
        if send.party is Party.REPLICA:
            return [str(send.target)]
        if send.party is Party.LEADER:
            return ["leader"]
        producer, consumer = self.channels[int(send.target)]
        end = producer if send.party is Party.PRODUCER else consumer
        number = f"#{send.target}"
        group = self.groups.get(end)
        if group is None:
            return [end + number]
        # Routing is as old as it likes to be: whoever is or was a replica may get it.
        names = [group.record.primary]
        if self.rng.random() < 0.1 and not self.calm:
            names = [self.rng.choice(list(group.hosts))]
        if group.settings.feed is Feed.DIRECT and isinstance(send.message, Data):
            names = list(dict.fromkeys([*names, *group.record.standbys]))
        return names

    def _put(self, target: str, message: Message | Assignment, sender: str) -> None:
        if not self.calm and not isinstance(message, Assignment):
            if self.rng.random() < self.loss:
                return
            if self.rng.random() < self.twice:
                self.network.append((target, message, sender))
        self.network.append((target, message, sender))

    def deliver(self) -> bool:
        if not self.network:
            return False
        place = int(self.rng.random() * min(len(self.network), self.window)) if not self.calm else 0
        target, message, sender = self.network.pop(place)
        if target == "leader":
            assert isinstance(message, Message)
            self._lead(message)
        elif "#" in target:
            assert isinstance(message, Message)
            self._end(target, message)
        else:
            host = self.groups[target.split(".")[0]].hosts.get(target)
            if host is None or not host.alive:
                return True
            if host.paused:
                self.network.append((target, message, sender))
                return True
            if isinstance(message, Assignment):
                self.post(target, host.obey(host.machine.on_assignment(message)))
            else:
                self.post(target, host.obey(host.machine.on_message(message, sender)))
        return True

    def _end(self, target: str, message: Message) -> None:
        number = int(target.split("#")[1])
        if target[0] == "s":
            self._from_source(number, self.sources[number].on_message(message))
        else:
            answer = self.sinks[number].on_message(message)
            if answer is not None:
                self.post(target, [Send(Party.PRODUCER, number, answer)])

    def _from_source(self, number: int, frames: list[Data]) -> None:
        self.post(f"s#{number}", [Send(Party.CONSUMER, number, frame) for frame in frames])

    # ---- the leader -------------------------------------------------------------------------------------------------

    def _move(self, group: Group, new: Assignment | None) -> bool:
        if new is None:
            return False
        group.record = new
        self.announce(group)
        return True

    def announce(self, group: Group) -> None:
        for name in group.hosts:
            wanted = name == group.record.primary or name in group.record.standbys
            if wanted or self.calm or self.rng.random() > self.deaf:  # who was replaced may not hear of it for long
                self._put(name, group.record, "leader")

    def _lead(self, message: Message) -> None:
        name = getattr(message, "standby", "") or getattr(message, "replica", "")
        group = self.groups[name.split(".")[0]]
        if isinstance(message, Complete):
            self.stats["complete"] += self._move(group, record.protected(group.record, name, message.epoch))
        elif isinstance(message, Diverged):
            self.stats["diverged"] += 1
            self._move(group, record.unprotected(group.record, name))
        elif isinstance(message, Caught) and message.epoch == group.record.since and group.handing == name:
            self.stats["upgraded"] += name in group.record.foreign
            if self._move(group, record.handed_over(group.record, name)):
                self.stats["handed over"] += 1
                group.version = group.hosts[name].version
                group.handing = ""
        elif isinstance(message, Refused):
            raise Violation(f"the leader promoted {message.replica}, which says: {message.reason}")

    def lead(self, group: Group) -> None:
        """The leader looks at one executor."""
        rng = self.rng
        now = group.record
        if group.failed:
            return
        primary = group.hosts[now.primary]
        gone = [name for name in now.standbys if not group.hosts[name].alive]
        doubted = [name for name in now.standbys if group.hosts[name].paused and rng.random() < 0.2]
        if not primary.alive or (primary.paused and rng.random() < 0.3):
            fit = [name for name in sorted(now.protecting) if group.hosts[name].alive]
            if fit:
                self._move(group, record.promoted(now, rng.choice(fit)))
                group.handing = ""
                self.stats["promoted"] += 1
            elif not primary.alive:
                group.failed = True
                self.stats["failed"] += 1
        elif gone or doubted:
            name = (gone or doubted)[0]
            if name == group.handing:
                group.handing = ""
            self._move(group, record.without_standby(now, name))
            self.stats["removed"] += 1
        elif len(now.standbys) < len(group.modes) and len(group.hosts) < 12:
            host = self._host(group, now, group.version)  # its machine is made below, once it is in the record
            self._start(group, host, group.modes[len(now.standbys)], foreign=False)
        elif self.moves and not group.handing and rng.random() < 0.2 and not self.calm:
            self._begin_move(group)
        elif group.handing:
            self.post(
                "leader",
                primary.obey(primary.machine.on_handover_wanted(group.handing)) if self._hears(primary) else [],
            )
        self._spoil(group)

    def _hears(self, host: Host) -> bool:
        return host.alive and not host.paused

    def _begin_move(self, group: Group) -> None:
        self.moves -= 1
        now = group.record
        if now.standbys and self.rng.random() < 0.3:
            group.handing = self.rng.choice(sorted(now.standbys))
            return
        foreign = group.version == 1 and self.rng.random() < 0.5
        host = self._host(group, now, group.version + foreign)
        self._start(group, host, Mode.ACTIVE, foreign=foreign)
        group.handing = host.name

    def _start(self, group: Group, host: Host, mode: Mode, *, foreign: bool) -> None:
        new = record.with_standby(group.record, host.name, mode, foreign=foreign)
        assert new is not None
        host.__init__(host.name, new, group.inputs, group.outputs, group.settings, host.version, self.rng)  # type: ignore[misc]
        self._move(group, new)
        self.stats["standby started"] += 1

    def _spoil(self, group: Group) -> None:
        if not self.spoiling:
            return
        for name, mode in group.record.standbys.items():
            host = group.hosts[name]
            if mode is Mode.ACTIVE and host.alive and not host.paused and name in group.record.protecting:
                self.spoiling = False
                host.spoil = host.machine.core.executed + 2
                self.spoiled = host
                self.stats["spoiled"] += 1

    # ---- steps ------------------------------------------------------------------------------------------------------

    def run(self) -> Simulation:
        """To the end of the input. Raises `Violation`."""
        try:
            for _ in range(800):
                self.step()
            self.drain()
        except (KeyError, IndexError) as error:
            raise Violation(f"a machine broke: {error!r}") from error
        self.check()
        return self

    def step(self) -> None:
        rng = self.rng
        dice = rng.random()
        if dice < 0.42:
            self.deliver()
            return
        if dice < 0.5:
            number = rng.choice(list(self.sources))
            self._from_source(number, self.sources[number].step())
            return
        group = rng.choice(self.names)
        if dice < 0.54:
            self.lead(group)
            return
        host = group.hosts[rng.choice([group.record.primary, *group.record.standbys, rng.choice(list(group.hosts))])]
        if not host.alive:
            return
        if host.paused:
            host.paused = rng.random() > 0.05
            return
        if 0.55 <= dice < 0.55 + self.stop_chance:
            host.paused = True
            self.stats["paused"] += 1
        elif 0.56 <= dice < 0.56 + self.crash_chance:
            if self.crashes:
                self.crash(group, group.hosts[group.record.primary] if rng.random() < 0.5 else host)
        elif dice < 0.99:
            self.act(host)
        elif dice < 0.995:
            self.post(host.name, host.obey(host.machine.silence()))
        else:
            number = rng.choice(list(self.sources))
            self._from_source(number, self.sources[number].silence())

    def crash(self, group: Group, host: Host) -> None:
        """Never the last replica that could go on, but for a few runs in which the executor is rightly given up."""
        others = [name for name in group.record.protecting if name != host.name and group.hosts[name].alive]
        primary = host.name == group.record.primary
        survives = others if primary else group.hosts[group.record.primary].alive or others
        if not survives and self.seed % 50:
            return
        self.crashes -= 1
        host.alive = False
        caught = host.machine.role is not None and not primary and host.name not in group.record.protecting
        self.stats["crashed primary" if primary else "crashed in catch-up" if caught else "crashed standby"] += 1

    def act(self, host: Host) -> None:
        rng = self.rng
        choice = rng.random()
        if host.preparing and choice < 0.2:
            self.post(host.name, host.prepare())
        elif choice < 0.6:
            self.post(host.name, host.work())
        elif choice < 0.64:
            self.post(host.name, host.event())
        elif host.taking is not None and choice < 0.7:
            self.post(host.name, host.end_checkpoint())
        elif choice < 0.64 + self.checkpoint_chance * 0.3 and host.machine.checkpoint_due():
            host.begin_checkpoint()
            self.stats["checkpoints"] += 1
        else:
            self.post(host.name, host.obey(host.machine.turn()))

    # ---- the end ----------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Nothing bad happens any more: everything must come to its end."""
        self.calm = True
        for group in self.names:
            for host in group.hosts.values():
                host.paused = False
        for turn in range(120):
            self._round(silent=turn % 3 == 1)
            if turn > 2 and self.done():
                self.stats["turns"] += turn
                return
        if not any(group.failed for group in self.names):
            raise Violation("no end in sight: " + self.describe())

    def _round(self, silent: bool) -> None:
        for number, source in self.sources.items():
            self._from_source(number, source.silence() if silent else source.step())
        for group in self.names:
            self.lead(group)
            if silent:
                self.announce(group)
            for host in list(group.hosts.values()):
                if host.alive:
                    self._settle(host, silent)
        for _ in range(100_000):
            if not self.deliver():
                return
        raise Violation("messages without end")

    def _settle(self, host: Host, silent: bool) -> None:
        while host.preparing:
            self.post(host.name, host.prepare())
        while (sends := host.work()) is not None:
            self.post(host.name, sends)
        if host.taking is not None:
            self.post(host.name, host.end_checkpoint())
        if host.machine.checkpoint_due():
            self.post(host.name, host.checkpoint())
        self.post(host.name, host.obey(host.machine.silence() if silent else host.machine.turn()))

    def done(self) -> bool:
        for source in self.sources.values():
            if source.left or source.line.first != source.line.next_seq:
                return False
        for group in self.names:
            core = group.hosts[group.record.primary].machine.core
            if group.handing or core.executed < core.log.end or len(core.log):
                return False
            if set(group.record.standbys) - group.record.foreign - group.record.protecting:
                return False
            if any(line.next_seq != line.taken + 1 or line.bytes for line in core.inputs.values()):
                return False
            if any(line.first != line.next_seq for line in core.outputs.values()):
                return False
        return True

    def describe(self) -> str:
        lines = [f"seed {self.seed}, {self.channels}"]
        for source in self.sources.values():
            line = source.line
            lines.append(f"source {source.channel}: left {source.left}, next {line.next_seq}, safe {line.safe}")
        for group in self.names:
            lines.append(f"{group.record} handing={group.handing!r} modes={group.modes} {group.settings}")
            lines += [_describe(host) for host in group.hosts.values() if host.alive and not host.machine.retired]
        return "\n".join(lines)

    def check(self) -> None:
        """What came out belongs to one sequential execution of every executor, and nothing is missing."""
        complete = not any(group.failed for group in self.names)
        self.stats["whole"] += complete
        got = {number: sink.got for number, sink in self.sinks.items()}
        for group in reversed(self.names):
            self._check_group(group, got, complete)
        for number, source in self.sources.items():
            sent = [b"%d/%d" % (number, i) for i in range(source.sent)]
            if got.get(number, []) != sent[: len(got.get(number, []))] or (complete and got.get(number, []) != sent):
                raise Violation(f"channel {number}: {len(got.get(number, []))} of {len(sent)} frames have an effect")
        host = getattr(self, "spoiled", None)
        if host is not None and host.spoil < 0 and not host.found and self._compared(host):
            raise Violation("a standby that computed something else was not found")

    def _compared(self, host: Host) -> bool:
        """Whether the standby has come to the next comparison after it went astray."""
        core = host.machine.core
        every = core.settings.digest_every
        return core.name in self.groups[host.name.split(".")[0]].record.standbys and (
            core.executed // every * every >= host.spoiled_at
        )

    def _check_group(self, group: Group, got: dict[int, list[bytes]], complete: bool) -> None:
        """Check an executor's output; put what it must have taken from its inputs into `got`."""
        steps: dict[int, list[Any]] = {}
        for number in group.outputs:
            last: list[Any] = [0] * 9
            for frame in got.get(number, []):
                body = msgspec.msgpack.decode(frame)
                if body[0] < last[0] or body[8] < last[8] or (body[0] == last[0] and body != last):
                    raise Violation(f"{group.name}: step {body[0]} came after {last[0]}")
                last = steps[body[0]] = body
        counts: Counter[int] = Counter()
        before = 0
        for number, step in enumerate(sorted(steps), 1):
            position, after, key, count, channel, seq, content, draws, _ = steps[step]
            if position != number:
                if complete or len(group.outputs) == 1:
                    raise Violation(f"{group.name}: step {number} has no effect")
                return
            if after != chain(before, channel, seq, content, tuple(draws)):
                raise Violation(f"{group.name}: step {number} does not follow from step {number - 1}")
            before = after
            counts[key] += 1
            if counts[key] != count:
                raise Violation(f"{group.name}: key {key} has count {count} instead of {counts[key]}")
            if channel != EVENT:
                frames = got.setdefault(channel, [])
                if seq != len(frames):
                    raise Violation(f"{group.name}: frame {seq} of channel {channel} was taken after {len(frames) - 1}")
                frames.append(content if isinstance(content, bytes) else content.encode())


def _describe(host: Host) -> str:
    core = host.machine.core
    came = {number: (line.first, line.next_seq, line.taken) for number, line in core.inputs.items()}
    went = {number: (line.first, line.next_seq, line.sent, line.safe) for number, line in core.outputs.items()}
    role = type(host.machine.role).__name__
    followers = getattr(host.machine.role, "followers", "")
    return f"  {host.name} {role} {core.executed} log {core.log.start}-{core.log.end} in {came} out {went} {followers}"


def simulate(seed: int, shape: str | None = None) -> Simulation:
    """Run a seed to its end."""
    return Simulation(seed, shape).run()
