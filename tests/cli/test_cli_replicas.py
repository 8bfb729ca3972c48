"""What the commands tell of replicas, and `penstock move`."""

from __future__ import annotations

import json

import pytest
from tests.gateway.packages import write_flow


@pytest.fixture
def replicated(cluster, tmp_path):
    """The model `w`, online with standbys, one of which does not protect yet."""
    assert cluster("model", "add", write_flow(tmp_path), "--name", "w").exit_code == 0
    return cluster("model", "online", "w", "--recovery", "passive", "-e", "2")


def test_going_online_says_who_is_not_protected(replicated):
    assert replicated.exit_code == 0, replicated.stderr
    assert "no standby could take over for 0.1" in replicated.stdout + replicated.stderr


def test_show_and_top_have_the_replicas(cluster, replicated):
    for shown in (cluster("model", "show", "w").stdout, cluster("top", "--once").stdout):
        assert "Replicas" in shown
        rows = [line.split() for line in shown.splitlines() if "passive" in line and "node-2" in line]
        assert [row[row.index("running") + 1] for row in rows if "0.0" in row] == ["yes"]
        assert all("3" in row for row in rows)
        assert "degraded" in shown
    assert "recovery passive" in cluster("model", "show", "w").stdout


def test_move(cluster, replicated):
    done = cluster("move", "w", "0.0", "--to", "node-2")
    assert (done.exit_code, done.stdout) == (0, "executor 0.0 of default/w runs on node-2\n")
    stays = cluster("move", "w", "0.0", "--to", "node-9")
    assert stays.exit_code == 1
    assert stays.stderr == "executor 0.0 stays on node-1: it was given up\n"
    begun = cluster("move", "w", "0.0", "--to", "node-2", "--no-wait", "--json")
    assert begun.exit_code == 0
    assert json.loads(begun.stdout)["done"] is False
    assert cluster("move", "w", "9.9", "--to", "node-2").exit_code == 1
    assert cluster("move", "w", "0.0").exit_code == 2
