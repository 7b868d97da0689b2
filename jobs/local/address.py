"""Where the local cluster is: the file `cluster.json`, there while one runs, for its user alone."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from jobs.errors import InputError
from jobs.formatting import reason
from jobs.storage.s3.address import S3Access

BUCKET = "sdbatch"
STORE = f"s3://{BUCKET}/jobs"


@dataclass(frozen=True)
class LocalCluster:
    """A running cluster. pid: of the process that keeps it running."""

    pid: int
    redis: str = field(repr=False)  # with its password
    store: str
    endpoint: str
    key_id: str
    secret: str = field(repr=False)

    def access(self, store: str) -> S3Access | None:
        """Access to `store`, if it is in the cluster's own bucket."""
        if store != f"s3://{BUCKET}" and not store.startswith(f"s3://{BUCKET}/"):
            return None
        return S3Access(self.endpoint, self.key_id, self.secret)


def default_folder(environ: Mapping[str, str]) -> Path | None:
    """SDBATCH_LOCAL, else a folder below HOME; None if neither is set."""
    if environ.get("SDBATCH_LOCAL"):
        return Path(environ["SDBATCH_LOCAL"]).expanduser()
    if environ.get("HOME"):
        return Path(environ["HOME"], ".local/share/sdbatch/local")
    return None


def running_cluster(environ: Mapping[str, str]) -> LocalCluster | None:
    """The cluster that runs in `default_folder`. Raises `InputError` if its file is damaged."""
    folder = default_folder(environ)
    if folder is None:
        return None
    path = cluster_file(folder)
    try:
        values = json.loads(path.read_bytes())
        cluster = LocalCluster(**values)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}") from None
    except (ValueError, TypeError):
        raise InputError(
            f"{path} is damaged; end `sdbatch local` if it runs, and delete the file"
        ) from None
    return cluster if _is_running(cluster.pid) else None


def cluster_file(folder: Path) -> Path:
    return folder / "cluster.json"


def announce(folder: Path, cluster: LocalCluster) -> None:
    """From here on, commands find the cluster."""
    write_private(cluster_file(folder), json.dumps(asdict(cluster), indent=2))


def write_private(path: Path, text: str) -> None:
    """Replace a file whole; nobody else may read it, at any moment."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.replace(path)


def _is_running(pid: int) -> bool:
    """True if the process is there: one that was killed could not delete its file."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
