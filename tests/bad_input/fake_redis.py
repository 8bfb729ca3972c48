"""A server that speaks just enough of the Redis protocol to tell its version: `fake_redis.serving("6.0.16")`."""

import socketserver
import threading
from contextlib import contextmanager


@contextmanager
def serving(version):
    """The URL of a Redis of this version; `None`: of a server that says nothing at all."""

    class Session(socketserver.StreamRequestHandler):
        def handle(self):
            while (line := self.rfile.readline()).startswith(b"*"):
                command = [self._argument() for _ in range(int(line[1:]))]
                if version is None:
                    continue
                self.wfile.write(self._answer(command[0].upper()))

        def _argument(self):
            size = int(self.rfile.readline()[1:])
            return self.rfile.read(size + 2)[:size]

        def _answer(self, name):
            if name != b"INFO":
                return b"+OK\r\n"
            text = f"# Server\r\nredis_version:{version}\r\n".encode()
            return b"$%d\r\n%s\r\n" % (len(text), text)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = False

    with Server(("127.0.0.1", 0), Session) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"redis://127.0.0.1:{server.server_address[1]}/0"
        finally:
            server.shutdown()
            thread.join()
