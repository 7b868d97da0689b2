"""Tables on terminals of several widths, and in pipes."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from jobs.terminal.tables import table_lines

HEADERS = ["JOB", "STATE", "MODEL", "DONE", "FAILED"]
SHORT = [["shapes-0c7c52d1c2fe", "active", "demo", "12 of 40 (30 %)", "0"]]
LONG = [
    *SHORT,
    [
        "portraits-of-all-kinds-0c7c52d1c2fe",
        "cancelled",
        "sd-v1-4-finetuned",
        "120,000 of 1,000,000 (12 %)",
        "1,000",
    ],
]


def test_a_table_that_fits():
    assert list(table_lines(HEADERS, SHORT, width=60)) == [
        "JOB                  STATE   MODEL  DONE             FAILED",
        "shapes-0c7c52d1c2fe  active  demo   12 of 40 (30 %)  0",
    ]


def test_where_it_does_not_fit_names_have_a_line_of_their_own():
    assert list(table_lines(HEADERS, LONG, width=80)) == [
        "JOB",
        "   STATE      MODEL              DONE                         FAILED",
        "shapes-0c7c52d1c2fe",
        "   active     demo               12 of 40 (30 %)              0",
        "portraits-of-all-kinds-0c7c52d1c2fe",
        "   cancelled  sd-v1-4-finetuned  120,000 of 1,000,000 (12 %)  1,000",
    ]


def test_then_cells_are_folded():
    assert list(table_lines(HEADERS, LONG, width=60))[-3:] == [
        "portraits-of-all-kinds-0c7c52d1c2fe",
        "   cancelled  sd-v1-4-finetuned  120,000 of           1,000",
        "                                 1,000,000 (12 %)",
    ]


@pytest.mark.parametrize("width", [200, None])
def test_one_line_a_row(width):
    lines = list(table_lines(HEADERS, LONG, width=width))
    assert len(lines) == 3
    starts = [line.index(of) for line, of in zip(lines, ("MODEL", "demo", "sd-v1"), strict=True)]
    assert len(set(starts)) == 1


@pytest.mark.parametrize("width", [30, 60, 80, 200, None])
@pytest.mark.parametrize("rows", [[], SHORT, LONG, [["a", "画" * 40, "x" * 300, "", "0"]] * 3])
def test_nothing_is_left_out_and_nothing_is_wider(width, rows):
    lines = list(table_lines(HEADERS, rows, width=width))
    said = "".join("".join(lines).split())
    for row in rows:
        for cell in row:
            for word in cell.split():
                assert sorted(word) == sorted(c for c in word if c in said)
    assert said.count("x") == 900 * (len(rows) == 3 and rows[0][0] == "a")
    if width is not None:
        assert all(cell_len(line) <= width for line in lines if line not in {r[0] for r in rows})


def test_headers_alone():
    assert list(table_lines(HEADERS, [], width=80)) == ["JOB  STATE  MODEL  DONE  FAILED"]
