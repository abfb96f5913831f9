"""
Wake the runpod SDK's loops as soon as a job ends, instead of at the end of their pause.

The SDK (1.12.0 as observed) looks once a second whether a slot is free, and ten times a second whether a job came in: a
worker that takes one job at a time does one a second at most, and a GPU waits half a second between two jobs. So its
pauses of up to a second end early, at the moments when there is something to see; longer ones, after a 429, stay whole.
"""

import types
from typing import Any

LONGEST_S = 1.0


class Pauses:
    """
    Pauses that `wake` ends. All of it happens on the SDK's event loop.
    """

    def __init__(self) -> None:
        self._waiting: set[Any] = set()

    async def sleep(self, delay: float, result: Any = None) -> Any:
        """
        Be `asyncio.sleep`, but end at the next `wake` when it is no longer than a second.
        """
        import asyncio  # only here: what is imported before ComfyUI starts is added to its boot

        if not 0 < delay <= LONGEST_S:
            return await asyncio.sleep(delay, result)
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(woken)
        try:
            await asyncio.wait({woken}, timeout=delay)
        finally:
            self._waiting.discard(woken)
        return result

    def wake(self) -> None:
        """
        End every pause.
        """
        for woken in self._waiting:
            if not woken.done():
                woken.set_result(None)

    def when_this_task_ends(self) -> None:
        """
        End every pause once the running task is over.
        """
        import asyncio

        task = asyncio.current_task()
        if task is not None:
            task.add_done_callback(lambda _: self.wake())

    def install(self, module: types.ModuleType) -> bool:
        """
        Have a module that calls `asyncio.sleep` pause here. False: it has no `asyncio`, and nothing was done.
        """
        import asyncio

        if getattr(module, "asyncio", None) is not asyncio:
            return False
        shim = types.ModuleType("asyncio")
        shim.__dict__.update(vars(asyncio))
        shim.__dict__["sleep"] = self.sleep
        module.__dict__["asyncio"] = shim
        return True
