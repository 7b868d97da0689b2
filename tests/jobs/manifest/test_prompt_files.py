"""Prompt files as other programs write them: the web UI's options, spreadsheets, pandas."""

from __future__ import annotations

import pytest

from tests.jobs.manifests import HEAD, load, problems, tasks, write


def rows(folder, name, text, settings=""):
    """The tasks of a manifest whose prompts are one file."""
    write(folder, text, name)
    return tasks(folder, f"prompts: [{{file: {name}{settings}}}]")


def flaws(folder, name, text):
    """`line:column: path: message` of each problem of a file."""
    write(folder, text, name)
    found = problems(folder, f"{HEAD}prompts: [{{file: {name}}}]")
    return [str(problem).removeprefix(f"{folder / name}:") for problem in found]


def flaw(folder, name, text):
    (message,) = flaws(folder, name, text)
    return message


class TestWebui:
    """`Prompts from file` of AUTOMATIC1111's web UI."""

    def test_options_are_read_and_comments_are_none(self, tmp_path):
        text = (
            "a red circle\n"
            '--prompt "a blue star" --negative_prompt "blurry" --seed 5 --steps 20\n'
            "# a comment\n"
        )
        circle, star = rows(tmp_path, "p.txt", text, ", negative: ugly, seed: 9")
        assert (circle.prompt, circle.negative, circle.sampling.seed) == ("a red circle", "ugly", 9)
        assert (star.prompt, star.negative, star.sampling.seed) == ("a blue star", "blurry", 5)
        assert (circle.sampling.steps, star.sampling.steps) == (50, 20)

    def test_every_option_that_has_an_equivalent(self, tmp_path):
        text = (
            "--width 640 --height 448 --cfg_scale 6.5 --sampler_name 'DPM++ 2M Karras' "
            "--seed 7 --batch_size 2 --n_iter 3 --restore_faces false --tiling False "
            "--prompt a castle --negative_prompt trees, (shrubs)"
        )
        found = rows(tmp_path, "p.txt", text)
        assert [task.sampling.seed for task in found] == [7, 8, 9, 10, 11, 12]
        task = found[0]
        assert (task.prompt, task.negative) == ("a castle", "trees, (shrubs)")
        assert (task.sampling.width, task.sampling.height) == (640, 448)
        assert (task.sampling.sampler, task.sampling.karras) == ("dpmpp_2m", True)
        assert task.sampling.guidance == 6.5

    @pytest.mark.parametrize("white", [" ", "\t", "\x0b", "\u3000"])
    def test_white_space_before_the_options(self, tmp_path, white):
        (task,) = rows(tmp_path, "p.txt", f"{white}--prompt a --steps 3")
        assert (task.prompt, task.sampling.steps) == ("a", 3)

    def test_several_images_without_a_seed_begin_at_the_default(self, tmp_path):
        found = rows(tmp_path, "p.txt", "--prompt a --n_iter 2\n--prompt b --batch_size 1 --seed 3")
        assert [task.sampling.seed for task in found] == [42, 43, 3]

    @pytest.mark.parametrize(
        ("name", "sampler", "karras"),
        [
            ("Euler a", "euler_a", False),
            ("euler karras", "euler", True),
            ("k_lms", "lms", False),
            ("k_dpmpp_2m_ka", "dpmpp_2m", True),
            ("PLMS", "plms", False),
            ("UniPC", "unipc", False),
            ("Euler a Karras", "euler_a", True),
        ],
    )
    def test_names_of_samplers(self, tmp_path, name, sampler, karras):
        (task,) = rows(tmp_path, "p.txt", f'--prompt a --sampler_name "{name}"')
        assert (task.sampling.sampler, task.sampling.karras) == (sampler, karras)

    @pytest.mark.parametrize(
        "text", ["# b", "a -- b", "--", "-- b", "a --ar 16:9", "a --steps 20", "—prompt"]
    )
    def test_lines_without_options_stay_prompts(self, tmp_path, text):
        assert [task.prompt for task in rows(tmp_path, "p.txt", f"a\n{text}\n")] == ["a", text]

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("--prompt a --steps 0", "2:12: steps: found 0, expected a whole number within 1"),
            ("--prompt a --cfg_scale x", "2:12: guidance: found 'x', expected a finite number"),
            ("--prompt a --seed -2", "2:12: seed: found -2, expected a whole number"),
            ("--prompt a --seed", "2:12: --seed has no value"),
            ("--prompt a --seed ''", "2:12: --seed has no value"),
            ("--prompt --seed 5", "2:1: --prompt has no value"),
            ("--prompt a --seed 1 2", "2:12: '2' follows the value of --seed; an option has one"),
            ("--prompt a --seed 1 --seed 2", "2:12: --seed is there twice"),
            ("--steps 5", "2:1: prompt is missing"),
            ("--prompt a --n_iter 0", "2:12: --n_iter: found '0', expected a whole number from 1"),
            ("--prompt a --batch_size 10000001", "2:12: seeds.count: found 10000001, expected"),
            ("--prompt a --sampler_name Restart", "'Restart' is not here; expected one of PLMS"),
            ("--prompt a --sampler_name 'PLMS Karras'", "'PLMS Karras' is not here"),
            ("--prompt a --tiling true", "2:12: --tiling has no equivalent here; take it out"),
            ("--prompt a --tiling", "2:12: --tiling has no equivalent here; take it out"),
            ("--prompt a --sd_model x", "a job has one model, which is under model"),
            ("--prompt a --styles x", "--styles has no equivalent here; write their words"),
            ("--ar 16:9", "unknown option '--ar'; expected one of --prompt, --negative_pro"),
            ("\x0c --prompt a --seed", "2:14: --seed has no value"),
            ("--prompt a cat's hat", "2:1: a quote is opened and not closed"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_read_is_refused_with_its_line(self, tmp_path, line, expected):
        assert expected in flaw(tmp_path, "p.txt", f"a\n{line}\n")

    def test_every_bad_option_of_a_line_is_told(self, tmp_path):
        found = flaws(tmp_path, "p.txt", "--prompt a --tiling x --styles x --seed 1")
        assert [message.partition(" ")[0] for message in found] == ["1:12:", "1:23:"]


class TestSpreadsheets:
    def test_semicolons_with_a_byte_order_mark(self, tmp_path):
        text = '\ufeffprompt;seed\r\n"ein roter Kreis; groß";1\r\n'
        (task,) = rows(tmp_path, "r.csv", text)
        assert (task.prompt, task.sampling.seed) == ("ein roter Kreis; groß", 1)

    @pytest.mark.parametrize(
        "text",
        [
            "prompt\tseed\na, b\t5\n",
            "sep=;\nprompt;seed\na, b;5\n",
            '"sep=;"\r\nprompt;seed\r\na, b;5\r\n',
            "sep=\t\nprompt\tseed\na, b\t5\n",
            'sep=,\nprompt,seed\n"a, b",5\n',
            "SEP=|\nprompt|seed\na, b|5\n",
            "\n\nprompt;seed\n\na, b;5\n",
        ],
    )
    def test_other_separators(self, tmp_path, text):
        (task,) = rows(tmp_path, "r.csv", text)
        assert (task.prompt, task.sampling.seed) == ("a, b", 5)

    def test_a_single_column_holds_anything(self, tmp_path):
        found = rows(tmp_path, "r.csv", "prompt\na; b\nc\td\n")
        assert [task.prompt for task in found] == ["a; b", "c\td"]

    def test_headers_in_capitals(self, tmp_path):
        (task,) = rows(tmp_path, "r.csv", "Prompt,SEED, Negative \na,5,b\n")
        assert (task.prompt, task.sampling.seed, task.negative) == ("a", 5, "b")
        assert "column 'prompt' is there twice" in flaw(tmp_path, "r.csv", "Prompt,prompt\na,b\n")

    def test_whole_numbers_of_pandas(self, tmp_path):
        text = (
            "prompt,seed,steps,width,guidance\na red circle,1.0,20.0,256.00,3.0\na blue star,,,,\n"
        )
        circle, star = rows(tmp_path, "r.csv", text)
        assert (circle.sampling.seed, star.sampling.seed) == (1, 42)
        assert (circle.sampling.steps, circle.sampling.width) == (20, 256)
        assert circle.sampling.guidance == 3.0

    def test_several_seeds_of_pandas(self, tmp_path):
        found = rows(tmp_path, "r.csv", "prompt,seeds\na,1.0 2.0\nb,3.0\n")
        assert [task.sampling.seed for task in found] == [1, 2, 3]

    def test_json_lines_of_pandas(self, tmp_path):
        text = '{"prompt": "a", "seed": 1.0, "steps": 20.0}\n{"prompt": "b", "seed": null}\n'
        a, b = rows(tmp_path, "r.jsonl", text)
        assert (a.sampling.seed, a.sampling.steps, b.sampling.seed) == (1, 20, 42)

    def test_decimal_commas_between_semicolons(self, tmp_path):
        (task,) = rows(tmp_path, "r.csv", "prompt;guidance;steps\na;7,5;20,0\n")
        assert (task.sampling.guidance, task.sampling.steps) == (7.5, 20)

    def test_empty_columns(self, tmp_path):
        found = rows(tmp_path, "r.csv", "prompt;seed;;\na;1;;\nb;2;;;;\n;;;\n")
        assert [(task.prompt, task.sampling.seed) for task in found] == [("a", 1), ("b", 2)]

    @pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
    @pytest.mark.parametrize(
        ("name", "text"),
        [("r.csv", "\ufeffprompt\tseed\r\n猫\t5\r\n"), ("r.txt", "\ufeff--prompt 猫 --seed 5\r\n")],
    )
    def test_utf_16(self, tmp_path, encoding, name, text):
        (task,) = rows(tmp_path, name, text.encode(encoding))
        assert (task.prompt, task.sampling.seed) == ("猫", 5)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("prompt,seed\na,1E+05\n", "2:3: seed: '1E+05' has lost its last digits; write whole"),
            ("prompt;seed\na;1,23457E+11\n", "2:3: seed: '1,23457E+11' has lost its last digits"),
            ("prompt,seeds\na,1 2e9\n", "2:3: seeds: '2e9' has lost its last digits"),
            ("prompt,seed\na,18446744073709551616.0\n", "has lost its last digits"),
            ("prompt;seed\na;1.000\n", "2:3: seed: found 1.0, expected a whole number"),
            ("prompt,seed\na,1.5\n", "2:3: seed: found 1.5, expected a whole number"),
            ("promt;seed\na;1\n", "1:1: unknown column 'promt'; did you mean 'prompt'?"),
            ("prompt;folder\na;1\n", "1:8: unknown column 'folder'; expected one of"),
            ("prompt;seed\na;b;1\n", "2:1: the row has 3 cells, the header 2; a text with semicol"),
            ("prompt\tseed\na\n", "2:1: the row has 1 cell, the header 2; a text with tabs needs"),
            ("prompt;seed\na;x\n", "2:3: seed: found 'x', expected a whole number"),
            ('prompt;seed\n"a;\nb";x\n', "3:4: seed: found 'x', expected a whole number"),
            (",prompt,seed\n0,a,1\n1,b,2\n", "2:1: '0' is in a column without a name; name it or"),
            ("prompt,cfg_scale\na,7\n", "unknown column 'cfg_scale'; did you mean 'guidance'?"),
            ("prompt;seeds\na;1,2\n", "found '1,2', expected a seed (a whole number within 0 to"),
            ("prompt;seeds\na;1,2\n", "are written [1, 2, 3], in a .csv file with spaces between"),
            ("sep=;\n", "has no prompts"),
            ("sep=;\nseed\n1\n", "2:1: there is no column 'prompt'"),
            (b"prompt;seed\ncaf\xe9;1\n", "2:4: byte 0xe9 is not UTF-8; save the file as UTF-8"),
            (b"\xff\xfep\0r\0\0\xd8", "1:1: is not UTF-16 as it begins"),
            ("\ufeffprompt\n".encode("utf-16-le") + 2**19 * b"a\0", "2:1: the line is longer than"),
        ],
    )  # fmt: skip
    def test_what_is_not_plain_is_refused(self, tmp_path, text, expected):
        assert expected in flaw(tmp_path, "r.csv", text)

    def test_a_header_too_long_for_a_cell(self, tmp_path):
        assert "is not CSV: field larger" in flaw(tmp_path, "r.csv", f"{'x' * 200_000}\na\n")


def test_files_of_both_kinds_in_one_manifest(tmp_path):
    write(tmp_path, "Prompt;Seed\na;1\n", "a.csv")
    write(tmp_path, "--prompt b --seed 2", "b.txt")
    assert load(tmp_path, "prompts: [{file: a.csv}, {file: b.txt}]").total == 2
