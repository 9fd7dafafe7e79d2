"""Draw the annotated objects of a driving scene: vehicles, people, traffic lights and signs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from detcurate.synthetic.paint import Color, Painter

CLASSES = ("car", "truck", "bus", "pedestrian", "cyclist", "traffic light", "traffic sign")

_DARK: Color = (38, 36, 34)
_GLASS: Color = (92, 78, 62)
_TAIL: Color = (40, 30, 225)
_HEAD: Color = (225, 245, 250)
_METAL: Color = (120, 122, 124)
_WHITE: Color = (235, 236, 238)
_LAMPS: tuple[Color, ...] = ((50, 40, 250), (40, 190, 250), (120, 235, 60))


@dataclass(frozen=True)
class Actor:
    """One object of a class, somewhere on the road.

    Args:
        kind: A name in ``CLASSES``.
        x: Centre, metres to the right of the camera's lane.
        z: Near end, metres ahead of the start of the sequence.
        vx: Speed to the right, m/s.
        vz: Speed along the road, m/s.
        color: Colour of the body or the clothes, BGR.
        accent: Colour of trousers or a stripe, BGR.
        variant: Appearance, 0 to 3.
        faces_camera: Whether its front is visible.
        phase: Phase of the walk, in [0, 1].
    """

    kind: str
    x: float
    z: float
    vx: float = 0.0
    vz: float = 0.0
    color: Color = (128, 128, 128)
    accent: Color = (60, 60, 60)
    variant: int = 0
    faces_camera: bool = False
    phase: float = 0.0


def draw_actor(painter: Painter, actor: Actor, x: float, z: float, *, lamps_on: bool, seconds: float) -> None:
    """Draw an actor with its near end at distance ``z``.

    Args:
        painter: The canvas; its ``object_id`` marks the pixels of the actor.
        actor: The object.
        x: Metres to the right of the camera.
        z: Metres ahead.
        lamps_on: Whether vehicles have their lights on.
        seconds: Time since the start of the sequence, for moving legs and changing lights.
    """
    _DRAW[actor.kind](painter, actor, x, z, lamps_on, seconds)


def _vehicle_lamps(p: Painter, a: Actor, x: float, y: float, z: float, half: float, on: bool) -> None:
    color = _HEAD if a.faces_camera else _TAIL
    for side in (-1, 1):
        inner, outer = x + side * (half - 0.42), x + side * (half - 0.08)
        p.face(min(inner, outer), max(inner, outer), y, y + 0.18, z, color, emits=on)
        if on:
            p.glow((inner + outer) / 2, y + 0.09, z, 0.9 if a.faces_camera else 0.45, color, 0.5)


def _wheels(p: Painter, x: float, half: float, z: float, length: float, radius: float) -> None:
    for side in (-1, 1):
        inner, outer = x + side * (half - 0.28), x + side * half
        p.face(min(inner, outer), max(inner, outer), 0.0, radius, z + 0.05, (22, 22, 22))
    seen = p.visible_side(x - half, x + half, z)
    if seen is not None:
        for middle in (z + 0.2 * length, z + 0.8 * length):
            p.side_face(seen, 0.0, 2 * radius, middle - radius, middle + radius, (22, 22, 22))


def _shadow(p: Painter, x: float, half: float, z: float, length: float) -> None:
    marked, p.object_id = p.object_id, None
    z0, z1 = z - 0.25, z + length + 0.25
    left, right = x - half - 0.2, x + half + 0.2
    p.polygon(((left, 0, z0), (right, 0, z0), (right, 0, z1), (left, 0, z1)), (30, 29, 28))
    p.object_id = marked


def _draw_car(p: Painter, a: Actor, x: float, z: float, lamps_on: bool, seconds: float) -> None:
    half, length = 0.92, (4.2, 4.5, 3.8, 4.6)[a.variant]
    roof = (1.42, 1.45, 1.5, 1.72)[a.variant]
    _shadow(p, x, half, z, length)
    _wheels(p, x, half, z, length, 0.32)
    p.block((x - half, x + half), (0.28, 0.86), (z, z + length), a.color)
    near, far = (0.35, 1.0) if not a.faces_camera else (1.1, 0.4)
    cabin = (z + near, z + length - far)
    p.block(
        (x - half + 0.06, x + half - 0.06), (0.86, roof), cabin, a.color, inset_x=0.16, inset_near=0.45, inset_far=0.5
    )
    low, high = 0.9, roof - 0.1
    p.polygon(
        ((x - 0.76, low, cabin[0] + 0.04), (x + 0.76, low, cabin[0] + 0.04), (x + 0.62, high, cabin[0] + 0.4),
         (x - 0.62, high, cabin[0] + 0.4)),
        _GLASS,
    )  # fmt: skip
    seen = p.visible_side(x - half, x + half, z)
    if seen is not None:
        s = seen + (0.12 if seen < x else -0.12)
        p.side_face(s, low, high - 0.04, cabin[0] + 0.5, cabin[1] - 0.5, _GLASS, factor=0.9)
    p.face(x - half + 0.04, x + half - 0.04, 0.28, 0.42, z, tuple(0.6 * c for c in a.color))  # type: ignore[arg-type]
    p.face(x - 0.26, x + 0.26, 0.45, 0.57, z, _WHITE)
    _vehicle_lamps(p, a, x, 0.62, z, half, lamps_on)


def _draw_truck(p: Painter, a: Actor, x: float, z: float, lamps_on: bool, seconds: float) -> None:
    half, length, height = 1.22, 7.5, 3.5
    _shadow(p, x, half, z, length)
    _wheels(p, x, half, z, length, 0.48)
    if a.faces_camera:
        p.block((x - half, x + half), (0.9, height), (z + 2.0, z + length), a.accent)
        p.block((x - half + 0.05, x + half - 0.05), (0.45, 2.65), (z, z + 1.9), a.color)
        p.face(x - 1.0, x + 1.0, 1.55, 2.4, z, _GLASS)
        p.face(x - 0.8, x + 0.8, 0.85, 1.3, z, _DARK)
        _vehicle_lamps(p, a, x, 0.6, z, half, lamps_on)
        return
    p.block((x - half + 0.1, x + half - 0.1), (0.5, 0.95), (z + 0.1, z + length), _DARK)
    p.block((x - half, x + half), (0.95, height), (z, z + length - 1.8), a.accent)
    p.face(x - half + 0.12, x + half - 0.12, 1.05, height - 0.15, z, tuple(0.86 * c for c in a.accent))  # type: ignore[arg-type]
    p.face(x - 0.03, x + 0.03, 1.05, height - 0.15, z, _DARK)
    p.face(x - half, x + half, 2.1, 2.45, z, a.color)
    for side in (-0.3, 0.3):
        p.face(x + side - 0.03, x + side + 0.03, 1.2, 2.0, z, _METAL)
    _vehicle_lamps(p, a, x, 0.66, z, half, lamps_on)


def _draw_bus(p: Painter, a: Actor, x: float, z: float, lamps_on: bool, seconds: float) -> None:
    half, length, height = 1.27, 11.0, 3.05
    _shadow(p, x, half, z, length)
    _wheels(p, x, half, z, length, 0.48)
    p.block((x - half, x + half), (0.35, height), (z, z + length), a.color)
    glass = (150, 190, 205) if lamps_on else _GLASS
    seen = p.visible_side(x - half, x + half, z)
    if seen is not None:
        for pane in range(7):
            start = z + 0.5 + pane * 1.48
            p.side_face(seen, 1.45, 2.5, start, start + 1.2, glass, emits=lamps_on)
        p.side_face(seen, 0.75, 0.95, z, z + length, _WHITE, factor=0.8)
    top = 2.45 if a.faces_camera else 2.55
    p.face(x - 1.1, x + 1.1, 1.25 if a.faces_camera else 1.6, top, z, glass)
    p.face(x - 0.85, x + 0.85, 2.6, 2.92, z, (40, 200, 245) if a.faces_camera else _DARK, emits=a.faces_camera)
    p.face(x - half, x + half, 0.35, 0.6, z, _DARK)
    p.face(x - half, x + half, 0.98, 1.12, z, _WHITE)
    _vehicle_lamps(p, a, x, 0.68, z, half, lamps_on)


def _draw_pedestrian(p: Painter, a: Actor, x: float, z: float, lamps_on: bool, seconds: float) -> None:
    height = (1.78, 1.7, 1.62, 1.25)[a.variant]
    unit, moving = height / 1.75, bool(a.vx or a.vz)
    stride = 0.24 * unit * math.sin(2 * math.pi * (1.6 * seconds + a.phase)) if moving else 0.06
    for side, swing in ((-1, stride), (1, -stride)):
        hip = x + side * 0.08 * unit
        foot = hip + swing
        p.polygon(
            ((foot - 0.08 * unit, 0, z), (foot + 0.09 * unit, 0, z), (hip + 0.1 * unit, 0.85 * unit, z),
             (hip - 0.1 * unit, 0.85 * unit, z)),
            a.accent,
        )  # fmt: skip
    for side, swing in ((-1, -stride), (1, stride)):
        shoulder = x + side * 0.24 * unit
        p.line((shoulder, 1.38 * unit, z), (shoulder + 0.6 * swing + side * 0.04, 0.82 * unit, z), 0.1 * unit, a.color)
    p.polygon(
        ((x - 0.2 * unit, 0.8 * unit, z), (x + 0.2 * unit, 0.8 * unit, z), (x + 0.25 * unit, 1.42 * unit, z),
         (x - 0.25 * unit, 1.42 * unit, z)),
        a.color,
    )  # fmt: skip
    p.disc(x, 1.6 * unit, z, 0.13 * unit, (125, 155, 200))
    p.face(x - 0.12 * unit, x + 0.12 * unit, 1.63 * unit, 1.74 * unit, z, (35, 45, 60))


def _draw_cyclist(p: Painter, a: Actor, x: float, z: float, lamps_on: bool, seconds: float) -> None:
    if a.vx:
        ahead = math.copysign(1.0, a.vx)
        for wheel in (-0.52, 0.52):
            p.ring(x + wheel, 0.34, z, 0.33, 0.06, (25, 25, 25))
        frame = (60, 170, 60)
        for first, second in (((-0.52, 0.34), (-0.1, 0.85)), ((-0.1, 0.85), (0.4, 0.8)), ((0.4, 0.8), (0.52, 0.34)),
                              ((0.4, 0.8), (0.0, 0.34)), ((0.0, 0.34), (-0.1, 0.85))):  # fmt: skip
            p.line((x + ahead * first[0], first[1], z), (x + ahead * second[0], second[1], z), 0.06, frame)
        pedal = 0.15 * math.sin(2 * math.pi * (1.2 * seconds + a.phase))
        p.line((x - ahead * 0.12, 0.9, z), (x + ahead * (0.1 + pedal), 0.42, z), 0.16, a.accent)
        hips, neck = x - ahead * 0.14, x + ahead * 0.22
        p.polygon(
            ((hips - 0.15, 0.88, z), (hips + 0.15, 0.88, z), (neck + 0.15, 1.42, z), (neck - 0.13, 1.46, z)), a.color
        )
        p.line((neck, 1.35, z), (x + ahead * 0.45, 0.98, z), 0.1, a.color)
        p.disc(neck + ahead * 0.1, 1.6, z, 0.13, (125, 155, 200))
        p.face(neck - 0.05 * ahead - 0.1, neck - 0.05 * ahead + 0.2, 1.64, 1.76, z, _WHITE)
        return
    p.face(x - 0.05, x + 0.05, 0.0, 0.72, z, (25, 25, 25))
    p.line((x - 0.28, 1.02, z), (x + 0.28, 1.02, z), 0.07, _DARK)
    pedal = 0.12 * math.sin(2 * math.pi * (1.2 * seconds + a.phase))
    for side, lift in ((-1, pedal), (1, -pedal)):
        p.line((x + side * 0.13, 0.95, z), (x + side * 0.15, 0.32 + lift, z), 0.15, a.accent)
    p.polygon(((x - 0.19, 0.88, z), (x + 0.19, 0.88, z), (x + 0.25, 1.45, z), (x - 0.25, 1.45, z)), a.color)
    for side in (-1, 1):
        p.line((x + side * 0.23, 1.38, z), (x + side * 0.29, 1.02, z), 0.1, a.color)
    p.disc(x, 1.61, z, 0.13, (125, 155, 200))
    p.face(x - 0.14, x + 0.14, 1.64, 1.77, z, _WHITE)


def _draw_light(p: Painter, a: Actor, x: float, z: float, lamps_on: bool, seconds: float) -> None:
    marked, p.object_id = p.object_id, 0
    p.face(x - 0.07, x + 0.07, 0, 2.75, z + 0.1, (70, 72, 74))
    p.object_id = marked
    p.face(x - 0.3, x + 0.3, 2.7, 4.1, z, (24, 24, 22))
    for lamp in range(3):
        lit = lamp == a.variant % 3
        color = _LAMPS[lamp] if lit else tuple(0.22 * c for c in _LAMPS[lamp])
        y = 3.85 - 0.45 * lamp
        p.disc(x, y, z, 0.17, color, emits=lit)  # type: ignore[arg-type]
        if lit and lamps_on:
            p.glow(x, y, z, 0.8, color, 0.6)  # type: ignore[arg-type]


def _draw_sign(p: Painter, a: Actor, x: float, z: float, lamps_on: bool, seconds: float) -> None:
    marked, p.object_id = p.object_id, 0
    p.face(x - 0.05, x + 0.05, 0, 2.1, z + 0.05, (118, 120, 122))
    p.object_id = marked
    red, blue, white, radius, y = (45, 35, 205), (190, 95, 30), (240, 240, 240), 0.45, 2.45
    if a.variant == 0:
        p.disc(x, y, z, radius, red)
        p.disc(x, y, z, 0.66 * radius, white)
        p.face(x - 0.14, x + 0.14, y - 0.13, y + 0.13, z, _DARK)
    elif a.variant == 1:
        for size, color in ((radius * 1.15, red), (radius * 0.62, white)):
            p.polygon(((x - size, y - 0.62 * size, z), (x + size, y - 0.62 * size, z), (x, y + size, z)), color)
    elif a.variant == 2:
        p.face(x - radius, x + radius, y - radius, y + radius, z, blue)
        p.face(x - 0.1, x + 0.1, y - 0.3, y + 0.3, z, white)
    else:
        corners = [(math.cos(math.pi / 8 + k * math.pi / 4), math.sin(math.pi / 8 + k * math.pi / 4)) for k in range(8)]
        p.polygon([(x + radius * u, y + radius * v, z) for u, v in corners], red)
        p.face(x - 0.32, x + 0.32, y - 0.1, y + 0.1, z, white)


_DRAW: Mapping[str, Callable[[Painter, Actor, float, float, bool, float], None]] = {
    "car": _draw_car,
    "truck": _draw_truck,
    "bus": _draw_bus,
    "pedestrian": _draw_pedestrian,
    "cyclist": _draw_cyclist,
    "traffic light": _draw_light,
    "traffic sign": _draw_sign,
}
LENGTHS_M: Mapping[str, float] = {"car": 4.4, "truck": 7.5, "bus": 11.0}
