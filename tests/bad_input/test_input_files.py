"""Files that are malformed, in another encoding, cut, or not there: an error with the place, or a counted skip."""

import gzip
import json

import pytest

LINES = "a,b\n1,2\n3\n4,x\n5,6\n"

BAD = {
    "csv: too few fields": (
        "ps.csv('d', types={'a': int})", LINES, ["'d', line 3", "1 fields where the header names 2", "'3'"]
    ),
    "csv: a quote that is never closed": ("ps.csv('d')", 'a,b\n1,2\n"3,4\n5,6\n', ["line 3", "not CSV"]),
    "ndjson: not JSON": ("ps.ndjson('d')", '{"a":1}\n{bad\n', ["line 2", "not JSON", "{bad"]),
    "text: latin-1": ("ps.files('d')", b"ok\n" + "café\n".encode("latin-1"), ["line 2, byte 6", "latin-1"]),
    "csv: UTF-16": ("ps.csv('d')", "a,b\n1,2\n".encode("utf-16"), ["line 1", "looks like UTF-16"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_told_with_its_place(run, write, folder, name):
    source, content, said = BAD[name]
    (folder / "d").write_bytes(content if isinstance(content, bytes) else content.encode())
    code, _, err = run(write(source))
    assert code == 1
    assert err.startswith("error: ")
    assert "  -> " in err
    for words in said:
        assert words in err


def test_bad_records_are_skipped_and_counted(run, write, folder):
    (folder / "c").write_text(LINES)
    (folder / "j").write_text('{"a":7}\n{bad\n\n[8]\nnope\n')
    (folder / "t").write_bytes(b"nine\n\xff\xfe\xe9\n")
    text = (
        "import penstock as ps\nflow = ps.Flow('bad', on_error='skip')\n"
        "rows = flow.source('rows', ps.csv('c', types={'a': int, 'b': int}))\n"
        "items = flow.source('items', ps.ndjson('j'))\n"
        "lines = flow.source('lines', ps.files('t'))\n"
        "rows.merge('all', items, lines).sink('out', ps.stdout('json'))\n"
    )
    code, out, err = run(write(text=text))
    assert code == 0, err
    records = [json.loads(line) for line in out.splitlines()]
    assert sorted(map(str, records)) == sorted(map(str, [{"a": 1, "b": 2}, {"a": 5, "b": 6}, {"a": 7}, [8], "nine"]))
    counted = json.loads(err.partition("counted: ")[2].splitlines()[0])
    assert counted == {"rows.skipped": 2, "items.skipped": 2, "lines.skipped": 1}


def test_bad_records_go_to_the_dead_letters(run, write, folder):
    (folder / "j").write_text('{"a":1}\n{bad\n')
    text = (
        "import penstock as ps\nflow = ps.Flow('bad', on_error=ps.ndjson('letters.ndjson'))\n"
        "flow.source('in', ps.ndjson('j')).map('get', lambda r: r['b']).sink('out', ps.stdout())\n"
    )
    code, out, err = run(write(text=text))
    assert code == 0, err
    assert out == ""
    letters = [json.loads(line) for line in (folder / "letters.ndjson").read_text().splitlines()]
    assert sorted((letter["step"], letter["error"].partition(":")[0]) for letter in letters) == [
        ("get", "KeyError"), ("in", "ConnectorError"),
    ]  # fmt: skip
    assert '"in.dead_letter":1' in err
    assert '"get.dead_letter":1' in err


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("ps.csv('dd.csv')", ["no file 'dd.csv'", "did you mean 'd.csv'?"]),
        ("ps.ndjson('empty')", ["'empty' holds no file"]),
        ("ps.ndjson('cut.gz')", ["'cut.gz' is not a complete gzip file"]),
    ],
)
def test_files_that_cannot_be_read(run, write, folder, source, said):
    (folder / "d.csv").write_text(LINES)
    (folder / "empty").mkdir()
    (folder / "plain.gz").write_text('{"a":1}\n')
    (folder / "cut.gz").write_bytes(gzip.compress(b'{"a":1}\n' * 10_000)[:-9])
    # Records before the cut may be processed, the run fails all the same.
    code, _, err = run(write(source, sink="ps.collect()"))
    assert code == 1
    assert "  -> " in err
    for words in said:
        assert words in err
