"""
The built-in engine: a small server that speaks ComfyUI's protocol, for trying and testing without a GPU.

It is not ComfyUI, and says so on start and in its `/system_stats`. Production images never start it.
It knows nothing of the worker but `comfy.validate`, and nothing of the worker but `comfy.process` starts it.
"""
