"""Who may come in."""

import pytest

from penstock.errors import UsageError
from penstock.gateway.app import create_app
from penstock.gateway.settings import GatewaySettings

TLS = {"tls_certificate": "c.pem", "tls_key": "k.pem"}
WITH_TOKEN = GatewaySettings(token="s3cret")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"host": "0.0.0.0"}, "no token and no TLS"),
        ({"host": "0.0.0.0", "token": "t"}, "no TLS"),
        ({"host": "192.168.1.2", **TLS}, "no token"),
        ({"host": "node.example.org"}, "no token"),
        ({"host": "::"}, "no token"),
        ({"tls_key": "k.pem"}, "both"),
    ],
)
def test_an_open_address_needs_token_and_tls(service, settings, named):
    with pytest.raises(UsageError, match=named):
        create_app(service, GatewaySettings(**settings))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_nothing(service, host):
    assert create_app(service, GatewaySettings(host=host))


def test_open_address_with_both(service):
    assert create_app(service, GatewaySettings(host="0.0.0.0", token="t", **TLS))


@pytest.mark.parametrize("given", [None, "Bearer wrong", "s3cret", "Basic s3cret", "Bearer s3cret2", "Bearer é"])
@pytest.mark.parametrize("path", ["/v1/nodes", "/metrics", "/docs", "/v1/state/a/b/c/d"])
def test_token_is_needed(ask, given, path):
    headers = {} if given is None else {"authorization": given.encode()}
    answer = ask("GET", path, WITH_TOKEN, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "token" in answer.json()["detail"]


def test_token_lets_in(ask):
    assert ask("GET", "/v1/nodes", WITH_TOKEN, headers={"authorization": "Bearer s3cret"}).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_need_none(ask, path):
    assert ask("GET", path, WITH_TOKEN).status_code == 200


def test_a_web_page_cannot_use_the_loopback(ask):
    assert ask("GET", "/v1/nodes", headers={"host": "evil.example:8700"}).status_code == 403
    assert ask("POST", "/v1/models", headers={"origin": "https://evil.example"}, content=b"x").status_code == 403
    assert ask("GET", "/v1/nodes", headers={"origin": "http://localhost:8700"}).status_code == 200


def test_calls_between_nodes_carry_the_clusters_token(ask):
    right = {"x-penstock-cluster": "cluster-secret"}
    answer = ask("POST", "/internal/call", WITH_TOKEN, headers=right, content=b"abc")
    assert (answer.status_code, answer.content) == (200, b"cba")
    assert answer.headers["content-type"] == "application/msgpack"
    assert ask("POST", "/internal/call", content=b"abc").status_code == 403
    assert "/internal/call" not in ask("GET", "/openapi.json").json()["paths"]
