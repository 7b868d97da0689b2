"""Reading a manifest: a YAML file in, everything about its job out, or all that is wrong with it.

The file is read in two passes, as defaults and matrix may come after the prompts: first everything
else, then the prompts one by one. So a million prompts take no more memory than ten, but for the
file itself and the few bytes that each entry is kept in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from jobs.errors import ManifestError, Problem
from jobs.formatting import found, one_of, quote, reason
from jobs.limits import MAX_IMAGES, MAX_MANIFEST_BYTES, MAX_MODELS
from jobs.manifest.dynamic.fill import Templates, count_of
from jobs.manifest.dynamic.wildcards import Wildcards
from jobs.manifest.embeddings import Embeddings
from jobs.manifest.entries import Entry, EntryLogs
from jobs.manifest.files import Files
from jobs.manifest.input_images import Inputs
from jobs.manifest.loras import LORA
from jobs.manifest.manifest import Manifest
from jobs.manifest.named_files import NO_FILES, FileRules, NamedFiles
from jobs.manifest.naming import job_name
from jobs.manifest.output import read_budget, read_output
from jobs.manifest.problems import Place, ProblemList
from jobs.manifest.prompt_files import SUFFIXES, RowReader
from jobs.manifest.prompt_warnings import PromptWatch
from jobs.manifest.resolve import Layer, Resolver
from jobs.manifest.sampling_warnings import SamplingWatch
from jobs.manifest.schema import (
    FILE,
    FILE_KEYS,
    HEAD,
    PROMPT,
    PROMPT_KEYS,
    TEXT_KEYS,
    TEXT_MAPPINGS,
    TOP_KEYS,
)
from jobs.manifest.seed_warnings import SeedWatch
from jobs.manifest.sources import read_file
from jobs.manifest.vaes import Vaes
from jobs.manifest.validation import EXPECTED, explain, text_taken_apart, without_errors
from jobs.manifest.warnings import WarningList
from jobs.manifest.yaml_file import Node, NodePlace, YamlFile, plain
from jobs.manifest.yaml_warnings import YamlDoubts
from jobs.task import ModelPart

_TICK_EVERY = 1000

_NO_COMMENT = (
    "this line is a prompt, and drawn; lines that begin with # are comments only in files with "
    "lines of options, such as --prompt"
)

Tick = Callable[[int], None]
"""Called now and then with how many prompts have been read."""


def load_manifest(
    path: Path,
    *,
    source: bytes | None = None,
    allow_outside: bool = False,
    model: str | None = None,
    tick: Tick | None = None,
    warnings: WarningList | None = None,
    loras: FileRules = NO_FILES,
    embeddings: FileRules = NO_FILES,
    vaes: FileRules = NO_FILES,
    models: Callable[[], Collection[str] | None] = lambda: None,
) -> Manifest:
    """Read and check a manifest and every file it names.

    source: of the manifest, where it is in no file; what it names is beside `path` all the same,
    and messages name that.
    allow_outside: let it name files outside its own folder.
    model: to be used instead of the one it names; sizes and guidance that it leaves open are then
    this model's.
    warnings: takes what is no mistake, but may not be meant, also where there are mistakes.
    loras, embeddings, vaes: those that have a name besides the manifest's own, and how large one
    may be. models: gives the names that models have besides demo; None allows any.
    Raises `ManifestError` with all problems at once.
    """
    try:
        source = read_file(path, MAX_MANIFEST_BYTES) if source is None else source
        if len(source) > MAX_MANIFEST_BYTES:
            raise ValueError(f"it has more than {MAX_MANIFEST_BYTES:,} bytes")
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise ManifestError([Problem(str(path), 0, 0, "", f"cannot be read: {why}")]) from None
    found = WarningList() if warnings is None else warnings
    loader = _Loader(
        *(path, source, tick, found),
        allow_outside=allow_outside,
        model=model,
        loras=loras,
        embeddings=embeddings,
        vaes=vaes,
        models=models,
    )
    return loader.load()


class _Loader:
    """One reading of one manifest."""

    def __init__(
        self,
        path: Path,
        source: bytes,
        tick: Tick | None,
        warnings: WarningList,
        *,
        allow_outside: bool,
        model: str | None,
        loras: FileRules,
        embeddings: FileRules,
        vaes: FileRules,
        models: Callable[[], Collection[str] | None],
    ) -> None:
        self._path = path
        self._model = model
        self._models = models
        self._folder = path.parent
        self._file = str(path)
        self._source = source
        self._tick = tick
        self._problems = ProblemList()
        self._inputs = Inputs(path.parent, allow_outside=allow_outside)
        self._files = Files(
            NamedFiles(LORA, self._inputs, loras),
            Embeddings(self._inputs, embeddings),
            Vaes(self._inputs, vaes),
        )
        self._entries = EntryLogs()
        self._read = 0
        self._warnings = warnings
        self._seeds = SeedWatch(self._entries, warnings)
        self._yaml = YamlFile(source, self._file, self._problems, YamlDoubts(self._file, warnings))

    def load(self) -> Manifest:
        """Read the head, then the prompts. Raises `ManifestError`."""
        top, broken = self._yaml.mapping(streamed="prompts")
        place = NodePlace(self._file, "", top)
        head, valid = self._head(top, broken)
        self._templates = Templates(Wildcards(self._wildcards(head, place)))
        for files in self._files:
            section = files.kind.section
            for name, given in head.get(section, {}).items():
                try:
                    files.declare(name, given, self._folder)
                except ValueError as error:
                    self._problems.at(place, (section, name), str(error))
        self._resolver = Resolver(
            head,
            place,
            self._folder,
            self._inputs,
            self._problems,
            PromptWatch(self._warnings),
            self._templates,
            self._files,
            self._known_models,
            valid=valid,
        )
        self._settings = SamplingWatch(self._resolver.combinations, self._warnings)
        output = read_output(head, place, self._problems)
        budget = read_budget(head, place, self._problems)
        if self._has_prompts(top, broken):
            self._prompts(place)
        self._problems.raise_if_any()
        return Manifest(
            path=self._path,
            source=self._source,
            name=head.get("name", job_name(self._path.stem)),
            models=[ModelPart(*part) for part in self._entries.images.items()],
            output=output,
            inputs=self._inputs.sources,
            input_names=self._inputs.names,
            entries=self._entries,
            combinations=self._resolver.combinations,
            matrix=self._resolver.matrix.written,
            loras=self._files.loras.known,
            embeddings=self._files.embeddings.known,
            vaes=self._files.vaes.known,
            named_in_texts=self._files.embeddings.in_texts,
            reproducible=head.get("reproducible"),
            budget=budget,
        )

    def _known_models(self) -> Collection[str] | None:
        names = self._models()
        return names if names is None or self._model is None else {*names, self._model}

    def _head(self, top: Node, broken: set[str]) -> tuple[dict[str, Any], bool]:
        """Everything but the prompts, without what is wrong; and whether nothing was."""
        values = plain(top, TEXT_KEYS, TEXT_MAPPINGS)
        values.pop("prompts", None)
        if "version" in broken:
            values["version"] = 1  # its problem is known already
        place = NodePlace(self._file, "", top)
        head, valid = self._validate(HEAD, values, place, TOP_KEYS)
        if "matrix" in head:  # in the order it is written, which orders the images
            head["matrix"] = {k: head["matrix"][k] for k in values["matrix"] if k in head["matrix"]}
        if self._model is not None:
            head = {**head, "model": self._model}
        return head, valid and not broken

    def _validate(
        self, schema: TypeAdapter[Any], values: dict[str, Any], place: Place, keys: Sequence[str]
    ) -> tuple[dict[str, Any], bool]:
        """The values that pass the schema, and whether all did; the others become problems."""
        try:
            return schema.validate_python(values), True
        except ValidationError as error:
            explain(error, place, keys, self._problems)
            return without_errors(values, error), False

    def _wildcards(self, head: Mapping[str, Any], place: Place) -> Path | None:
        """The folder of wildcard files."""
        if "wildcards" not in head:
            return None
        try:
            return self._inputs.folder(head["wildcards"])
        except ValueError as error:
            self._problems.at(place, ("wildcards",), str(error))
            return None

    def _has_prompts(self, top: Node, broken: set[str]) -> bool:
        """True if there is a list of prompts to read."""
        assert isinstance(top.value, dict)
        node = top.value.get("prompts")
        if node is not None and isinstance(node.value, list):
            return True
        if "prompts" not in broken:
            place = NodePlace(self._file, "", top)
            expected = EXPECTED["prompts"]
            if node is None:
                self._problems.at(place, (), f"prompts is missing; expected {expected}")
            else:
                message = f"found {found(node.value)}, expected {expected}"
                self._problems.at(place, ("prompts",), message)
        return False

    def _prompts(self, top: Place) -> None:
        """The second pass."""
        number = 0
        for number, (node, valid) in enumerate(self._yaml.items("prompts"), start=1):
            if valid:
                self._item(node, number - 1)
        if number == 0:
            message = f"found an empty list, expected {EXPECTED['prompts']}"
            self._problems.at(top, ("prompts",), message)

    def _keep(self, entries: Sequence[Entry], place: Place) -> None:
        """Add a prompt's entries, one for each of its models and init images, to the job."""
        self._read += 1
        if self._tick is not None and self._read % _TICK_EVERY == 0:
            self._tick(self._read)
        if not entries:
            return
        entry, combinations = entries[0], len(self._resolver.combinations)
        images = len(entries) * combinations * count_of(entry, self._templates)
        if self._entries.images.total() + images > MAX_IMAGES:
            message = f"more than {MAX_IMAGES:,} images up to here; split the job"
            if entry.dynamic == "combinatorial":
                message = f"{images:,} images of all its choices are {message}"
            line, column = place.position(())
            self._problems.fatal(place.file, line, column, place.path, message)
        given = self._resolver.filled(entry, place) if entry.dynamic != "none" else (entry,)
        for one in given:
            self._seeds.look(one, place)
            for other in entries:
                self._settings.look(other, place)
                if other is not entry:
                    one = one._replace(
                        settings=other.settings,
                        model=other.model,
                        init_image=other.init_image,
                        mask=other.mask,
                    )
                self._entries.append(one, combinations * one.seed_count)
        if len(self._entries.images) > MAX_MODELS:
            line, column = place.position(())
            message = f"more than {MAX_MODELS} models up to here; split the job"
            self._problems.fatal(place.file, line, column, place.path, message)

    def _item(self, node: Node, number: int) -> None:
        """One item of `prompts`."""
        place = NodePlace(self._file, f"prompts[{number}]", node)
        if isinstance(node.value, dict):
            values = plain(node, TEXT_KEYS, TEXT_MAPPINGS)
            apart = text_taken_apart(node, (*PROMPT_KEYS, "file"))
            if apart is not None:
                self._problems.at(place, (), apart)
            elif "file" in values:
                self._file_entry(values, place)
            else:
                self._prompt(values, place, self._folder)
        elif node.text is not None and node.value is not None:
            self._keep(self._resolver.plain(node.text, place), place)
        else:
            message = (
                f"found {found(node.value)}, expected a text, or a mapping with prompt or file"
            )
            self._problems.at(place, (), message)

    def _prompt(
        self,
        values: dict[str, Any],
        place: Place,
        folder: Path,
        under: Layer | None = None,
    ) -> None:
        """A prompt or row. folder: what its paths are relative to."""
        values, valid = self._validate(PROMPT, values, place, PROMPT_KEYS)
        layer = self._resolver.layer(values, place, folder, valid=valid)
        self._keep(self._resolver.entries(layer, under), place)

    def _file_entry(self, values: dict[str, Any], place: Place) -> None:
        """The prompts of a file."""
        values, valid = self._validate(FILE, values, place, FILE_KEYS)
        text = values.pop("file", None)
        under = self._resolver.layer(values, place, self._folder, valid=valid)
        if text is None:
            return
        try:
            path = self._inputs.locate(text, self._folder)
            if path.suffix.lower() not in SUFFIXES:
                raise ValueError(f"{quote(text)} has a suffix that is not {one_of(SUFFIXES)}")
        except ValueError as error:
            self._problems.at(place, ("file",), str(error))
            return
        rows = 0
        before = len(self._problems)
        for row_place, row in RowReader(path, str(path), self._problems).rows():
            rows += 1
            if path.suffix.lower() == ".txt" and row.get("prompt", "").startswith("#"):
                self._warnings.at("comment", row_place, (), lambda: _NO_COMMENT)
            self._prompt(row, row_place, path.parent, under)
        if not rows and len(self._problems) == before:
            self._problems.at(place, ("file",), f"{quote(text)} has no prompts")
