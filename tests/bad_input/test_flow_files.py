"""What is given to `penstock run` is no flow, or not one that can be run: exit status 2 and what to do."""

import pytest
from tests.bad_input.conftest import check_readable, flow_text, one_line

GOOD = flow_text("ps.iterable([1])")
TWO = "import penstock as ps\na = ps.Flow('a')\nb = ps.Flow('b')\n"

UNUSABLE = {
    "a syntax error": ("import penstock as ps\ndef (\n", [], ["SyntaxError", "author.py:2"]),
    "raises at import": ("import penstock as ps\nraise ValueError('boom')\n", [], ["ValueError: boom"]),
    "no flow": ("x = 1\n", [], ["author.py defines no flow", 'flow = ps.Flow("name")']),
    "several flows": (TWO, [], ["several flows: a, b", "author.py:a"]),
    "no sink": ("import penstock as ps\nflow = ps.Flow('f')\nflow.source('in', ps.iterable([1]))\n", [], ["'in'"]),
    "not Python": ("\0", [], ["null bytes"]),
    "ends the interpreter": ("import sys\nsys.exit(3)\n", [], ["SystemExit: 3"]),
    "--set without a value": (GOOD, ["--set", "n"], ["--set 'n' is not an assignment", "--set n=3"]),
    "--set of nothing declared": (
        GOOD + "ps.config.defaults(size=1)\n", ["--set", "sise=3"], ["unknown setting 'sise'", "size"]
    ),
    "--set of another type": (
        GOOD + "ps.config.defaults(size=1)\n", ["--set", "size=big"], ["size='big' is not a int", "size=1"]
    ),
    "--checkpoint in a file": (GOOD, ["--checkpoint", "author.py"], ["is a file", "name a directory"]),
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_cannot_be_run_is_wrong_usage(penstock, write, name):
    text, options, said = UNUSABLE[name]
    result = penstock("run", write(text=text), *options)
    assert (result.exit_code, result.stdout) == (2, "")
    check_readable(result.stderr)
    for words in said:
        assert words in one_line(result.stderr)


def test_an_object_that_is_no_flow(penstock, write):
    result = penstock("run", f"{write(text=GOOD)}:ps")
    assert result.exit_code == 2
    assert "author:ps is module, not a penstock.Flow" in result.stderr


def test_a_name_that_is_not_defined(penstock, write):
    result = penstock("run", f"{write(text=GOOD)}:flwo")
    assert result.exit_code == 2
    assert "defines no 'flwo'" in one_line(result.stderr)
    assert "it has: flow" in one_line(result.stderr)


def test_nothing_there(run, folder):
    target = "none.py"
    code, _, err = run(target)
    assert (code, err) == (2, f"error: no such file or directory: {target}\n")


def test_a_directory_without_a_declaration(penstock, folder):
    result = penstock("run", ".")
    assert result.exit_code == 2
    assert "has no pyproject.toml" in result.stderr


@pytest.mark.parametrize("url", ["nosuch://place/x", "/proc/none"])
def test_a_checkpoint_that_cannot_be_kept(run, write, url):
    code, _, err = run(write("ps.iterable([1])", sink="ps.collect()"), "--checkpoint", url)
    assert code == 1
    assert err.startswith("error: ")
    assert url in err


def test_a_checkpoint_of_another_flow(run, write):
    run(write("ps.iterable([1])"), "--checkpoint", "kept")
    code, _, err = run(write("ps.iterable([1])", ".map('more', str)"), "--checkpoint", "kept")
    assert code == 1
    assert "is of another flow" in err
    assert "another --checkpoint directory" in err
