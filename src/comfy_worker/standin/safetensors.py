"""
The safetensors file format, writing only: u64 little-endian length of the header, the header as JSON, the numbers.
"""

import json
from collections.abc import Mapping
from typing import Any

from comfy_worker.standin.pixels import Array


def packed(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """
    Return a file with these float32 arrays; the header is filled with blanks to a multiple of eight bytes.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    place = 0
    for name, array in tensors.items():
        end = place + array.nbytes
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    numbers = b"".join(array.astype("<f4").tobytes() for array in tensors.values())
    return len(text).to_bytes(8, "little") + text + numbers
