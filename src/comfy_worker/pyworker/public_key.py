"""
The router's public key, waited for before anything is reported.

The SDK fetches it by itself, beside everything else: for up to 15 s a worker is loaded and answers 401, and when the key
is not there after five attempts the worker is errored for good (1.9.1). So the wait comes first.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

import aiohttp

logger = logging.getLogger(__name__)

WAIT_S = 60.0
PAUSE_S = 1.0
ATTEMPT_S = 10.0
SDK_WAIT_S = 30.0


class PublicKey:
    """
    The key, once it came: its text (PEM) and the address that gave it. `problem` says why it did not.
    """

    def __init__(self, addresses: Sequence[str], *, wait_s: float = WAIT_S) -> None:
        self.text = ""
        self.address = addresses[0]
        self.problem = ""
        self._addresses = addresses
        self._wait_s = wait_s

    async def fetch(self) -> None:
        """
        Wait until one of the addresses gives the key; never raises.
        """
        until = time.monotonic() + self._wait_s
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ATTEMPT_S)) as http:
            while not self.text:
                for address in self._addresses:
                    reason = await self._attempt(http, address)
                    if self.text:
                        return
                    logger.info("The public key is not there yet: %s", reason)
                if time.monotonic() + PAUSE_S > until:
                    self.problem = f"No public key came within {self._wait_s:.0f} s: {reason}"
                    return
                await asyncio.sleep(PAUSE_S)

    async def _attempt(self, http: aiohttp.ClientSession, address: str) -> str:
        url = f"{address}/pubkey/"
        try:
            async with http.get(url) as reply:
                text = await reply.text()
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as exc:
            return f"{url} does not answer ({type(exc).__name__})"
        if reply.status != 200:
            return f"{url} answered {reply.status}"
        if "PUBLIC KEY" not in text:
            return f"{url} answered something that is no key"
        self.text, self.address = text, address
        return ""


async def reached(backend: Any) -> bool:
    """
    Wait until the SDK has the key too (30 s at most); return whether it has.

    `_pubkey` is a private name of the SDK; one without it is taken to have the key.
    """
    until = time.monotonic() + SDK_WAIT_S
    while getattr(backend, "_pubkey", True) is None:
        if time.monotonic() > until:
            return False
        await asyncio.sleep(0.05)
    return True
