"""Look-ups in keyed state."""

from urllib.parse import quote

import pytest

PATH = "/v1/state/default/words/count"

pytestmark = pytest.mark.usefixtures("words")


@pytest.mark.parametrize("key", ["a", "a/b", "ü", "with space", "", ".", "100%", "a?b#c"])
def test_any_text_is_a_key(ask, service, key):
    service.state[key] = 3
    answer = ask("GET", f"{PATH}/{quote(key, safe='').replace('.', '%2E')}")
    assert answer.json() == {"key": key, "value": 3}


@pytest.mark.parametrize(
    ("key", "text", "kind"),
    [(7, "7", "int"), (-7, "-7", "int"), (("a", 1), '["a",1]', "json"), (1.5, "1.5", "json"), ("7", '"7"', "json")],
)
def test_typed_keys(ask, service, key, text, kind):
    service.state = {key: "found"}
    assert ask("GET", f"{PATH}/{quote(text, safe='')}?type={kind}").json()["value"] == "found"


@pytest.mark.parametrize(
    ("text", "kind"), [("x", "int"), ("{", "json"), ("%7B%7D", "json"), ("a", "float"), ("%5B%7B%7D%5D", "json")]
)
def test_bad_keys(ask, text, kind):
    assert ask("GET", f"{PATH}/{text}?type={kind}").status_code == 422


def test_missing_key_step_and_model(ask):
    assert "'gone'" in ask("GET", f"{PATH}/gone").json()["detail"]
    for path in (f"{PATH}/gone", "/v1/state/default/words/none/a", "/v1/state/default/none/count/a"):
        assert ask("GET", path).status_code == 404


def test_values_that_json_does_not_know(ask, service):
    service.state["a"] = {("x", 1): 2**80, "when": {1, 2}, 3: b"bytes", "nan": float("nan")}
    value = ask("GET", f"{PATH}/a").json()["value"]
    assert value["('x', 1)"] == 2**80
    assert value["when"] == [1, 2]
    assert value["nan"] is None


def test_listing_by_pages(ask, service):
    service.state = {f"k{i}": i for i in range(5)}
    seen, cursor = [], None
    for expected in (2, 2, 1):
        query = {"limit": 2} if cursor is None else {"limit": 2, "cursor": cursor}
        page = ask("GET", PATH, params=query).json()
        assert len(page["items"]) == expected
        seen += page["items"]
        cursor = page["cursor"]
    assert cursor is None
    assert seen == [{"key": f"k{i}", "value": i} for i in range(5)]


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1001", "9" * 40, "²"])
def test_bad_limits(ask, limit):
    assert ask("GET", PATH, params={"limit": limit}).status_code == 422
