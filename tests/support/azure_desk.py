"""
A server of Azure Blob Storage for tests: block blobs and blocks, with signatures checked as Azure documents them.
"""

import base64
import hashlib
import hmac
import re
import threading
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import parse_qs, parse_qsl, unquote, urlsplit

ACCOUNT = "devaccount1"
KEY = base64.b64encode(b"key of the tests, thirty-two b. ").decode()
SAS = "sv=2021-08-06&ss=b&srt=o&sp=rwc&se=2099-01-01T00%3A00%3A00Z&sig=c2lnbmF0dXJlIG9mIHRoZSB0ZXN0cw%3D%3D"
SIGNED = (
    *("content-encoding", "content-language", "content-length", "content-md5", "content-type", "date"),
    *("if-modified-since", "if-match", "if-none-match", "if-unmodified-since", "range"),
)
LINK_FIELDS = (
    *(
        "sp",
        "st",
        "se",
        "",
        "si",
        "sip",
        "spr",
        "sv",
        "sr",
        "",
        "ses",
        "rscc",
        "rscd",
        "rsce",
        "rscl",
        "rsct",
    ),
)


@dataclass
class Blob:
    """
    A stored blob; `blocks` says of how many blocks it was put together.
    """

    body: bytes
    mime: str
    blocks: int = 0


@dataclass
class Asked:
    """
    One request, and how it was signed: `key`, `sas`, `link`, or `no`.
    """

    method: str
    path: str
    query: dict[str, list[str]]
    signed: str
    headers: dict[str, str] = field(default_factory=dict)


class AzureDesk:
    """
    The account `ACCOUNT` with the containers `containers`, below `url` as Azurite has it.

    `failures` are used up, one status by each request that writes.
    """

    def __init__(self, *containers: str) -> None:
        self.containers = {f"/{ACCOUNT}/{name}" for name in containers}
        self.blobs: dict[str, Blob] = {}
        self.asked: list[Asked] = []
        self.failures: list[int] = []
        self._blocks: dict[tuple[str, str], bytes] = {}
        self._lock = threading.Lock()
        desk = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with desk._lock:
                    status, code, answer, mime = desk._served(self, body)
                self.send_response(status)
                if code:
                    self.send_header("x-ms-error-code", code)
                for name, value in (
                    *(("ETag", '"0x1"'), ("Last-Modified", formatdate(0, usegmt=True))),
                    *(("x-ms-request-id", "1"), ("x-ms-version", "2021-08-06"), ("Content-Type", mime)),
                    ("Content-Length", str(len(answer))),
                ):
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer)

            do_GET = do_HEAD = do_PUT = do

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="azure", daemon=True
        )
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/{ACCOUNT}"

    def __enter__(self) -> "AzureDesk":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join(5)
        self._server.server_close()

    def by_key(self, key: str = KEY) -> str:
        """
        Return the connection string with a key.
        """
        return (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={key};BlobEndpoint={self.url};"
        )

    def by_sas(self, sas: str = SAS) -> str:
        """
        Return the connection string with a SAS token.
        """
        return f"BlobEndpoint={self.url}/;SharedAccessSignature={sas}"

    def _served(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, str, bytes, str]:
        parts = urlsplit(handler.path)
        query = parse_qs(parts.query, keep_blank_values=True)
        headers = {name.lower(): value for name, value in handler.headers.items()}
        signed = _signed(handler.command, handler.path, headers)
        self.asked.append(Asked(handler.command, parts.path, query, signed, headers))
        path = unquote(parts.path)
        if signed == "no" or (signed == "link" and handler.command == "PUT"):
            return 403, "AuthenticationFailed", b"", "application/xml"
        if path.rsplit("/", 1)[0] not in self.containers and not any(
            path.startswith(f"{name}/") for name in self.containers
        ):
            return 404, "ContainerNotFound", b"", "application/xml"
        if handler.command != "PUT":
            return self._read(path)
        if self.failures:
            return self.failures.pop(0), "ServerBusy", b"", "application/xml"
        return self._written(path, query, headers, body)

    def _read(self, path: str) -> tuple[int, str, bytes, str]:
        blob = self.blobs.get(path)
        if blob is None:
            return 404, "BlobNotFound", b"", "application/xml"
        return 200, "", blob.body, blob.mime

    def _written(
        self, path: str, query: dict[str, list[str]], headers: dict[str, str], body: bytes
    ) -> tuple[int, str, bytes, str]:
        mime = headers.get("x-ms-blob-content-type", "")
        match query.get("comp"):
            case ["block"]:
                self._blocks[path, query["blockid"][0]] = body
            case ["blocklist"]:
                ids = re.findall(r"<Latest>([^<]+)</Latest>", body.decode())
                joined = b"".join(self._blocks[path, name] for name in ids)
                self.blobs[path] = Blob(joined, mime, len(ids))
            case None if headers.get("x-ms-blob-type") == "BlockBlob":
                self.blobs[path] = Blob(body, mime)
            case _:
                return 400, "InvalidHeaderValue", b"", "application/xml"
        return 201, "", b"", "application/xml"


def _hmac(text: str) -> str:
    return base64.b64encode(hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()).decode()


def _signed(method: str, target: str, headers: dict[str, str]) -> str:
    parts = urlsplit(target)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if "sig" in query:
        wanted = dict(parse_qsl(SAS))
        if all(query.get(name) == value for name, value in wanted.items()):
            return "sas"
        return "link" if hmac.compare_digest(query["sig"], _hmac(_of_link(parts.path, query))) else "no"
    text = "\n".join([method, *(_header(headers, name) for name in SIGNED), ""])
    text += "".join(f"{name}:{headers[name]}\n" for name in sorted(headers) if name.startswith("x-ms-"))
    text += f"/{ACCOUNT}{parts.path}" + "".join(f"\n{name.lower()}:{query[name]}" for name in sorted(query))
    given = headers.get("authorization", "")
    return "key" if hmac.compare_digest(given, f"SharedKey {ACCOUNT}:{_hmac(text)}") else "no"


def _header(headers: dict[str, str], name: str) -> str:
    value = headers.get(name, "")
    return "" if (name, value) == ("content-length", "0") else value


def _of_link(path: str, query: dict[str, str]) -> str:
    values = [query.get(name, "") for name in LINK_FIELDS]
    # The path begins with the account, where Azurite has it, and that is what the resource begins with too.
    values[3] = f"/blob{unquote(path)}"
    return "\n".join(values)
