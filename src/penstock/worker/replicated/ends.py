"""Where a primary meets the world: its readers and its writers. A standby has none."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from penstock.clock import Clock
from penstock.errors import UsageError
from penstock.exchange.frame import Kind
from penstock.exchange.replica.replica import Replica
from penstock.flow.connector import Sink
from penstock.worker import snapshot
from penstock.worker.assembly import DEAD_LETTER
from penstock.worker.messages import Push, Reply
from penstock.worker.metrics import LatencyHistogram
from penstock.worker.release import release_all
from penstock.worker.replicated.frames import read_body
from penstock.worker.replicated.live import Live, LiveBuilder, sink_lines
from penstock.worker.replicated.reading import Reading, new_partitions, opened
from penstock.worker.replicated.writing import SinkLine

_DUE = float("-inf")


class Ends:
    """Opened when a replica becomes primary. `prepared` hears (sink, checkpoint, what its writer prepared)."""

    def __init__(
        self, builder: LiveBuilder, live: Live, latency: LatencyHistogram, prepared: Callable[[str, int, Any], None]
    ) -> None:
        self._builder, self._live = builder, live
        self.clock: Clock = builder.around.clock
        self.readings: list[Reading] = []
        self.lines: dict[int, SinkLine] = {}
        self._unanswered: dict[int, tuple[Push, Callable[[Reply], None]]] = {}
        """Pushes by the number of their request."""
        self._promised: deque[tuple[int, Callable[[], None]]] = deque()
        """(log position, what to do when it is protected)."""
        self._turn = 0
        self._draining = False
        try:
            for number, name in sink_lines(builder).items():
                self.lines[number] = self._line(name, latency, prepared)
        except BaseException:
            self.close(well=False)
            raise

    def _line(self, name: str, latency: LatencyHistogram, prepared: Callable[[str, int, Any], None]) -> SinkLine:
        sink = (
            self._builder.graph.on_error
            if name == DEAD_LETTER
            else getattr(self._builder.graph.steps[name], "sink", None)
        )
        assert isinstance(sink, Sink)
        writer = sink.open(self._builder.connector(self._builder.context(name)))
        checkpointed = self._builder.load.checkpoint_url is not None
        return SinkLine(
            name,
            writer,
            transactional=checkpointed and writer.transactional,
            latency=latency,
            clock=self.clock,
            prepared=prepared,
        )

    # ---- taking over ------------------------------------------------------------------------------------------------

    def recover(self, pendings: dict[str, list[Any]]) -> None:
        """What the restored checkpoint holds of each sink is completed, everything later discarded."""
        for line in self.lines.values():
            line.writer.recover(pendings.get(line.step, []))

    def take_over(self, machine: Replica, checkpoint: int | None, part: snapshot.Part | None) -> None:
        """Go on where a former primary was. `part`: this executor's part of the last complete checkpoint."""
        pendings = {} if part is None else part.pending()
        for number, line in self.lines.items():
            out = machine.core.outputs[number]
            begin, skipping = out.safe + 1, None
            if line.transactional and checkpoint is not None:
                line.writer.recover([pendings[line.step]] if line.step in pendings else [])
                if self._live.taken < checkpoint:
                    skipping = checkpoint
                else:
                    begin = next((o.seq + 1 for o in out.kept() if _ends(o.payload, checkpoint)), begin)
            line.begin_at(begin, skipping)

    def replayed(self, machine: Replica, emitted: Sequence[tuple[int, bytes]]) -> None:
        """A position of before the promotion is about to be numbered."""
        following = {number: machine.core.outputs[number].next_seq for number in self.lines}
        for number, body in emitted:
            if number in following:
                self.lines[number].replayed(following[number], body)
                following[number] += 1

    def new_lanes(self) -> list[list[Any]]:
        """Partitions that the order log has to learn of before they are read."""
        found: list[list[Any]] = []
        for step, source in self._live.sources.items():
            ctx = self._builder.connector(self._builder.context(step))
            found += new_partitions(self._live, step, source, ctx)
        for place, entry in enumerate(found):
            entry[2] = self._live.first_lane + len(self._live.lanes) + place
        return found

    def open_readers(self) -> None:
        """Open all partitions that have not ended, at what was executed of them."""
        here = {reading.at.number for reading in self.readings}
        for lane in self._live.lanes:
            if lane.number not in here and not lane.ended:
                ctx = self._builder.connector(self._builder.context(lane.step))
                idle_after = self._builder.load.settings.idle_lane
                self.readings.append(opened(lane, self._live.sources[lane.step], ctx, idle_after))

    # ---- reading ----------------------------------------------------------------------------------------------------

    def next_event(self, limit: int) -> tuple[list[Any], list[Any] | None, Reading] | None:
        """What a source brings next."""
        if self._draining:
            return None
        now = self.clock.monotonic()
        for _ in range(len(self.readings)):
            self._turn += 1
            reading = self.readings[self._turn % len(self.readings)]
            if reading.at.ended or reading.retry_at > now:
                continue
            event = reading.next_event(limit, self.clock)
            if event is not None:
                return *event, reading
        return None

    def logged(self, reading: Reading, position: int) -> None:
        """A read is in the log at `position`: who waits for it is told when it is protected."""
        while reading.waiting and reading.waiting[0][0] <= reading.taken:
            self._promised.append((position, reading.waiting.popleft()[1]))
        if reading.acknowledges and not reading.source.replayable:
            offset = reading.at.offset
            self._promised.append((position, lambda: reading.reader.retained(offset)))

    def keep_promises(self, protected: int) -> None:
        """The log through `protected` outlives this process."""
        while self._promised and self._promised[0][0] <= protected:
            self._promised.popleft()[1]()

    def next_read(self) -> float:
        """When (monotonic) a source wants to be read again."""
        if self._draining:
            return float("inf")
        return min((r.retry_at for r in self.readings if not r.at.ended), default=float("inf"))

    def reading(self, source: str) -> Reading | None:
        """A partition of `source` that is read here and goes on being read."""
        for reading in self.readings:
            if reading.at.step == source and not reading.at.ended and not self._draining:
                return reading
        return None

    def push(self, message: Push, position: int, tell: Callable[[Reply], None]) -> Reply | None:
        """Take pushed records. `None`: `tell` is called when they are protected."""
        reading = self.reading(message.source)
        if reading is None:
            raise UsageError(f"{message.model!r} has no open push source {message.source!r} in this worker")
        if not reading.reader.push(message.records, message.client, message.seq):
            return Reply(message.id, False, 0)
        reading.retry_at = _DUE
        self._unanswered[message.id] = (message, tell)
        waiting = reading.reader.lag() or 0
        if waiting:
            reading.waiting.append((reading.taken + waiting, lambda: self._answer(message)))
        else:  # a repeat: what it brought is in the log, but perhaps not protected yet
            self._promised.append((position, lambda: self._answer(message)))
        return None

    def _answer(self, message: Push) -> None:
        _, tell = self._unanswered.pop(message.id)
        tell(Reply(message.id, True, len(message.records)))

    def _refuse_pushes(self) -> None:
        """Another replica reads now. One that is pushed again there is taken once, if it has a number."""
        for message, tell in self._unanswered.values():
            problem = f"{message.model!r} has no open push source {message.source!r} in this worker any more"
            if message.client is None or message.seq is None:
                problem = f"{message.model!r} has moved: whether these records were taken is not known"
            tell(Reply(message.id, False, None, problem))
        self._unanswered.clear()

    def woken(self) -> None:
        """Some connector said that there is something to do."""
        for reading in self.readings:
            reading.retry_at = _DUE

    def drain(self) -> None:
        """Stop reading."""
        self._draining = True

    # ---- writing ----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Push out what the writers have buffered."""
        for line in self.lines.values():
            line.push_out()

    def commit(self, checkpoint: int, part: snapshot.Part) -> None:
        """A durable checkpoint is complete: sinks make it visible, replayable sources acknowledge."""
        pendings, positions = part.pending(), part.positions()
        for line in self.lines.values():
            line.commit(checkpoint, pendings.get(line.step))
        for reading in self.readings:
            place = (reading.at.step, reading.at.partition)
            if reading.source.replayable and place in positions:
                reading.reader.retained(positions[place])

    def close(self, *, well: bool) -> list[Exception]:
        """Release everything; the errors that came up on the way."""
        self._refuse_pushes()
        releases: list[Callable[[], None]] = [reading.reader.close for reading in self.readings]
        releases += [partial(line.end, well=well) for line in self.lines.values()]
        return release_all(releases)


def _ends(data: bytes, checkpoint: int) -> bool:
    body = read_body(data)
    return body.kind == Kind.BARRIER and body.checkpoint == checkpoint
