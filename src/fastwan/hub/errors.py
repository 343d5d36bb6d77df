"""What the Hugging Face hub's library raises, as one line that says whose fault it is."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from fastwan.errors import BadInput, EnvironmentLacks, FastWanError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
_OTHER_FOLDER = "set HF_HOME to a folder that can be written"


class Offline(EnvironmentLacks):
    """The user's own setting keeps the hub from being asked."""


def endpoint() -> str:
    """Host that is asked: huggingface.co, or that of ``$HF_ENDPOINT``."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT).partition("://")[2] or str(constants.ENDPOINT)


def explain(error: Exception, where: str, *, downloading: bool = False) -> FastWanError:
    """The error for a user, of what the hub's library raised.

    Args:
        where: the repository, with its revision.
        downloading: files were asked for, not what the repository is.
    """
    from huggingface_hub import errors

    host = endpoint()
    if isinstance(error, FastWanError):
        return error
    if isinstance(error, errors.GatedRepoError):
        return BadInput(
            "access to this model has to be granted",
            where=where,
            fix=f"accept its terms on {host} and run `hf auth login`",
        )
    if isinstance(error, errors.DisabledRepoError):
        return BadInput(f"this model was disabled on {host}", where=where)
    if isinstance(error, errors.RepositoryNotFoundError):
        return _no_model(where, host)
    if isinstance(error, errors.RevisionNotFoundError):
        return BadInput(
            "the model has no such revision",
            where=where,
            fix=f"its branches and tags are on {host}; leave the revision out for the newest",
        )
    if isinstance(error, errors.HFValidationError):
        return BadInput("not a model's name", where=where, fix="give it as owner/name")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return Offline("HF_HUB_OFFLINE is set", where=where, fix="unset it and connect")
    return (
        _of_disk(error, where)
        or _of_answer(error, where, host, downloading)
        or _other(error, where, "download failed" if downloading else f"{host} cannot be reached")
    )


def _no_model(where: str, host: str) -> BadInput:
    return BadInput(
        f"neither a folder nor a model on {host}",
        where=where,
        fix="check the name and the revision; a private model needs `hf auth login`",
    )


def _of_disk(error: Exception, where: str) -> FastWanError | None:
    for each in _chain(error):
        if not isinstance(each, OSError):
            continue
        if each.errno in _FULL:
            return EnvironmentLacks(
                "download failed: the disk of the hub's cache is full",
                where=where,
                fix="make room, or set HF_HOME to a folder on another disk",
            )
        # Without a file it is the network's refusal.
        if each.errno in _NOT_WRITABLE and each.filename is not None:
            return EnvironmentLacks(
                f"the hub's cache cannot be used: {each.strerror}: {each.filename}",
                where=where,
                fix=_OTHER_FOLDER,
            )
    return None


def _of_answer(error: Exception, where: str, host: str, downloading: bool) -> FastWanError | None:
    responses = (getattr(each, "response", None) for each in _chain(error))
    answer = next((each for each in responses if each is not None), None)
    if answer is None:
        return None
    status = answer.status_code
    if status == 401 and "credentials" in answer.headers.get("X-Error-Message", ""):
        return EnvironmentLacks(
            f"{host} does not accept the access token",
            where=where,
            fix="run `hf auth login`, or unset HF_TOKEN for a public model",
        )
    if status == 401 or (status == 404 and not downloading):
        return _no_model(where, host)
    if status == 403:
        return BadInput(
            f"{host} forbids access to this model", where=where, fix="see its page, and your token"
        )
    if status == 429:
        return EnvironmentLacks(
            f"{host} answers no more requests for now", where=where, fix="try again later"
        )
    if status >= 500:
        return EnvironmentLacks(
            f"{host} is out of order (HTTP {status})", where=where, fix="try again later"
        )
    return None


def _other(error: Exception, where: str, doing: str) -> FastWanError:
    chain = list(_chain(error))
    told = [each.strerror for each in chain if isinstance(each, OSError) and each.strerror]
    # What the library has no word for it raises as a file that is not there.
    last = chain[-1] if isinstance(error, FileNotFoundError) else error
    text = told[-1] if told else str(last).strip() or type(last).__name__
    detail = text.splitlines()[0].rstrip(".")[:160]
    return EnvironmentLacks(f"{doing}: {detail}", where=where, fix="connect or try again")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes; the library wraps what the network or the disk raised."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__
