"""Who may ask, and what a browser may do with the answer."""

from typing import Any, Iterator

import pytest
from served import SUDOKU, packaged, serving
from starlette.testclient import TestClient

from mlx_trm.serving.app import make_app
from mlx_trm.serving.guard import host_name

BODY = {"model": "sudoku-4x4", "puzzle": SUDOKU}


@pytest.fixture(name="client", scope="module")
def fixture_client() -> Iterator[TestClient]:
    """A client of a server that may be called box."""
    with serving(openers=[packaged]) as server:
        yield TestClient(make_app(server, ["box"]), base_url="http://127.0.0.1:8765")


@pytest.mark.parametrize(
    "host, passes",
    [
        ("127.0.0.1:8765", True),
        ("localhost:1234", True),
        ("[::1]:8765", True),
        ("192.168.1.9", True),
        ("Box:8765", True),
        ("evil.example:8765", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("box.evil.example", False),
        ("", False),
    ],
)
def test_a_name_that_leads_here_by_dns_alone_is_refused(
    client: TestClient, host: str, passes: bool
) -> None:
    for path in ("/", "/api/models", "/nowhere"):
        response = client.get(path, headers={"Host": host})
        assert (response.status_code != 403) is passes, host
        if not passes:
            assert "--allow-host" in response.json()["error"]


def test_host_names_are_without_their_port() -> None:
    assert [host_name(h) for h in ("A:1", "[::1]:2", "::1", "a")] == ["a", "::1", "::1", "a"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
    ],
)
def test_other_sites_are_not_answered(client: TestClient, headers: Any) -> None:
    assert client.post("/api/solve", json=BODY, headers=headers).status_code == 403
    assert client.get("/api/models", headers=headers).status_code == 403


def test_the_own_page_and_links_are_answered(client: TestClient) -> None:
    own = {"Origin": "http://127.0.0.1:8765", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/api/solve", json=BODY, headers=own).status_code == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/", headers=link).status_code == 200


def test_no_answer_may_be_read_elsewhere(client: TestClient) -> None:
    """Pages, errors and refusals alike: a policy without any other origin, and no CORS."""
    preflight = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    answers = [client.get(path) for path in ("/", "/runs", "/api/models", "/x", "/assets/x")]
    answers += [
        client.options("/api/solve", headers=preflight),
        client.get("/", headers={"Host": "x"}),
    ]
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control")]
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert (
            "unsafe" not in policy and "http" not in policy and "frame-ancestors 'none'" in policy
        )
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
