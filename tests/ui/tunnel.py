"""Another port that leads to ours, like ``ssh -L``."""

import socket
import threading


class Tunnel:
    """A port that leads to another port, like ``ssh -L``."""

    def __init__(self, target: int) -> None:
        self._server, self._target = socket.create_server(("127.0.0.1", 0)), target
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                ends = self._server.accept()[0], socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            for one, other in (ends, ends[::-1]):
                threading.Thread(target=_pump, args=(one, other), daemon=True).start()

    def close(self) -> None:
        self._server.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass
