"""Data sets of the Hugging Face hub, downloaded once and read in place from its cache."""

from __future__ import annotations

from pathlib import Path


def download(repo_id: str) -> Path:
    """The folder of a dataset of the hub ("lerobot/pusht"); only what is new is downloaded.

    Raises ValueError if there is no such dataset, or neither network nor a copy in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(repo_id, repo_type="dataset"))
    except RepositoryNotFoundError:
        raise ValueError(
            f"there is no folder {repo_id}, and the hub has no data set of that name that you may read: check the "
            "name; for a private one log in with 'hf auth login'"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"there is no folder {repo_id}, and the hub cannot be reached to download a data set of that name "
            f"({type(error).__name__}): connect once, or copy the data set here and give its path"
        ) from None
    except HFValidationError:
        raise ValueError(f"there is no folder {repo_id}, nor is it a name of the hub, as in 'lerobot/pusht'") from None
