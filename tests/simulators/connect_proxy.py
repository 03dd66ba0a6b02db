"""A CONNECT proxy for tests: it knows one host by its name, counts what it carries, and cuts lines on demand."""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self


class Proxy:
    """names: host:port that it reaches -> where it really is. cuts: bytes after which the next lines are cut, one for each line."""

    def __init__(self, names: dict[str, tuple[str, int]], cuts: list[int] | None = None) -> None:
        self.names, self.cuts = names, cuts or []
        self.asked: list[str] = []
        self.down = 0  # bytes that came from the server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lines: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            self._lines.append(line)
            threading.Thread(target=self._line, args=(line,), daemon=True).start()

    def _line(self, line: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            data = line.recv(4096)
            if not data:
                line.close()
                return
            head += data
        verb, target, *_ = head.decode().split()
        self.asked.append(f"{verb} {target}")
        if verb != "CONNECT" or target not in self.names:
            line.sendall(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
            line.close()
            return
        far = socket.create_connection(self.names[target])
        self._lines.append(far)
        line.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        threading.Thread(target=self._carry, args=(line, far), daemon=True).start()
        self._carry(far, line, self.cuts.pop(0) if self.cuts else None, down=True)

    def _carry(self, source: socket.socket, target: socket.socket, cut: int | None = None, down: bool = False) -> None:
        """Until one end closes, or `cut` bytes have passed; then both ends are closed."""
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(16 << 10):
                if cut is not None and passed + len(data) > cut:
                    break
                target.sendall(data)
                passed += len(data)
                self.down += len(data) if down else 0
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for line in (self._listener, *self._lines):
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            line.close()
