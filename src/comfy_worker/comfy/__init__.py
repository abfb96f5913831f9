"""
Everything that speaks to ComfyUI, and nothing else does.
"""
