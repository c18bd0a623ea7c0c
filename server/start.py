"""What a server does first: it takes its port. Imports next to nothing, so that the engine process starts at once."""

import socket

from server.errors import CannotStart


def listen(host: str, port: int) -> socket.socket:
    """A socket bound before anything is loaded, so that a taken port is known at once. Raises CannotStart."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise CannotStart(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another with --port"
        ) from error
    return listener
