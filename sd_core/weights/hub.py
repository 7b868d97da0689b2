"""Models from the Hugging Face hub: `hf:owner/name` or `hf:owner/name@revision`; files of them:
`hf:owner/name/path/of/file` or `hf:owner/name/path/of/file@revision`.

Only the files that are read are downloaded. huggingface_hub keeps them, so a second load works
without a network; `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN`, `HF_HUB_OFFLINE` and its other variables
work as everywhere. Nothing is printed, however long a download takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sd_core.weights.errors import CheckpointError
from sd_core.weights.folder_layout import (
    FOLDERS,
    INDEX,
    SCHEDULER,
    TOKENIZER,
    TOKENIZER_FILES,
    shards,
    weight_candidates,
)

PREFIX = "hf:"
_COMMIT = re.compile("[0-9a-f]{40}")
_SOURCE = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_FILE = re.compile(r"(?P<model>hf:[\w.-]+/[\w.-]+)/(?P<path>[^@*?\[\]]+)(?P<revision>@[\w./-]+)?")


class Snapshot(NamedTuple):
    """Downloaded files. commit: the full hash that the revision stood for."""

    folder: Path
    commit: str


def fetch_model(source: str) -> Snapshot:
    """Downloads what a whole model takes. Raises `CheckpointError`."""
    tokenizer = [f"{TOKENIZER}/{name}" for name in TOKENIZER_FILES]
    snapshot = _Repository(source).fetch([INDEX, SCHEDULER, *tokenizer], FOLDERS)
    if not (snapshot.folder / INDEX).is_file():
        raise CheckpointError(
            f"{source}: the repository has no {INDEX}; expected a model in the diffusers format. "
            "A single file in it can be downloaded and its path given"
        )
    return snapshot


def fetch_vae(source: str) -> Snapshot:
    """Downloads an autoencoder: a repository of its own, or the one in a model's."""
    snapshot = _Repository(source).fetch([INDEX], {"vae": FOLDERS["vae"]})
    if (snapshot.folder / INDEX).is_file():
        return snapshot
    return _Repository(source).fetch([], {"vae": "."})


def fetch_file(source: str) -> Path:
    """Downloads one file of a repository. Raises `CheckpointError`."""
    parsed = _FILE.fullmatch(source)
    if parsed is None or ".." in parsed["path"].split("/"):
        raise CheckpointError(
            f"{source}: expected hf:owner/name/file or hf:owner/name/file@revision"
        )
    snapshot = _Repository(parsed["model"] + (parsed["revision"] or "")).fetch([parsed["path"]], {})
    path = snapshot.folder / parsed["path"]
    if not path.is_file():
        raise CheckpointError(f"{source}: the repository has no such file")
    return path


def commit_of(source: str) -> str:
    """The commit that a source stands for now; without a network, the one that was fetched last.

    Raises `CheckpointError`.
    """
    repository = _Repository(source)
    if repository.revision is not None and _COMMIT.fullmatch(repository.revision):
        return repository.revision
    return repository.fetch([], {}).commit


class _Repository:
    def __init__(self, source: str) -> None:
        parsed = _SOURCE.fullmatch(source)
        if parsed is None:
            raise CheckpointError(f"{source}: expected hf:owner/name or hf:owner/name@revision")
        self.source = source
        self.repo, self.revision = parsed["repo"], parsed["revision"]

    def fetch(self, files: list[str], components: dict[str, str]) -> Snapshot:
        """files: by path. components: their folders, of which config and weights are fetched."""
        configs = [_path(folder, "config.json") for folder in components.values()]
        folder = self._download([*files, *configs])
        # huggingface_hub keeps every commit in a folder named by its hash. All further files are
        # asked of that commit: the branch may have moved on meanwhile.
        self.revision = folder.name
        for component, place in components.items():
            self._fetch_weights(folder, component, place)
        return Snapshot(folder, self.revision)

    def _fetch_weights(self, folder: Path, component: str, place: str) -> None:
        """Downloads the first of the files that may hold a component's weights, and its shards."""
        for name in weight_candidates(component):
            path = _path(place, name)
            self._download([path])
            if not (folder / path).is_file():
                continue
            if name.endswith(".json"):
                self._download([_path(place, shard) for shard in shards(folder / path)])
            return

    def _download(self, paths: list[str]) -> Path:
        """Fetches those of the paths that the repository has and that are not kept here yet."""
        from huggingface_hub import snapshot_download

        with self._errors_named():
            return Path(
                snapshot_download(
                    self.repo,
                    revision=self.revision,
                    # With a file that is always there, as a pattern without any match is logged.
                    allow_patterns=[*paths, ".gitattributes"],
                    tqdm_class=_silent_tqdm(),
                )
            )

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        from huggingface_hub.errors import (
            GatedRepoError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        try:
            yield
        except GatedRepoError:
            raise CheckpointError(
                f"{self.source}: the hub gives it only to accounts that accepted its terms; accept "
                "them there and set HF_TOKEN"
            ) from None
        except RepositoryNotFoundError:
            raise CheckpointError(
                f"{self.source}: the hub has no such repository, or it is private and HF_TOKEN is "
                "not set"
            ) from None
        except RevisionNotFoundError:
            raise CheckpointError(
                f"{self.source}: the repository has no revision {self.revision!r}; expected a "
                "branch, a tag or a commit"
            ) from None
        except LocalEntryNotFoundError:
            raise CheckpointError(
                f"{self.source}: the hub cannot be reached, and no complete earlier download is "
                "kept here"
            ) from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.source}: the download failed: {error}") from None


def _path(folder: str, name: str) -> str:
    return name if folder == "." else f"{folder}/{name}"


def _silent_tqdm() -> type[Any]:
    """A progress bar that shows nothing."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Silent(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    return Silent
