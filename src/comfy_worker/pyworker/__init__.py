"""
The PyWorker: what stands in front of the Vast face on Vast.ai, on the `vastai` SDK.

Runs in an environment of its own, Python 3.10 or newer, with nothing but the SDK in it: no module here imports the rest of
the package. The SDK does signature, admission, benchmark and reports; this is what it leaves to a worker.
"""
