"""What `infra/OPERATIONS.md` tells people to type does what it says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from tests.guarded_valkey import USERS_FILE
from tests.infra.files import INFRA, ROOT
from tests.servers import Valkey, missing

PAGE = (INFRA / "OPERATIONS.md").read_text()


def block(beginning: str) -> str:
    """The one block of commands that begins so."""
    (found,) = re.findall(rf"```sh\n({re.escape(beginning)}.*?)```", PAGE, re.DOTALL)
    return found


def test_passwords_that_it_makes_are_those_of_the_server(tmp_path):
    if shutil.which("openssl") is None:
        missing("openssl")
    (tmp_path / "infra").symlink_to(INFRA)
    script = block("cp infra/redis/users.acl")
    done = subprocess.run(
        ["bash", "-euc", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    passwords = dict(line.split() for line in done.stdout.splitlines())
    assert set(passwords) == {"ADMIN", "SUBMIT", "WORK", "WATCH"}
    assert len(set(passwords.values())) == 4
    server = Valkey(tmp_path, "--aclfile", str(tmp_path / "users.acl"))
    try:
        for name, password in passwords.items():
            user = "default" if name == "ADMIN" else f"sdbatch-{name.lower()}"
            with server.client(username=user, password=password) as client:
                assert client.ping()
    finally:
        server.kill()


def test_users_and_documents_of_its_tables_are_those_of_the_files():
    listed = set(re.findall(r"^\| `([\w-]+)` \|", PAGE, re.MULTILINE))
    assert listed == set(re.findall(r"^user (\S+)", USERS_FILE.read_text(), re.MULTILINE))
    documents = set(re.findall(r"^\| `([\w-]+\.json)` \|", PAGE, re.MULTILINE))
    assert documents == {path.name for path in (INFRA / "s3").glob("*.json")}


@pytest.mark.parametrize("path", sorted((INFRA / "s3").glob("*.json")), ids=lambda path: path.stem)
def test_names_are_put_into_a_policy(path):
    command = block("sed 's#arn").replace("worker-policy.json", path.name)
    done = subprocess.run(
        ["bash", "-euc", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    before, after = json.loads(path.read_text()), json.loads(done.stdout)
    assert after["Version"] == before["Version"] == "2012-10-17"
    assert len(after["Statement"]) == len(before["Statement"])
    assert "sdbatch" not in done.stdout
    assert "jobs/" not in done.stdout
    places = re.findall(r'"arn:aws:s3:::([^"]+)"', done.stdout)
    assert {place.split("/")[0] for place in places} == {"BUCKET"}
    assert {place.split("/")[1] for place in places if "/" in place} <= {"PREFIX", "models"}


def test_nobody_may_touch_the_bucket_itself():
    for path in (INFRA / "s3").glob("*.json"):
        for statement in json.loads(path.read_text())["Statement"]:
            actions = statement["Action"]
            allowed = {actions} if isinstance(actions, str) else set(actions)
            assert allowed <= {
                "s3:ListBucket",
                "s3:GetObject",
                "s3:PutObject",
                "s3:DeleteObject",
                "s3:AbortMultipartUpload",
            }
            assert statement["Effect"] == "Allow"
            assert ("s3:ListBucket" in allowed) == ("Condition" in statement)
