"""How standbys are kept up to date, as a manifest or a request states it."""

import pytest

from penstock.errors import UsageError
from penstock.model.manifest import read_manifest
from penstock.model.replication import replication_of
from penstock.settings import Replication


def test_what_is_given_replaces_what_was_before() -> None:
    before = replication_of({"checkpoint_interval": 0.5, "checkpoint_records": 1000})
    assert (before.checkpoint_interval, before.checkpoint_records) == (0.5, 1000)
    assert before.checkpoint_bytes == Replication().checkpoint_bytes
    after = replication_of({"checkpoint_interval": 2}, before)
    assert (after.checkpoint_interval, after.checkpoint_records) == (2, 1000)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"interval": 1}, "no setting 'interval'"),
        ({"checkpoint_interval": 0}, "checkpoint_interval = 0"),
        ({"checkpoint_interval": "often"}, "'often'"),
        ({"checkpoint_records": 1.5}, "1.5"),
        ({"checkpoint_bytes": 10}, "checkpoint_bytes = 10"),
        ({"digest_every": True}, "True"),
    ],
)
def test_nonsense_is_named(given: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        replication_of(given)
    assert caught.value.remedy


def test_a_manifest_states_it(tmp_path) -> None:
    head = '[project]\nname = "m"\nversion = "1"\n[tool.penstock]\nflow = "f:flow"\nrecovery = "passive"\n'
    (tmp_path / "pyproject.toml").write_text(head + "[tool.penstock.replication]\ncheckpoint_interval = 0.1\n")
    assert read_manifest(tmp_path).replication == {"checkpoint_interval": 0.1}
    (tmp_path / "pyproject.toml").write_text(head + "[tool.penstock.replication]\ncheckpoint_interval = -1\n")
    with pytest.raises(UsageError, match="checkpoint_interval = -1"):
        read_manifest(tmp_path)
