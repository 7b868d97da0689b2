"""Addresses of Redis servers: their parts, and passwords that nobody encoded."""

from __future__ import annotations

import re
import socket
import traceback
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.cli.root import main
from jobs.errors import ExitCode, LedgerError
from jobs.ledger import open_ledger
from jobs.ledger.redis.address import RedisAddress, parse_address
from jobs.queue.messages import CeleryQueue
from worker.logs import masked

SECRET = "s3cret"

CUT = {
    f"{name}, {form.partition(':')[0]}": form.format(f"ab{character}{SECRET}{character}x")
    for name, character in {
        "slash": "/",
        "question mark": "?",
        "hash": "#",
        "at and slash": "@x/",
        "bracket": "[",
        "closing bracket": "]",
        "space": " ",
        "line": "\n",
    }.items()
    for form in (
        "redis://:{}@127.0.0.1:6399/0",
        "redis://me:{}@127.0.0.1:6399",
        "rediss://:{}@127.0.0.1:6399/0?ssl_cert_reqs=none",
        "unix://:{}@/run/redis.sock",
        "redis+sentinel://:{}@127.0.0.1:6399,127.0.0.2/main/0",
    )
}
ODD = {
    "a number before the slash": f"redis://:6398/{SECRET}@127.0.0.1:6399/0",
    "no host at all": f"redis://me:{SECRET}",
    "a host with odd characters": f"redis://ab${SECRET}@host,b/0",
    "a port that is no number": f"redis://host:{SECRET}/0",
    "a port that is too large": "redis://host:65536/0",
    "no port": "redis://host:0/0",
    "no database": f"redis://127.0.0.1:6399/{SECRET}",
    "two databases": "redis://127.0.0.1:6399/0/1",
    "a database of the sentinels": f"redis+sentinel://host/main/{SECRET}",
    "no service": "redis+sentinel://host",
    "an odd service": f"redis+sentinel://host/a%20{SECRET}",
    "an empty host": "redis+sentinel://a,,b/main",
    "two slashes": f"unix://run/{SECRET}.sock",
    "no socket": f"unix://:{SECRET}@/",
    "an address that is none": f"redis://[{SECRET}]:1/0",
    "no option": f"redis://127.0.0.1/0?{SECRET}",
    "an option twice": "redis://127.0.0.1/0?socket_timeout=1&socket_timeout=2",
    "no time": f"redis://127.0.0.1/0?socket_timeout={SECRET}",
    "no end": "redis://127.0.0.1/0?socket_timeout=inf",
    "an unknown option with an odd name": f"redis://127.0.0.1/0?{SECRET}=1",
    "another scheme": f"amqp://:{SECRET}@host",
    "a secret as the scheme": f"{SECRET.upper()}://host",
    "nothing": "",
}


@pytest.mark.parametrize("url", [*CUT.values(), *ODD.values()], ids=[*CUT, *ODD])
def test_what_is_refused_is_nowhere_shown_and_asked_of_nobody(url, monkeypatch, capsys, caplog):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **_: asked.append(args))
    code = main(["jobs", "--redis", url] if url else ["jobs", "--redis", "://"])
    said = capsys.readouterr()
    with pytest.raises(LedgerError) as caught:
        CeleryQueue(url)
    texts = [said.out, said.err, caplog.text, *traceback.format_exception(caught.value)]
    shown = "".join(line for line in texts if "in test_what" not in line)
    assert code == ExitCode.LEDGER, shown
    assert SECRET not in shown.lower()
    assert asked == []
    assert "redis://" in said.err or "there are db, username" in said.err  # how it is written


@pytest.mark.parametrize("url", CUT.values(), ids=CUT)
def test_it_says_how_to_write_a_password(url):
    with pytest.raises(LedgerError, match="of the password written %2F %40 %3A %23 %3F %25"):
        open_ledger(url)


@pytest.mark.parametrize("url", [url for url in CUT.values() if not re.search(r"\s", url)])
def test_it_is_masked_where_somebody_else_shows_it(url):
    for text in (f"cannot reach {url}", f"{url!r} is no URL", f"Connected to {url}."):
        assert SECRET not in masked(text)


@pytest.mark.parametrize(
    "option",
    ["decode_responses=True", "ssl_cert_reqs=none", "protocol=3", "connection_class=x", "host=b"],
)
@pytest.mark.parametrize("url", ["redis://127.0.0.1:6399/0?{}", "unix:///run/redis.sock?{}"])
def test_an_option_that_it_has_not_is_named_with_those_that_it_has(url, option, capsys):
    assert main(["jobs", "--redis", url.format(option)]) == ExitCode.LEDGER
    said = capsys.readouterr().err
    if option.startswith("ssl"):
        assert "the option ssl_cert_reqs is for rediss://; give that, or leave it out" in said
    else:
        assert f"{option.partition('=')[0]} is no option of it; there are db, username" in said


PASSWORDS = st.text(min_size=1, max_size=30)


@given(password=PASSWORDS, user=st.one_of(st.none(), PASSWORDS))
def test_an_encoded_password_arrives_as_it_is(password, user):
    login = f"{quote(user or '', safe='')}:{quote(password, safe='')}"
    for form, hosts in (
        ("redis://{}@host:1/2", (("host", 1),)),
        ("redis+sentinel://{}@one:1,[::1]/main/2", (("one", 1), ("::1", 26379))),
        ("unix://{}@/run/redis.sock?db=2", ()),
    ):
        address = parse_address(form.format(login))
        assert (address.username, address.password) == (user, password)
        assert (address.hosts, address.db) == (hosts, 2)
        assert "password" not in repr(address)


@given(password=st.text(alphabet="aé@/:#?%[]&=+; \t\\", min_size=1, max_size=12))
def test_a_password_that_is_not_encoded_arrives_or_is_refused(password):
    """It is never cut, and never becomes a host."""
    url = f"redis://me:{password}@db.example:7000/3"
    try:
        address = parse_address(url)
    except LedgerError:
        return
    assert address.hosts == (("db.example", 7000),)
    assert address.db == 3


def test_an_address_of_this_machine():
    assert parse_address(" redis:// \n") == RedisAddress(hosts=(("127.0.0.1", 6379),))
    assert parse_address("rediss://:7000").hosts == (("127.0.0.1", 7000),)
