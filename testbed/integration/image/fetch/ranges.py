import http.server, sys, time

port, manners = int(sys.argv[1]), sys.argv[2]
data = open("published", "rb").read()
gets = 0


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        if manners == "head-hangs":
            time.sleep(600)
        self.answer(200, b"")

    def answer(self, status, body, headers=(), cut=None):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut])
        self.wfile.flush()
        self.close_connection = cut is not None

    def part(self, first, end, status=206, total=None):
        total = len(data) if total is None else total
        content_range = f"bytes {first}-{end - 1}/{total}"
        self.answer(status, data[first:end], [("ETag", '"1"'), ("Content-Range", content_range)])

    def do_GET(self):
        global gets
        gets += 1
        asked = self.headers.get("Range")
        print("GET", asked, file=sys.stderr, flush=True)
        if manners == "403-always":
            return self.answer(403, b"")
        if asked is None:
            cut = len(data) // 2 + 777 if gets == 1 else None
            return self.answer(200, data, [("ETag", '"1"')], cut)
        n = int(asked.removeprefix("bytes=").removesuffix("-"))
        end = len(data)
        if manners == "from-zero":
            return self.part(0, end)
        if manners == "from-block":
            return self.part(n // 65536 * 65536, end)
        if manners == "one-too-many":
            return self.answer(206, data[n:], [("Content-Range", f"bytes {n}-{end}/{end + 1}")])
        if manners == "no-content-range":
            return self.answer(206, data[n:])
        if manners == "nonsense-content-range":
            return self.answer(206, data[n:], [("Content-Range", "lines 1-2/3")])
        if manners == "past-total":
            return self.part(n, end, total=end - n)
        if manners == "multipart":
            head = f"--x\r\nContent-Range: bytes {n}-{end - 1}/{end}\r\n\r\n".encode()
            kind = [("Content-Type", "multipart/byteranges; boundary=x")]
            return self.answer(206, head + data[n:] + b"\r\n--x--\r\n", kind)
        if manners == "slice-as-200":
            return self.part(n, end, status=200)
        if manners == "short":
            return self.part(n, min(n + 300000, end))
        if manners == "short-without-total":
            return self.part(n, min(n + 300000, end), total="*")
        if manners == "silent":
            return time.sleep(600)
        if manners == "hang-up":
            self.close_connection = True
            return
        return self.answer(int(manners), b"no ranges here")


http.server.ThreadingHTTPServer.daemon_threads = True
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
