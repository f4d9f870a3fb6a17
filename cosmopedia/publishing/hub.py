"""Send a folder to the Hugging Face hub: new content first, then one commit that names all of it.

Large files are stored by their hash, so an upload that was cut off goes on where it was, and a second one of the same
files sends nothing. Readers see the old revision until the commit.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cosmopedia.core.errors import ClusterError, ConfigError
from cosmopedia.execution.redaction import redact, remember
from cosmopedia.publishing.release import File, Release

if TYPE_CHECKING:
    from huggingface_hub import HfApi

AGAIN = "; run it again to go on: what was sent is not sent again"
AT_ONCE = 20  # large files that are sent before the next ones are looked at
OURS = {"dataset": (".parquet",), "model": (".safetensors",)}  # files that go when they are not in the folder any more


def token() -> str:
    """The token of the environment; no other place is read."""
    value = os.environ.get("HF_TOKEN", "")
    if not value:
        raise ConfigError(
            "HF_TOKEN is not set; export a token that may write to the repository (it is read nowhere else)"
        )
    return remember(value)


def upload(release: Release, public: bool, say: Callable[[str], None]) -> str:
    """Send what the repository does not have yet; returns in a sentence what was done."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token())
    where: dict[str, Any] = {"repo_id": release.repo, "repo_type": release.kind}
    with _as_sentences(release):
        api.create_repo(**where, private=not public, exist_ok=True)
        head = _head(api, where, public)
        there = _remote(api, where)
        local = release.files()
        new = [file for file in local if there.get(file.path) not in (file.sha256, file.blob)]
        gone = sorted(
            name for name in there.keys() - {file.path for file in local} if name.endswith(OURS[release.kind])
        )
        if not new and not gone:
            return f"{release.repo} has these {len(local)} files already; nothing was sent"
        additions = [CommitOperationAdd(file.path, str(release.folder / file.path)) for file in new]
        for first in range(0, len(additions), AT_ONCE):
            some = additions[first : first + AT_ONCE]
            api.preupload_lfs_files(release.repo, additions=some, repo_type=release.kind)
            say(f"{first + len(some)} of {len(additions)} files sent")
        commit = api.create_commit(
            release.repo,
            [*additions, *(CommitOperationDelete(name) for name in gone)],
            commit_message=f"Made at git revision {release.revision}",
            repo_type=release.kind,
            parent_commit=head,
        )
    removed = f", {len(gone)} removed" if gone else ""
    return f"{release.repo}: {len(new)} of {len(local)} files new or changed{removed}; revision {commit.oid}"


def _head(api: "HfApi", where: dict[str, Any], public: bool) -> str | None:
    """The repository's revision. `ConfigError` when it is public and nobody wanted that."""
    info = api.repo_info(**where)
    if not info.private and not public:
        raise ConfigError(
            f"{where['repo_id']} is public already; publish with --public, or make it private on the hub"
        )
    return info.sha


def _remote(api: "HfApi", where: dict[str, Any]) -> dict[str, str]:
    """Files of the repository with their content's hash: sha256 of large ones, git's blob id of the others."""
    from huggingface_hub.hf_api import RepoFile

    tree = api.list_repo_tree(where["repo_id"], recursive=True, repo_type=where["repo_type"])
    files = [entry for entry in tree if isinstance(entry, RepoFile)]
    return {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files}


@contextmanager
def _as_sentences(release: Release) -> Iterator[None]:
    """The hub's refusals and a failing network as sentences, without the token."""
    import requests
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except HFValidationError as error:
        raise ConfigError(f"--repo {release.repo}: {_sentence(error)}") from None
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            what = f"the hub refuses HF_TOKEN for {release.repo} ({_sentence(error)})"
            raise ConfigError(f"{what}; use one that may write to it") from None
        raise ClusterError(f"the hub failed ({_sentence(error)}){AGAIN}") from None
    except RuntimeError as error:  # of a large file, with what happened behind it
        raise ClusterError(f"{_sentence(error)} {_sentence(error.__cause__)}{AGAIN}") from None
    except requests.RequestException as error:
        raise ClusterError(f"the hub was not reached ({_sentence(error)}){AGAIN}") from None


def _sentence(error: BaseException | None) -> str:
    """What an error says, on one line, without the token and without the signature of an address."""
    text = " ".join(str(error or "").split())
    return redact(re.sub(r"\?\S+", "", text))[:400].rstrip(". ")


def listing(files: list[File]) -> list[tuple[str, str, str]]:
    """Rows for a dry run: path, bytes, hash."""
    return [(file.path, f"{file.size:,}", file.sha256) for file in files]
