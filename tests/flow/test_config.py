from __future__ import annotations

import pytest
from tests.flow.flows import Kept

import penstock as ps
from penstock.flow.config import install


@pytest.fixture(autouse=True)
def _clean():
    yield
    install({})


def test_defaults_and_what_was_given():
    install({"limit": "7", "name": "x"})
    ps.config.defaults(limit=3, name="y", ratio=0.5)
    assert dict(ps.config) == {"limit": 7, "name": "x", "ratio": 0.5}
    assert ps.config.get("other", 1) == 1
    assert "other" not in ps.config


@pytest.mark.parametrize(
    ("default", "given", "value"),
    [
        (1, "2", 2),
        (1.0, "2", 2.0),
        (False, "true", True),
        ([1], "[2, 3]", [2, 3]),
        ("a", "2", "2"),
        (None, "2", "2"),
        (1, 5, 5),
    ],
)
def test_a_text_becomes_what_its_default_is(default, given, value):
    install({"x": given})
    ps.config.defaults(x=default)
    assert ps.config["x"] == value
    assert type(ps.config["x"]) is type(value)


def test_an_unknown_key_is_told_with_the_known_ones():
    install({"limmit": "7"})
    with pytest.raises(ps.FlowError, match=r"unknown setting 'limmit'[\s\S]*limit"):
        ps.config.defaults(limit=3)


def test_reading_an_unknown_key():
    ps.config.defaults(limit=3)
    with pytest.raises(ps.FlowError, match=r"no setting 'other'[\s\S]*limit"):
        ps.config["other"]


def test_a_text_that_is_no_number():
    install({"limit": "many"})
    with pytest.raises(ps.FlowError, match="limit='many' is not a int"):
        ps.config.defaults(limit=3)


def test_the_flow_is_checked_against_its_settings():
    ps.config.defaults(limit=3)
    flow = ps.Flow("f").source("in", ps.iterable([])).sink("out", Kept())
    ps.config._given["late"] = 1
    with pytest.raises(ps.FlowError, match="unknown setting 'late'"):
        flow.build()


def test_settings_are_read_only():
    with pytest.raises(TypeError):
        ps.config["limit"] = 1
