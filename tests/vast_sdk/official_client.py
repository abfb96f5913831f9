"""
The official client of the `vastai` SDK as a program: one request by way of the router, its result as JSON on stdout.

Run by the SDK's Python. Arguments: the router's address, `{"route", "payload", "stream", "timeout", "session"}` as JSON.
"""

import asyncio
import json
import ssl
import sys

from vastai.serverless.client.client import CoroutineServerless
from vastai.serverless.client.endpoint import Endpoint


async def main(router: str, asked: dict) -> None:
    """
    Send it and print what came.
    """
    client = CoroutineServerless("key-of-the-client", autoscaler_url=router)
    client._ssl_context = ssl.create_default_context()  # it would fetch Vast's root certificate
    async with client:
        endpoint = Endpoint(client, name="e", id=1, api_key="key-of-the-endpoint")
        if asked.get("session"):
            session = await endpoint.session(cost=100, lifetime=30)
            answer = await session.request(asked["route"], asked["payload"])
            await session.close()
        else:
            options = {"stream": asked.get("stream", False), "timeout": asked.get("timeout")}
            answer = await endpoint.request(asked["route"], asked["payload"], **options)
        if asked.get("stream"):
            answer["response"] = [event async for event in answer["response"]]
        print(json.dumps({name: answer.get(name) for name in ("ok", "status", "response", "text", "json")}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
