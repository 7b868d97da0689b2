"""From what a prompt sets to an entry: defaults, matrix, images, and every check that needs more
than one value.

Precedence, strongest first: the matrix, the prompt or row, its `file:` entry, `defaults`, what is
built in. The matrix is stronger than a prompt so that every prompt gets every combination.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.formatting import unknown_model
from jobs.image_settings import SETTINGS
from jobs.limits import MAX_PROMPT_CHARS
from jobs.manifest.dynamic.fill import Templates, filled
from jobs.manifest.dynamic.template import TemplateError
from jobs.manifest.embeddings import Listing
from jobs.manifest.entries import Entry
from jobs.manifest.entry_flaws import EntryFlaws
from jobs.manifest.files import Files
from jobs.manifest.groups import take_groups
from jobs.manifest.input_images import InputImage, Inputs
from jobs.manifest.labels import Labels, filled_in, merged
from jobs.manifest.lora_lists import Problem, uses_of
from jobs.manifest.lora_tags import without_tags
from jobs.manifest.matrix import Matrix
from jobs.manifest.naming import DEFAULT_TEMPLATE, check_template, label_flaw
from jobs.manifest.picture_sets import matched
from jobs.manifest.problems import Path as ValuePath
from jobs.manifest.problems import Place, ProblemList
from jobs.manifest.prompt_warnings import PromptWatch
from jobs.manifest.scalars import unreadable
from jobs.manifest.seeds import Seeds, drawn, random_in, take_seeds
from jobs.manifest.spacing import spacing_of
from sd_core.spec import DEMO_GUIDANCE, DEMO_NATIVE_SIZE, NATIVE_SIZE, Sampling

_TEXTS = ("prompt", "negative", "init_image", "mask", "vae", "name")
_IMAGES = ("init_image", "mask")


@dataclass(frozen=True)
class Layer:
    """Settings of one place in the manifest: defaults, the matrix, a file entry, a prompt.

    values: checked one by one; seeds as an entry has them, images read (None for a bad one).
    prefix: of the values' paths inside `place`.
    valid: false if something was wrong; then it makes no sense to check what goes together.
    """

    values: Mapping[str, Any]
    place: Place
    prefix: ValuePath = ()
    valid: bool = True


@dataclass
class Resolver:
    """The settings that all prompts of a manifest share, applied to one prompt after the other.

    head: the manifest without its prompts, passed by `jobs.manifest.schema.HEAD`; place: its own.
    folder: what its paths are relative to. watch: is shown every text that is to be drawn or
    avoided. templates: makes the choices in prompts. files: find those that are named. models:
    gives the names of models that there are, None if nobody knows. valid: whether the head was
    without mistakes.
    """

    head: Mapping[str, Any]
    place: Place
    folder: Path
    inputs: Inputs
    problems: ProblemList
    watch: PromptWatch
    templates: Templates
    files: Files
    models: Callable[[], Collection[str] | None]
    valid: bool = True
    matrix: Matrix = field(init=False)

    def __post_init__(self) -> None:
        given = self.head.get("matrix", {})
        self.matrix = Matrix(given, self.place, self.folder, self.files, self.problems)
        self._matrix = Layer(self.matrix.values, self.place, ("matrix",))
        self.combinations = self.matrix.combinations
        for number, name in enumerate(self.matrix.models or ()):
            self._check_model(name, self.place, ("matrix", "model", number))
        if "model" in self.head:
            self._check_model(self.head["model"], self.place, ("model",))
        for number, text in enumerate(self.matrix.values.get("negative", ())):
            self._look(self.matrix.values, text, self.place, ("matrix", "negative", number))
        self._flaws = EntryFlaws(self.files, self.templates, self.combinations)
        self._defaults = self.layer(
            self.head.get("defaults", {}),
            self.place,
            self.folder,
            prefix=("defaults",),
            valid=self.valid,
        )
        self._seeds = {"seeds": self._defaults.values.get("seeds", [Sampling.seed])}
        self._draws = random_in(self._seeds["seeds"])
        self._bases: dict[str, dict[str, Any]] = {}
        self._reported: set[tuple[object, ...]] = set()
        self._plain: list[Entry] = []
        self._check = functools.lru_cache(maxsize=4096)(self._impossible)
        output = self.head.get("output", {})
        self._template = DEFAULT_TEMPLATE
        if self._check_name(output, self.place, ("output",)):
            self._template = output.get("name", DEFAULT_TEMPLATE)

    def layer(
        self,
        given: Mapping[str, Any],
        place: Place,
        folder: Path,
        *,
        prefix: ValuePath = (),
        valid: bool = True,
    ) -> Layer:
        """Check the values of one mapping, each by itself, and read the images it names.

        given: what passed the schema; valid: whether that was all. folder: of its paths.
        """
        before = len(self.problems)
        values = dict(given)
        for key in _TEXTS:
            text = given.get(key)
            bad = None if text is None else unreadable(text)
            if bad is not None:
                self.problems.at(place, (*prefix, key), f"character {bad} is not allowed")
                values[key] = None
        for key in ("prompt", "negative"):
            if values.get(key) is not None:
                values[key] = values[key].strip()
                self._look(values, values[key], place, (*prefix, key))
        if "seeds" in given or "seed" in given:
            take_seeds(values, place, prefix, self.problems)
        take_groups(values, place, prefix, self.problems)
        if "loras" in given:
            problem = self._problem_in(place, (*prefix, "loras"))
            values["loras"] = uses_of(self.files.loras, given["loras"], folder, problem)
        if "embeddings" in given:
            values["embeddings"] = self._listed_embeddings(given, folder, place, prefix)
        if "model" in given:
            self._check_model(given["model"], place, (*prefix, "model"))
        if values.get("vae") is not None:
            problem = self._problem_in(place, (*prefix, "vae"))
            values["vae"] = self.files.vaes.choice(values["vae"], folder, problem)
        for name, text in values.get("meta", {}).items():
            if (bad := unreadable(text)) is not None:
                message = f"character {bad} is not allowed"
                self.problems.at(place, (*prefix, "meta", name), message)
        for key in _IMAGES:
            if values.get(key) is not None:
                try:
                    values[key] = self.inputs.images(values[key], folder)
                except ValueError as error:
                    self.problems.at(place, (*prefix, key), str(error))
                    values[key] = None
        if not prefix:  # a prompt, a row or a file entry
            self._check_name(values, place, prefix)
        return Layer(values, place, prefix, valid and len(self.problems) == before)

    def plain(self, prompt: str, place: Place) -> list[Entry]:
        """The entries of a prompt that sets nothing else: most of them, so quickly."""
        if len(prompt) > MAX_PROMPT_CHARS:
            message = f"the prompt has {len(prompt):,} characters, more than {MAX_PROMPT_CHARS:,}"
            self.problems.at(place, (), message)
            return []
        bad = unreadable(prompt)
        if bad is not None:
            self.problems.at(place, (), f"character {bad} is not allowed")
            return []
        if not self._plain:
            some = self._matrix.values.get("prompt", {"from": ""})["from"]
            self._plain = self.entries(Layer({"prompt": some}, place))
            if not self._plain:
                return []
        prompt = prompt.strip()
        self._look({}, prompt, place, ())
        if self._plain[0].meta or self._draws:  # labels stand in the prompt; seeds are its own
            return self.entries(Layer({"prompt": prompt}, place))
        entries = [Entry(prompt, *plain[1:]) for plain in self._plain]
        flaws = self._flaws.of(entries[0])
        for flaw, key in flaws.items():
            if key == "prompt":
                self.problems.at(place, (), flaw)
        return [] if flaws else entries

    def filled(self, entry: Entry, place: Place) -> Iterator[Entry]:
        """The entries that a template gives, without choices; problems for those that cannot be.

        Those that are wrong in the same way are told once.
        """
        told: set[str] = set()
        try:
            for one in filled(entry, self.templates):
                flaws = self._flaws.of_filled(one)
                told |= flaws.keys()
                if not flaws:
                    yield one
        except TemplateError as error:
            told.add(str(error))
        for flaw in sorted(told):
            self.problems.at(place, (), f"filled in, {flaw}")

    def entries(self, own: Layer, under: Layer | None = None) -> list[Entry]:
        """One prompt with everything it inherits, for each of its models; none, and problems, if
        that does not go together.

        under: the file entry of a row.
        """
        models = self.matrix.models
        if models is None:
            above = {**self.head, **(under.values if under else {}), **own.values}
            models = [above.get("model", "demo")]
        seeds = drawn({**self._seeds, **(under.values if under else {}), **own.values}["seeds"])
        first = self._entries(own, under, models[0], seeds)
        if not first:
            return []
        others = [self._entries(own, under, model, seeds) for model in models[1:]]
        return [entry for some in (first, *others) for entry in some]

    def _base(self, model: str) -> dict[str, Any]:
        """Values of a prompt of this model that sets none."""
        if model not in self._bases:
            side = DEMO_NATIVE_SIZE if model == "demo" else NATIVE_SIZE
            base: dict[str, Any] = {name: getattr(Sampling, name) for name in SETTINGS}
            base |= {"width": side, "height": side, "negative": "", "seeds": [Sampling.seed]}
            base |= {"dynamic": "none", "loras": (), "embeddings": (), "vae": ()}
            if model == "demo":
                base["guidance"] = DEMO_GUIDANCE
            base["name"] = self._template
            self._bases[model] = {**base, **self._defaults.values}
        return self._bases[model]

    def _entries(self, own: Layer, under: Layer | None, model: str, seeds: Seeds) -> list[Entry]:
        """One prompt for one of its models: an entry for each of its init images."""
        before = len(self.problems)
        values = {**self._base(model), **(under.values if under else {}), **own.values}
        layers = [own, *([under] if under else []), self._matrix, self._defaults]
        pictures = self._pictures(values, own, layers)
        if not all(layer.valid for layer in layers):
            return []
        values |= spacing_of(layer.values for layer in (self._defaults, under, own) if layer)
        settings = tuple([values[name] for name in SETTINGS])
        for message in self._check(settings):
            # What depends on another setting depends on the sampler.
            key = message.split()[0]
            keys = ("schedule", "karras") if key in ("schedule", "karras") else (key,)
            self._report(layers, (*keys, "sampler"), message)
        if len(self.problems) > before:
            return []
        meta = merged(self._defaults.values, under.values if under else {}, own.values)
        texts = {key: self._filled_in(key, values, meta, layers) for key in ("prompt", "negative")}
        flaw = label_flaw(values["name"], meta)
        if flaw is not None:
            self._report(layers, ("name",), flaw)
        if len(self.problems) > before:
            return []
        as_given = values["prompt"] if texts["prompt"] != values["prompt"] else None
        entry = Entry(
            texts["prompt"],
            texts["negative"],
            seeds if self.matrix.seeds is None else self.matrix.seeds,
            settings,
            None,
            None,
            values["name"],
            values["dynamic"],
            as_given if values["dynamic"] == "none" else None,
            loras=values["loras"],
            embeddings=values["embeddings"],
            vae=values["vae"],
            model=model,
            meta=meta,
        )
        flaws = self._flaws.of(entry)
        for flaw, key in flaws.items():
            self._report(layers, (key,), flaw)
        if flaws:
            return []
        return [
            entry._replace(
                init_image=None if init_image is None else init_image.name,
                mask=None if mask is None else mask.name,
            )
            for init_image, mask in pictures
        ]

    def _pictures(
        self, values: Mapping[str, Any], own: Layer, layers: list[Layer]
    ) -> list[tuple[InputImage | None, InputImage | None]]:
        """The init images of a prompt, each with its mask; one pair of None where it has none."""
        if "init_image" not in values:
            self._check_needs_image(own)
            return [(None, None)]  # a mask in the defaults is for prompts that have an init image
        try:
            pairs = matched(values["init_image"], values.get("mask"))
        except ValueError as error:
            self._report(layers, ("mask",), str(error))
            return []
        for init_image, mask in pairs:
            if init_image and mask and init_image.size != mask.size:
                message = (
                    "mask is {}×{} pixels, its init_image {}×{}; expected the same size".format(
                        *mask.size, *init_image.size
                    )
                )
                self._report(layers, ("mask", "init_image"), message)
        return pairs

    def _filled_in(
        self, key: str, values: Mapping[str, Any], meta: Labels, layers: list[Layer]
    ) -> str:
        """A prompt or negative prompt with its labels in it."""
        given: str = values[key]
        try:
            text = filled_in(given, meta, dynamic=values["dynamic"] != "none")
        except ValueError as error:
            self._report(layers, (key,), str(error))
            return given
        if len(text) > MAX_PROMPT_CHARS:
            message = f"with its labels it has more than {MAX_PROMPT_CHARS:,} characters"
            self._report(layers, (key,), message)
        return text

    def _look(self, values: Mapping[str, Any], text: str, place: Place, path: ValuePath) -> None:
        """Warn of a text as it is read by these values and those that stand over and under them."""
        ways = {}
        for key in ("syntax", "long_prompts"):
            given = self._matrix.values.get(key)
            below = self.head.get("defaults", {}).get(key, getattr(Sampling, key))
            ways[key] = [values.get(key, below)] if given is None else given
        plain, cut = "plain" in ways["syntax"], "cut" in ways["long_prompts"]
        if not plain and "negative" not in path:
            text = without_tags(text)
        below = self.head.get("defaults", {}).get("dynamic", "none")
        labelled = values.get("meta") or self.head.get("defaults", {}).get("meta")
        dynamic = values.get("dynamic", below) != "none" or bool(labelled)
        self.watch.look(text, place, path, plain=plain, cut=cut, dynamic=dynamic)

    def _listed_embeddings(
        self, given: Mapping[str, Any], folder: Path, place: Place, prefix: ValuePath
    ) -> tuple[Listing, ...]:
        """A prompt's list of embeddings, looked up; a problem for each that cannot be used."""
        found = []
        for number, text in enumerate(given["embeddings"]):
            try:
                name, sha256, file = self.files.embeddings.find(text, folder)
                found.append((name, sha256, file))
            except ValueError as error:
                self.problems.at(place, (*prefix, "embeddings", number), str(error))
        return tuple(found)

    def _check_model(self, name: str, place: Place, path: ValuePath) -> None:
        """Refuse a model that there is not."""
        names = None if name == "demo" else self.models()
        if names is not None and name not in names:
            self.problems.at(place, path, unknown_model(name, names))

    def _check_name(self, values: Mapping[str, Any], place: Place, prefix: ValuePath) -> bool:
        """True if there is nothing wrong with a template of names, if there is one."""
        template = values.get("name")
        flaw = None if template is None else check_template(template)
        if flaw is not None:
            self.problems.at(place, (*prefix, "name"), flaw)
        return flaw is None

    def _check_needs_image(self, own: Layer) -> None:
        """Refuse settings that do nothing, or the same image many times, without an init image."""
        for key in ("strength", "mask"):
            if key in own.values:
                self.problems.at(own.place, (key,), f"{key} needs an init_image", of_key=True)
        if "strength" in self._matrix.values:
            message = "strength is in matrix and needs an init_image; this prompt has none"
            self.problems.at(own.place, (), message)

    def _impossible(self, settings: tuple[Any, ...]) -> tuple[str, ...]:
        """Why combinations of these settings cannot be sampled; empty if all can."""
        messages: dict[str, None] = {}
        for combination in self.combinations:
            try:
                Sampling(**dict(zip(SETTINGS, combination.apply(settings), strict=True)))
            except ValueError as error:
                messages[str(error)] = None
        return tuple(messages)

    def _problem_in(self, place: Place, prefix: ValuePath) -> Problem:
        """Takes problems of the values below `prefix`."""
        return lambda path, message: self.problems.at(place, (*prefix, *path), message)

    def _report(self, layers: list[Layer], keys: tuple[str, ...], message: str) -> None:
        """Point at the layer nearest to the prompt that sets one of the keys, once."""
        place, path = layers[0].place, layers[0].prefix
        for layer in layers:
            key = next((key for key in keys if key in layer.values), None)
            if key is not None:
                place, path = layer.place, (*layer.prefix, key)
                break
        identity = (place.file, place.path, place.position(path), message)
        if identity not in self._reported:
            self._reported.add(identity)
            self.problems.at(place, path, message)
