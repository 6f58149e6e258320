"""What goes wrong between here and the Hub, as a sentence with a remedy.

409 Conflict ... -> "user/ferid is being changed by somebody else: push again"
"""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled

from ferid_dataset.errors import FeridError


def check_name(repo: str) -> None:
    """Raises FeridError where `repo` is no "user/name"."""
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise FeridError(f"{repo!r} is no name of a Hub repository: give user/name, such as user/ferid")


def check_login(api: HfApi) -> None:
    """Raises FeridError where there is no token to write with."""
    if not isinstance(api.token, str) and get_token() is None:
        raise FeridError("there is no token for the Hub: run `hf auth login`, or set HF_TOKEN")


@contextmanager
def hub_errors(api: HfApi, repo: str) -> Iterator[None]:
    """Turns what goes wrong between here and the Hub into a sentence."""
    try:
        yield
    except HFValidationError as error:
        raise FeridError(f"{repo!r} is no name that the Hub allows: use letters, digits, '-', '_' and '.'") from error
    except OfflineModeIsEnabled as error:
        raise FeridError("the Hub is switched off here: unset HF_HUB_OFFLINE to push") from error
    except (HTTPError, RuntimeError) as error:
        cause = error.__cause__ if type(error) is RuntimeError else error  # of an upload that did not come through
        raise FeridError(_sentence(cause, api.endpoint, repo)) from error


def _sentence(error: BaseException | None, endpoint: str, repo: str) -> str:
    if not isinstance(error, HfHubHTTPError):
        return f"{endpoint} cannot be reached ({error}): push again when it can, what has arrived is not sent again"
    said = " ".join((error.server_message or str(error)).split())
    return {
        401: "the Hub does not know this token: run `hf auth login` again, or set HF_TOKEN",
        403: f"this token may not write to {repo}: it needs write access to a user or organization that exists",
        404: f"there is no {repo.split('/')[0]} on the Hub that this token may write to",
        409: f"{repo} is being changed by somebody else: push again",
        412: f"{repo} was changed by somebody else in the meantime: push again",
    }.get(error.response.status_code, f"the Hub refuses {repo}: {said}")
