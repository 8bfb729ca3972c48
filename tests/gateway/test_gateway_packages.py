"""Packages come in whole, whichever way they are sent, and never are in memory."""

import asyncio
import hashlib

import httpx
import pytest
from tests.gateway.packages import package

from penstock.gateway.app import create_app
from penstock.gateway.multipart import parts
from penstock.gateway.problems import Problem
from penstock.gateway.settings import GatewaySettings

WORDS = "/v1/models/default/words"


def detail(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.json()["detail"]


@pytest.mark.parametrize("kind", [None, "application/octet-stream", "application/zip", "application/x-wheel+zip"])
def test_a_wheel_as_the_body(ask, kind):
    answer = ask("POST", "/v1/models", content=package(), headers={} if kind is None else {"content-type": kind})
    assert answer.status_code == 201
    assert answer.json()["digest"] == hashlib.sha256(package()).hexdigest()


@pytest.mark.parametrize("field", ["package", "wheel", "anything"])
def test_a_wheel_as_a_file_of_a_form(ask, field):
    files = {field: ("words-1.0-py3-none-any.whl", package())}
    assert ask("POST", "/v1/models?name=g/w", files=files).json()["name"] == "g/w"


def form(*fields, boundary=b"xyz"):
    """A form as bytes: fields are (headers, content)."""
    made = b"".join(b"--" + boundary + b"\r\n" + head + b"\r\n\r\n" + content + b"\r\n" for head, content in fields)
    return made + b"--" + boundary + b"--\r\n"


def disposition(name, filename=None):
    return f'Content-Disposition: form-data; name="{name}"'.encode() + (
        b"" if filename is None else f'; filename="{filename}"'.encode()
    )


MULTIPART = {"content-type": "multipart/form-data; boundary=xyz"}


@pytest.mark.parametrize("order", [1, -1])
def test_an_update_of_package_and_configuration(ask, words, order):
    ask("POST", f"{WORDS}/offline")
    fields = [
        (disposition("package", "w.whl"), package(version="2.0")),
        (disposition("config") + b"\r\nContent-Type: application/json", b'{"n": 7}'),
    ]
    answer = ask("PUT", WORDS, content=form(*fields[::order]), headers=MULTIPART)
    assert (answer.json()["version"], answer.json()["config"]) == ("2.0", {"n": 7})


def test_an_update_while_online(ask, service, words):
    assert detail(ask("PUT", WORDS, content=package(version="2.0")), 409)
    assert ask("PUT", f"{WORDS}?live=true", content=package(version="2.0")).json()["version"] == "2.0"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (form((disposition("nonsense"), b"x")), "nonsense"),
        (form((disposition("config"), b"{}")), "`package`"),
        (form(), "no package"),
        (form((disposition("package"), b"")), "empty"),
        (form((b"X-Other: 1", b"x")), "Content-Disposition"),
        (form((b"", b"x")), "Content-Disposition"),
        (form((disposition("package", "w"), package()), (disposition("package", "w"), package())), "two packages"),
        (b"nothing of the kind", "last boundary"),
        (b"--xyz oops\r\n\r\n\r\n--xyz--", "line of a boundary"),
        (b"--xyz" + b" " * 500, "longer than"),
        (b"--xyz\r\n" + b"X-Long: " + b"x" * 20_000, "longer than"),
        (form((disposition("package", "w"), package()))[:-8], "last boundary"),
    ],
)
def test_forms_that_make_no_sense(ask, service, content, named):
    assert named in detail(ask("POST", "/v1/models", content=content, headers=MULTIPART), 422)
    assert service.catalogue == {}


@pytest.mark.parametrize("boundary", ["", "; boundary=", f"; boundary={'x' * 71}"])
def test_forms_without_a_boundary(ask, boundary):
    headers = {"content-type": f"multipart/form-data{boundary}"}
    assert "boundary" in detail(ask("POST", "/v1/models", content=b"--\r\n", headers=headers), 422)


@pytest.mark.parametrize(
    ("options", "status", "named"),
    [
        ({"content": b""}, 422, "empty"),
        ({"content": b"no wheel"}, 422, "package"),
        ({"content": package()[:-100]}, 422, "package"),
        ({"json": {"path": "/flows/words.py"}}, 415, "penstock model build"),
        ({"data": {"a": "b"}}, 415, "octet-stream"),
        ({"content": package(), "headers": {"content-encoding": "gzip"}}, 415, "gzip"),
    ],
)
def test_what_is_no_package(ask, service, options, status, named):
    assert named in detail(ask("POST", "/v1/models", **options), status)
    assert service.catalogue == {}


@pytest.mark.parametrize("body", ["[]", '{"config": 3}', "{}", '{"config": {}, "more": 1}', "nonsense", '"\udce4"'])
def test_configurations_that_are_none(ask, words, body):
    content = body.encode("utf-8", "surrogateescape")
    answer = ask("PUT", f"{WORDS}?live=true", content=content, headers={"content-type": "application/json"})
    assert "config" in detail(answer, 422)


def test_a_configuration_that_is_too_large(ask, words):
    answer = ask("PUT", f"{WORDS}?live=true", json={"config": {"x": "x" * 2**20}})
    assert "larger" in detail(answer, 413)


def test_packages_have_a_limit_of_their_own(ask):
    small = GatewaySettings(max_body=100)
    assert ask("POST", "/v1/models", small, content=package()).status_code == 201
    settings = GatewaySettings(max_package=1000)
    assert "1000 bytes" in detail(ask("POST", "/v1/models", settings, content=package("other")), 413)

    async def pieces():
        for start in range(0, len(package()), 100):
            yield package()[start : start + 100]

    assert "1000 bytes" in detail(ask("POST", "/v1/models", settings, content=pieces()), 413)
    assert "1000 bytes" in detail(ask("PUT", WORDS, settings, content=package()), 413)


def test_a_sender_that_falls_silent(service):
    app = create_app(service, GatewaySettings(patience=0.05))

    async def main():
        received = [{"type": "http.request", "body": b"PK", "more_body": True}]
        sent = []

        async def receive():
            if received:
                return received.pop()
            return await asyncio.sleep(60)

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http", "method": "POST", "path": "/v1/models", "query_string": b"", "http_version": "1.1",
            "headers": [(b"host", b"127.0.0.1")], "scheme": "http", "client": ("127.0.0.1", 1), "server": ("a", 1),
        }  # fmt: skip
        await app(scope, receive, send)
        return sent

    start, *_ = asyncio.run(main())
    assert start["status"] == 408


def test_a_large_package_is_passed_on_in_pieces(ask, service):
    piece = b"x" * 65536
    end = b"\r\n--xyz--\r\n"

    async def body():
        yield b"--xyz\r\n" + disposition("package", "w.whl") + b"\r\n\r\n"
        for _ in range(1000):
            yield piece
        yield end

    answer = ask("POST", "/v1/models", content=body(), headers=MULTIPART)
    assert answer.status_code == 422  # it is no package, which is known when all of it has arrived
    assert 0 < service.largest <= 2 * len(piece)


def read_form(data, size, boundary=b"xyz"):
    async def main():
        async def chunks():
            for start in range(0, len(data), size):
                yield data[start : start + size]

        found = []
        async for part in parts(chunks(), boundary):
            content = b"".join([piece async for piece in part.chunks])
            found.append((part.name, part.filename, content))
        return found

    return asyncio.run(main())


CONTENTS = [
    b"",
    b"\r\n",
    b"--xyz",
    b"\r\n--xy",
    b"\r\n--xy\r\n--xy",
    b"a\r\n\r\nb",
    b"\r\n-",
    bytes(range(256)),
    b"\r\r\n\n--",
]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, 10_000])
def test_forms_cut_anywhere(size):
    fields = [(f"field{i}", f"ä {i}" if i % 2 else None, content) for i, content in enumerate(CONTENTS)]
    data = form(*((disposition(name, filename), content) for name, filename, content in fields))
    assert read_form(data, size) == fields
    assert read_form(b"preamble\r\n" + data + b"epilogue", size) == fields


def test_parts_that_nobody_reads_are_skipped():
    data = form((disposition("a"), b"x" * 1000), (disposition("b"), b"y"))

    async def main():
        async def chunks():
            yield data

        return [part.name async for part in parts(chunks(), b"xyz")]

    assert asyncio.run(main()) == ["a", "b"]


def test_quoted_and_odd_dispositions():
    head = b'content-disposition: form-data; filename="a;b\\"c.whl"; name="the package"\r\nX-More: 1'
    assert read_form(form((head, b"1")), 4) == [("the package", 'a;b"c.whl', b"1")]
    with pytest.raises(Problem):
        read_form(form((b"content-disposition: attachment; name=x", b"1")), 4)


def test_forms_as_a_client_library_makes_them(ask, words):
    """httpx writes forms its own way."""
    ask("POST", f"{WORDS}/offline")
    request = httpx.Request(
        "PUT", "http://x", files={"package": ("w.whl", package(version="3.0"))}, data={"config": '{"n": 1}'}
    )
    answer = ask("PUT", WORDS, content=request.read(), headers={"content-type": request.headers["content-type"]})
    assert (answer.json()["version"], answer.json()["config"]) == ("3.0", {"n": 1})
