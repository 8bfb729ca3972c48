"""Manifests, as authors write them, and what is said to those who write them wrongly."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from tests.model.wheels import FLOW, project

from penstock.errors import UsageError
from penstock.model.manifest import Manifest, Setting, checked_config, config_schema, defaults, read_manifest
from penstock.model.requirement import (
    normalized_version,
    parse_requirement,
    python_admits,
    same_version,
    wheel_parts,
)

PAGE = Path(__file__).parents[2] / "docs" / "packages.md"
FULL = """
[project]
name = "alarm-model"
version = "1.2"
requires-python = ">=3.11"
dependencies = ["numpy>=2"]

[tool.penstock]
flow = "alarms.flow:flow"
group = "sensors"
recovery = "passive"
tasks = ["alarms.tasks:resize"]

[tool.penstock.config]
threshold = 3.0
name = { type = "string", required = true, description = "of the site" }
limit = { default = 5, minimum = 1, maximum = 10 }
mode = { default = "fast", enum = ["fast", "exact"] }
tags = ["a"]
debug = false
table = { type = "object", default = { a = 1 } }
path = { type = "string" }
"""


@pytest.fixture
def write(tmp_path):
    """`write('flow = "a:b"')`: the manifest of a project whose [tool.penstock] has these lines."""

    def read(lines: str, before: str = "") -> Manifest:
        return read_manifest(project(tmp_path / "model", f"{before}\n[tool.penstock]\n{lines}\n", {}))

    return read


def test_everything_that_a_project_says(tmp_path):
    manifest = read_manifest(project(tmp_path, FULL, {}))
    assert (manifest.name, manifest.group, manifest.version) == ("alarm-model", "sensors", "1.2")
    assert (manifest.flow, manifest.requires, manifest.requires_python) == ("alarms.flow:flow", ("numpy>=2",), ">=3.11")
    assert (manifest.recovery, manifest.tasks) == ("passive", ("alarms.tasks:resize",))
    assert {name: setting.type for name, setting in manifest.config.items()} == {
        "threshold": "number", "name": "string", "limit": "integer", "mode": "string", "tags": "array",
        "debug": "boolean", "table": "object", "path": "string",
    }  # fmt: skip
    assert manifest.config["limit"] == Setting(type="integer", default=5, minimum=1, maximum=10)
    assert defaults(manifest) == {
        "threshold": 3.0, "limit": 5, "mode": "fast", "tags": ["a"], "debug": False, "table": {"a": 1}, "path": None,
    }  # fmt: skip
    assert msgspec.json.decode(msgspec.json.encode(manifest), type=Manifest) == manifest


def test_what_the_tool_says_is_before_what_the_project_says(write):
    before = '[project]\nname = "p"\nversion = "1"\ndependencies = ["numpy"]'
    manifest = write('flow = "a:b"\nname = "m"\nversion = "2"\nrequires = []\nrequires-python = "<4"', before)
    assert (manifest.name, manifest.version, manifest.requires, manifest.requires_python) == ("m", "2", (), "<4")


def test_a_single_file_with_and_without_head(tmp_path):
    plain = tmp_path / "counts.py"
    plain.write_text(FLOW)
    assert read_manifest(plain) == Manifest(flow="counts")
    plain.write_text(
        '# /// script\n# requires-python = ">=3.11"\n# dependencies = ["numpy"]\n#\n# [tool.penstock]\n'
        '# name = "words"\n'
        '# flow = "counts:flow"\n# [tool.penstock.config]\n# size = 3\n# ///\n' + FLOW
    )
    manifest = read_manifest(plain)
    assert (manifest.name, manifest.flow, manifest.requires) == ("words", "counts:flow", ("numpy",))
    assert manifest.config == {"size": Setting(type="integer", default=3)}


WRONG_FIELDS = {
    "unknown, near": ('flow = "a:b"\nrecovry = "none"', ["no field 'recovry'", "did you mean 'recovery'?"]),
    "unknown, far": ('flow = "a:b"\nzzz = 1', ["no field 'zzz'", "known are: config, flow"]),
    "no flow": ('name = "x"', ["does not say", 'flow = "module:object"']),
    "flow of another type": ("flow = 3", ["flow = 3", 'write flow = "…"']),
    "flow as a path": ('flow = "src/a.py"', ["flow = 'src/a.py'", "module:object"]),
    "flow with a call": ('flow = "a:b()"', ["does not end with an object"]),
    "name": ('flow = "a:b"\nname = "a b"', ["name = 'a b' is not a name", "letters, digits"]),
    "name as path": ('flow = "a:b"\nname = "../x"', ["name = '../x'"]),
    "group": ('flow = "a:b"\ngroup = "x/y"', ["group = 'x/y'"]),
    "version": ('flow = "a:b"\nversion = "one"', ["version: 'one' is not a version"]),
    "recovery": ('flow = "a:b"\nrecovery = "activ"', ["recovery = 'activ'", "did you mean 'active'?"]),
    "requires": ('flow = "a:b"\nrequires = "numpy"', ["requires = 'numpy' is not a list", 'requires = ["…"]']),
    "a requirement": ('flow = "a:b"\nrequires = ["num py"]', ["requires: 'num py' is not a requirement"]),
    "requires-python": ('flow = "a:b"\nrequires-python = "three"', ["requires-python: 'three' is not understood"]),
    "tasks": ('flow = "a:b"\ntasks = [1]', ["tasks = [1]"]),
    "config": ('flow = "a:b"\nconfig = 1', ["config = 1 is not a table"]),
    "not TOML": ("flow = ", ["is not valid TOML"]),
}


@pytest.mark.parametrize("case", WRONG_FIELDS)
def test_a_wrong_field_is_named_with_what_to_do(write, case):
    lines, said = WRONG_FIELDS[case]
    with pytest.raises(UsageError) as caught:
        write(lines)
    assert caught.value.remedy
    for words in said:
        assert words in str(caught.value)


WRONG_SETTINGS = {
    "a date": ("n = 2026-01-01", ["config.n", "no value of JSON"]),
    "infinite": ("n = inf", ["no value of JSON"]),
    "unknown word": ("n = { default = 1, minimun = 0 }", ["'minimun'", "did you mean 'minimum'?"]),
    "nothing": ("n = { description = 'x' }", ["neither a type nor a default"]),
    "unknown type": ("n = { type = 'int' }", ["type = 'int' is not known", "did you mean"]),
    "default of another type": ("n = { type = 'integer', default = 'x' }", ["default is 'x'", "a whole number"]),
    "a list of dates": ("n = [2026-01-01]", ["no value of JSON"]),
    "default below the minimum": ("n = { default = 1, minimum = 2 }", ["default is 1", "minimum is 2"]),
    "default outside of enum": ("n = { default = 1, enum = [2] }", ["default is 1", "one of: 2"]),
    "enum of another type": ("n = { default = 1, enum = [1, 'x'] }", ["enum has 'x'"]),
    "empty enum": ("n = { type = 'string', enum = [] }", ["enum is empty"]),
    "minimum of text": ("n = { default = 'x', minimum = 2 }", ["are for numbers"]),
    "minimum is text": ("n = { default = 1, minimum = 'x' }", ["minimum = 'x' is not a number"]),
    "crossed": ("n = { type = 'number', minimum = 2, maximum = 1 }", ["is above maximum"]),
    "required and default": ("n = { default = 1, required = true }", ["is required and has a default"]),
    "required as text": ("n = { type = 'string', required = 'yes' }", ["required = 'yes' is string"]),
    "a name with a dash": ("my-n = 1", ["'my-n' is not a setting's name"]),
}


@pytest.mark.parametrize("case", WRONG_SETTINGS)
def test_a_wrong_setting_is_named_with_what_to_do(write, case):
    line, said = WRONG_SETTINGS[case]
    with pytest.raises(UsageError) as caught:
        write(f'flow = "a:b"\n[tool.penstock.config]\n{line}')
    assert caught.value.remedy
    for words in said:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# /// script\n# a = 1\n", "has no end"),
        ("# /// script\n# ///\n" * 2, "2 blocks"),
        ("# /// script\n# a =\n# ///\n", "not valid TOML"),
        ("# /// script\n# [tool.penstock]\n# flow = 'other:flow'\n# ///\n", "not of this file"),
        ("# /// script\n# [tool.penstock]\n# floww = 'counts:flow'\n# ///\n", "did you mean 'flow'?"),
    ],
)
def test_a_wrong_head_of_a_file(tmp_path, text, said):
    (tmp_path / "counts.py").write_text(text)
    with pytest.raises(UsageError, match=said):
        read_manifest(tmp_path / "counts.py")


def test_what_is_given_becomes_the_type_that_the_manifest_says(tmp_path):
    manifest = read_manifest(project(tmp_path, FULL, {}))
    given = {
        "threshold": "4",
        "limit": "7",
        "debug": "true",
        "tags": '["x"]',
        "table": {},
        "name": "true",
        "path": None,
    }
    values = checked_config(manifest, given)
    assert values == {
        "threshold": 4.0, "limit": 7, "debug": True, "tags": ["x"], "table": {}, "name": "true", "path": None,
    }  # fmt: skip
    assert isinstance(values["threshold"], float)
    assert checked_config(manifest, {"limit": 7.0}) == {"limit": 7}
    assert checked_config(Manifest(flow="a"), {"anything": "7"}) == {"anything": "7"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"treshold": 1}, ["no setting 'treshold'", "did you mean 'threshold'?"]),
        ({"limit": 11}, ["limit = 11", "maximum is 10"]),
        ({"limit": 1.5}, ["a whole number", "for example limit=5"]),
        ({"limit": True}, ["a whole number"]),
        ({"limit": 10**30}, ["too large"]),
        ({"limit": None}, ["limit = None", "a whole number"]),
        ({"mode": "slow"}, ['one of: "fast", "exact"']),
        ({"name": 3}, ["name = 3", "it has to be text", "of the site"]),
        ({"debug": "maybe"}, ["true or false"]),
        ({"debug": 1}, ["true or false"]),
        ({"threshold": float("nan")}, ["a number"]),
        ({"tags": "x"}, ["a list"]),
        ({"tags": [{1, 2}]}, ["no value of JSON"]),
    ],
)
def test_a_value_that_does_not_fit(tmp_path, given, said):
    manifest = read_manifest(project(tmp_path, FULL, {}))
    with pytest.raises(UsageError) as caught:
        checked_config(manifest, given)
    for words in said:
        assert words in str(caught.value)


def test_the_schema_is_json_schema(tmp_path):
    schema = config_schema(read_manifest(project(tmp_path, FULL, {})))
    assert schema["required"] == ["name"]
    assert schema["properties"]["limit"] == {"type": "integer", "default": 5, "minimum": 1, "maximum": 10}
    assert schema["additionalProperties"] is False
    assert config_schema(Manifest(flow="a"))["additionalProperties"] is True


def test_versions_and_names_as_the_standards_write_them():
    forms = {"1.0-RC1": "1.0rc1", "v2": "2", "1!2.post-3": "1!2.post3", "01.2.dev": "1.2.dev0", "1+Ab_1": "1+ab.1"}
    assert {text: normalized_version(text) for text in forms} == forms
    wheel = parse_requirement("Foo__bar [b] @ file:./x.whl ; python_version>'3'")
    assert (wheel.name, wheel.extras, wheel.url) == ("foo-bar", {"b"}, "file:./x.whl")
    assert same_version("1.0", "1.0.0")
    assert same_version("1.0RC1", "1.0.0rc1")
    assert not same_version("1.0", "1.0.1")
    assert wheel_parts("Foo.Bar-1.0.post1-7-py3-none-any.whl") == ("foo-bar", "1.0.post1")
    for spec, admitted in {">=3.11,<3.12": True, "==3.11.*": True, "~=3.10": True, "~=3.10.0": False, "<3.11": False,
                           "!=3.11.*": False, "": True, "==3.11": False}.items():  # fmt: skip
        assert python_admits(spec, (3, 11, 7)) is admitted, spec


def test_what_the_documentation_shows_is_read(tmp_path):
    whole, settings = re.findall(r"```toml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    manifest = read_manifest(project(tmp_path / "whole", whole, {}))
    assert (manifest.name, manifest.group, manifest.requires) == ("speedmap", "traffic", ("numpy>=2",))
    manifest = read_manifest(project(tmp_path / "settings", f'[tool.penstock]\nflow = "a:b"\n{settings}', {}))
    assert set(manifest.config) == {"threshold", "window", "workers", "site", "path", "limits"}
    head = next(
        text for text in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL) if "///" in text
    )
    (tmp_path / "hot.py").write_text(head)
    assert defaults(read_manifest(tmp_path / "hot.py")) == {"threshold": 80.0}
