"""A model behind HTTP, in MLflow's protocol: POST /invocations, GET /ping, /health, /version.

    {"inputs": ["A [MASK]."], "params": {"top_k": 3}}  ->  {"predictions": [[[{"token": …, "probability": …}, …]]]}

Of a model of images an input is base64 of a PNG or JPEG, or {"image": …, "mask": …}: see tasks/fill_image.py.

Requests are checked here and wait in a line (tasks.waiting) for the one thread that computes. What cannot be answered
gets MLflow's form of an error, {"error_code", "message"}, with one sentence and a status that says whose fault it is:
400 the request's, 401 no token, 413 too large, 415 no JSON, 503 too many at once, 504 too slow.
"""

import asyncio
import hmac
import ipaddress
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from tasks.progress import say
from tasks.waiting import FullError, Line

TABLES = ("dataframe_split", "dataframe_records")
FORMATS = ("inputs", "instances", *TABLES)
SHORT = 4096
"""Bytes of a body whose inputs are checked at once; more would keep the other requests waiting."""


class Model(Protocol):
    """What the served file of a modality can do (fill_mask.py, fill_image.py)."""

    def questions(self, inputs: list[Any], params: Mapping[str, Any] | None) -> Sequence[Any]: ...

    def answers(self, questions: Sequence[Any]) -> Sequence[Any]: ...


@dataclass(frozen=True)
class Limits:
    """What a request may cost. One beyond them is refused, never cut."""

    body: int = 4_000_000
    """Bytes."""
    inputs: int = 256
    """Texts or images in a request."""
    waiting: int = 1024
    """Of them in the line."""
    seconds: float = 30.0
    """From the first byte to the answer."""
    at_once: int = 64
    """Of them that the model gets together."""


class Refusal(Exception):
    """An answer that is no prediction."""

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


Ask = Callable[[Sequence[Any]], "Future[Sequence[Any]]"]


def application(model: Model, page: Mapping[str, Any], limits: Limits, token: str | None = None) -> Starlette:
    """The ASGI application. Its line is closed when the server ends, after the last answer.

    page    what /version says
    token   what each request for /invocations and /version has to bring along, as Authorization: Bearer TOKEN
    """
    line: Line[Any, Any] = Line(model.answers, limits.at_once, limits.waiting)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        with line:
            yield

    async def invocations(request: Request) -> Response:
        try:
            async with asyncio.timeout(limits.seconds):
                _admit(request, token)
                body = await _body(request, limits.body)
                inputs, params = _parsed(body)
                if isinstance(inputs, list) and len(inputs) > limits.inputs:
                    raise Refusal(
                        400, f"The request has {len(inputs):,} inputs, more than {limits.inputs}; send fewer at a time."
                    )
                answers = await _answered(model, line.ask, inputs, params, len(body))
        except TimeoutError:
            refusal = Refusal(504, f"The answer took longer than {limits.seconds:g} seconds; ask for less at a time.")
            return _refused(refusal)
        except Refusal as refusal:
            return _refused(refusal)
        return _json({"predictions": list(answers)})

    async def health(request: Request) -> Response:
        return _json({"status": "ok"})

    async def version(request: Request) -> Response:
        try:
            _admit(request, token)
        except Refusal as refusal:
            return _refused(refusal)
        return _json(page)

    routes = [
        Route("/invocations", invocations, methods=["POST"]),
        Route("/version", version),
        *(Route(path, health) for path in ("/ping", "/health")),
    ]
    app = Starlette(routes=routes, lifespan=lifespan)
    app.router.redirect_slashes = False  # to wherever the request says that this host is
    return app


def is_local(host: str) -> bool:
    """Is that this machine, by a name or number that nobody else has?"""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _admit(request: Request, token: str | None) -> None:
    if token is None:
        # A page of the web may point its own name at this machine and then ask what it likes (DNS rebinding).
        if not is_local(re.sub(r":\d*$", "", request.headers.get("host", "localhost")).strip("[]")):
            raise Refusal(403, "Without a token this server answers to localhost only; ask for it by that name.")
        return
    given = request.headers.get("authorization", "").encode("latin-1")
    if not hmac.compare_digest(given, b"Bearer " + token.encode()):
        raise Refusal(
            401, "The request brings no valid token; send Authorization: Bearer TOKEN.", www_authenticate="Bearer"
        )


async def _body(request: Request, most: int) -> bytes:
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, "The body must be JSON; send Content-Type: application/json.")
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise Refusal(413, f"The body has more than {most:,} bytes; send less at a time.", connection="close")
            parts.append(part)
    except ClientDisconnect:
        raise Refusal(400, "The request ended before its body did.") from None
    return b"".join(parts)


def _parsed(body: bytes) -> tuple[Any, Any]:
    """Inputs and parameters of MLflow's JSON. Whether they are what they should be is the model's to say."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        where = f" at line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise Refusal(400, f"The body is no JSON{where}; send an object with inputs.") from None
    there = [name for name in FORMATS if name in given] if isinstance(given, dict) else []
    if len(there) != 1:
        raise Refusal(400, f"The body must be a JSON object with exactly one of {', '.join(FORMATS)}.")
    if unknown := sorted(set(given) - {*FORMATS, "params"}):
        raise Refusal(400, f"The body has an unknown key {unknown[0][:60]!r}; it may have {there[0]} and params.")
    value = given[there[0]]
    return _column(there[0], value) if there[0] in TABLES else value, given.get("params")


def _column(name: str, table: Any) -> list[Any]:
    """The one column of a table."""
    try:
        if name == "dataframe_records":
            return [value for row in table for (value,) in [row.values()]]
        (_,) = table["columns"]
        return [value for (value,) in table["data"]]
    except (TypeError, ValueError, KeyError, AttributeError):
        raise Refusal(400, f"{name} must be a table with one column, the inputs.") from None


async def _answered(model: Model, ask: Ask, inputs: Any, params: Any, size: int) -> Sequence[Any]:
    try:
        if size <= SHORT:
            questions = model.questions(inputs, params)
        else:
            questions = await asyncio.to_thread(model.questions, inputs, params)
    except Exception as error:
        raise _explained(error) from None
    if not questions:
        return []
    try:
        return await asyncio.wrap_future(ask(questions))
    except FullError:
        raise Refusal(503, "Too many requests are waiting; come again in a second.", retry_after="1") from None
    except Exception as error:
        raise _explained(error) from None


def _explained(error: Exception) -> Refusal:
    if getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":
        return Refusal(400, str(getattr(error, "message", error)))
    say(f"serve: {type(error).__name__}: {error}")
    return Refusal(500, "The model failed; the server's log says why.")


CODES = {400: "INVALID_PARAMETER_VALUE", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 500: "INTERNAL_ERROR"}
CODES |= {413: "BAD_REQUEST", 415: "BAD_REQUEST", 503: "RESOURCE_EXHAUSTED", 504: "DEADLINE_EXCEEDED"}


def _refused(refusal: Refusal) -> Response:
    return _json(
        {"error_code": CODES[refusal.status], "message": refusal.sentence}, refusal.status, dict(refusal.headers)
    )


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json.dumps(value), status, headers, media_type="application/json")
