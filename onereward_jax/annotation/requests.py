"""What all answers of the annotation server share: JSON in, work off the event loop, errors told in one sentence."""

import functools
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from onereward_jax.annotation.assign import Conflict, Unknown
from onereward_jax.annotation.database import Unavailable
from onereward_jax.annotation.security import Refused, log_refusal
from onereward_jax.errors import UserError
from onereward_jax.given_files import parse_json

Result = TypeVar("Result")
Handler = Callable[[Request], Awaitable[Response]]


def json_errors(handler: Handler) -> Handler:
    """Turn what goes wrong into a status and one sentence, and log it."""

    @functools.wraps(handler)
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except Refused as error:
            status, reason = error.status, error.reason
        except (Unknown, Conflict, Unavailable) as error:
            status, reason = {Unknown: 404, Conflict: 409}.get(type(error), 503), str(error)
        except UserError as error:
            status, reason = 400, str(error)
        log_refusal(request.scope, status, reason)
        return JSONResponse({"error": reason}, status)

    return answer


async def unknown(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    reason = "there is no such page" if status == 404 else "this method is not answered here"
    log_refusal(request.scope, status, reason)
    return JSONResponse({"error": reason}, status)


async def in_thread(work: Callable[[], Result]) -> Result:
    """Run what may wait for the disk, or another vote, off the event loop."""
    return await anyio.to_thread.run_sync(work)


async def fields_of(request: Request, *known: str) -> dict[str, Any]:
    """Read a request's body.

    Raises:
      UserError: it is no JSON object, or holds other fields than those that are known.
    """
    value = parse_json(await request.body())
    if not isinstance(value, dict):
        raise UserError("the body must be a JSON object")
    for name in value:
        if name not in known:
            raise UserError(f"{name!r} is unknown: leave it out")
    return value
