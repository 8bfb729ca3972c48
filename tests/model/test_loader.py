"""Loading: files, directories and unpacked packages, one after another in one process."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from tests.model.wheels import project

from penstock import testing
from penstock.errors import FlowError, UsageError
from penstock.flow import config
from penstock.model.loader import load_graph, unload
from penstock.model.package import build, unpack

EXAMPLE = Path(__file__).parents[2] / "examples" / "packaged" / "speedmap"
PENDING = "flow.source('in', ps.push())\n"
"""A flow without a sink does not build."""
TOML = '[tool.penstock]\nname = "{name}"\nflow = "tiny.flow:flow"\n'
FLOW = """
import penstock as ps
from tiny import part
from tiny.deep.inner import VERSION

def again(record):
    from tiny import late
    return (record, VERSION, part.VERSION, late.VERSION)

flow = ps.Flow("tiny")
flow.source("in", ps.push()).map("again", again).sink("out", ps.stdout())
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """What a test imports and sets is gone afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        if not name.startswith("penstock."):  # the library's own modules are imported once for all tests
            del sys.modules[name]
    config.install({})


@pytest.fixture
def tree(tmp_path):
    """`tree("1", name="m")`: an unpacked package whose modules all say that version."""

    def make(version: str, name: str = "tiny", toml: str = "", **files: str) -> str:
        code = {
            "tiny/__init__.py": "",
            "tiny/flow.py": FLOW,
            "tiny/part.py": f"VERSION = {version!r}\n",
            "tiny/late.py": f"VERSION = {version!r}\n",
            "tiny/deep/inner.py": f"VERSION = {version!r}\n",
        }
        where = tmp_path / f"{name}-{version}"
        source = project(where / "source", TOML.format(name=name) + toml, code | files)
        unpack(build(source, where).path, where / "tree")
        made.append(str(where / "tree"))
        return made[-1]

    made: list[str] = []
    yield make
    for path in made:
        unload(path)


def outcome(graph) -> list:
    return testing.run(graph, {"in": [0]}).outputs["out"]


def test_two_packages_of_one_model_have_their_own_modules(tree):
    first, second = tree("1"), tree("2")
    old = load_graph(first)
    assert outcome(old) == [(0, "1", "1", "1")]
    old_flow = sys.modules["tiny.flow"]
    new = load_graph(second)
    assert outcome(new) == [(0, "2", "2", "2")]
    assert old_flow.part.VERSION == "1"  # what runs keeps the modules that it has
    assert sys.modules["tiny.flow"] is not old_flow
    assert first not in sys.path
    assert outcome(load_graph(first)) == [(0, "1", "1", "1")]


def test_when_the_newer_package_is_unloaded_the_older_one_is_in_force_again(tree):
    first, second, third = tree("1"), tree("2"), tree("3")
    old, modules = load_graph(first), dict(sys.modules)
    load_graph(second)
    load_graph(third)
    unload(second)  # in between, not in force
    assert sys.modules["tiny.part"].VERSION == "3"
    unload(third)
    assert sys.modules["tiny.part"] is modules["tiny.part"]
    assert outcome(old) == [(0, "1", "1", "1")]  # also what it imports only now
    unload(first)
    assert "tiny" not in sys.modules
    assert not {first, second, third} & set(sys.path)


def test_an_older_package_that_is_loaded_again_is_in_force(tree):
    first, second = tree("1"), tree("2")
    load_graph(first)
    newer = load_graph(second)
    assert outcome(load_graph(first)) == [(0, "1", "1", "1")]
    unload(first)
    assert outcome(newer) == [(0, "2", "2", "2")]


def test_a_module_that_the_newer_package_lacks_is_not_found_in_the_older(tree):
    load_graph(tree("1", **{"extra.py": "VERSION = 1\n"}))
    assert importlib.import_module("extra").VERSION == 1
    load_graph(tree("2"))
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("extra")


@pytest.mark.parametrize(
    "broken", ["raise ValueError('boom')", "import penstock as ps\nflow = ps.Flow('f')\n" + PENDING]
)
def test_a_package_that_does_not_load_leaves_the_earlier_one_in_place(tree, broken):
    first = load_graph(tree("1"))
    module = sys.modules["tiny.part"]
    with pytest.raises((ValueError, FlowError)):
        load_graph(tree("2", **{"tiny/flow.py": f"from tiny import part\n{broken}"}))
    assert sys.modules["tiny.part"] is module
    assert outcome(first) == [(0, "1", "1", "1")]  # also what it imports only now
    assert outcome(load_graph(tree("3"))) == [(0, "3", "3", "3")]


def test_a_setting_that_does_not_fit_leaves_the_same_package_in_place(tree):
    path = tree("1", **{"tiny/flow.py": FLOW + "\nif 'bad' in ps.config:\n    raise ValueError('bad')\n"})
    first = load_graph(path)
    with pytest.raises(ValueError, match="bad"):
        load_graph(path, {"bad": 1})
    assert outcome(first) == [(0, "1", "1", "1")]


def test_one_package_twice(tree):
    path = tree("1")
    first = load_graph(path)
    module = sys.modules["tiny.part"]
    second = load_graph(path)
    assert (outcome(first), outcome(second)) == ([(0, "1", "1", "1")],) * 2
    assert sys.modules["tiny.part"] is not module


def test_two_models_with_equal_modules_do_not_share_them(tree):
    """In one process it is refused, before anything is imported: groups are for that."""
    first, second = tree("1", name="one"), tree("2", name="two")
    load_graph(first)
    with pytest.raises(UsageError, match="a module named 'tiny' is already imported") as caught:
        load_graph(second)
    assert "another group" in str(caught.value)
    assert sys.modules["tiny.part"].VERSION == "1"
    assert second not in sys.path
    unload(first)
    assert outcome(load_graph(second)) == [(0, "2", "2", "2")]


def test_a_package_cannot_take_the_place_of_what_is_imported(tree):
    path = tree("1", **{"msgspec/__init__.py": ""})
    with pytest.raises(UsageError, match="'msgspec' is already imported"):
        load_graph(path)


def test_unloaded_is_gone(tree):
    path = tree("1")
    load_graph(path)
    unload(path)
    assert not [name for name in sys.modules if name.partition(".")[0] == "tiny"]
    assert path not in sys.path
    unload(path)  # again: nothing to do


SETTINGS = """
[tool.penstock.config]
size = { default = 3, maximum = 9 }
site = { type = "string", required = true, description = "where it stands" }
path = { type = "string" }
"""
READS = """
import penstock as ps
ps.config.defaults(added=7, path="from the code")
SEEN = dict(ps.config)
flow = ps.Flow("tiny")
flow.source("in", ps.push()).sink("out", ps.stdout())
"""


def test_the_manifest_declares_settings_before_the_code_runs(tree):
    path = tree("1", toml=SETTINGS, **{"tiny/flow.py": READS})
    load_graph(path, {"site": "north", "size": "4"})
    assert sys.modules["tiny.flow"].SEEN == {"size": 4, "site": "north", "path": "from the code", "added": 7}
    for given, said in {"treshold=1": "no setting 'treshold'", "size=10": "maximum is 9", "size=x": "whole"}.items():
        key, _, value = given.partition("=")
        with pytest.raises(UsageError, match=said):
            load_graph(path, {"site": "north", key: value})
    with pytest.raises(UsageError, match="'site' has to be given") as caught:
        load_graph(path)
    assert "where it stands" in str(caught.value)


def test_a_default_in_two_places_has_to_be_one(tree):
    toml = "[tool.penstock.config]\nadded = 8\n"
    with pytest.raises(UsageError, match="'added' has two defaults: 8 in the manifest, 7 in the code"):
        load_graph(tree("1", toml=toml, **{"tiny/flow.py": READS}))


def test_a_python_that_is_not_admitted(tmp_path):
    toml = '[tool.penstock]\nname = "old"\nflow = "old:flow"\nrequires-python = "<3.9"\n'
    with pytest.raises(UsageError, match=r"requires Python <3\.9"):
        load_graph(str(project(tmp_path / "old", toml, {"old.py": FLOW})))


def test_an_object_of_a_package(tree):
    path = tree("1", **{"tiny/flow.py": FLOW + "\ndef other():\n    return flow\n"})
    assert outcome(load_graph(f"{path}:other")) == [(0, "1", "1", "1")]
    with pytest.raises(UsageError, match="defines no 'gone'"):
        load_graph(f"{path}:gone")


def test_a_directory_and_a_file_read_their_heads(tmp_path):
    text = 'import penstock as ps\nSIZE = ps.config["size"]\nflow = ps.Flow("f")\nother = ps.Flow("g")\n'
    text += 'flow.source("in", ps.push()).sink("out", ps.stdout())\n'
    toml = '[tool.penstock]\nflow = "proj_flow:flow"\n[tool.penstock.config]\nsize = 3\n'
    source = project(tmp_path / "project", toml, {"src/proj_flow.py": text})
    load_graph(str(source), {"size": "5"})
    assert sys.modules["proj_flow"].SIZE == 5
    file = tmp_path / "lone_flow.py"
    file.write_text(
        '# /// script\n# [tool.penstock]\n# flow = "lone_flow:flow"\n# [tool.penstock.config]\n# size = 4\n# ///\n'
        + text
    )
    load_graph(str(file))
    assert sys.modules["lone_flow"].SIZE == 4
    with pytest.raises(FlowError):
        load_graph(f"{file}:other", {})


def test_a_changed_file_is_imported_anew_with_what_it_imports(tmp_path):
    (tmp_path / "aside.py").write_text("SIZE = 1\n")
    flow = 'import penstock as ps\nfrom aside import SIZE\nflow = ps.Flow("f")\n'
    (tmp_path / "changing.py").write_text(flow + 'flow.source("in", ps.push()).sink("out", ps.stdout())\n')
    load_graph(str(tmp_path / "changing.py"))
    (tmp_path / "aside.py").write_text("SIZE = 22\n")
    load_graph(str(tmp_path / "changing.py"))
    assert sys.modules["changing"].SIZE == 22


def test_what_is_installed_below_the_folder_stays(tmp_path):
    """A virtual environment inside of the author's directory: its packages are not the author's modules."""
    site = tmp_path / "venv" / "site-packages"
    site.mkdir(parents=True)
    (site / "installed.py").touch()
    sys.path.append(str(site))
    flow = 'import installed\nimport penstock as ps\nflow = ps.Flow("f")\n'
    (tmp_path / "with_venv.py").write_text(flow + 'flow.source("in", ps.push()).sink("out", ps.stdout())\n')
    load_graph(str(tmp_path / "with_venv.py"))
    installed = sys.modules["installed"]
    load_graph(str(tmp_path / "with_venv.py"))
    assert sys.modules["installed"] is installed


def test_the_example_is_a_package_that_loads_and_tests_itself(tmp_path):
    package = build(EXAMPLE, tmp_path / "out")
    assert (package.manifest.group, package.lock) == ("traffic", "")
    unpack(package.path, tmp_path / "tree")
    load_graph(str(tmp_path / "tree"))
    sys.modules["speedmap.flow"].self_test()
    assert sys.modules["speedmap.flow"].DEGREES == 0.05
    load_graph(str(tmp_path / "tree"), {"degrees": "0.5", "window": "1d"})
    sys.modules["speedmap.flow"].self_test()
    with pytest.raises(UsageError, match="the maximum is 10"):
        load_graph(str(tmp_path / "tree"), {"degrees": 11})
    unload(str(tmp_path / "tree"))
