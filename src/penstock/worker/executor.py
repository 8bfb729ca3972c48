"""One executor: a chain of fused operators between its input queue and its output channels.

The rules that keep it live and exact:

- it takes a next data frame, or reads a source, only while every output channel has credit;
- barriers, watermarks and ends need no credit;
- a channel that has delivered a barrier waits until all have (aligned checkpoints), then the state is taken at once;
- once all inputs have ended it finishes the chain, sends END, and still answers checkpoints with its last state.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from penstock.clock import Clock
from penstock.exchange.barrier import Aligned, Aligner
from penstock.exchange.frame import Kind
from penstock.flow.batch import END_TIME, Batch, Rows
from penstock.flow.chain import Chain
from penstock.worker.channels import Inbound, Item, Outbound
from penstock.worker.messages import ExecutorId
from penstock.worker.metrics import LatencyHistogram
from penstock.worker.payload import decode_batch
from penstock.worker.release import release_all
from penstock.worker.sinks import SinkOperator, naming
from penstock.worker.sources import Lane

TURN_NS = 10_000_000
"""An executor gives the loop back after about so long: the worker then looks for messages and serves the others."""
LEAST_SLICE, MOST_SLICE = 8, 1 << 20


@dataclass(eq=False)
class Executor:
    """See the module. `snapshot` is called with the checkpoint's number when the executor's state is to be taken;
    `finished` once, when all its output has been confirmed."""

    id: ExecutorId
    chain: Chain
    inbounds: dict[int, Inbound]
    outbounds: dict[int, Outbound]
    lanes: list[Lane]
    sinks: dict[str, SinkOperator]
    stalled: set[Outbound]
    batch_records: int
    clock: Clock
    snapshot: Callable[[Executor, int], None]
    on_finished: Callable[[Executor], None]
    latency: LatencyHistogram
    restored_finished: bool = False
    queue: deque[Item] = field(default_factory=deque)
    records_in: int = 0
    cpu_ns: int = 0
    busy_ns: int = 0
    requested: int = 0
    """The last checkpoint that the supervisor asked for."""
    taken: int = 0
    """The last checkpoint whose state was taken."""
    draining: bool = False
    ended: bool = False
    """The chain is finished and END was sent."""
    reported: bool = False
    barrier_at: float = 0.0

    def __post_init__(self) -> None:
        self._aligner = Aligner(self.inbounds)
        self._turn = 0
        self._slice = self.batch_records
        """Records that are processed in about a turn."""

    @property
    def serving(self) -> Chain:
        """The operators that look-ups are answered from."""
        return self.chain

    # ---- input ------------------------------------------------------------------------------------------------------

    def offer(self, item: Item) -> None:
        """A frame has arrived, in sequence. It is set aside behind a barrier only when its turn comes: earlier ones of
        its channel may still be in the queue."""
        self.queue.append(item)

    def work(self) -> bool:
        """Process what is there, for a bounded while; whether anything was done."""
        cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
        did = self._work()
        if did:
            self.cpu_ns += time.thread_time_ns() - cpu
            self.busy_ns += time.perf_counter_ns() - wall
        return did

    def _work(self) -> bool:
        did = False
        until = time.perf_counter_ns() + TURN_NS
        while self.queue and not (self.stalled and self.queue[0].kind is Kind.DATA):
            self._take(self.queue.popleft())
            did = True
            if time.perf_counter_ns() > until:
                break
        if self.lanes and not self.stalled and not self.draining:
            did = self._read() or did
        for operator in self.chain.operators.values():
            if operator.pending():
                operator.poll()
        if not self.queue:
            self.quiet()
        return did

    def _take(self, item: Item) -> None:
        inbound = item.inbound
        if self._aligner.blocked(inbound.channel.id):
            inbound.held.append(item)
            return
        if item.kind is Kind.DATA:
            payload = item.payload
            if isinstance(payload, memoryview):
                with naming(inbound.channel.edge.target_step, "what came in cannot be read: "):
                    payload = decode_batch(payload, item.header.flags, inbound.lane, item.header.origin)
            assert payload is not None
            if isinstance(payload, Rows) and len(payload) > self._slice:
                payload, rest = payload.cut(self._slice)
                self.queue.appendleft(item._replace(payload=rest))
                self._process(inbound, payload)
                return
            self._process(inbound, payload)
            inbound.advance(item.header.watermark)
        elif item.kind is Kind.WATERMARK:
            inbound.advance(item.header.watermark)
        elif item.kind is Kind.BARRIER:
            self._barrier(inbound, item.header.checkpoint)
        elif item.kind is Kind.END:
            inbound.ended = True
            inbound.advance(END_TIME)
            aligned = self._aligner.on_end(inbound.channel.id)
            if aligned is not None:
                self._aligned(aligned.checkpoint)
        inbound.consumed(item)

    def _process(self, inbound: Inbound, batch: Batch) -> None:
        """Send a batch through the chain, and learn how many records fit into a turn."""
        start = time.perf_counter_ns()
        self.records_in += len(batch)
        inbound.entry.send(batch)
        self._learn(len(batch), time.perf_counter_ns() - start)

    def _learn(self, records: int, took_ns: int) -> None:
        if took_ns > TURN_NS:
            self._slice = max(LEAST_SLICE, records * TURN_NS // took_ns)
        elif self._slice < MOST_SLICE and records >= self._slice and took_ns < TURN_NS // 2:
            self._slice *= 2

    def _read(self) -> bool:
        """Read one batch from the next partition that is due."""
        now = self.clock.monotonic()
        for _ in range(len(self.lanes)):
            self._turn += 1
            lane = self.lanes[self._turn % len(self.lanes)]
            if lane.ended or lane.retry_at > now:
                continue
            start = time.perf_counter_ns()
            count = lane.read(min(self._slice, self.batch_records), self.clock)
            self._learn(count, time.perf_counter_ns() - start)
            self.records_in += count
            if count or lane.ended:
                return True
        return False

    def woken(self) -> None:
        """Some connector or operator said that there is something to do."""
        for lane in self.lanes:
            lane.retry_at = 0.0
        for operator in self.chain.operators.values():
            operator.poll()

    def quiet(self) -> None:
        """The queue is empty: pass on what was gathered, confirm what was consumed, see whether this was all."""
        for outbound in self.outbounds.values():
            outbound.flush_when_quiet()
        for inbound in self.inbounds.values():
            inbound.idle()
        if not self.ended and self._all_ended():
            self._finish()
        if self.ended and not self.reported and all(o.in_flight == 0 for o in self.outbounds.values()):
            self.reported = True
            self.on_finished(self)

    def next_read(self) -> float:
        """When (monotonic) a source wants to be read again."""
        if self.stalled or self.draining:
            return float("inf")
        return min((lane.retry_at for lane in self.lanes if not lane.ended), default=float("inf"))

    def flush_sinks(self) -> None:
        """Push out what the sinks have buffered."""
        for sink in self.sinks.values():
            sink.flush()

    # ---- the end ----------------------------------------------------------------------------------------------------

    def drain(self, *, finish: bool) -> None:
        """Sources stop reading; with `finish`, as if their input had ended."""
        self.draining = True
        for lane in self.lanes:
            self.records_in += lane.drain(self.clock)
            if finish:
                lane.end()

    def _all_ended(self) -> bool:
        return all(lane.ended for lane in self.lanes) and all(inbound.ended for inbound in self.inbounds.values())

    def _finish(self) -> None:
        self.ended = True
        if not self.restored_finished or self.records_in:
            # Also when a finished input has grown since: what it brought must come out.
            self.chain.finish()
        for outbound in self.outbounds.values():
            outbound.signal(Kind.END)
        if self.requested > self.taken:
            self._take_state(self.requested)

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def request(self, checkpoint: int) -> None:
        """The supervisor begins a checkpoint: sources (and executors whose input has ended) start it."""
        self.requested = checkpoint
        self.barrier_at = self.clock.monotonic()
        if self.ended or not self.inbounds:
            self._aligned(checkpoint)

    def _barrier(self, inbound: Inbound, checkpoint: int) -> None:
        self.barrier_at = self.clock.monotonic()
        answer = self._aligner.on_barrier(inbound.channel.id, checkpoint)
        if isinstance(answer, Aligned):
            self._aligned(answer.checkpoint)
        else:
            self._unhold()

    def _aligned(self, checkpoint: int) -> None:
        """Everything before the barrier has been processed, nothing behind it."""
        if checkpoint > self.taken:
            self._take_state(checkpoint)
            if not self.ended:
                for outbound in self.outbounds.values():
                    outbound.signal(Kind.BARRIER, checkpoint)
        self._unhold()

    def _take_state(self, checkpoint: int) -> None:
        self.taken = checkpoint
        self.chain.drain()
        self.snapshot(self, checkpoint)

    def _unhold(self) -> None:
        """Frames that waited behind a barrier go on, before anything that came later."""
        waiting: list[Item] = []
        for inbound in self.inbounds.values():
            if inbound.held and not self._aligner.blocked(inbound.channel.id):
                waiting.extend(inbound.held)
                inbound.held.clear()
        self.queue.extendleft(reversed(waiting))

    def committed(self, pendings: dict[str, Any], offsets: dict[tuple[str, str], Any]) -> None:
        """A checkpoint is complete: sinks make its records visible, sources acknowledge."""
        for name, pending in pendings.items():
            self.sinks[name].commit(pending)
        for lane in self.lanes:
            if (lane.step, lane.partition) in offsets:
                lane.reader.retained(offsets[lane.step, lane.partition])

    # ---- release ----------------------------------------------------------------------------------------------------

    def close(self, *, well: bool) -> list[Exception]:
        """Release everything; the errors that came up on the way."""
        releases: list[Callable[[], None]] = [lane.reader.close for lane in self.lanes]
        releases.append(self.chain.close)
        releases += [partial(sink.end, well=well) for sink in self.sinks.values()]
        return release_all(releases)
