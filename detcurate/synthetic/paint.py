"""Draw in perspective: a pinhole camera over a flat road, a canvas, and a buffer with the object of each pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

Color = tuple[float, float, float]
Point = tuple[float, float, float]

CAMERA_HEIGHT_M = 1.5
_NEAR_M = 1.2
_SUBPIXEL_BITS = 4
_LIMIT_PX = 20_000.0


class Painter:
    """A canvas seen through a pinhole camera 1.5 m above the road, looking along +z.

    World axes in metres: x to the right, y up from the road, z forward from the camera. The road bends: a point at
    distance z is moved sideways by ``bend * z²``. Everything is drawn at ``scale`` times the final size.

    Args:
        width: Width of the final image, px.
        height: Height of the final image, px.
        bend: Curvature of the road, 1/m.
        haze: Colour of the haze in the distance, BGR in [0, 255].
        visibility_m: Distance at which a colour is two thirds haze, m.
        light: Brightness of surfaces, in (0, 1].
    """

    def __init__(self, width: int, height: int, *, bend: float, haze: Color, visibility_m: float, light: float) -> None:
        self.scale = 2 if width <= 640 else 1
        self.width, self.height = width * self.scale, height * self.scale
        self.canvas = np.empty((self.height, self.width, 3), np.uint8)
        self.ids = np.zeros((self.height, self.width), np.uint8)
        self.focal = 0.85 * self.width
        self.horizon = 0.46 * self.height
        self.bend, self.haze, self.visibility_m, self.light = bend, haze, visibility_m, light
        self.object_id: int | None = None  # the object that is drawn next; 0 for scenery that hides objects

    def project(self, point: Point) -> tuple[float, float]:
        """Return the pixel of a world point; points behind the near plane are moved onto it."""
        x, y, z = point
        z = max(z, _NEAR_M)
        u = self.width / 2 + self.focal * (x + self.bend * z * z) / z
        v = self.horizon + self.focal * (CAMERA_HEIGHT_M - y) / z
        return min(max(u, -_LIMIT_PX), _LIMIT_PX), min(max(v, -_LIMIT_PX), _LIMIT_PX)

    def shade(self, color: Color, z: float, factor: float = 1.0) -> Color:
        """Return the colour of a surface at a distance, with light and haze applied."""
        kept = math.exp(-z / self.visibility_m)
        lit = self.light * factor * kept
        b, g, r = self.haze
        return color[0] * lit + b * (1 - kept), color[1] * lit + g * (1 - kept), color[2] * lit + r * (1 - kept)

    def polygon(self, points: Sequence[Point], color: Color, *, factor: float = 1.0, emits: bool = False) -> None:
        """Fill a convex polygon of world points; one that ``emits`` light is neither dimmed nor hazy."""
        depth = sum(point[2] for point in points) / len(points)
        self._fill([self.project(point) for point in points], color if emits else self.shade(color, depth, factor))

    def face(self, x0: float, x1: float, y0: float, y1: float, z: float, color: Color, **how: float | bool) -> None:
        """Fill a rectangle that faces the camera."""
        self.polygon(((x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)), color, **how)  # type: ignore[arg-type]

    def disc(self, x: float, y: float, z: float, radius: float, color: Color, *, emits: bool = False) -> None:
        """Fill a circle that faces the camera."""
        u, v = self.project((x, y, z))
        size = self.focal * radius / max(z, _NEAR_M)
        shaded = color if emits else self.shade(color, z)
        one = 1 << _SUBPIXEL_BITS
        center, pixels = (round(u * one), round(v * one)), max(round(size * one), one // 2)
        cv2.circle(self.canvas, center, pixels, shaded, -1, cv2.LINE_8, _SUBPIXEL_BITS)
        if self.object_id is not None:
            cv2.circle(self.ids, center, pixels, self.object_id, -1, cv2.LINE_8, _SUBPIXEL_BITS)

    def line(self, first: Point, second: Point, thickness_m: float, color: Color) -> None:
        """Draw a line of a thickness in metres."""
        z = max((first[2] + second[2]) / 2, _NEAR_M)
        pixels = max(1, round(self.focal * thickness_m / z))
        ends = [(round(u), round(v)) for u, v in (self.project(first), self.project(second))]
        cv2.line(self.canvas, ends[0], ends[1], self.shade(color, z), pixels)
        if self.object_id is not None:
            cv2.line(self.ids, ends[0], ends[1], self.object_id, pixels)

    def ring(self, x: float, y: float, z: float, radius: float, thickness_m: float, color: Color) -> None:
        """Draw a circle's outline that faces the camera, such as a wheel from the side."""
        u, v = self.project((x, y, z))
        scale = self.focal / max(z, _NEAR_M)
        pixels, size = max(1, round(thickness_m * scale)), max(1, round(radius * scale))
        cv2.circle(self.canvas, (round(u), round(v)), size, self.shade(color, z), pixels)
        if self.object_id is not None:
            cv2.circle(self.ids, (round(u), round(v)), size, self.object_id, pixels)

    def block(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        z: tuple[float, float],
        color: Color,
        *,
        inset_x: float = 0.0,
        inset_near: float = 0.0,
        inset_far: float = 0.0,
    ) -> None:
        """Draw the visible faces of a box, far ones first; its top may be smaller than its bottom."""
        (x0, x1), (y0, y1), (z0, z1) = x, y, z
        a0, a1, b0, b1 = x0 + inset_x, x1 - inset_x, z0 + inset_near, z1 - inset_far
        if y1 < CAMERA_HEIGHT_M:
            self.polygon(((a0, y1, b0), (a1, y1, b0), (a1, y1, b1), (a0, y1, b1)), color, factor=1.12)
        if self._sees_right_of(x0, z0):
            self.polygon(((x0, y0, z0), (a0, y1, b0), (a0, y1, b1), (x0, y0, z1)), color, factor=0.72)
        if self._sees_left_of(x1, z0):
            self.polygon(((x1, y0, z0), (a1, y1, b0), (a1, y1, b1), (x1, y0, z1)), color, factor=0.72)
        self.polygon(((x0, y0, z0), (x1, y0, z0), (a1, y1, b0), (a0, y1, b0)), color)

    def side_face(
        self, x: float, y0: float, y1: float, z0: float, z1: float, color: Color, **how: float | bool
    ) -> None:
        """Fill a vertical rectangle parallel to the road."""
        self.polygon(((x, y0, z0), (x, y1, z0), (x, y1, z1), (x, y0, z1)), color, **how)  # type: ignore[arg-type]

    def visible_side(self, x0: float, x1: float, z0: float) -> float | None:
        """Return the x of the visible side of a box, or ``None`` if neither is visible."""
        if self._sees_right_of(x0, z0):
            return x0
        return x1 if self._sees_left_of(x1, z0) else None

    def glow(self, x: float, y: float, z: float, radius_m: float, color: Color, strength: float) -> None:
        """Add a soft light around a lamp."""
        u, v = self.project((x, y, z))
        size = int(self.focal * radius_m / max(z, _NEAR_M))
        size = min(max(size, 2), self.height // 3)
        left, top = int(u) - size, int(v) - size
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + 2 * size, self.width), min(top + 2 * size, self.height)
        if x0 >= x1 or y0 >= y1:
            return
        rows = (np.arange(y0, y1, dtype=np.float32) - v) / size
        columns = (np.arange(x0, x1, dtype=np.float32) - u) / size
        fall = np.maximum(1 - rows[:, None] ** 2 - columns[None] ** 2, 0) ** 2 * strength
        patch = self.canvas[y0:y1, x0:x1]
        patch[:] = np.minimum(patch + fall[..., None] * np.asarray(color, np.float32), 255).astype(np.uint8)

    def _sees_right_of(self, x: float, z: float) -> bool:
        return x + self.bend * z * z > 0

    def _sees_left_of(self, x: float, z: float) -> bool:
        return x + self.bend * z * z < 0

    def _fill(self, pixels: Sequence[tuple[float, float]], color: Color) -> None:
        one = 1 << _SUBPIXEL_BITS
        polygon = np.array([(u * one, v * one) for u, v in pixels], np.float32).round().astype(np.int32)
        cv2.fillConvexPoly(self.canvas, polygon, color, cv2.LINE_8, _SUBPIXEL_BITS)
        if self.object_id is not None:
            cv2.fillConvexPoly(self.ids, polygon, self.object_id, cv2.LINE_8, _SUBPIXEL_BITS)
