"""
Where the worker may connect to when a job names the address: public addresses only, and only the one that was checked.

A name is resolved here, every address of it is judged, and the socket is opened to a judged address, so that no second
look-up can lead elsewhere. Host header, SNI and certificate keep the name. No proxy, no environment.
"""

import ipaddress
import queue
import socket
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any
from urllib.parse import urljoin

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError
from urllib3.util import parse_url

from comfy_worker.errors import InputUnavailable

Resolve = Callable[[str, int], Sequence[str]]
"""(host, port) -> addresses as text, IPv4 or IPv6. Raises OSError when there are none."""

RESOLVE_LIMIT_S = 10.0
# `ipaddress` of Python 3.11 takes some of these for global.
_CLOSED = [
    ipaddress.ip_network(text)
    for text in (
        *("100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4"),
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
]
# Mapped, translated (64:ff9b::/96), link-local, unique local and multicast addresses all lie outside.
_UNICAST_V6 = ipaddress.ip_network("2000::/3")


def is_public(address: str) -> bool:
    """
    Tell whether an address is globally routable unicast. An IPv6 address that stands for an IPv4 one is not.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip not in _UNICAST_V6:
        return False
    return ip.is_global and not any(ip in network for network in _CLOSED if network.version == ip.version)


def resolve(host: str, port: int) -> list[str]:
    """
    Ask the system for the addresses of a host, for at most `RESOLVE_LIMIT_S` seconds.
    """
    answer: queue.SimpleQueue[list[str] | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answer.put(list(dict.fromkeys(str(entry[4][0]) for entry in found)))
        except (OSError, UnicodeError) as exc:
            answer.put(exc if isinstance(exc, OSError) else OSError("no host name"))

    threading.Thread(target=ask, name="resolve", daemon=True).start()
    try:
        result = answer.get(timeout=RESOLVE_LIMIT_S)
    except queue.Empty:
        raise TimeoutError("no answer from the name server") from None
    if isinstance(result, OSError):
        raise result
    return result


def checked(url: str) -> str:
    """
    Return the URL when it is one that may be asked for.

    Raises:
        InputUnavailable: another scheme, no host, or credentials in it.
    """
    parts = parse_url(url)
    if parts.scheme not in {"http", "https"} or not parts.host:
        raise InputUnavailable("only http, https and s3 URLs with a host can be fetched")
    if parts.auth is not None:
        raise InputUnavailable("a URL with a user or password in it is not accepted")
    return url


def redirected(response: requests.Response) -> str:
    """
    Return where a redirect leads; the new URL is still to be `checked`.

    Raises:
        InputUnavailable: it leads from https to http.
    """
    # Header values arrive as Latin-1, and the address in them is UTF-8.
    location = response.headers["Location"].encode("latin-1").decode("utf-8", "replace")
    url = urljoin(response.url, location)
    if response.url.startswith("https:") and not url.startswith("https:"):
        raise InputUnavailable("it redirects from https to something less safe")
    return url


class Guard:
    """
    The rules of one worker. `allowed_hosts` (`host` or `host:port`) may have private addresses.
    """

    def __init__(
        self, *, allow_private: bool = False, allowed_hosts: Collection[str] = (), resolve: Resolve = resolve
    ) -> None:
        self._allow_private = allow_private
        self._allowed = frozenset(host.lower() for host in allowed_hosts)
        self._resolve = resolve

    def addresses(self, host: str, port: int) -> Sequence[str]:
        """
        Return the addresses of a host, all of them judged.

        Raises:
            InputUnavailable: one of them is not public.
            OSError: there is none.
        """
        found = self._resolve(host.strip("[]"), port)
        if not found:
            raise OSError("no address")
        if self._allow_private or {host.lower(), f"{host.lower()}:{port}"} & self._allowed:
            return found
        if not all(is_public(address) for address in found):
            raise InputUnavailable(
                f"{host} is not a public address, and this worker fetches from public ones only (ALLOW_PRIVATE_URLS)"
            )
        return found


def connected(
    guard: Guard,
    host: str,
    port: int,
    timeout_s: float,
    keep: Callable[[socket.socket], None] = lambda _sock: None,
) -> socket.socket:
    """
    Connect to a judged address of `host`, trying each in turn; `keep` sees each socket before it connects.

    Raises:
        InputUnavailable: the host has an address that is not public.
        OSError: no address answered.
    """
    failure: OSError = OSError("no address")
    for address in guard.addresses(host, port):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            keep(sock)
            sock.settimeout(timeout_s)
            sock.connect((address, port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as exc:
            sock.close()
            failure = exc
        else:
            return sock
    raise failure


class Line:
    """
    The connections of one download or several. `cut` ends them all, whatever they wait for. Thread-safe.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._lock = threading.Lock()
        self._ends: list[socket.socket] = []
        self._is_cut = False

    def connect(self, host: str, port: int, timeout_s: float) -> socket.socket:
        """
        Connect to a judged address of `host`, trying each in turn.

        Raises:
            InputUnavailable: the host has an address that is not public.
            OSError: no address answered.
        """
        return connected(self._guard, host, port, timeout_s, self._keep)

    def cut(self) -> None:
        """
        End every connection now, and refuse new ones.
        """
        with self._lock:
            self._is_cut = True
            for end in self._ends:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # it never was connected, or is over

    def close(self) -> None:
        """
        Let go of what is kept for `cut`.
        """
        with self._lock:
            while self._ends:
                self._ends.pop().close()

    def _keep(self, sock: socket.socket) -> None:
        # A second handle on the same connection: TLS takes the first one over, and its owner closes it.
        with self._lock:
            if self._is_cut:
                raise ConnectionAbortedError("the job was stopped")
            self._ends.append(sock.dup())


class PinnedAdapter(HTTPAdapter):
    """
    Sends requests over a `Line` only.
    """

    def __init__(self, line: Line) -> None:
        self._line = line
        super().__init__(max_retries=0)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: Any) -> None:
        """
        Make the pools whose connections go over the line.
        """
        self.poolmanager = PoolManager(num_pools=connections, maxsize=maxsize, block=block, **options)
        self.poolmanager.pool_classes_by_scheme = _pools(self._line)


def _pools(line: Line) -> dict[str, Any]:
    def joined(connection: HTTPConnection) -> socket.socket:
        limit = connection.timeout if isinstance(connection.timeout, int | float) else RESOLVE_LIMIT_S
        try:
            return line.connect(connection.host, connection.port or connection.default_port, limit)
        except TimeoutError as exc:
            raise ConnectTimeoutError(connection, "no answer") from exc

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return joined(self)

    class Secure(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return joined(self)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}
