"""
Webhooks: sign and send. An observer of events, not a stage: nothing here holds a job up or fails it.

    sender = Sender(key_of(secret), Guard(allow_private=...), attempts=3)     # no thread before the first message
    url = checked_url(data["webhook_v2"], "webhook_v2")                       # JobInvalid
    sender.send(Message(url, orjson.dumps(payload), id=job.id, lane=job.id))  # returns at once
    sender.close(drain_s=10.0)

    events = SystemEvents(own_sender, url, names, metadata)   # its own sender: the address is the operator's
    events.comfy({"type": "executing", "data": {...}}, job_id)

Payloads are a face's business. Order is kept within a lane, which is usually a job.
"""

from comfy_worker.webhook.events import SystemEvents
from comfy_worker.webhook.post import checked_url
from comfy_worker.webhook.sender import Message, Sender
from comfy_worker.webhook.sign import key_of, secret_problem, signed

__all__ = [
    "Message",
    "Sender",
    "SystemEvents",
    "checked_url",
    "key_of",
    "secret_problem",
    "signed",
]
