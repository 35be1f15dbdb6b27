"""How much a pixel stands out as a blob or a corner, in arithmetic that is the same everywhere.

As `medusa_cl.data.geometry.keypoints2d`, whose filters add in an order of their own; here the weights are written down.
"""

import numpy as np
import numpy.typing as npt

from medusa_cl.data.rooms.draws import Floats

BRIGHTEST = 1 / 4096
"""The determinant of Hessian that counts as 1 (`geometry.BRIGHTEST_KEYPOINT`)."""
# A Gaussian of sigma 2 and its derivatives at 0, 1, ... 12 pixels; the first one is odd.
SMOOTH = (
    0.199471146, 0.176032662, 0.120985359, 0.0647588, 0.0269954838, 0.00876415055, 0.00221592421, 0.000436341361,
    6.69151123e-05, 7.99187092e-06, 7.43359749e-07, 5.3848801e-08, 3.03794145e-09,
)  # fmt: skip
SLOPE = (
    0.0, -0.0440081656, -0.0604926795, -0.0485690981, -0.0269954838, -0.0109551875, -0.00332388631, -0.000763597374,
    -0.000133830225, -1.79817089e-05, -1.8583994e-06, -1.48084197e-07, -9.11382436e-09,
)  # fmt: skip
BEND = (
    -0.0498677865, -0.0330061242, 0.0, 0.0202371236, 0.0202466119, 0.0115029477, 0.00443184841, 0.00122721004,
    0.000250931684, 3.84608757e-05, 4.46015838e-06, 3.93769341e-07, 2.65819882e-08,
)  # fmt: skip


def keypoints2d(image: npt.NDArray[np.uint8]) -> Floats:
    """Return the determinant of the Hessian of grey at sigma 2, clipped and scaled.

    Args:
        image: H W 3, uint8, RGB.

    Returns:
        H W, float32 in [0, 1]: 1 is `BRIGHTEST` and above, 0 is saddles, straight edges and even areas.
    """
    red, green, blue = (image[..., k].astype(np.float32) for k in range(3))
    grey = (red * np.float32(0.299) + green * np.float32(0.587) + blue * np.float32(0.114)) * np.float32(1 / 255)
    smooth, slope = _filtered(grey, SMOOTH, 1), _filtered(grey, SLOPE, 1, odd=True)
    across, down = _filtered(_filtered(grey, BEND, 1), SMOOTH, 0), _filtered(smooth, BEND, 0)
    twist = _filtered(slope, SLOPE, 0, odd=True)
    strength = (across * down - twist * twist) * np.float32(1 / BRIGHTEST)
    clipped: Floats = np.minimum(np.maximum(strength, np.float32(0.0)), np.float32(1.0))
    return clipped


def _filtered(values: Floats, weights: tuple[float, ...], axis: int, odd: bool = False) -> Floats:
    """Correlate along one axis, nearest pairs last: the small terms are added first. The border is repeated."""
    reach, length = len(weights) - 1, values.shape[axis]
    padding = [(0, 0), (0, 0)]
    padding[axis] = (reach, reach)
    padded = np.moveaxis(np.pad(values, padding, mode="edge"), axis, 0)
    total: Floats = np.zeros((length, values.shape[1 - axis]), dtype=np.float32)
    for step in range(reach, 0, -1):
        ahead, behind = padded[reach + step :][:length], padded[reach - step :][:length]
        total = total + (ahead - behind if odd else ahead + behind) * np.float32(weights[step])
    total = total + padded[reach:][:length] * np.float32(weights[0])
    return np.moveaxis(total, 0, axis)
