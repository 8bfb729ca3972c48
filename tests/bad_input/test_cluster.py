"""A real cluster that is asked for what it cannot do, and models that cannot run in it."""

import time

import httpx
from tests.bad_input.conftest import flow_text
from tests.cluster.nodes import DEADLINE

KEYED = (".key_by('key', lambda r: r['k']).count('n')", "ps.collect()")
IN_WORKERS_ALONE = "import sys, os\nif 'penstock.worker' in sys.orig_argv:\n    {}\n"


def until(condition):
    """Wait until `condition()` is true, and give what it gave."""
    end = time.monotonic() + DEADLINE
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return value


def test_names_that_are_not_there(cluster, write, folder):
    cluster("model", "add", write("ps.push()", *KEYED, name="good.py"), "--name", "good", "--online")
    (folder / "one").write_text('{"k": "a"}\n')
    for args, said in {
        ("model", "show", "none"): "there is no model 'default/none'",
        ("model", "online", "none"): "penstock model list",
        ("model", "delete", "none"): "there is no model",
        ("model", "results", "none"): "there is no model",
        ("model", "results", "good", "--step", "none"): "no such step",
        ("state", "none", "n", "a"): "there is no model",
        ("state", "good", "none", "a"): "the steps are: in, key, n, out",
        ("state", "good", "key", "a"): "steps that have: n",
        ("state", "good", "n", "a"): "holds nothing for the key 'a'",
        ("push", "none/in", "one"): "there is no model",
        ("push", "good/none", "one"): "sources that take pushed records: in",
        ("model", "add", folder / "good.py", "--name", "good"): "'default/good'",
        ("model", "delete", "good"): "penstock model offline",
    }.items():
        assert said in cluster(*args, code=1), args
    for args, said in {
        ("model", "add", "/none/there.py"): "/none/there.py",
        ("state", "good", "n", "a", "--type", "int"): "not of type int",
        ("push", "good", "one"): "MODEL/SOURCE",
        ("push", "good/in", "none"): "no such file: none",
        ("push", "good/in", "/"): "directory",
        ("model", "online", "good", "--set", "x"): "--set KEY=VALUE",
        ("model", "add", "none.py"): "there is no flow",
    }.items():
        assert said in cluster(*args, code=2), args


def test_pushes_that_are_refused(cluster, write, folder):
    cluster("model", "add", write("ps.push()", *KEYED, name="good.py"), "--name", "good", "--online")
    stream = f"{cluster.url}/v1/streams/default/good/in"
    ndjson, plain = {"content-type": "application/x-ndjson"}, {"content-type": "application/json"}
    for status, body, headers, said in [
        (422, b'{"k": 1}\nnope\n', ndjson, "line 2 is not JSON"),
        (422, b"\xff\xfe", ndjson, "line 1 is not JSON"),
        (422, b'{"k": 1}', plain, "must be a JSON array"),
        (422, b"[1", plain, "not JSON"),
        (415, b"k=1", {"content-type": "application/x-www-form-urlencoded"}, "application/x-ndjson"),
        (415, b"1", {**ndjson, "content-encoding": "br"}, "send it plain"),
        (415, b"1", {"content-type": "application/json; charset=latin-1"}, "JSON is UTF-8"),
        (413, b'"%s"' % (b"x" * 9_000_000), ndjson, "bytes"),
        (422, b"1\n", {**ndjson, "penstock-client": "c"}, "belong together"),
    ]:
        answer = httpx.post(stream, content=body, headers=headers, timeout=20)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
        assert said in answer.json()["detail"]
    assert cluster("state", "good", "n", "--json") == "[]\n"

    (folder / "bad").write_text('{"k": "a"}\n' * 50_000 + "nope\n")
    text = cluster("push", "good/in", "bad", code=1)
    assert "line 50001 of the input" in text
    assert "records are retained" in text
    (folder / "long").write_text("1" * 9_000_000)
    assert "one push may bring" in cluster("push", "good/in", "long", code=1)


FLOWS = {
    "no flow": ("x = 1\n", "defines no flow"),
    "syntax": ("def (\n", "SyntaxError"),
    "import": ("raise ValueError('boom')\n", "boom"),
    "two": ("import penstock as ps\na = ps.Flow('a')\nb = ps.Flow('b')\n", "defines several flows: a, b"),
}


def test_flows_that_cannot_be_added(cluster, write):
    for name, (text, said) in FLOWS.items():
        assert said in cluster("model", "add", write(text=text), "--name", name.replace(" ", "-"), code=1)
    assert cluster("model", "list", "--json") == "[]\n"


def test_models_that_cannot_run(cluster, write, folder):
    good = flow_text("ps.push()", ".map('divide', lambda n: 1 / n)", "ps.collect()")
    crashing = {
        "exits": (IN_WORKERS_ALONE.format("os._exit(7)") + good, "ended with status 7"),
        "raises": (IN_WORKERS_ALONE.format("raise ValueError('only here')") + good, "ValueError: only here"),
        "missing": (flow_text("ps.csv('/none/there.csv')", sink="ps.collect()"), "no file '/none/there.csv'"),
    }
    for name, (text, said) in crashing.items():
        path = write(text=text, name=f"{name}.py")
        assert said in cluster("model", "add", path, "--name", name, "--online", code=1)
        assert cluster.show(name)["status"] == "failed"
        assert said in cluster("model", "show", name)

    cluster("model", "add", write(text=good, name="divides.py"), "--name", "divides", "--online")
    (folder / "zero").write_text("1\n0\n")
    cluster("push", "divides/in", "zero")
    until(lambda: cluster.show("divides")["status"] == "failed")
    text = cluster("model", "show", "divides")
    assert "step 'divide': ZeroDivisionError" in text
    assert "record: 0" in text
    assert "ZeroDivisionError" in cluster("push", "divides/in", "zero", code=1)

    cluster("model", "add", write(text=good, name="gone.py"), "--name", "gone")
    (folder / "gone.py").unlink()
    cluster("model", "online", "gone")  # the cluster has its package
    assert cluster.show("gone")["status"] == "online"


def test_a_step_that_raises_is_skipped_and_counted(cluster, write, folder):
    parts = ("ps.push()", ".map('divide', lambda n: 1 / n)", "ps.collect()")
    cluster("model", "add", write(*parts, on_error="skip", name="skips.py"), "--name", "skips", "--online")
    (folder / "zero").write_text("1\n0\n2\n")
    cluster("push", "skips/in", "zero")
    until(lambda: cluster.show("skips")["counters"].get("divide.skipped") == 1)
    assert until(lambda: cluster("model", "results", "skips", "--json")).splitlines() == ["1.0", "0.5"]
    assert cluster.show("skips")["status"] == "online"


def test_a_file_beside_it_does_not_stand_in_for_a_module(write, cluster_beside):
    cluster = cluster_beside("http.py", "redis.py")
    assert "node-1" in cluster("nodes")
