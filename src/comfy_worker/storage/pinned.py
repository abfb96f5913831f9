"""
boto3's connections to an endpoint that a job names: to judged addresses only, at each connection anew.

To judge the endpoint when the job is taken is not enough: its name may lead elsewhere a second later, and with the
virtual style the bucket stands in front of the name.
"""

import socket
from typing import Any

from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from comfy_worker.fetch_guard import RESOLVE_LIMIT_S, Guard, connected


def pin(client: Any, guard: Guard) -> None:
    """
    Let a boto3 client connect to addresses that `guard` takes, and to no other.

    Uses what botocore (1.44) keeps private; an AttributeError tells of one that has it elsewhere.
    """
    manager = client._endpoint.http_session._manager
    manager.pool_classes_by_scheme = {
        scheme: _guarded(pool, guard) for scheme, pool in manager.pool_classes_by_scheme.items()
    }


def _guarded(pool: Any, guard: Guard) -> Any:
    class Connection(pool.ConnectionCls):  # type: ignore[misc]
        def _new_conn(self) -> socket.socket:
            limit = self.timeout if isinstance(self.timeout, int | float) else RESOLVE_LIMIT_S
            try:
                return connected(guard, self.host, self.port or self.default_port, limit)
            except TimeoutError as exc:
                raise ConnectTimeoutError(self, "no answer") from exc
            except OSError as exc:
                raise NewConnectionError(self, "no connection") from exc

    class Pool(pool):  # type: ignore[misc]
        ConnectionCls = Connection

    return Pool
