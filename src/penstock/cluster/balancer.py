"""What a node knows for rebalancing: measurements smoothed over time, moves of late, bottlenecks.

Every node has the metrics of all, so every node keeps this, and any of them can say what would be better. Only the
leader acts on it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from penstock.cluster.balancing import Answer, Scene, check, policy_of, relief, scene_of, slot, weigh
from penstock.cluster.bottlenecks import Bottleneck, Bottlenecks, uses
from penstock.cluster.measuring import Measurement, homes, measured
from penstock.cluster.metrics import NodeMetrics
from penstock.cluster.view import View
from penstock.placement.balance import Blocked, Transfer
from penstock.placement.decide import History, PastMove
from penstock.placement.monitor import Monitor
from penstock.placement.plan import ExecutorKey
from penstock.settings import Balancing


@dataclass(frozen=True)
class News:
    """What is different since the last look."""

    begun: tuple[Bottleneck, ...] = ()
    ended: tuple[Bottleneck, ...] = ()


@dataclass
class _Past:
    """Where executors were when this node last looked."""

    home: dict[ExecutorKey, str] = field(default_factory=dict)
    histories: dict[str, History] = field(default_factory=dict)


class Balancer:
    """Feed it once a second. Raises `UsageError`, naming the setting, for settings that make no sense."""

    def __init__(self, settings: Balancing) -> None:
        self.settings = settings
        check(settings)
        self._monitor = Monitor(settings.half_life, settings.window)
        self._bottlenecks = Bottlenecks(settings.sustained)
        self._past = _Past()
        self.latest = Measurement()
        """As it was told, not smoothed."""

    def observe(self, now: float, view: View, metrics: Mapping[str, NodeMetrics]) -> News:
        """What is known at `now`."""
        self.latest = measured(view, metrics)
        self._monitor.observe(now, self.latest.load, self.latest.traffic)
        self._note_moves(now, view)
        return News(*self._bottlenecks.watch(now, uses(self.latest, view.members, self.settings)))

    def _note_moves(self, now: float, view: View) -> None:
        """An executor that is elsewhere although its node is still there was moved. What a dead node takes with it
        may come back to that node."""
        home, before = homes(view), self._past.home
        policy = policy_of(self.settings)
        moved: dict[str, list[PastMove]] = {}
        for key, node in home.items():
            old = before.get(key, node)
            if old != node and old in view.members and view.members[old].live:
                moved.setdefault(key.model, []).append(PastMove(key, slot(old), now))
        histories = {}
        for model in {key.model for key in home}:
            known = self._past.histories.get(model, History())
            if moves := moved.get(model):
                kept = tuple(move for move in known.moves if move.at > now - policy.guard)
                known = History(now, (*kept, *moves))
            histories[model] = known
        self._past = _Past(home, histories)

    def recent(self, now: float) -> frozenset[ExecutorKey]:
        """Executors that were moved within the guard's time."""
        since = now - self.settings.guard
        return frozenset(
            move.executor for history in self._past.histories.values() for move in history.moves if move.at > since
        )

    def scene(self, now: float, view: View, moving: Collection[ExecutorKey] = ()) -> Scene:
        """The online models with smoothed measurements. Raises `UsageError` when no node is live."""
        load, traffic = self._monitor.load(now), self._monitor.traffic(now)
        return scene_of(view, load, traffic, self.settings, moving, self.latest.standbys)

    def asked(
        self, now: float, scene: Scene, *, strategy: str | None = None, model: str | None = None, lossy: bool = False
    ) -> Answer:
        """What a strategy would do when somebody asks: that there was a change a moment ago is no objection then."""
        histories = {name: History(None, history.moves) for name, history in self._past.histories.items()}
        return weigh(scene, self.settings, now, strategy=strategy, model=model, lossy=lossy, history=histories)

    def due(self, now: float, scene: Scene) -> Answer:
        """What would be done by itself."""
        return weigh(scene, self.settings, now, history=self._past.histories)

    def relieved(self, now: float, scene: Scene) -> Transfer | tuple[Blocked, ...]:
        """See `balancing.relief`."""
        return relief(scene, self.settings, kept=self.recent(now))

    def bottlenecks(self, node: str) -> tuple[Bottleneck, ...]:
        """Those of a node."""
        return self._bottlenecks.of(node)

    def present(self) -> tuple[Bottleneck, ...]:
        """Those of all nodes."""
        return self._bottlenecks.all()
