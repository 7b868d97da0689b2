"""The matrix of a manifest: its axes, and all their combinations."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jobs.formatting import found
from jobs.image_settings import SETTINGS
from jobs.limits import MAX_COMBINATIONS
from jobs.manifest.entries import Combination
from jobs.manifest.files import Files
from jobs.manifest.lora_lists import Problem, sets_of
from jobs.manifest.loras import written
from jobs.manifest.problems import Path as ValuePath
from jobs.manifest.problems import Place, ProblemList
from jobs.manifest.seeds import Seeds, drawn, take_seeds
from jobs.manifest.spacing import changed
from jobs.manifest.vaes import vae_name


class Matrix:
    """Axes of a matrix that passed the schema.

    values: by key, in the forms that entries have; without seeds and models. seeds, models: of all
    prompts; None where the matrix has none.
    """

    def __init__(
        self,
        given: Mapping[str, Any],
        place: Place,
        folder: Path,
        files: Files,
        problems: ProblemList,
    ) -> None:
        """place: the manifest's. folder: of paths."""
        self._given = given
        self._place = place
        self._problems = problems
        self.values = dict(given)
        if "seeds" in given:
            take_seeds(self.values, place, ("matrix",), problems)
        seeds: Seeds | None = self.values.pop("seeds", None)
        self.seeds = None if seeds is None else drawn(seeds)
        self.models: Sequence[str] | None = self.values.pop("model", None)
        self._unlike("model", self.models or (), ("matrix", "model"))
        if "loras" in given:
            problem = self._problem_in("loras")
            self.values["loras"] = sets_of(files.loras, given["loras"], folder, problem)
        if "vae" in given:
            problem = self._problem_in("vae")
            self.values["vae"] = files.vaes.choices(given["vae"], folder, problem)

    @property
    def written(self) -> dict[str, Any]:
        """The matrix as it is written, files by their names."""
        written_so = dict(self._given)
        if "loras" in written_so:
            sets = self.values["loras"]
            written_so["loras"] = [[written(use) for use in one] for one in sets]
        if "vae" in written_so:
            written_so["vae"] = [vae_name(one) for one in self.values["vae"]]
        return written_so

    @cached_property
    def combinations(self) -> list[Combination]:
        """All combinations of the matrix, the last key changing fastest."""
        matrix = dict(self.values)
        replaced = matrix.get("prompt")
        if replaced is not None:
            matrix["prompt"] = replaced["to"]
        count = 1
        for key, values in matrix.items():
            count *= len(values)
            self._unlike(key, values, ("matrix", key, *(["to"] if key == "prompt" else [])))
        if count > MAX_COMBINATIONS:
            message = f"has {count:,} combinations; at most {MAX_COMBINATIONS:,} are allowed"
            self._problems.at(self._place, ("matrix",), message)
            return [Combination()]
        combinations = []
        for chosen in itertools.product(*matrix.values()):
            values = dict(zip(matrix, chosen, strict=True))
            negative, text = values.pop("negative", None), values.pop("prompt", None)
            loras, vae = values.pop("loras", None), values.pop("vae", None)
            settings = changed(values).items()
            changes = tuple((SETTINGS.index(key), value) for key, value in settings)
            pair = None if text is None or replaced is None else (replaced["from"], text)
            combinations.append(Combination(changes, negative, pair, loras, vae))
        return combinations

    def _unlike(self, key: str, values: Iterable[Hashable], path: ValuePath) -> None:
        """Refuse values of an axis that are there twice."""
        seen = set()
        for number, value in enumerate(values):
            if value in seen:
                what = {"loras": "a set", "vae": "a VAE"}.get(key) or found(value)
                self._problems.at(self._place, (*path, number), f"{what} is in the list twice")
            seen.add(value)

    def _problem_in(self, key: str) -> Problem:
        """Takes problems of the values of a key."""
        return lambda path, message: self._problems.at(self._place, ("matrix", key, *path), message)
