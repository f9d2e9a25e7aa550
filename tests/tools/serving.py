"""A web server on this machine that can be told to misbehave."""

import contextlib
import hashlib
import http.server
import threading


class Site:
    """Serves `files` and notes the requests; see `serve`."""

    def __init__(self):
        self.files = {}  # by name: contents
        self.requests = []  # (name, Range header or None)
        self.resumes = True  # understands Range
        self.cut_after = []  # bytes after which each of the next answers breaks off
        self.url = None

    def catalogue(self, sha256=None):
        """As tools.data.prepare.catalogue."""
        return {
            name: (
                f"{self.url}/{name}",
                len(data),
                sha256 or hashlib.sha256(data).hexdigest(),
            )
            for name, data in self.files.items()
        }


@contextlib.contextmanager
def serve():
    """A running `Site`."""
    site = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.lstrip("/")
            wanted = self.headers.get("Range")
            site.requests.append((name, wanted))
            if name not in site.files:
                self.send_error(404)
                return
            data, first = site.files[name], 0
            if wanted and site.resumes:
                first = int(wanted.removeprefix("bytes=").removesuffix("-"))
                self.send_response(206)
                last = len(data) - 1
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(data) - first))
            self.end_headers()
            body = data[first:]
            if site.cut_after:
                body = body[: site.cut_after.pop(0)]
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
