"""What `docker-compose.yml` and `infra/` say, as the programs that read them would take it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import yaml

from jobs.settings import Settings
from jobs.variables import VARIABLES
from tests.commands import COMMANDS

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
KUBERNETES = INFRA / "k8s"

# Without a value, with what to take instead, or with what to say if it is missing.
VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?P<rule>:[-?])?(?P<rest>[^}]*)\})")


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def env_example(name: str = "env.example") -> dict[str, str]:
    lines = (INFRA / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def interpolated(text: str, environ: Mapping[str, str]) -> str:
    """As Compose replaces variables. Raises `KeyError` for one that has to be set."""

    def value(match: re.Match[str]) -> str:
        if match["dollar"]:
            return "$"
        given = environ.get(match["name"], "")
        if given or match["rule"] == ":-":
            return given or match["rest"]
        raise KeyError(match["name"])

    return VARIABLE.sub(value, text)


def compose_text(path: Path = ROOT / "docker-compose.yml") -> str:
    """Without comments, which may speak of variables."""
    return re.sub(r"(?m)(^| )#.*$", "", path.read_text())


def filled_in() -> dict[str, str]:
    """An `.env` made of the example, with something for what is empty there and needed."""
    needed = {m["name"] for m in VARIABLE.finditer(compose_text()) if m["rule"] == ":?"}
    return env_example() | {name: f"given{name.replace('_', '')}" for name in needed}


def compose(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    return yaml.safe_load(interpolated(compose_text(), filled_in() if environ is None else environ))


def services() -> dict[str, dict[str, Any]]:
    return compose()["services"]


def parsed(arguments: list[str]) -> click.Context:
    """A command line of ours, after `sdbatch`. Raises `click.UsageError` or `KeyError`."""
    name, *rest = arguments
    return COMMANDS[name].make_context(name, list(rest))


def known_settings() -> set[str]:
    """The variables that the code reads."""
    return {variable.name for variable in VARIABLES}


def settings_of(environ: Mapping[str, str], models: Path) -> Settings:
    """Of a container; the model list is mounted there, and `models` here."""
    return Settings.from_env({**environ, "SDBATCH_MODELS": str(models)})


def built(folder: Path) -> list[dict[str, Any]]:
    """The resources of a kustomization. kustomize need not be here: this knows the few things of it
    that ours use, leaves the hashes at the names of ConfigMaps out, and refuses all else.
    """
    plan = read_yaml(folder / "kustomization.yaml")
    assert plan.pop("kind") == "Kustomization"
    assert plan.pop("apiVersion") == "kustomize.config.k8s.io/v1beta1"
    namespace = plan.pop("namespace")
    resources: list[dict[str, Any]] = []
    for name in plan.pop("resources"):
        path = folder / name
        resources += built(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    for generator in plan.pop("configMapGenerator", []):
        resources.append(_config_map(folder, generator))
    for patch in plan.pop("patches", []):
        (target,) = [r for r in resources if _is(r, patch["target"])]
        for operation in yaml.safe_load(patch["patch"]):
            _change(target, **operation)
    for image in plan.pop("images", []):
        _rename_images(resources, image)
    assert not plan, f"{folder}: nobody knows what to do with {list(plan)}"
    for resource in resources:
        if resource["kind"] != "Namespace":
            resource["metadata"]["namespace"] = namespace
    return resources


def one(resources: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [resource for resource in resources if resource["kind"] == kind]
    return found


def find_all(value: Any, wanted: Callable[[dict[str, Any]], bool]) -> Iterator[dict[str, Any]]:
    """Mappings anywhere inside."""
    if isinstance(value, dict):
        if wanted(value):
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from find_all(item, wanted)


def _config_map(folder: Path, generator: dict[str, Any]) -> dict[str, Any]:
    data = {name: (folder / name).read_text() for name in generator.get("files", [])}
    data |= dict(literal.split("=", 1) for literal in generator.get("literals", []))
    metadata = {"name": generator["name"]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _is(resource: dict[str, Any], target: dict[str, str]) -> bool:
    return (resource["kind"], resource["metadata"]["name"]) == (target["kind"], target["name"])


def _change(resource: Any, op: str, path: str, value: Any = None) -> None:
    """RFC 6902, as far as it is used."""
    steps = [step.replace("~1", "/").replace("~0", "~") for step in path.split("/")[1:]]
    for step in steps[:-1]:
        resource = resource[int(step) if isinstance(resource, list) else step]
    last = int(steps[-1]) if isinstance(resource, list) else steps[-1]
    if op == "test":
        assert resource[last] == value
    elif op == "remove":
        del resource[last]
    else:
        assert op == "replace"
        assert last in resource
        resource[last] = copy.deepcopy(value)


def _rename_images(resources: list[dict[str, Any]], image: dict[str, str]) -> None:
    name = image["name"]
    containers = [
        container
        for container in find_all(resources, lambda found: isinstance(found.get("image"), str))
        if container["image"].rpartition(":")[0] == name or container["image"] == name
    ]
    assert containers, f"no container has the image {name}"
    for container in containers:
        container["image"] = f"{image.get('newName', name)}:{image['newTag']}"
