"""Manifests that are right: what they come to."""

from __future__ import annotations

import hashlib
import json

import pytest
from PIL import Image

from jobs.manifest.load import load_manifest
from jobs.manifest.sources import FileSource
from jobs.plan.task_line import read_task
from sd_core.spec import DEMO_GUIDANCE, DEMO_NATIVE_SIZE, Sampling
from tests.jobs.manifests import load, messages, picture, tasks, write


def prompts_of(folder, body):
    return [task.prompt for task in tasks(folder, body)]


def test_smallest_manifest_has_the_defaults(tmp_path):
    manifest = load(tmp_path, "prompts: [a red circle]")
    (task,) = manifest.tasks()
    assert (manifest.name, manifest.model, manifest.total) == ("job", "demo", 1)
    assert task.name == "000000-s42"
    assert task.negative == ""
    assert task.format == "png"
    side = DEMO_NATIVE_SIZE
    assert task.sampling == Sampling(width=side, height=side, guidance=DEMO_GUIDANCE)


def test_other_models_default_to_512_and_guidance_7_5(tmp_path):
    (task,) = tasks(tmp_path, "model: sd-v1-4\nprompts: [a horse]")
    assert task.sampling == Sampling(width=512, height=512, guidance=7.5)


@pytest.mark.parametrize(
    "text",
    [
        "no",
        "on",
        "yes",
        "1_000",
        "1:30",
        "2024-01-01",
        "0777",
        "42",
        "1.50",
        "true",
        "1e3",
        "=",
        "<<",
    ],
)
def test_plain_scalars_are_prompts_as_they_look(tmp_path, text):
    assert prompts_of(tmp_path, f"prompts:\n  - {text}\n") == [text]
    assert prompts_of(tmp_path, f"prompts:\n  - prompt: {text}\n") == [text]


@pytest.mark.parametrize(
    ("written", "prompt"),
    [
        ('"# no comment"', "# no comment"),
        ("a {var} and {index.__class__}", "a {var} and {index.__class__}"),
        ('""', ""),
        ('"  spaces  "', "spaces"),
        ("|\n    two\n    lines\n", "two\nlines"),
        ("a größer 猫 🙂", "a größer 猫 🙂"),
        ("'it''s'", "it's"),
    ],
)
def test_texts(tmp_path, written, prompt):
    assert prompts_of(tmp_path, f"prompts:\n  - {written}") == [prompt]


@pytest.mark.parametrize(
    ("written", "seeds"),
    [
        ("seed: 0", [0]),
        ("seeds: 7", [7]),
        ("seeds: [3, 0, 2]", [3, 0, 2]),
        ("seeds: {start: 5, count: 3}", [5, 6, 7]),
        ("seeds: {count: 2}", [42, 43]),
        (f"seeds: {{start: {2**64 - 2}, count: 2}}", [2**64 - 2, 2**64 - 1]),
        ("seed: 0x10", [16]),
    ],
)
def test_seeds(tmp_path, written, seeds):
    found = tasks(tmp_path, f"prompts:\n  - prompt: a\n    {written}")
    assert [task.sampling.seed for task in found] == seeds


def test_zeros_are_values(tmp_path):
    picture(tmp_path / "a.png")
    body = "prompts: [{prompt: a, seed: 0, guidance: 0, strength: 0, init_image: a.png}]"
    (task,) = tasks(tmp_path, body)
    assert (task.sampling.seed, task.sampling.guidance, task.sampling.strength) == (0, 0.0, 0.0)


def test_own_settings_win_over_defaults(tmp_path):
    body = """
defaults: {steps: 10, guidance: 3, negative: blurry, seeds: [1, 2]}
prompts:
  - plain
  - {prompt: own, steps: 20, negative: "", seed: 5}
"""
    first, second, own = tasks(tmp_path, body)
    assert (first.sampling.steps, first.sampling.guidance, first.negative) == (10, 3.0, "blurry")
    assert (first.sampling.seed, second.sampling.seed) == (1, 2)
    assert (own.sampling.steps, own.sampling.guidance, own.negative) == (20, 3.0, "")
    assert own.sampling.seed == 5


@pytest.mark.parametrize(
    ("written", "count"),
    [
        ("seed: random", 1),
        ("seed: -1", 1),
        ("seeds: random", 1),
        ("seeds: {start: random, count: 3}", 3),
        ("seeds: {start: -1, count: 3}", 3),
    ],
)
def test_random_seeds_are_drawn_once_and_planned(tmp_path, written, count):
    path = write(tmp_path, f"version: 1\nprompts:\n- {{prompt: a, {written}}}\n- b")
    manifest, again = load_manifest(path), load_manifest(path)
    seeds = [task.sampling.seed for task in manifest.tasks()]
    first = seeds[0]
    assert seeds == [*range(first, first + count), 42]
    assert seeds == [task.sampling.seed for task in manifest.tasks()]
    assert first < 2**32
    assert manifest.job_id() != again.job_id()  # one time of four milliards it is


def test_random_seeds_in_defaults_are_drawn_for_each_prompt(tmp_path):
    body = "defaults: {seed: random}\nprompts: [a, a, {prompt: a, seed: 7}]"
    first, second, given = (task.sampling.seed for task in tasks(tmp_path, body))
    assert (first != second, given) == (True, 7)
    body = "matrix: {seeds: random, guidance: [1, 2]}\nprompts: [a, b]"
    assert len({task.sampling.seed for task in tasks(tmp_path, body)}) == 1


@pytest.mark.parametrize(
    "written",
    [
        "variation: {seed: 5, strength: 0.25}",
        "variation_seed: 5\n  variation_strength: 0.25",
    ],
)
def test_variations(tmp_path, written):
    (task,) = tasks(tmp_path, f"prompts:\n- prompt: a\n  {written}")
    assert (task.sampling.variation_seed, task.sampling.variation_strength) == (5, 0.25)
    assert task.canonical()["variation_seed"] == 5


def test_what_does_nothing_names_no_picture(tmp_path):
    """A variation of strength 0, and a rule of strength without an init image."""
    body = "prompts: [a, {prompt: a, variation_seed: 5, strength_rule: a1111}]"
    plain, other = tasks(tmp_path, body)
    assert plain.canonical() == other.canonical()


@pytest.mark.parametrize(
    ("written", "sampler", "karras", "schedule"),
    [
        ("sampler: DPM++ 2M Karras", "dpmpp_2m", True, "default"),
        ("sampler: dpmpp_2m\n  schedule: karras", "dpmpp_2m", True, "default"),
        ("sampler: dpmpp_2m\n  karras: true", "dpmpp_2m", True, "default"),
        ("sampler: dpmpp_2m\n  karras: true\n  schedule: karras", "dpmpp_2m", True, "default"),
        ("sampler: DPM++ 3M SDE Exponential", "dpmpp_3m_sde", False, "exponential"),
        ("sampler: dpm++_2m_sde", "dpmpp_2m_sde", False, "default"),
        ("sampler: k_euler_a", "euler_a", False, "default"),
        ("sampler: Euler-A", "euler_a", False, "default"),
        ("sampler: DPM++ 2S a Karras", "dpmpp_2s_a", True, "default"),
        ("sampler: DPM++ SDE", "dpmpp_sde", False, "default"),
        ("sampler: uni_pc_bh2", "unipc", False, "default"),
        ("sampler: dpm_2_ancestral", "dpm2_a", False, "default"),
        ("sampler: DPMSolverMultistepScheduler", "dpmpp_2m", False, "default"),
        ("sampler: LCMScheduler", "lcm", False, "default"),
        ("sampler: Euler Align Your Steps", "euler", False, "ays"),
        ("sampler: Euler\n  schedule: SGM Uniform", "euler", False, "sgm_uniform"),
        ("sampler: euler\n  schedule: normal", "euler", False, "uniform"),
        ("sampler: euler\n  steps: 3\n  schedule: [9, 2.50, 1, 0]", "euler", False, "9.0 2.5 1.0"),
        ("sampler: euler\n  steps: 3\n  schedule: 9 2.50 1", "euler", False, "9.0 2.5 1.0"),
    ],
)
def test_names_of_samplers_and_schedules(tmp_path, written, sampler, karras, schedule):
    """One picture has one form in the plan, however its settings are written."""
    (task,) = tasks(tmp_path, f"prompts:\n- prompt: a\n  {written}")
    found = task.sampling
    assert (found.sampler, found.karras, found.schedule) == (sampler, karras, schedule)
    assert ("schedule" in task.canonical()) == (schedule != "default")
    assert read_task(json.dumps(task.to_json()).encode(), 0) == task


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("defaults: {schedule: karras}\nprompts: [{prompt: a, karras: false}]", "default"),
        ("defaults: {karras: true}\nprompts: [{prompt: a, schedule: default}]", "default"),
        ("defaults: {karras: true}\nprompts: [{prompt: a, schedule: exponential}]", "exponential"),
        ("defaults: {schedule: ays}\nprompts: [{prompt: a, karras: false}]", "ays"),
        ("defaults: {schedule: ays}\nprompts: [{prompt: a, karras: true}]", "karras"),
        ("defaults: {sampler: Heun Karras}\nprompts: [{prompt: a, schedule: beta}]", "beta"),
        ("defaults: {sampler: Heun Karras}\nprompts: [{prompt: a, sampler: lms}]", "default"),
        ("defaults: {schedule: beta}\nprompts: [{prompt: a, sampler: Heun Karras}]", "karras"),
        ("defaults: {schedule: beta}\nprompts: [{prompt: a, sampler: heun}]", "beta"),
        ("matrix: {karras: [false, true]}\nprompts: [a]", "default karras"),
        (
            "defaults: {schedule: karras}\nmatrix: {karras: [false, true]}\nprompts: [a]",
            "default karras",
        ),
        (
            "defaults: {karras: true}\nmatrix: {schedule: [default, ays]}\nprompts: [a]",
            "default ays",
        ),
        ("matrix: {sampler: [lms, Heun Karras]}\nprompts: [a]", "default karras"),
    ],
)
def test_the_innermost_place_says_the_spacing(tmp_path, body, wanted):
    if "sampler" not in body:
        body = body.replace("defaults: {", "defaults: {sampler: euler, ", 1)
        body = body if "defaults" in body else "defaults: {sampler: euler}\n" + body
    found = tasks(tmp_path, body)
    assert [task.sampling.spacing for task in found] == wanted.split()


def test_matrix_order_and_precedence(tmp_path):
    body = """
defaults: {steps: 99, negative: none, seeds: [1, 2]}
prompts: [a, {prompt: b, steps: 7, negative: y}]
matrix: {guidance: [5, 7.5], steps: [10, 20], negative: [x]}
"""
    manifest = load(tmp_path, body)
    found = [
        (t.prompt, t.sampling.guidance, t.sampling.steps, t.sampling.seed) for t in manifest.tasks()
    ]
    assert found[:6] == [
        ("a", 5.0, 10, 1),
        ("a", 5.0, 10, 2),
        ("a", 5.0, 20, 1),
        ("a", 5.0, 20, 2),
        ("a", 7.5, 10, 1),
        ("a", 7.5, 10, 2),
    ]
    assert [values[1:] for values in found[8:]] == [values[1:] for values in found[:8]]
    assert len(found) == manifest.total == 16
    assert {task.negative for task in manifest.tasks()} == {"x"}
    assert [task.index for task in manifest.tasks()] == list(range(16))


def test_sections_may_come_in_any_order(tmp_path):
    body = "prompts: [a]\noutput: {format: jpg}\nmatrix: {steps: [1, 2]}\ndefaults: {seed: 3}"
    found = tasks(tmp_path, body)
    assert [(t.sampling.steps, t.sampling.seed, t.format) for t in found] == [
        (1, 3, "jpeg"),
        (2, 3, "jpeg"),
    ]


def test_names(tmp_path):
    body = """
name: sweep.1
output: {name: "{prompt}/{name}-{index:03d}-{sampler}-g{guidance}-{steps}-{width}x{height}"}
prompts:
  - A Red Circle, 35mm!
  - {prompt: b, name: "mine-s{seed}"}
"""
    assert [task.name for task in tasks(tmp_path, body)] == [
        "a-red-circle-35mm/sweep.1-000-plms-g2-50-128x128",
        "mine-s42",
    ]


def test_name_defaults_to_the_files(tmp_path):
    path = write(tmp_path, "version: 1\nprompts: [a]", "my shapes (2).yaml")
    assert load_manifest(path).name == "my-shapes-2"


def test_json_is_yaml(tmp_path):
    path = write(tmp_path, '{"version": 1, "prompts": ["a", {"prompt": "b", "seed": 1}]}')
    assert [task.prompt for task in load_manifest(path).tasks()] == ["a", "b"]


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    path = write(tmp_path, b"\xef\xbb\xbfversion: 1\r\nprompts:\r\n- a\r\n")
    assert [task.prompt for task in load_manifest(path).tasks()] == ["a"]


def test_source_is_the_file_as_it_is(tmp_path):
    path = write(tmp_path, "version: 1  # first\nprompts: [a]")
    assert load_manifest(path).source == path.read_bytes()


class TestRows:
    def test_txt(self, tmp_path):
        write(tmp_path, "a\n\n  # b  \r\n{c}: d\nlast", "rows.txt")
        assert prompts_of(tmp_path, "prompts: [{file: rows.txt}]") == [
            *("a", "# b", "{c}: d", "last")
        ]

    def test_csv(self, tmp_path):
        write(
            tmp_path,
            "\ufeffprompt, seed,guidance,karras,sampler,negative,seeds\r\n"
            "a,0,5,TRUE,euler,,\r\n"
            '"b, with ""quotes""\nand lines",,,,,42,1 2\r\n\r\n'
            "no,,4.5,,,,\r\n",
            "rows.csv",
        )
        found = tasks(tmp_path, "prompts: [{file: rows.csv, steps: 9}]")
        assert [t.prompt for t in found] == ["a", *['b, with "quotes"\nand lines'] * 2, "no"]
        assert [t.sampling.seed for t in found] == [0, 1, 2, 42]
        assert [t.sampling.guidance for t in found] == [5.0, 2.0, 2.0, 4.5]
        assert [t.sampling.karras for t in found] == [True, False, False, False]
        assert [t.negative for t in found] == ["", "42", "42", ""]
        assert {t.sampling.steps for t in found} == {9}

    def test_jsonl(self, tmp_path):
        write(tmp_path, '{"prompt": "a", "seeds": {"count": 2}}\n\n{"prompt": "b"}', "r.jsonl")
        found = tasks(tmp_path, "prompts: [{file: r.jsonl, guidance: 2}]")
        assert [(t.prompt, t.sampling.seed) for t in found] == [("a", 42), ("a", 43), ("b", 42)]
        assert {t.sampling.guidance for t in found} == {2.0}

    def test_rows_win_over_the_entry_and_it_over_the_defaults(self, tmp_path):
        write(tmp_path, "prompt,steps\na,1\nb,\n", "rows.csv")
        body = "defaults: {steps: 3, seed: 9}\nprompts: [{file: rows.csv, steps: 2}, c]"
        found = tasks(tmp_path, body)
        assert [(t.sampling.steps, t.sampling.seed) for t in found] == [(1, 9), (2, 9), (3, 9)]

    def test_images_are_beside_the_file_that_names_them(self, tmp_path):
        picture(tmp_path / "sub" / "a.png")
        write(tmp_path, "prompt,init_image\na,a.png\n", "sub/rows.csv")
        (task,) = tasks(tmp_path, "prompts: [{file: sub/rows.csv}]")
        assert task.init_image is not None


class TestImages:
    def test_name_is_digest_and_real_format(self, tmp_path):
        path = picture(tmp_path / "photo.jpg", format="PNG")
        manifest = load(tmp_path, "prompts: [{prompt: a, init_image: photo.jpg}]")
        name = hashlib.sha256(path.read_bytes()).hexdigest() + ".png"
        assert [task.init_image for task in manifest.tasks()] == [name]
        assert manifest.inputs == {name: FileSource(path, "photo.jpg")}

    @pytest.mark.parametrize(("format", "suffix"), [("JPEG", ".jpg"), ("WEBP", ".webp")])
    def test_other_formats(self, tmp_path, format, suffix):
        picture(tmp_path / "a.x", format=format)
        (task,) = tasks(tmp_path, "prompts: [{prompt: a, init_image: a.x, strength: 1}]")
        assert task.init_image.endswith(suffix)
        assert task.sampling.strength == 1.0

    def test_equal_files_are_one_input(self, tmp_path):
        picture(tmp_path / "a.png")
        picture(tmp_path / "b.png")
        body = "prompts: [{prompt: a, init_image: a.png, mask: b.png}]"
        assert len(load(tmp_path, body).inputs) == 1

    def test_defaults_reach_only_what_can_use_them(self, tmp_path):
        picture(tmp_path / "a.png")
        body = (
            "defaults: {strength: 0.4, mask: a.png}\n"
            "prompts: [plain, {prompt: a, init_image: a.png}]"
        )
        plain, painted = tasks(tmp_path, body)
        assert (plain.init_image, plain.mask) == (None, None)
        assert painted.mask == painted.init_image
        assert painted.sampling.strength == 0.4

    def test_picture_on_its_side_is_compared_upright(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        picture(tmp_path / "photo.jpg", (64, 128), exif=exif)
        picture(tmp_path / "mask.png", (128, 64))
        body = "prompts: [{prompt: a, init_image: photo.jpg, mask: mask.png}]"
        assert len(tasks(tmp_path, body)) == 1

    def test_allow_outside(self, tmp_path):
        path = picture(tmp_path / "elsewhere" / "a.png")
        items = [f"{{prompt: a, init_image: {text}}}" for text in ("../elsewhere/a.png", path)]
        body = f"prompts: [{', '.join(items)}]"
        (tmp_path / "here").mkdir()
        manifest = load(tmp_path / "here", body, allow_outside=True)
        assert manifest.total == 2
        assert len(messages(tmp_path / "here", body)) == 2

    def test_link_that_stays_inside(self, tmp_path):
        picture(tmp_path / "a.png")
        (tmp_path / "link.png").symlink_to("a.png")
        assert len(tasks(tmp_path, "prompts: [{prompt: a, init_image: link.png}]")) == 1


class TestJobId:
    BODY = "name: shapes\ndefaults: {steps: 5}\nprompts: [a, {prompt: b, seeds: [0, 1]}]"

    def id(self, folder, body):
        return load(folder, body).job_id()

    def test_form(self, tmp_path):
        """Pinned: another id would render existing jobs again, in a new folder."""
        assert self.id(tmp_path, self.BODY) == "shapes-cb257c5e4393"

    @pytest.mark.parametrize(
        "same",
        [
            "name: shapes\ndefaults:\n  steps: 5  # few\nprompts:\n- 'a'\n"
            "- {prompt: b, seeds: [0, 1]}",
            "name: shapes\nmodel: demo\nprompts: [{prompt: a, steps: 5}, {prompt: b, steps: 5, "
            "seeds: {start: 0, count: 2}}]",
            "name: shapes\ndefaults: {steps: 5}\noutput: {store: elsewhere}\nprompts: [a, "
            "{prompt: b, seeds: [0, 1]}]",
            "name: shapes\ndefaults: {steps: 5}\noutput: {thumbnails: false}\nprompts: [a, "
            "{prompt: b, seeds: [0, 1]}]",
            "name: shapes\ndefaults: {steps: 5, guidance: 2.00, strength: 0.1}\nprompts: [a, "
            "{prompt: b, seeds: [0, 1]}]",
        ],
    )
    def test_the_same_job_written_otherwise(self, tmp_path, same):
        assert self.id(tmp_path, same) == self.id(tmp_path, self.BODY)

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("shapes", "other"),
            ("steps: 5", "steps: 6"),
            ("[a,", "[c,"),
            ("[0, 1]", "[1, 0]"),
            ("prompts", "output: {name: '{seed}'}\nprompts"),
            ("prompts", "output: {format: webp}\nprompts"),
            ("prompts", "output: {format: webp, quality: 50}\nprompts"),
            ("prompts", "model: sd\ndefaults: {width: 128, height: 128, steps: 5}\nprompts"),
        ],
    )
    def test_another_job(self, tmp_path, old, new):
        body = self.BODY.replace("defaults: {steps: 5}\n", "") if "model" in new else self.BODY
        assert self.id(tmp_path, body.replace(old, new)) != self.id(tmp_path, self.BODY)

    def test_an_images_content_counts_not_its_name(self, tmp_path):
        picture(tmp_path / "a.png")
        first = self.id(tmp_path, "prompts: [{prompt: a, init_image: a.png}]")
        (tmp_path / "a.png").rename(tmp_path / "b.png")
        assert self.id(tmp_path, "prompts: [{prompt: a, init_image: b.png}]") == first
        picture(tmp_path / "b.png", (72, 64))
        assert self.id(tmp_path, "prompts: [{prompt: a, init_image: b.png}]") != first


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("pag: {scale: 3}", {"pag_scale": 3.0}),
        ("pag: {scale: 3, layers: [mid_block, up_blocks.1]}", {"pag_layers": "mid up.1"}),
        ("pag_scale: 1\n  pag_layers: up.2.0 down.1", {"pag_layers": "down.1 up.2.0"}),
        ("freeu: {b1: 1.5, s2: 0.2}", {"freeu": "1.5 1 1 0.2"}),
        ("freeu: 1.5, 1.6, .9, .2", {"freeu": "1.5 1.6 0.9 0.2"}),
        ("freeu: {b1: 1}", {}),
        ("pag: {scale: 0, layers: up.1}", {}),
        ("apg: {eta: 0, momentum: -0.5}", {"apg": "0 0 -0.5"}),
        ("apg: {eta: 0}\n  guidance: 1", {"guidance": 1.0}),
    ],
)
def test_guidance_beside_that_of_the_negative_prompt(tmp_path, written, meant):
    """Settings that come to nothing are in no plan."""
    (task,) = tasks(tmp_path, f"defaults:\n  {written}\nprompts: [a]")
    found = task.canonical()
    assert meant.items() <= found.items()
    others = {"pag_scale", "pag_layers", "freeu", "apg"} - {*meant, "pag_scale"}
    assert not others & found.keys()
