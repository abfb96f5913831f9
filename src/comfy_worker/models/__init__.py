"""
Models as data: what a manifest says, what of it is missing, how it is fetched, and where ComfyUI finds it.
"""
