"""Prometheus, its alerts and the dashboard ask for what workers export."""

from __future__ import annotations

import json
import re
from itertools import combinations

import promql_parser
import pytest

from jobs.ledger.types import ClaimAnswer
from jobs.settings import Settings
from tests.infra.files import INFRA, find_all, read_yaml, services
from tests.infra.promql import exported, labels_of, matchers, mistakes, selectors
from worker.faults import Reason
from worker.monitor.health import STALLED_S
from worker.monitor.presence import EVERY_S

MONITORING = INFRA / "monitoring"
PROMETHEUS = read_yaml(MONITORING / "prometheus.yml")
(GROUP,) = read_yaml(MONITORING / "alerts.yml")["groups"]
ALERTS = {rule["alert"]: rule for rule in GROUP["rules"]}
DASHBOARD = json.loads((MONITORING / "grafana/dashboards/sdbatch.json").read_text())
PANELS = {panel["title"] + f" {panel['id']}": panel for panel in DASHBOARD["panels"]}
SCRAPES = {scrape["job_name"]: scrape for scrape in PROMETHEUS["scrape_configs"]}


@pytest.fixture
def series(monkeypatch):
    return exported(monkeypatch)


def expression(text: str):
    return promql_parser.parse(text.replace("$model", "demo"))


def test_a_mistake_would_be_found(series):
    """The tests below rest on this."""
    assert mistakes("rate(sdbatch_images_total[5m])", series) == []
    assert mistakes("rate(sdbatch_image_total[5m])", series) == ["no metric sdbatch_image_total"]
    assert mistakes('up{model="demo"} == 0', series) == ["up has no label model"]
    assert mistakes("sum by (reason) (sdbatch_images_total)", series)
    assert mistakes("up unless on (owner) sdbatch_leases", series)
    assert mistakes("histogram_quantile(0.9, sdbatch_upload_seconds_bucket)", series) == []
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        mistakes("sum(up", series)


@pytest.mark.parametrize("name", ALERTS)
def test_alerts_ask_for_what_is_exported(name, series):
    assert mistakes(ALERTS[name]["expr"], series) == []


@pytest.mark.parametrize("name", ALERTS)
def test_alerts_say_what_and_where_to_read_on(name, series):
    alert = ALERTS[name]
    assert set(alert) <= {"alert", "expr", "for", "labels", "annotations"}
    assert alert["labels"] in ({"severity": "critical"}, {"severity": "warning"})
    assert alert["annotations"]["runbook"] == f"infra/RUNBOOK.md#{name.lower()}"
    used = set(re.findall(r"\$labels\.(\w+)", alert["annotations"]["summary"]))
    assert used <= labels_of(promql_parser.parse(alert["expr"]), series)


def test_there_is_one_rule_for_each_name():
    assert len(ALERTS) == len(GROUP["rules"])


def test_values_of_labels_exist():
    """Those that are fixed in the code or in `prometheus.yml`."""
    values = {
        "job": set(SCRAPES),
        "answer": {answer.value for answer in ClaimAnswer},
        "reason": {reason.value for reason in Reason},
    }
    texts = [alert["expr"] for alert in ALERTS.values()] + [text for _, text in queries()]
    seen = 0
    for text in texts:
        for selector in selectors(expression(text)):
            for matcher in matchers(selector):
                if matcher.name in values:
                    assert any(re.fullmatch(matcher.value, v) for v in values[matcher.name]), text
                    seen += 1
    assert seen >= 4


def test_a_hung_engine_is_the_same_for_the_alert_and_for_healthz():
    threshold = re.search(r"> (\d+)$", ALERTS["SdbatchEngineStalled"]["expr"])
    assert float(threshold[1]) == STALLED_S


def test_a_ledger_is_away_after_several_reports_and_no_sooner_than_a_lease():
    threshold = float(re.search(r"> (\d+)$", ALERTS["SdbatchLedgerAway"]["expr"])[1])
    assert threshold >= Settings.lease_s > 3 * EVERY_S


def test_prometheus_asks_every_worker_of_compose():
    found = services()
    (first,) = SCRAPES["sdbatch"]["dns_sd_configs"]
    workers = {
        name for name, service in found.items() if "SDBATCH_METRICS" in _environment(service)
    }
    assert set(first["names"]) == workers
    for name in workers:
        assert found[name]["environment"]["SDBATCH_METRICS"] == f"0.0.0.0:{first['port']}"
        assert found[name].get("network_mode") is None


def test_further_gpus_have_the_next_ports():
    """`worker.fleet.fleet.worker_environs` gives them out so."""
    first = SCRAPES["sdbatch"]["dns_sd_configs"][0]["port"]
    others = SCRAPES["sdbatch-more-gpus"]["dns_sd_configs"]
    assert [scrape["port"] for scrape in others] == list(range(first + 1, first + 8))
    assert {name for scrape in others for name in scrape["names"]} == {"worker"}


def test_no_alert_asks_whether_ports_without_a_gpu_answer():
    asked = [
        (matcher.name, str(matcher.op), matcher.value)
        for alert in ALERTS.values()
        for selector in selectors(expression(alert["expr"]))
        if selector.name == "up"
        for matcher in matchers(selector)
    ]
    assert asked
    assert set(asked) == {("job", "MatchOp.Equal", "sdbatch")}


def _environment(service):
    return service.get("environment", {})


def queries() -> list[tuple[str, str]]:
    return [
        (title, target["expr"]) for title, panel in PANELS.items() for target in panel["targets"]
    ]


@pytest.mark.parametrize(("title", "text"), queries())
def test_panels_ask_for_what_is_exported(title, text, series):
    assert mistakes(text.replace("$model", "demo"), series) == []


@pytest.mark.parametrize("title", PANELS)
def test_legends_name_labels_that_are_there(title, series):
    for target in PANELS[title]["targets"]:
        names = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert names <= labels_of(expression(target["expr"]), series)


def test_every_metric_is_shown_or_watched(series):
    texts = [alert["expr"] for alert in ALERTS.values()] + [text for _, text in queries()]
    asked = {selector.name for text in texts for selector in selectors(expression(text))}
    ours = {
        name for name in series if name.startswith("sdbatch_") and not name.endswith("_created")
    }
    parts = {name for name in ours if name.endswith(("_sum", "_count"))}  # of histograms
    assert ours - parts <= asked


def test_panels_do_not_overlap():
    assert len({panel["id"] for panel in PANELS.values()}) == len(PANELS)
    places = [panel["gridPos"] for panel in PANELS.values()]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for a, b in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above


def test_the_dashboard_asks_the_prometheus_of_compose():
    path = MONITORING / "grafana/provisioning/datasources/prometheus.yml"
    (source,) = read_yaml(path)["datasources"]
    asked = list(find_all(DASHBOARD, lambda found: found.get("type") == "prometheus"))
    assert asked
    assert all(found["uid"] == source["uid"] for found in asked)
    name, port = re.fullmatch(r"http://(\w+):(\d+)", source["url"]).groups()
    assert services()[name]["ports"] == [f"127.0.0.1:{port}:{port}"]


def test_the_variable_of_the_dashboard_has_values(series):
    (variable,) = DASHBOARD["templating"]["list"]
    asked = variable["query"]["query"]
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", asked).groups()
    assert label in series[metric]
    used = set(re.findall(r"\$(\w+)", "".join(text for _, text in queries())))
    assert used == {variable["name"]}
