"""The demo as a user of the cluster: it adds a model, pushes readings, and looks up what the model knows.

Everything goes through `penstock.client`, so anybody can do the same with curl. What happens is put into a `Snapshot`
that a view shows; nothing here writes to the terminal.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock.cli.demo_replay import Replay, Series, Verdict, judge
from penstock.client import AsyncClient, ClientError
from penstock.errors import PenstockError

__all__ = ["MODEL", "SOURCE", "STEP", "Sensor", "Session", "Snapshot"]

MODEL, SOURCE, STEP = "default/anomaly", "readings", "chart"
PUSH_EVERY = 0.2
"""Seconds between two pushes."""
LOOK_EVERY = 0.3
"""Seconds between two look-ups of all sensors."""
SETTLE = 15.0
"""Seconds that the last readings may take to be counted."""
STRIKE_AT = 0.4
"""Share of the replay after which a worker is killed."""
HISTORY = 22
"""Values kept per sensor for its sparkline."""


@dataclass
class Sensor:
    """What is known of one sensor right now."""

    series: Series
    pushed: int = 0
    """Readings that the cluster acknowledged."""
    counted: int = 0
    """Readings in the keyed state of the model."""
    time: str | None = None
    value: float | None = None
    score: float = 0.0
    alarms: list[list[str]] = field(default_factory=list)
    """First and last moment of each."""
    history: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))

    @property
    def verdict(self) -> Verdict:
        """Labelled windows against alarms."""
        return judge(self.series.windows, self.alarms, self.time)

    def learn(self, state: dict[str, Any]) -> None:
        """Take what a look-up of the model's state said."""
        if state["records"] != self.counted:
            self.history.append(float(state["value"]))
        self.counted, self.time, self.value = state["records"], state["time"], state["value"]
        self.score, self.alarms = state["score"], state["alarms"]


@dataclass
class Strike:
    """The worker that was killed with SIGKILL, to show what becomes of the count."""

    pid: int
    node: str
    at: float
    """Seconds after the start."""
    back: float | None = None
    """Seconds after which a standby was seen to have taken over; `None`: not yet."""

    @property
    def text(self) -> str:
        """A line for people."""
        what = f"kill -9 of worker {self.pid} on {self.node} at {self.at:.0f} s"
        if self.back is None:
            return f"{what}: its standbys take over"
        return f"{what}: standbys took over in {self.back:.1f} s"


@dataclass
class Snapshot:
    """Everything that a view may show."""

    url: str
    seconds: float
    """How long the replay is to take."""
    total: int
    sensors: list[Sensor]
    phase: str = "starting"
    """`starting`, `replaying`, `settling`, `finished` or `interrupted`."""
    elapsed: float = 0.0
    rate: float = 0.0
    """Readings counted per second, over the last two seconds."""
    nodes: list[dict[str, Any]] = field(default_factory=list)
    waits: int = 0
    """Look-ups that failed and were tried again."""
    strike: Strike | None = None

    @property
    def pushed(self) -> int:
        """Readings that the cluster acknowledged."""
        return sum(sensor.pushed for sensor in self.sensors)

    @property
    def counted(self) -> int:
        """Readings in the keyed state of the model."""
        return sum(sensor.counted for sensor in self.sensors)

    @property
    def exact(self) -> bool:
        """Whether every sensor's acknowledged readings were counted, and each once."""
        return all(sensor.pushed == sensor.counted for sensor in self.sensors)

    def summary(self) -> dict[str, Any]:
        """What `--json` prints at the end."""
        verdicts = [sensor.verdict for sensor in self.sensors]
        return {
            "ended": self.phase,
            "seconds": round(self.elapsed, 1),
            "url": self.url,
            "nodes": [node["id"] for node in self.nodes],
            "killed": None
            if self.strike is None
            else {
                "worker": self.strike.pid,
                "node": self.strike.node,
                "second": round(self.strike.at, 1),
                "taken_over_after": self.strike.back,
            },
            "records": {"pushed": self.pushed, "counted": self.counted, "exact": self.exact},
            "windows": {
                "labelled": sum(len(verdict.windows) for verdict in verdicts),
                "hit": sum(verdict.hits for verdict in verdicts),
                "missed": sum(verdict.missed for verdict in verdicts),
            },
            "false_alarms": sum(verdict.false_alarms for verdict in verdicts),
            "sensors": [
                {
                    "sensor": sensor.series.name,
                    "pushed": sensor.pushed,
                    "counted": sensor.counted,
                    "windows": [
                        {"start": start, "end": end, "verdict": said}
                        for (start, end), said in zip(sensor.series.windows, verdict.windows, strict=True)
                    ],
                    "alarms": [
                        {"start": alarm[0], "end": alarm[1], "in_window": good}
                        for alarm, good in zip(sensor.alarms, verdict.alarms, strict=True)
                    ],
                }
                for sensor, verdict in zip(self.sensors, verdicts, strict=True)
            ],
        }


def kill_process(pid: int) -> None:
    """As `kill -9` does. A process that is gone already is no error."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class Session:
    """One run of the demo against a running cluster. `kill` kills a worker's process."""

    def __init__(
        self, url: str, flow: Path, series: list[Series], seconds: float, kill: Callable[[int], None] = kill_process
    ) -> None:
        self._kill, self._promotions, self._struck = kill, 0, 0.0
        self._flow, self._replay = flow, Replay(series, seconds)
        self.snapshot = Snapshot(url, seconds, self._replay.total, [Sensor(one) for one in series])
        self._sensors = {sensor.series.name: sensor for sensor in self.snapshot.sensors}
        self._seen: deque[tuple[float, int]] = deque()

    async def run(self, stop: asyncio.Event, changed: Callable[[Snapshot], None]) -> Snapshot:
        """Bring the model online, replay until the end or until `stop`, wait until all is counted. `changed` is called
        after every look. Raises `PenstockError` when the cluster cannot do its part."""
        snapshot = self.snapshot
        async with AsyncClient(snapshot.url) as client:
            await self._online(client)
            snapshot.phase = "replaying"
            looking = asyncio.create_task(self._look_on(client, changed))
            try:
                await self._push_all(client, stop)
                snapshot.phase = "settling"
                await self._settle()
            finally:
                looking.cancel()
                await asyncio.gather(looking, return_exceptions=True)
            snapshot.phase = "interrupted" if stop.is_set() and not self._replay.done else "finished"
            changed(snapshot)
        return snapshot

    async def _online(self, client: AsyncClient) -> None:
        self.snapshot.nodes = await client.nodes()
        await client.add_model(str(self._flow), name=MODEL)
        # One executor per step on every node, so that the sensors' state is spread over all of them; and each with a
        # standby on another node, so that a worker may die.
        await client.online(MODEL, config={"input": "push"}, executors=len(self.snapshot.nodes), recovery="passive")

    async def _push_all(self, client: AsyncClient, stop: asyncio.Event) -> None:
        start = time.monotonic()
        while not stop.is_set() and not self._replay.done:
            self.snapshot.elapsed = time.monotonic() - start
            if self.snapshot.strike is None and self.snapshot.elapsed > STRIKE_AT * self.snapshot.seconds:
                await self._strike(client)
            readings = self._replay.due(self.snapshot.elapsed)
            if readings:
                await client.push(f"{MODEL}/{SOURCE}", readings, ordered=True)  # a score depends on what was before
                for reading in readings:
                    self._sensors[reading["sensor"]].pushed += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), PUSH_EVERY)

    async def _strike(self, client: AsyncClient) -> None:
        """Kill the worker that has most of the sensors' state, once every executor has a standby to take over."""
        model = await client.model(MODEL)
        able = [e for e in model["executors"] if STEP in e["steps"] and e["pid"]]
        if model["status"] != "online" or not able:
            return
        chosen = max(able, key=lambda executor: executor["keys"])
        self._promotions = model["promotions"]
        self.snapshot.strike = Strike(chosen["pid"], chosen["node"], self.snapshot.elapsed)
        self._struck = time.monotonic()
        self._kill(chosen["pid"])

    async def _see_promotion(self, client: AsyncClient, strike: Strike) -> None:
        model = await client.model(MODEL)
        if model["promotions"] > self._promotions:
            strike.back = time.monotonic() - self._struck

    async def _look_on(self, client: AsyncClient, changed: Callable[[Snapshot], None]) -> None:
        """Look again and again. A look-up that fails, as while a worker is restarted, is only counted."""
        while True:
            try:
                await self._look(client)
            except ClientError:
                self.snapshot.waits += 1
            changed(self.snapshot)
            await asyncio.sleep(LOOK_EVERY)

    async def _look(self, client: AsyncClient) -> None:
        page = await client.list_state(MODEL, STEP)
        for item in page["items"]:
            sensor = self._sensors.get(item["key"])
            if sensor is not None:  # somebody may have pushed readings of a sensor of their own
                sensor.learn(item["value"])
        self.snapshot.nodes = await client.nodes()
        strike = self.snapshot.strike
        if strike is not None and strike.back is None:
            await self._see_promotion(client, strike)
        now = time.monotonic()
        self._seen.append((now, self.snapshot.counted))
        while now - self._seen[0][0] > 2.0:
            self._seen.popleft()
        since, before = self._seen[0]
        self.snapshot.rate = (self.snapshot.counted - before) / (now - since) if now > since else 0.0

    async def _settle(self) -> None:
        """Wait until everything acknowledged is counted; after the deadline the summary says what is missing."""
        deadline = time.monotonic() + SETTLE
        while not self.snapshot.exact and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_EVERY / 3)


def unfinished(snapshot: Snapshot) -> PenstockError | None:
    """Why the demo did not keep its promise, if so."""
    if snapshot.exact:
        return None
    return PenstockError(
        f"{snapshot.pushed:,} readings were acknowledged, but {snapshot.counted:,} are counted",
        remedy="`penstock events` tells what happened meanwhile",
    )
