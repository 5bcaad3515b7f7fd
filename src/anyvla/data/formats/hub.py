"""Downloads data sets of the Hugging Face hub into its cache, where they are read in place."""

from __future__ import annotations

from pathlib import Path


def download(repo_id: str) -> Path:
    """Return the folder of a data set of the hub ("lerobot/pusht"). Only new files are downloaded.

    Raises ValueError if the data set does not exist, or if there is neither a network nor a cached copy.
    """
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(repo_id, repo_type="dataset"))
    except errors.RepositoryNotFoundError:
        raise ValueError(
            f"there is no folder {repo_id}, and the hub has no data set of that name that you may read: check the "
            "name; for a private data set, log in with 'hf auth login'"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"there is no folder {repo_id}, and the hub cannot be reached to download a data set of that name "
            f"({type(error).__name__}): connect once, or copy the data set here and give its path"
        ) from None
    except errors.HFValidationError:
        raise ValueError(f"there is no folder {repo_id}, and it is no name of the hub, as in 'lerobot/pusht'") from None
