"""What the pages for operators in `infra/` tell people to type exists, and messages that they quote
are the code's own.
"""

from __future__ import annotations

import re
import shlex

import click
import pytest

from jobs.errors import ExitCode
from jobs.ledger.types import LEASE_S, MOST_DEATHS
from tests.commands import COMMANDS
from tests.infra.files import (
    INFRA,
    KUBERNETES,
    ROOT,
    built,
    env_example,
    known_settings,
    one,
    parsed,
    read_yaml,
    services,
)
from worker.faults import Reason
from worker.monitor.health import STALLED_S
from worker.monitor.presence import STOPPED_SEEN_S
from worker.reconcile.reconciler import LOST_AFTER_S
from worker.reconcile.webhooks import AGAIN_AFTER_S
from worker.serve.worker import STORE_FAILURES

PAGES = {name: (INFRA / name).read_text() for name in ("README.md", "RUNBOOK.md", "OPERATIONS.md")}
RUNBOOK = PAGES["RUNBOOK.md"]
COMPOSE_VERBS = {"up", "ps", "logs", "restart", "exec", "run", "build", "down"}


def code(page: str) -> list[str]:
    """Lines of code blocks, without comments, and what is in backticks."""
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    lines = [re.sub(r"(^|\s)#.*", "", line) for block in blocks for line in block.splitlines()]
    prose = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    return [part.strip() for text in lines + spans for part in text.split("&&") if part.strip()]


def typed(word: str) -> list[str]:
    """Command lines that begin with this word, on all pages."""
    found = {text for page in PAGES.values() for text in code(page) if text.startswith(f"{word} ")}
    return sorted(text for text in found if "…" not in text)


def anchors(page: str) -> set[str]:
    """Of the headings, as a web page of the file has them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def ours() -> list[str]:
    """Arguments of `sdbatch`, typed here or in the client's container."""
    client = "docker compose run --rm client "
    direct = [line.removeprefix("sdbatch ") for line in typed("sdbatch")]
    return sorted({*direct, *(t.removeprefix(client) for t in typed("docker") if client in t)})


@pytest.mark.parametrize("line", ours())
def test_commands_and_options_exist(line):
    name, *words = shlex.split(line)
    command = COMMANDS[name]
    if words:  # else it is only spoken of
        assert isinstance(command.make_context(name, words, resilient_parsing=True), click.Context)
        options = {o for p in command.params if isinstance(p, click.Option) for o in p.opts}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= options
        for word in words:
            if "/" in word and not word.startswith("s3://"):
                assert (ROOT / word).exists()


def test_what_is_typed_for_a_job_is_complete():
    """Not only options exist: the arguments are enough, too."""
    assert parsed(["resume", "shapes", "--store", "s3://sdbatch/jobs"]).params["job"] == "shapes"
    assert "resume shapes --store s3://sdbatch/jobs" in ours()
    assert {"retry shapes", "failures shapes", "status shapes", "pause shapes"} <= set(ours())


@pytest.mark.parametrize("line", typed("docker compose"))
def test_compose_commands_name_services(line):
    _, _, *words = shlex.split(line)
    while words[0] in ("--env-file", "-f"):
        option, path, *words = words
        assert (
            path == "/etc/sdbatch/worker.env" if option == "--env-file" else (ROOT / path).is_file()
        )
    verb, *words = words
    assert verb in COMPOSE_VERBS
    found = services()
    flags_with_value = {"--since", "--scale"}
    names = []
    for before, word in zip([verb, *words], words, strict=False):
        if before == "--scale":
            assert word.partition("=")[0] in found
        if not word.startswith("-") and before not in flags_with_value:
            names.append(word)
    if verb in ("exec", "run"):
        names = names[:1]
        assert names
    assert set(names) <= set(found)


@pytest.mark.parametrize("line", typed("kubectl"))
def test_kubernetes_objects_exist(line):
    resources = built(KUBERNETES / "scaled")
    there = {f"{r['kind'].lower()}/{r['metadata']['name']}" for r in resources}
    pod = one(resources, "Deployment")["spec"]["template"]
    words = shlex.split(line)
    for word in words:
        if word.startswith("deployment/"):
            assert word in there
        if word.startswith("worker="):
            assert pod["spec"]["containers"][0]["name"] == "worker"
        if word.startswith("app.kubernetes.io/"):
            key, _, value = word.partition("=")
            assert pod["metadata"]["labels"][key] == value
        if word.startswith("infra/k8s/"):
            assert (ROOT / word / "kustomization.yaml").is_file()
    if "scaledobject" in words:
        assert f"scaledobject/{words[words.index('scaledobject') + 1]}" in there


def test_every_alert_has_a_section_and_every_section_an_alert():
    (group,) = read_yaml(INFRA / "monitoring/alerts.yml")["groups"]
    sections = re.findall(r"^### (Sdbatch\w+)$", RUNBOOK, re.MULTILINE)
    assert sorted(sections) == sorted(rule["alert"] for rule in group["rules"])
    linked = {rule["annotations"]["runbook"].partition("#")[2] for rule in group["rules"]}
    assert linked <= anchors(RUNBOOK)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    links = re.findall(r"\]\(([^)]+)\)", PAGES[name])
    assert links
    for link in links:
        file, _, anchor = link.partition("#")
        page = PAGES[file or name]
        assert not anchor or anchor in anchors(page)


@pytest.mark.parametrize("name", PAGES)
def test_files_and_variables_exist(name):
    page = PAGES[name]
    for path in re.findall(r"\binfra/[\w./-]*\w", page):
        assert (ROOT / path).exists(), path
    known = known_settings() | set(env_example()) | set(env_example("worker.env.example"))
    assert set(re.findall(r"\bSDBATCH_\w+", page)) <= known
    assert set(re.findall(r"\bVALKEY_\w+", page)) <= known


def test_every_way_a_worker_ends_is_explained():
    listed = {int(number) for number in re.findall(r"^\| (\d+) \|", RUNBOOK, re.MULTILINE)}
    of_a_worker = {
        ExitCode.DONE,
        ExitCode.UNEXPECTED,
        ExitCode.BAD_INPUT,
        ExitCode.MODEL,
        ExitCode.STORE,
        ExitCode.LEDGER,
    }
    assert listed == {int(exit_code) for exit_code in of_a_worker} | {137}


def test_every_reason_of_a_failure_is_explained():
    table = RUNBOOK.partition("### SdbatchImagesFailing")[2].partition("###")[0]
    assert set(re.findall(r"^\| (\w+) \| ", table, re.MULTILINE)) - {"reason"} == set(Reason)


def said() -> list[str]:
    """What the runbook quotes, out of code."""
    prose = re.sub(r"```.*?```|`[^`]*`", "", RUNBOOK, flags=re.DOTALL)
    return sorted({" ".join(quote.split()) for quote in re.findall(r'"([^"]+)"', prose)})


@pytest.mark.parametrize("message", said())
def test_quoted_messages_are_the_codes_own(message):
    """Sizes in them are examples."""
    sources = [
        path.read_text() for room in ("jobs", "worker") for path in (ROOT / room).rglob("*.py")
    ]
    # Texts that go over the end of a line are put together again.
    text = re.sub(r'"\s*\n\s*f?"', "", "\n".join(sources))
    pattern = re.sub(r"\d+\\ GB", r"\\{size\\([^}]*\\)\\}", re.escape(message))
    assert re.search(pattern, text)


def test_numbers_are_the_codes_own():
    assert f"come back after {LEASE_S:.0f} s (`SDBATCH_LEASE_S`)" in RUNBOOK
    assert f"sent again after {LOST_AFTER_S:.0f} s" in RUNBOOK
    in_words = [
        (STALLED_S, 120, "no step for two minutes"),
        (MOST_DEATHS, 3, "After three deaths"),
        (STORE_FAILURES, 3, "three shards in a row"),
        (len(AGAIN_AFTER_S) + 1, 6, "(six times, for over an hour)"),
        (STOPPED_SEEN_S, 60, "why one stopped, for a minute"),
    ]
    runbook = " ".join(RUNBOOK.split())
    for value, expected, text in in_words:
        assert value == expected
        assert text in runbook
    assert sum(AGAIN_AFTER_S) > 3600
