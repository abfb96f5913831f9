"""
Picture arithmetic in numpy: levels, cutting, blurring, joining. Resizing is in `resample`.

Pictures are float32 [batch, height, width, channels] in 0..1, masks [batch, height, width].
No files, no nodes, no messages in here.

Saved pictures are to equal ComfyUI's to the last bit although truncation to 8 bits turns the smallest difference
into a level, so sums are taken in torch's order and with its fused multiply-add.
"""

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Levels = npt.NDArray[np.uint8]

_ONE = np.float32(1)


def to_bytes(image: Array) -> Levels:
    """
    Return the picture in 8-bit levels: times 255, clipped, cut off.
    """
    levels: Levels = np.clip(image * np.float32(255), 0, 255).astype(np.uint8)
    return levels


def from_bytes(levels: Levels) -> Array:
    """
    Return 8-bit levels as a picture.
    """
    return levels.astype(np.float32) / np.float32(255)


def fma(a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike) -> Array:
    """
    Return a * b + c in float32 with one rounding, as the processor's fused multiply-add does.
    """
    product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
    result: Array = (product + np.asarray(c, np.float64)).astype(np.float32)
    return result


def crop(image: Array, x: int, y: int, width: int, height: int) -> Array:
    """
    Cut a rectangle out; a corner outside moves onto the last pixel, what reaches out is left off.
    """
    x, y = min(x, image.shape[2] - 1), min(y, image.shape[1] - 1)
    return image[:, y : y + height, x : x + width]


def blur(image: Array, radius: int, sigma: float) -> Array:
    """
    Blur with a Gaussian of 2 * radius + 1 pixels, mirrored at the edges; sigma 1 is `radius` pixels.

    Raises:
        RuntimeError: the picture is not larger than the radius.
    """
    rows, columns = image.shape[1:3]
    if radius >= min(rows, columns):
        raise RuntimeError(
            f"Padding size {radius} must be less than the picture, which has {columns} by {rows}"
        )
    size = 2 * radius + 1
    padded = np.pad(image, ((0, 0), (radius, radius), (radius, radius), (0, 0)), "reflect")
    total = np.zeros_like(image)
    for index, weight in enumerate(_gaussian(size, sigma).ravel()):
        y, x = divmod(index, size)
        total = fma(padded[:, y : y + rows, x : x + columns], weight, total)
    return total


def _gaussian(size: int, sigma: float) -> Array:
    squares = _spread(size) ** 2
    distance = np.sqrt(squares[:, None] + squares)
    exponent = -(distance * distance) / np.float32(2 * sigma * sigma)
    # Via float64 for the nearest float32: torch's is the nearest, too, nearly always.
    weights = np.exp(exponent.astype(np.float64)).astype(np.float32)
    kernel: Array = weights / _sum(weights.ravel())
    return kernel


def _spread(size: int) -> Array:
    """
    Return `size` places from -1 to 1, counted from the nearer end as torch's linspace does.
    """
    step = np.float32(2) / np.float32(size - 1)
    half = fma(step, np.arange(size // 2), -1)
    return np.concatenate([half, fma(-step, np.arange(size - size // 2)[::-1], 1)])


def _sum(values: Array, lanes: int = 8) -> np.float32:
    """
    Add up in torch's order (2.13, AVX2 kernel): four sums in eight lanes each, emptied into a coarser one at times.
    """
    whole = len(values) // lanes
    vector = _sum_rows(values[: whole * lanes].reshape(whole, lanes))
    total = np.float32(0)
    for value in np.concatenate([values[whole * lanes :], vector]):
        total = total + value
    return total


def _sum_rows(rows: Array) -> Array:
    groups = len(rows) // 4
    tidy = rows[: groups * 4].reshape(groups, 4, rows.shape[1])
    step = 1 << max(4, math.ceil(math.log2(max(groups, 1))) // 4)
    coarse = np.zeros((4, rows.shape[1]), np.float32)
    for start in range(0, groups - step + 1, step):
        coarse = coarse + _running(tidy[start : start + step])
    fine = coarse + _running(tidy[groups - groups % step :])
    for row in rows[groups * 4 :]:
        fine[0] = fine[0] + row
    return _running(fine)


def _running(rows: Array) -> Array:
    total = np.zeros(rows.shape[1:], np.float32)
    for row in rows:
        total = total + row
    return total


def as_picture(mask: Array) -> Array:
    """
    Return a mask as a grey picture of three channels.
    """
    return np.repeat(mask.reshape(-1, *mask.shape[-2:], 1), 3, axis=3)


def with_channels(image: Array, channels: int) -> Array:
    """
    Return the picture with more channels, those added being opaque.
    """
    missing = channels - image.shape[3]
    if missing <= 0:
        return image
    return np.concatenate([image, np.full((*image.shape[:3], missing), _ONE)], axis=3)
