"""Who may read and change: the token, cookies, names of the server, other sites' pages."""

from __future__ import annotations

import re

import pytest

from jobs.dashboard.access import Access, is_loopback
from jobs.dashboard.guard import POLICY
from tests.jobs.dashboard.world import TOKEN, World

DATA = ["/api/now", "/api/jobs", "/api/jobs/job", "/api/jobs/job/pictures", "/api/events"]
DATA += ["/jobs/job/picture/0", "/jobs/job/thumbnail/0"]
CHANGES = ["pause", "unpause", "cancel", "retry"]


@pytest.fixture
def far(tmp_path) -> World:
    """A server that other machines reach."""
    return World(tmp_path, host="192.0.2.7")


class TestChanges:
    @pytest.mark.parametrize("change", CHANGES)
    @pytest.mark.parametrize("token", [None, "", "wrong", TOKEN[:-1], TOKEN + "x", "ü"])
    def test_none_without_the_token(self, world, change, token):
        world.enter()
        before = world.ledger.status("job")
        headers = {} if token is None else {"x-sdbatch-token": token.encode()}
        answer = world.client.post(f"/api/jobs/job/{change}", headers=headers)
        assert answer.status_code == 403
        assert "needs the token" in answer.json()["error"]
        assert world.ledger.status("job") == before

    @pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "x["])
    def test_none_from_other_sites_pages(self, world, origin):
        world.enter()
        answer = world.post("/api/jobs/job/cancel", origin=origin)
        assert (answer.status_code, answer.json()["error"]) == (
            403,
            "another site's page asks for this",
        )
        assert world.ledger.status("job").state == "active"

    def test_from_its_own_page(self, world):
        world.enter()
        assert world.post("/api/jobs/job/cancel", origin="http://127.0.0.1:8484").is_success
        assert world.ledger.status("job").state == "cancelled"

    def test_the_cookie_changes_nothing(self, far):
        far.enter()
        assert far.post("/api/session").status_code == 204
        assert far.post("/api/jobs/job/cancel", None).status_code == 403

    @pytest.mark.parametrize("method", ["get", "put", "delete"])
    def test_only_by_post(self, world, method):
        world.enter()
        answer = getattr(world.client, method)(
            "/api/jobs/job/cancel", headers={"x-sdbatch-token": TOKEN}
        )
        assert answer.status_code == 405
        assert world.ledger.status("job").state == "active"


class TestReading:
    @pytest.mark.parametrize("path", DATA)
    def test_needs_the_token_where_others_can_ask(self, far, path):
        far.enter()
        answer = far.client.get(path)
        assert answer.status_code == 403
        assert "needs the token" in answer.json()["error"]

    @pytest.mark.parametrize("path", ["/", "/jobs/job", "/static/main.js"])
    def test_the_page_itself_holds_nothing(self, far, path):
        assert far.client.get(path).status_code == 200

    def test_with_the_token_or_its_cookie(self, far):
        far.enter()
        far.store_images(0)
        with_token = far.client.get("/api/jobs", headers={"x-sdbatch-token": TOKEN})
        assert with_token.status_code == 200
        given = far.post("/api/session").headers["set-cookie"]
        assert re.search(r"HttpOnly.*SameSite=strict", given, re.IGNORECASE)
        assert TOKEN not in given
        assert far.client.get("/jobs/job/picture/0").status_code == 200
        assert far.another_client().get("/jobs/job/picture/0").status_code == 403

    def test_a_wrong_cookie(self, far):
        far.client.cookies.set(far.access.cookie, "0" * 64)
        assert far.client.get("/api/jobs").status_code == 403


class TestNames:
    @pytest.mark.parametrize(
        "host", ["127.0.0.1", "127.0.0.1:9999", "localhost:8484", "[::1]:8484", "LOCALHOST"]
    )
    def test_of_this_machine(self, world, host):
        """Also with the port of a tunnel."""
        assert world.client.get("/api/jobs", headers={"host": host}).status_code == 200

    @pytest.mark.parametrize(
        "host", ["evil.example", "evil.example:8484", "127.0.0.1.evil.example", "10.0.0.1", "", "["]
    )
    @pytest.mark.parametrize("path", ["/", "/api/jobs"])
    def test_that_others_made_to_lead_here(self, world, host, path):
        answer = world.client.get(path, headers={"host": host})
        assert answer.status_code == 403
        assert "not called so" in answer.json()["error"]

    def test_of_a_server_for_others(self):
        named = Access("GPU-Box.example", 1, TOKEN)
        known = ["gpu-box.example:1", "192.0.2.7:1", "[2001:db8::1]:1", "localhost"]
        assert all(map(named.knows_host, known))
        assert not named.knows_host("evil.example:1")

    def test_loopback(self):
        assert all(map(is_loopback, ["127.0.0.1", "127.8.8.8", "::1", "localhost"]))
        assert not any(map(is_loopback, ["0.0.0.0", "::", "192.0.2.7", "localhost.example", ""]))


class TestAddress:
    def test_the_token_is_where_no_server_sees_it(self):
        access = Access("127.0.0.1", 8484, "a#b/c&d=e%+ü")
        assert access.address == "http://127.0.0.1:8484/#token=a%23b%2Fc%26d%3De%25%2B%C3%BC"
        assert access.token not in repr(access)

    def test_others(self):
        assert Access("::1", 80, TOKEN).address.startswith("http://[::1]:80/#")
        assert "0.0.0.0" not in Access("0.0.0.0", 80, TOKEN).address

    def test_a_new_token_for_each_start(self):
        one, other = Access("::1", 1), Access("::1", 1)
        assert one.token != other.token
        assert len(one.token) >= 32


@pytest.mark.parametrize("path", ["/", "/static/main.js", "/api/jobs", "/none", "/api/jobs/none"])
def test_headers_of_every_answer(world, path):
    headers = world.client.get(path).headers
    assert headers["content-security-policy"] == POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_the_policy_allows_no_script_in_a_page():
    assert POLICY == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
