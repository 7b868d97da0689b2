"""What a worker exports, and what an expression asks for. `promql_parser` reads PromQL."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import promql_parser
import pytest
import torch
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from worker.monitor.metrics import JobFigures, Metrics, Queue, QueueFigures

OF_THE_SCRAPE = {"job", "instance"}
"""Labels that Prometheus adds to whatever it scrapes."""


def exported(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Every series of a worker on a GPU, by name, with its labels; and `up`."""
    properties = SimpleNamespace(total_memory=1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
    metrics = Metrics("demo")
    metrics.describe(owner="w1", model="demo", digest="5a", device="cuda:0", version="1")
    engine = SimpleNamespace(
        model=SimpleNamespace(device=torch.device("cuda:0")),
        stalled_s=lambda: 0,
        busy_s=lambda: 0,
        captures=lambda: 0,
    )
    metrics.watch(engine, leases=lambda: 0)
    metrics.queue = Queue({"demo": QueueFigures()}, [JobFigures("job", "default", 0.0)])
    text = generate_latest(metrics.registry).decode()
    found: dict[str, set[str]] = {"up": set()}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return {name: labels | OF_THE_SCRAPE for name, labels in found.items()}


def nodes(expression: Any) -> Iterator[Any]:
    """The expression and all in it."""
    found: list[Any] = []
    promql_parser.walk(expression, found.append)
    return iter(found)


def selectors(expression: Any) -> list[Any]:
    return [node for node in nodes(expression) if isinstance(node, promql_parser.VectorSelector)]


def matchers(selector: Any) -> list[Any]:
    return list(selector.matchers.matchers)


def mistakes(text: str, series: dict[str, set[str]]) -> list[str]:
    """What an expression asks for that is not there. Raises `ValueError` if it is no PromQL."""
    expression = promql_parser.parse(text)
    wrong = []
    for selector in selectors(expression):
        if selector.name not in series:
            wrong.append(f"no metric {selector.name}")
            continue
        for matcher in matchers(selector):
            if matcher.name not in series[selector.name]:
                wrong.append(f"{selector.name} has no label {matcher.name}")
    for node in nodes(expression):
        there = labels_of(node, series)
        for label in _grouped_by(node) - there:
            wrong.append(f"no label {label} in {node}")
    return wrong


def labels_of(expression: Any, series: dict[str, set[str]]) -> set[str]:
    """Labels that some selector in the expression has."""
    return set().union(*(series.get(found.name, set()) for found in selectors(expression)))


def _grouped_by(node: Any) -> set[str]:
    """The labels in `by (…)`, `on (…)` and the like."""
    modifier = getattr(node, "modifier", None)
    if modifier is None:
        return set()
    if isinstance(node, promql_parser.AggregateExpr):
        return set(modifier.labels)
    matching = getattr(modifier, "matching", None)
    return set() if matching is None else set(matching.labels)
