"""An exported folder onto the Hugging Face hub. The token is huggingface_hub's own: from HF_TOKEN or a login, never kept here."""

from pathlib import Path

from limbeck.errors import LimbeckError, missing_extra


def push(folder: Path, repo: str, private: bool = True) -> str:
    """Create the model repository where it is missing, upload the folder in one commit; returns its address.

    Raises LimbeckError for a missing login, a name that is none, and what the hub answers.
    """
    try:
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
        from huggingface_hub.utils import validate_repo_id
    except ImportError:
        raise missing_extra("diffusers", "the hub needs huggingface_hub") from None
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise LimbeckError(f"{repo!r} is no name of a repository, USER/NAME ({str(error).splitlines()[0]})") from None
    if get_token() is None:
        raise LimbeckError(
            f"{repo} cannot be pushed without a login; set HF_TOKEN, or run `hf auth login`. {folder} is written"
        )
    api = HfApi()
    try:
        made = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="A student distilled with limbeck")
    except HfHubHTTPError as error:
        said = (error.server_message or str(error)).splitlines()[0]
        raise LimbeckError(
            f"the hub refused {repo}: {said}; check the name and that your token may write. {folder} is written"
        ) from None
    except OSError as error:  # no network
        raise LimbeckError(
            f"the hub cannot be reached ({str(error).splitlines()[0]}); {folder} is written, push again later"
        ) from None
    return str(made)
