"""A gateway in front of a server, which lets everything through, and then all at once does not.

passes     every byte goes through, both ways
refuses    connections are taken and closed at once
fails      status 500 and a page of HTML, as a proxy without its server has it
garbage    status 200, and HTML where JSON belongs
noise      bytes that are no HTTP
hangs      a header that promises a body, one byte of that, and then nothing
"""

import socket
import threading
from contextlib import suppress
from types import TracebackType

HOST = "127.0.0.1"
PAGE = b"<html><body><h1>Bad Gateway</h1></body></html>"


def _reply(status: str, kind: str, length: int, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


REPLIES = {
    "refuses": b"",
    "fails": _reply("500 Internal Server Error", "text/html", len(PAGE), PAGE),
    "garbage": _reply("200 OK", "application/json", len(PAGE), PAGE),
    "noise": bytes(range(256)) * 4,
    "hangs": _reply("200 OK", "application/json", 1000, b"{"),
}
"""Way -> what is sent to whatever is asked."""


class Gateway:
    """On a free port of this machine, for the time of a `with`. `way` is one of passes and REPLIES."""

    def __init__(self, port: int, way: str = "passes") -> None:
        """port: of the server behind it."""
        self.behind, self.way = port, way
        self._server = socket.create_server((HOST, 0))
        self._open: set[socket.socket] = set()
        self.address = f"http://{HOST}:{self._server.getsockname()[1]}"

    def __enter__(self) -> "Gateway":
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._server.close()
        self.turn("refuses")

    def turn(self, way: str) -> None:
        """From now on, also for those who are connected."""
        self.way = way
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _listen(self) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        self._open.add(connection)
        with suppress(OSError), connection:
            if self.way == "passes":
                self._pass(connection)
            elif self.way != "refuses":
                self._answer(connection)
        self._open.discard(connection)

    def _pass(self, connection: socket.socket) -> None:
        with socket.create_connection((HOST, self.behind)) as server:
            self._open.add(server)
            back = threading.Thread(target=_pump, args=(server, connection), daemon=True)
            back.start()
            _pump(connection, server)
            back.join()
            self._open.discard(server)

    def _answer(self, connection: socket.socket) -> None:
        asked = b""
        while b"\r\n\r\n" not in asked and (data := connection.recv(1 << 16)):
            asked += data
        connection.sendall(REPLIES[self.way])
        if self.way != "hangs":
            connection.shutdown(socket.SHUT_WR)
        while connection.recv(
            1 << 16
        ):  # until the other side has had enough: closing at once would take the answer back
            pass


def _pump(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(1 << 16):
            other.sendall(data)
    with suppress(OSError):
        other.shutdown(socket.SHUT_WR)
