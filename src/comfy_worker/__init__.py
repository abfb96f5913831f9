"""
Any ComfyUI workflow as an API call on serverless GPUs.

Nothing happens at import, here or in any module below: no file, no socket, no process, no log line.
"""

__version__ = "0.1.0"
