"""What tests of readers share: a server on this machine, in place of the official ones."""

import contextlib
import functools
import http.server
import threading

import pytest


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    """(folder) -> the address that it is served at until the test ends."""
    with contextlib.ExitStack() as at_the_end:

        def address(folder):
            handler = functools.partial(_Silent, directory=folder)
            server = at_the_end.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            at_the_end.callback(thread.join)
            at_the_end.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}"

        yield address
