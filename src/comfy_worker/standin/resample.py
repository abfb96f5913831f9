"""
Resizing pictures, each method with the roundings that torch's CPU kernels have, so that saved pictures are equal.

`nearest-exact`, `bilinear`, `bicubic` and `area` follow `torch.nn.functional.interpolate` (2.13) without antialias and
with pixel centres at .5; `lanczos` is Pillow's, on 8-bit levels. Checked against ComfyUI 0.27.0.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from comfy_worker.standin.pixels import Array, fma, from_bytes, to_bytes

Indexes = npt.NDArray[np.int64]
Resizer = Callable[[Array, int, int], Array]

_HALF = np.float32(0.5)
# The steepness of torch's cubic curve.
_A = np.float32(-0.75)


def scale(image: Array, method: str, width: int, height: int) -> Array:
    """
    Return the pictures resized to `width` by `height`; `method` is one of `METHODS`.
    """
    return METHODS[method](image, width, height)


def crop_to_aspect(image: Array, width: int, height: int) -> Array:
    """
    Cut equal margins off two sides so that the rest has the aspect of `width` by `height`.
    """
    rows, columns = image.shape[1:3]
    have, want = columns / rows, width / height
    x = round((columns - columns * (want / have)) / 2) if have > want else 0
    y = round((rows - rows * (have / want)) / 2) if have < want else 0
    return image[:, y : rows - y, x : columns - x]


def _nearest(image: Array, width: int, height: int) -> Array:
    return image[:, _nearest_index(image.shape[1], height)][:, :, _nearest_index(image.shape[2], width)]


def _nearest_index(size: int, wanted: int) -> Indexes:
    places = (np.arange(wanted, dtype=np.float32) + _HALF) * _step(size, wanted)
    indexes: Indexes = np.minimum(np.floor(places).astype(np.int64), size - 1)
    return indexes


def _step(size: int, wanted: int) -> np.float32:
    return np.float32(size) / np.float32(wanted)


def _places(size: int, wanted: int) -> Array:
    return fma(_step(size, wanted), np.arange(wanted, dtype=np.float32) + _HALF, -_HALF)


def _bilinear(image: Array, width: int, height: int) -> Array:
    rows, row_weights = _linear(image.shape[1], height)
    columns, column_weights = _linear(image.shape[2], width)
    if width + height <= 128 or image.shape[3] > 3:
        return _four_corners(image, rows, row_weights, columns, column_weights)
    wide = _weighted([image[:, :, index] for index in columns], _across(column_weights))
    return _weighted([wide[:, index] for index in rows], _down(row_weights))


def _linear(size: int, wanted: int) -> tuple[list[Indexes], list[Array]]:
    places = np.maximum(_places(size, wanted), np.float32(0))
    first = np.minimum(places.astype(np.int64), size - 1)
    far = np.clip(places - first.astype(np.float32), 0, 1).astype(np.float32)
    return [first, np.minimum(first + 1, size - 1)], [np.float32(1) - far, far]


def _four_corners(
    image: Array,
    rows: Sequence[Indexes],
    row_weights: Sequence[Array],
    columns: Sequence[Indexes],
    column_weights: Sequence[Array],
) -> Array:
    # torch takes another kernel for small results and for four channels: one sum of four products.
    corners = [image[:, row][:, :, column] for row in rows for column in columns]
    weights = [(row[:, None] * column)[..., None] for row in row_weights for column in column_weights]
    return _weighted(corners, weights)


def _bicubic(image: Array, width: int, height: int) -> Array:
    rows, row_weights = _cubic(image.shape[1], height)
    columns, column_weights = _cubic(image.shape[2], width)
    wide = _weighted([image[:, :, index] for index in columns], _across(column_weights))
    return _weighted([wide[:, index] for index in rows], _down(row_weights))


def _cubic(size: int, wanted: int) -> tuple[list[Indexes], list[Array]]:
    places = _places(size, wanted)
    whole = np.floor(places)
    near = np.clip(places - whole, 0, 1).astype(np.float32)
    far = np.float32(1) - near
    indexes = [np.clip(whole.astype(np.int64) + offset, 0, size - 1) for offset in (-1, 0, 1, 2)]
    return indexes, [_tail(near + np.float32(1)), _hill(near), _hill(far), _tail(far + np.float32(1))]


def _hill(x: Array) -> Array:
    value: Array = ((_A + np.float32(2)) * x - (_A + np.float32(3))) * x * x + np.float32(1)
    return value


def _tail(x: Array) -> Array:
    inner = fma(fma(_A, x, -5 * _A), x, 8 * _A)
    value: Array = inner * x - np.float32(4) * _A
    return value


def _weighted(parts: Sequence[Array], weights: Sequence[Array]) -> Array:
    # The first product is fused onto the second one, the others onto the sum so far.
    total = fma(parts[0], weights[0], parts[1] * weights[1])
    for part, weight in zip(parts[2:], weights[2:], strict=True):
        total = fma(part, weight, total)
    return total


def _across(weights: Sequence[Array]) -> list[Array]:
    return [weight[:, None] for weight in weights]


def _down(weights: Sequence[Array]) -> list[Array]:
    return [weight[:, None, None] for weight in weights]


def _area(image: Array, width: int, height: int) -> Array:
    top, tall = _windows(image.shape[1], height)
    left, broad = _windows(image.shape[2], width)
    total = np.zeros((image.shape[0], height, width, image.shape[3]), np.float32)
    for y in range(tall.max()):
        rows = image[:, np.minimum(top + y, image.shape[1] - 1)]
        for x in range(broad.max()):
            inside = ((y < tall)[:, None] & (x < broad))[..., None]
            part = rows[:, :, np.minimum(left + x, image.shape[2] - 1)]
            np.add(total, part, out=total, where=inside)
    total /= tall[:, None, None].astype(np.float32)
    total /= broad[:, None].astype(np.float32)
    return total


def _windows(size: int, wanted: int) -> tuple[Indexes, Indexes]:
    places = np.arange(wanted)
    start = places * size // wanted
    return start, -(-(places + 1) * size // wanted) - start


def _lanczos(image: Array, width: int, height: int) -> Array:
    pictures = (Image.fromarray(levels) for levels in to_bytes(image))
    resized = [np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS)) for picture in pictures]
    return from_bytes(np.stack(resized))


METHODS: Mapping[str, Resizer] = {
    "nearest-exact": _nearest,
    "bilinear": _bilinear,
    "area": _area,
    "bicubic": _bicubic,
    "lanczos": _lanczos,
}
