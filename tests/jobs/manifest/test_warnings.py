"""Warnings of manifests: what may not be meant as it is written, said once a kind."""

from __future__ import annotations

import json

import pytest

from jobs.cli import root as cli
from jobs.manifest.load import load_manifest
from jobs.manifest.prompt_syntax import READ_BY_A1111
from jobs.manifest.warnings import WarningList
from tests.jobs.manifests import HEAD, write


def warned(folder, body):
    """kind -> warning of a manifest of version 1 with this body."""
    found = WarningList()
    load_manifest(write(folder, HEAD + body), warnings=found)
    return {warning.kind: warning for warning in found}


def said(folder, body):
    """`line:column: path: message` of each warning; the body starts in line 2."""
    start = f"{folder / 'job.yaml'}:"
    return [str(warning.first).removeprefix(start) for warning in warned(folder, body).values()]


class TestYaml:
    @pytest.mark.parametrize(
        ("body", "place", "comment"),
        [
            ("prompts:\n- a cat #1 on artstation\n", "3:9: prompts[0]", "#1 on artstation"),
            ("prompts:\n- größe\t #tag\n", "3:10: prompts[0]", "#tag"),
            ("prompts:\n- prompt: a #x\n", "3:13: prompts[0].prompt", "#x"),
            ("prompts:\n- 'a #1'\n- a\n  b #two\n", "5:5: prompts[1]", "#two"),
            ("prompts: [a, b #2\n]\n", "2:16: prompts[1]", "#2"),
            ("prompts: [{prompt: 'a #1', negative: b #2\n}]\n", "2:40: prompts[0].negative", "#2"),
            ("defaults: {negative: ü #1\n  }\nprompts: [a]\n", "2:24: defaults.negative", "#1"),
            ("matrix: {negative: [a #1\n  ]}\nprompts: [a]\n", "2:23: matrix.negative[0]", "#1"),
            ("output: {store: out #1\n  }\nprompts: [a]\n", "2:21: output.store", "#1"),
        ],
    )
    def test_a_text_that_a_comment_cuts(self, tmp_path, body, place, comment):
        (message,) = said(tmp_path, body)
        assert message == (
            f"{place}: '{comment}' is a comment in YAML and no part of the text; a text with a # "
            "after a space needs quotes"
        )

    @pytest.mark.parametrize(
        "body",
        [
            "prompts:\n- a cat  # a comment, as people write them\n",
            "prompts:\n- 'a cat #1'\n- \"a cat #1\" #note\n- a#1\n",
            "prompts:\n#1 is the first\n- a\n  #2 too\n",
            "defaults: {steps: 5 #few\n  }\nprompts: [a]\n",
            "prompts:\n- |\n  a #1\n",
            "prompts:\n- a cat\n  and a dog-\n  walker\n",
        ],
    )
    def test_comments_that_are_meant(self, tmp_path, body):
        assert said(tmp_path, body) == []

    def test_the_last_of_many_lines(self, tmp_path):
        many = "- 'a #1'\n" * 5000 + "- b  # c\n" * 100
        (message,) = said(tmp_path, f"prompts:\n{many}- é #last\n")
        assert message.startswith("5103:5: prompts[5100]: '#last' is a comment")

    def test_a_list_that_became_one_text(self, tmp_path):
        (message,) = said(tmp_path, "prompts:\n- a cat\n  - a dog\n")
        assert message.startswith("3:3: prompts[0]: 'a cat - a dog' is one text, of several lines")

    def test_lines_of_a_prompt_file_that_look_like_comments(self, tmp_path):
        write(tmp_path, "# my prompts\na cat\n# end\n", "p.txt")
        warning = warned(tmp_path, "prompts: [{file: p.txt}]")["comment"]
        assert (warning.first.file, warning.first.line) == (str(tmp_path / "p.txt"), 1)
        assert warning.count == 2
        assert "this line is a prompt, and drawn" in warning.first.message
        write(tmp_path, "# my prompts\n--prompt a\n", "p.txt")
        assert warned(tmp_path, "prompts: [{file: p.txt}]") == {}


class TestTokens:
    LONG = "cat " * 75 + "Lighting, dramatic"
    CUT = (
        "78 tokens, of which the model reads 75: it is cut at 'lighting,'; long_prompts: chunk "
        "reads all"
    )
    SET = "matrix: {long_prompts: [cut]}"

    def test_a_prompt_that_is_cut(self, tmp_path):
        cut = f"{{prompt: '{self.LONG}', long_prompts: cut}}"
        assert said(tmp_path, f"prompts: [a, {cut}, '{self.LONG}']") == [
            f"2:23: prompts[1].prompt: {self.CUT}"
        ]

    def test_none_is_unless_it_is_to_be(self, tmp_path):
        assert (
            said(tmp_path, f"prompts: ['{self.LONG}', {{prompt: a, negative: '{self.LONG}'}}]")
            == []
        )

    @pytest.mark.parametrize(
        ("body", "place"),
        [
            ("prompts: ['{}']", "2:11: prompts[0]"),
            ("prompts: [{{prompt: a, negative: '{}'}}]", "2:33: prompts[0].negative"),
            (
                "defaults: {{negative: '{}', long_prompts: chunk}}\nprompts: [a, b]",
                "2:22: defaults.negative",
            ),
        ],
    )
    def test_everywhere(self, tmp_path, body, place):
        assert said(tmp_path, f"{body.format(self.LONG)}\n{self.SET}") == [f"{place}: {self.CUT}"]

    def test_in_a_matrix(self, tmp_path):
        body = f"matrix: {{negative: ['', '{self.LONG}']}}\ndefaults: {{long_prompts: cut}}"
        assert said(tmp_path, f"{body}\nprompts: [a]") == [f"2:25: matrix.negative[1]: {self.CUT}"]

    def test_in_rows_with_a_count(self, tmp_path):
        write(tmp_path, f'prompt,seed\na,1\n"{self.LONG}",2\n"{self.LONG}",3\n', "r.csv")
        warning = warned(tmp_path, f"prompts: [{{file: r.csv}}]\n{self.SET}")["tokens"]
        first = warning.first
        assert (first.file, first.line, first.column) == (str(tmp_path / "r.csv"), 3, 1)
        assert (first.path, warning.count) == ("prompt", 2)

    @pytest.mark.parametrize("prompt", ["cat " * 75, "x" * 75, "ä" * 70, "猫" * 24])
    def test_as_long_as_can_be_read(self, tmp_path, prompt):
        assert said(tmp_path, f"prompts: ['{prompt}']") == []


class TestSyntax:
    @pytest.mark.parametrize(
        ("kind", "prompt", "example"),
        [
            ("weights", "a (red hat:1.3)", "(red hat:1.3)"),
            ("weights", "(style of 1990:1.2)", "(style of 1990:1.2)"),
            ("weights", "(hat:-1), a", "(hat:-1)"),
            ("weights", "(((best quality))), a", "((best quality))"),
            ("weights", "a [small] cat", "[small]"),
            ("weights", "[cat:dog:0.5]", "[cat:dog:0.5]"),
            ("weights", r"saber \(fate\)", r"\("),
            ("networks", "a <lora:ink:0.8> b", "<lora:ink:0.8>"),
            ("networks", "a <LyCO:ink>", "<LyCO:ink>"),
            ("networks", "embedding:easy, a", "embedding:easy"),
            ("parts", "a cat BREAK a dog", "BREAK"),
            ("parts", "a cat AND a dog", "AND"),
            ("wildcards", "a __animals/cats__", "__animals/cats__"),
            ("wildcards", "a {red|2$$blue} ball", "{red|2$$blue}"),
            ("options", "a cat --ar 16:9", "--ar"),
        ],
    )
    def test_of_other_programs(self, tmp_path, kind, prompt, example):
        found = warned(tmp_path, f"prompts: [{json.dumps(prompt)}]")
        assert list(found) == [kind]
        assert found[kind].first.message.startswith(f"'{example}' is other programs' syntax for ")
        hints = {"wildcards": "; dynamic: random makes choices"}
        hints |= dict.fromkeys(READ_BY_A1111, "; syntax: a1111 reads it")
        if "<" in prompt:
            hints["networks"] = "; syntax: a1111 loads it in a prompt"
        end = hints.get(kind, "")
        assert found[kind].first.message.endswith(f"; it is drawn as the text that it is{end}")
        if "<" in prompt:
            return
        set_so = f"defaults: {{syntax: a1111}}\nprompts: [{json.dumps(prompt)}]"
        assert list(warned(tmp_path, set_so)) == ([] if kind in READ_BY_A1111 else [kind])

    @pytest.mark.parametrize(
        "prompt",
        [
            "a (red) hat (on a chair (of wood))",
            "a film still (at 16:9), 10:30 (morning), (John 3:16), (see: 5)",
            'a sign that says "COFFEE BREAK", SALT AND PEPPER, BREAKFAST, "AND"',
            "{color} and {index.__class__} and {{x}}",
            "C++ code, a -- b, a--b, half-open, snake_case, a__b, ____",
            "<cat-toy> on a table, a < b > c, 1girl",
            "photo [1] (c) 2024: a study",
        ],
    )
    def test_prose(self, tmp_path, prompt):
        assert said(tmp_path, f"prompts: [{json.dumps(prompt)}]") == []

    def test_each_kind_once_with_a_count(self, tmp_path):
        body = "prompts: ['(a:1.1)', '(b:1.2) (c:1.3)', 'a BREAK b', c]"
        found = warned(tmp_path, body)
        assert {kind: warning.count for kind, warning in found.items()} == {
            "weights": 2,
            "parts": 1,
        }
        assert "'(a:1.1)'" in found["weights"].first.message

    @pytest.mark.parametrize(
        "text",
        ["(", "((", "[a", "(a:", "(a:1", "(: ", "{", "{|", "<lora:", "__a", "\\", "--a", "(a :"],
    )
    def test_ten_thousand_characters_are_no_hard_work(self, tmp_path, text):
        """Patterns that go back and forth would take minutes."""
        prompts = [text * (10_000 // len(text)), text + "1" * 9_000, text + "a" * 9_000]
        cut = "defaults: {long_prompts: cut}"
        warned(tmp_path, f"{cut}\nprompts: {json.dumps(prompts * 20)}")


class TestSeeds:
    WHY = (
        "give the same picture: torch's generator on the CPU takes the low 32 bits of a seed, in "
        "diffusers too"
    )

    def test_of_one_prompt(self, tmp_path):
        seeds = [0, 2**32, 2**63, 2**32 - 1, 2**63 - 1, 2**64 - 1, 5]
        warning = warned(tmp_path, f"prompts: [{{prompt: a, seeds: {seeds}}}]")["seeds"]
        assert str(warning.first).endswith(
            f":2:11: prompts[0]: seeds 0 = {2**32} = {2**63}, {2**32 - 1} = {2**63 - 1} = "
            f"{2**64 - 1} {self.WHY}"
        )
        assert warning.count == 4

    def test_of_several_entries(self, tmp_path):
        write(tmp_path, f"prompt,seed\na,7\nb,{2**40 + 7}\na,{2**33 + 7}\na,7\n", "r.csv")
        warning = warned(tmp_path, "prompts: [{file: r.csv}]")["seeds"]
        assert warning.first.line == 4
        assert f"seeds 7 = {2**33 + 7} give" in warning.first.message
        assert warning.count == 1

    def test_of_a_range_and_a_number(self, tmp_path):
        entries = [f"seed: {2**32 + 9}", "seeds: {start: 8, count: 3}"]
        body = f"prompts: [{', '.join(f'{{prompt: a, {seeds}}}' for seeds in entries)}]"
        warning = warned(tmp_path, body)["seeds"]
        assert f"seeds {2**32 + 9} = 9 give" in warning.first.message

    @pytest.mark.parametrize(
        "prompts",
        [
            f"[{{prompt: a, seed: {2**32}}}, {{prompt: b, seed: 0}}]",
            f"[{{prompt: a, seed: {2**32}}}, {{prompt: a, seed: 0, steps: 7}}]",
            f"[{{prompt: a, seed: {2**32}}}, {{prompt: a, seed: {2**32}}}]",
            f"[{{prompt: a, seeds: [{2**32}, {2**33 + 1}, {2**64 - 1}]}}]",
            "[a, a]",
        ],
    )
    def test_that_differ(self, tmp_path, prompts):
        assert said(tmp_path, f"prompts: {prompts}") == []

    def test_of_more_images_than_are_looked_at(self, tmp_path, monkeypatch):
        monkeypatch.setattr("jobs.manifest.seed_warnings._MOST_SEEDS", 2)
        seeds = [1, 2, 3, 2**32 + 1, 2**32 + 3]
        assert said(tmp_path, f"prompts: [{{prompt: a, seeds: {seeds}}}]") == []


class TestCommands:
    BODY = "version: 1\nname: w\nprompts:\n- a (hat:1.2)\n- b (hat:1.2)\n- c BREAK d\n"

    @pytest.fixture
    def run(self, capsys):
        def run(*arguments):
            code = cli.main([str(argument) for argument in arguments])
            out, err = capsys.readouterr()
            return code, out, err

        return run

    @pytest.mark.parametrize("command", ["validate", "plan"])
    def test_are_said_for_people(self, run, tmp_path, command):
        path = write(tmp_path, self.BODY)
        code, out, err = run(command, path)
        assert code == 0
        assert "warning" not in out
        assert err.splitlines() == [
            f"{path}:4:3: prompts[0]: warning: '(hat:1.2)' is other programs' syntax for weights; "
            "it is drawn as the text that it is; syntax: a1111 reads it (2 in all)",
            f"{path}:6:3: prompts[2]: warning: 'BREAK' is other programs' syntax for prompts in "
            "several parts; it is drawn as the text that it is; syntax: a1111 reads it",
        ]

    @pytest.mark.parametrize("command", ["validate", "plan"])
    def test_are_in_the_document(self, run, tmp_path, command):
        path = write(tmp_path, self.BODY)
        code, out, err = run(command, "--json", path)
        assert (code, err) == (0, "")
        first, second = json.loads(out)["warnings"]
        assert first == {
            "kind": "weights",
            "count": 2,
            "file": str(path),
            "line": 4,
            "column": 3,
            "path": "prompts[0]",
            "message": "'(hat:1.2)' is other programs' syntax for weights; it is drawn as the text "
            "that it is; syntax: a1111 reads it",
        }
        assert (second["kind"], second["count"]) == ("parts", 1)

    @pytest.mark.parametrize("command", ["run", "submit"])
    def test_are_said_before_anything_is_done(self, run, tmp_path, command):
        path = write(tmp_path, self.BODY)
        broken = [command, path, "--store", "s3:/bucket"]
        code, _, err = run(*broken)
        first, second, last = err.splitlines()
        assert code == 5
        assert f"{path}:4:3: prompts[0]: warning: '(hat:1.2)'" in first
        assert f"{path}:6:3: prompts[2]: warning: 'BREAK'" in second
        assert last.startswith("error: a folder named s3: is an address")
        document = json.loads(run(*broken, "--json")[1])
        assert [warning["kind"] for warning in document["warnings"]] == ["weights", "parts"]

    def test_are_told_beside_problems(self, run, tmp_path):
        path = write(
            tmp_path, "version: 1\nprompts:\n- a cat #1 on artstation\n- a cat: portrait\n"
        )
        code, _, err = run("validate", path)
        assert code == 2
        assert err.splitlines() == [
            f"{path}:3:9: prompts[0]: warning: '#1 on artstation' is a comment in YAML and no part "
            "of the text; a text with a # after a space needs quotes",
            f"{path}:4:3: prompts[1]: 'a cat' is read as a key, for a ': ' follows; quote the "
            'text: "a cat: portrait"',
            "1 problem",
        ]
        document = json.loads(run("validate", "--json", path)[1])
        assert [warning["kind"] for warning in document["warnings"]] == ["comment"]
        assert len(document["problems"]) == 1

    def test_of_several_files_are_all_there(self, run, tmp_path):
        one, two = write(tmp_path, self.BODY, "one.yaml"), write(tmp_path, self.BODY, "two.yaml")
        document = json.loads(run("validate", "--json", one, two)[1])
        assert [w["file"] for w in document["warnings"]] == [str(one)] * 2 + [str(two)] * 2


def test_choices_that_are_made_are_no_foreign_syntax(tmp_path):
    assert said(tmp_path, "defaults: {dynamic: random}\nprompts: ['a {cat|dog}']") == []
    body = "prompts: [{prompt: 'a {cat|dog}', dynamic: combinatorial}, {prompt: '{a|b}'}]"
    (message,) = said(tmp_path, body)
    assert message.startswith("2:69: prompts[1].prompt: '{a|b}' is other programs' syntax")


class TestSampling:
    def test_noise_of_gpus_takes_all_bits_of_a_seed(self, tmp_path):
        body = "prompts: [{prompt: a, seeds: [5, 4294967301]}]"
        assert said(tmp_path, "defaults: {noise: gpu}\n" + body) == []
        assert len(said(tmp_path, body)) == 1

    def test_a_schedule_that_is_interpolated(self, tmp_path):
        body = "defaults: {sampler: euler, schedule: ays}\nprompts: [{prompt: a, steps: 10}, a]"
        (message,) = said(tmp_path, body)
        assert message.startswith(
            "3:35: prompts[1]: schedule ays is published for 10 steps; for 50"
        )

    @pytest.mark.parametrize(
        ("body", "place"),
        [
            ("prompts:\n- {prompt: a, sampler: LCM, steps: 4, guidance: 7.5}\n", "3:3: prompts[0]"),
            ("model: sd\nprompts:\n- {prompt: a, sampler: tcd, steps: 4}\n", "4:3: prompts[0]"),
            ("defaults: {guidance: 3}\nmatrix: {sampler: [plms, LCM Karras]}\nprompts: [a]", "4:1"),
        ],
    )
    def test_more_than_models_of_few_steps_bear(self, tmp_path, body, place):
        (message,) = said(tmp_path, body)
        assert message.startswith(place)
        assert "models of few steps want 1, which also takes half the time" in message

    def test_every_model_is_looked_at(self, tmp_path):
        """The demo model's own guidance is 2, that of others 7.5."""
        body = "matrix: {model: [demo, x]}\nprompts: [{prompt: a, sampler: lcm, steps: 4}]"
        (message,) = said(tmp_path, body)
        assert "lcm with guidance 7.5" in message

    def test_little_is_right(self, tmp_path):
        body = "prompts: [{prompt: a, sampler: lcm, steps: 4, guidance: 2}, b]"
        assert said(tmp_path, body) == []
