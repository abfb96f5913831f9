"""
A TCP proxy in front of a ComfyUI that cuts its websocket after a given number of frames.
"""

import contextlib
import socket
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

BUFFER = 1 << 16


class CuttingProxy:
    """
    `with CuttingProxy(url) as proxy`: HTTP passes, websockets pass until they are cut.

    `cut_after` frames from the server the socket is closed and `cut_after` becomes None (later sockets live);
    with `refuse_after_cut` later sockets are refused. `cuts` counts.
    """

    def __init__(self, url: str, *, cut_after: int | None = None, refuse_after_cut: bool = False) -> None:
        parts = urlsplit(url)
        self._target = (str(parts.hostname), int(parts.port or 80))
        self.cut_after = cut_after
        self.refuse_after_cut = refuse_after_cut
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    @property
    def url(self) -> str:
        """
        The address to give to a worker.
        """
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> "CuttingProxy":
        return self

    def __exit__(self, *_: object) -> None:
        # Closing alone does not wake a thread that waits in accept.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in list(self._open):
            _end(end)
        for thread in self._threads:
            thread.join(5)

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name="cutting-proxy", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open.add(client)
            self._start(lambda client=client: self._serve(client))  # type: ignore[misc]

    def _serve(self, client: socket.socket) -> None:
        try:
            head = client.recv(BUFFER)
            is_socket = head.startswith(b"GET /ws")
            if not head or (is_socket and self.cuts and self.refuse_after_cut):
                _end(client)
                return
            server = socket.create_connection(self._target, 5)
        except OSError:
            _end(client)
            return
        self._open.add(server)
        server.settimeout(None)
        server.sendall(head)
        self._start(lambda: _pump(client, server))
        if is_socket:
            self._pump_frames(server, client)
        else:
            _pump(server, client)
        self._open -= {client, server}

    def _pump_frames(self, server: socket.socket, client: socket.socket) -> None:
        stream = server.makefile("rb")
        try:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += stream.readline()
            client.sendall(head)
            frames = 0
            while frame := _frame(stream.read):
                if self.cut_after is not None and frames >= self.cut_after:
                    self.cuts += 1
                    self.cut_after = None
                    break
                client.sendall(frame)
                frames += 1
        except OSError:
            pass
        finally:
            stream.close()
            _end(client)
            _end(server)


def _frame(read: Callable[[int], bytes]) -> bytes:
    head = read(2)
    if len(head) < 2:
        return b""
    length = head[1] & 0x7F
    extra = read({126: 2, 127: 8}.get(length, 0))
    if extra:
        length = int.from_bytes(extra, "big")
    return head + extra + read(length)


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(BUFFER):
            target.sendall(data)
    except OSError:
        pass
    _end(target)
    _end(source)


def _end(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
