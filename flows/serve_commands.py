"""The command that puts a registered model behind HTTP."""

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows import environment, terminal
from tasks.errors import UsageError
from tasks.folders import expanded
from tasks.progress import say

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from tasks.serving import Served

TOKEN = "MASKMILL_SERVE_TOKEN"
SHORTEST_TOKEN = 16


def serve(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="NAME[@ALIAS|/VERSION]; default: the only model's champion.")
    ] = None,
    host: Annotated[str, typer.Option(help="Any but this machine's own needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 5001,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"Holds the token of requests; or set {TOKEN}.")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Of the model; 0: all cores.")] = 0,
    inputs: Annotated[int, typer.Option("--inputs", "--texts", min=1, help="A request may have.")] = 256,
    waiting: Annotated[int, typer.Option(min=1, help="Inputs that may wait; beyond them 503.")] = 1024,
    seconds: Annotated[float, typer.Option(min=0.1, help="A request may take; beyond them 504.")] = 30.0,
    debug: terminal.Debug = False,
) -> None:
    """Answer over HTTP with a registered model, in MLflow's protocol. Ctrl-C or SIGTERM ends it after the last answer.

    Requests that come at the same time are computed together; for more cores start more of them, each with its port.

    Example: maskmill serve quickstart@champion --port 5001
    """
    token = read_token(token_file)
    check_host(host, token)
    home = terminal.home()
    environment.settle(home)
    environment.reach_hub(False)
    listener = listen(host, port)  # a port that is taken shall not wait for the model
    from flows import answering
    from tasks import serving

    limits = answering.Limits(inputs=inputs, waiting=waiting, seconds=seconds)
    served = serving.load(model, home)
    import torch

    if threads:
        torch.set_num_threads(threads)
    warm(served)
    app = answering.application(served.model, served.page(), limits, token)
    shown = f"[{host}]" if ":" in host else host
    say(f"{served} answers at http://{shown}:{listener.getsockname()[1]}/invocations; Ctrl-C ends it.")
    run(app, listener, limits.seconds)
    say("Stopped.")


def read_token(file: Path | None) -> str | None:
    """The token, from the file or the environment; None where there is neither."""
    try:
        token = Path(expanded(str(file))).read_text(encoding="utf-8").strip() if file else os.environ.get(TOKEN)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "no text"
        raise UsageError(f"--token-file {file}: {why}; give a file with the token.") from None
    if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
        where = f"--token-file {file}" if file else TOKEN
        raise UsageError(f"{where}: a token must have {SHORTEST_TOKEN} ASCII characters or more; make a longer one.")
    return token


def check_host(host: str, token: str | None) -> None:
    """Raises UsageError where others could ask without a token."""
    from flows.answering import is_local

    if token is None and not is_local(host):
        raise UsageError(
            f"--host {host} lets other machines ask; give --token-file FILE (or set {TOKEN}), or leave it at 127.0.0.1."
        )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there already: who asks early waits. Raises UsageError where that cannot be."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it. Head and body of an answer are two packets, and the second one would else wait 40 ms
        # for a receipt of the first. (asyncio sets it only on sockets that were made with a protocol's number.)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(address)
    except OSError as error:
        raise UsageError(f"{host}:{port}: {error.strerror}; give another --host or --port (0: any free one).") from None
    listener.listen(1024)
    return listener


def warm(served: "Served") -> None:
    """One answer, so that the first request does not pay for what is prepared once."""
    model = served.model
    model.answers(model.questions(served.front.warmth(model), None))


def run(app: "Starlette", listener: socket.socket, patience: float) -> None:
    """Answers until SIGTERM or Ctrl-C, then finishes what was asked, at most that many seconds."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="on",
        server_header=False,
        limit_concurrency=1000,  # connections; memory has an end, too
        timeout_graceful_shutdown=int(patience) + 1,
    )
    with suppress(KeyboardInterrupt):  # uvicorn has ended in peace, and passes on what ended it
        uvicorn.Server(config).run(sockets=[listener])
