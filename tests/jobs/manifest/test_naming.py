"""Names of images and jobs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.manifest.naming import MAX_PART_BYTES, check_template, fill, job_name, slug
from jobs.storage.base import check_key, is_segment
from jobs.task import IMAGE_FORMATS
from sd_core.spec import Sampling


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{index:06d}-s{seed}", "000007-s3"),
        ("{index}", "7"),
        ("{prompt}/{sampler}/{steps:04d}", "a-ring/plms/0050"),
        ("g{guidance}_{width}x{height}.{strength}", "g7.5_128x512.0.75"),
        ("{name}", "job"),
        ("{model}/{index}", "sd-v1-4/7"),
    ],
)
def test_fill(template, expected):
    assert check_template(template) is None
    assert fill(template, "job", 7, "A ring!", Sampling(width=128, seed=3), "sd-v1:4") == expected


@pytest.mark.parametrize(
    ("template", "flaw"),
    [
        ("{index.__class__}", "unknown placeholder"),
        ("{index[0]}", "unknown placeholder"),
        ("{}", "unknown placeholder"),
        ("{0}", "unknown placeholder"),
        ("{sede}", "did you mean {seed}?"),
        ("{index!r}", "a format that is not allowed"),
        ("{index:0999999999d}", "a format that is not allowed"),
        ("{index:3}", "a format that is not allowed"),
        ("{index:{seed}}", "a format that is not allowed"),
        ("{prompt:>40}", "a format that is not allowed"),
        ("{guidance:.2f}", "a format that is not allowed"),
        ("{index", "is no template"),
        ("index}", "is no template"),
        ("../{index}", "starts with a dot"),
        ("a/../{index}", "starts with a dot"),
        (".{index}", "starts with a dot"),
        ("/{index}", "starts or ends with /"),
        ("a//{index}", "has two in a row"),
        ("{index}/", "starts or ends with /"),
        ("a b", "' ' is not allowed in names"),
        ("a\\b", "is not allowed in names"),
        ("a:b", "is not allowed in names"),
        ("{{x}}", "'{' is not allowed in names"),
        ("{prompt}-{prompt}", "names longer than 220 bytes"),
    ],
)
def test_bad_template(template, flaw):
    assert flaw in check_template(template)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red circle, 35mm!", "a-red-circle-35mm"),
        ("", "untitled"),
        ("!?", "untitled"),
        ("../../etc/passwd", "etc-passwd"),
        ("größer 猫", "größer-猫"),
        ("x" * 100, "x" * 40),
        ("a\nb\tc", "a-b-c"),
    ],
)
def test_slug(text, expected):
    assert slug(text) == expected


@given(st.text(max_size=200), st.integers(0, 2**64 - 1), st.floats(-1e300, 1e300))
def test_names_of_any_prompt_are_keys(prompt, seed, guidance):
    template = "{prompt}/{index:06d}-{seed}-{guidance}-{sampler}"
    assert check_template(template) is None
    name = fill(template, "job", 9_999_999, prompt, Sampling(seed=seed, guidance=guidance), "demo")
    for format in IMAGE_FORMATS:
        check_key(f"job/images/{name}-{'0' * 16}.{format}")
    assert all(len(part.encode()) <= MAX_PART_BYTES for part in name.split("/"))


@given(st.text())
def test_job_names_are_folder_names(stem):
    assert is_segment(job_name(stem))
