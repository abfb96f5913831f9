"""
What the worker costs on top of ComfyUI: the same jobs through a bare client and through every way into the worker.

`comfy-worker bench` runs it. Times on a shared machine are noise; the ratios of one run are what counts, so the ways take
turns within each round. `graphs` makes the jobs, `ways` runs one, `measure` takes the times, `cases` says what is run,
`report` writes it down.
"""
