"""Generate the street of one sequence: location, weather, time of day, scenery and moving actors."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from detcurate.synthetic.actors import Actor
from detcurate.synthetic.paint import Color, Painter

LOCATIONS = ("city", "suburb", "highway")
WEATHERS = ("clear", "overcast", "rain", "fog")
TIMES = ("day", "dusk", "night")
LANE_M = 3.5

_BODY_COLORS: tuple[Color, ...] = (
    (205, 205, 205), (60, 60, 62), (150, 152, 155), (45, 40, 165), (140, 80, 40), (70, 95, 60), (60, 130, 190),
    (225, 225, 222),
)  # fmt: skip
_BUS_COLORS: tuple[Color, ...] = ((30, 190, 240), (45, 45, 215), (70, 165, 60))
_CLOTHES: tuple[Color, ...] = (
    (60, 50, 180), (160, 90, 40), (70, 140, 70), (40, 160, 210), (150, 60, 130), (90, 90, 95), (200, 200, 205),
    (40, 45, 50),
)  # fmt: skip
_TROUSERS: tuple[Color, ...] = ((90, 60, 40), (45, 42, 40), (70, 80, 90), (110, 115, 120))
_FACADES: tuple[Color, ...] = (
    (120, 140, 165), (95, 115, 150), (150, 155, 160), (105, 110, 118), (130, 165, 190), (85, 90, 120),
)  # fmt: skip
_TREES: tuple[Color, ...] = ((45, 105, 60), (40, 90, 70), (50, 120, 85))

# time of day -> sky at the top, sky at the horizon, light on surfaces
_SKIES: dict[str, tuple[Color, Color, float]] = {
    "day": ((215, 165, 105), (235, 220, 200), 1.0),
    "dusk": ((120, 80, 75), (120, 160, 235), 0.62),
    "night": ((38, 24, 16), (58, 42, 34), 0.34),
}
# weather -> visibility in metres, grey share of the sky, light
_AIRS: dict[str, tuple[float, float, float]] = {
    "clear": (260.0, 0.0, 1.0),
    "overcast": (160.0, 0.8, 0.9),
    "rain": (75.0, 0.95, 0.75),
    "fog": (32.0, 1.0, 0.92),
}


@dataclass(frozen=True)
class Building:
    """A house along the road: side, near end, length, height, colour, and whether its windows are lit."""

    side: int
    z: float
    length: float
    height: float
    color: Color
    lit: tuple[bool, ...]


@dataclass(frozen=True)
class World:
    """The properties of a sequence that do not depend on the frame."""

    location: str
    weather: str
    timeofday: str
    bend: float
    lanes: int
    speed: float
    actors: tuple[Actor, ...]
    buildings: tuple[Building, ...]
    trees: tuple[tuple[float, float, float, Color], ...]
    lamps: tuple[tuple[float, float], ...]

    @property
    def left(self) -> float:
        """The road's left edge, metres from the middle of the camera's lane."""
        return -(self.lanes - 0.5) * LANE_M

    @property
    def right(self) -> float:
        """The road's right edge."""
        return (1.5 if self.location == "highway" else 0.5) * LANE_M + (0.0 if self.location == "highway" else 2.2)

    @property
    def lamps_on(self) -> bool:
        """Whether vehicles drive with lights."""
        return self.timeofday != "day" or self.weather in ("fog", "rain")

    def painter(self, width: int, height: int) -> Painter:
        """Return a painter for this time of day and weather."""
        top, horizon, light = _SKIES[self.timeofday]
        visibility, grey, dim = _AIRS[self.weather]
        haze = _mix(horizon, _grey(horizon), grey)
        return Painter(width, height, bend=self.bend, haze=haze, visibility_m=visibility, light=light * dim)


def make_world(rng: np.random.Generator, distance: float) -> World:
    """Sample the street of a sequence, long enough for ``distance`` metres of driving."""
    location = str(rng.choice(LOCATIONS, p=(0.5, 0.3, 0.2)))
    weather = str(rng.choice(WEATHERS, p=(0.5, 0.25, 0.15, 0.1)))
    timeofday = str(rng.choice(TIMES, p=(0.65, 0.15, 0.2)))
    end = distance + 130.0
    world = World(
        location=location,
        weather=weather,
        timeofday=timeofday,
        bend=float(rng.uniform(-1, 1)) * (6e-4 if location == "city" else 1.6e-3),
        lanes=3 if location == "highway" else 2,
        speed={"city": 6.0, "suburb": 9.0, "highway": 16.0}[location],
        actors=(),
        buildings=(),
        trees=(),
        lamps=tuple((float(side), z) for z in np.arange(12.0, end, 32.0) for side in (-1, 1)),
    )
    is_empty = rng.random() < 0.05
    return World(
        **{
            **vars(world),
            "actors": () if is_empty else tuple(_actors(world, end, rng)),
            "buildings": tuple(_buildings(world, end, rng)),
            "trees": tuple(_trees(world, end, rng)),
        }
    )


def _actors(world: World, end: float, rng: np.random.Generator) -> list[Actor]:
    city, highway = world.location == "city", world.location == "highway"
    actors: list[Actor] = []

    def vehicle(x: float, z: float, vz: float, faces_camera: bool) -> None:
        kind = str(rng.choice(("car", "truck", "bus"), p=(0.885, 0.085, 0.03)))
        colors = _BUS_COLORS if kind == "bus" else _BODY_COLORS
        accent = _pick(rng, ((225, 226, 228), (200, 195, 190), (160, 110, 60), (70, 120, 190)))
        actors.append(
            Actor(kind, x, z, 0.0, vz, _pick(rng, colors), accent, int(rng.integers(4)), faces_camera=faces_camera)
        )

    def along(first: float, gap: float, chance: float) -> list[float]:
        return [float(z + rng.uniform(0, 0.4 * gap)) for z in np.arange(first, end, gap) if rng.random() < chance]

    for z in along(14.0, 60.0 if highway else 45.0, 0.55):
        vehicle(rng.normal(0, 0.15), z, world.speed * float(rng.uniform(0.75, 1.05)), False)
    if highway:
        for z in along(8.0, 30.0, 0.5):
            vehicle(LANE_M * float(rng.choice((-1, 1))), z, world.speed * float(rng.uniform(0.8, 1.2)), False)
    for z in along(20.0, 40.0, 0.35 if highway else 0.5):
        vehicle(world.left + LANE_M / 2 - (8.0 if highway else 0.0), z + 0.8 * end, -world.speed, True)
        vehicle(world.left + LANE_M / 2 - (8.0 if highway else 0.0), z, -0.6 * world.speed, True)
    if not highway:
        for z in along(6.0, 8.5, 0.42 if city else 0.22):
            vehicle(world.right - 1.0, z, 0.0, False)
        for z in along(9.0, 9.0, 0.22 if city else 0.1):
            vehicle(world.left - 1.0, z, 0.0, True)
        for z in along(5.0, 9.0, 0.42 if city else 0.16):
            side = float(rng.choice((-1, 1)))
            x = (world.right + 1.3 if side > 0 else world.left - 3.2) + float(rng.normal(0, 0.4))
            actors.append(_person("pedestrian", x, z, float(rng.choice((-1.2, 0.0, 1.2))), 0.0, rng))
        for z in along(25.0, 60.0, 0.4 if city else 0.12):
            actors.append(_person("pedestrian", world.right + 1.0, z, 0.0, -float(rng.uniform(0.8, 1.3)), rng))
        for z in along(15.0, 32.0, 0.42):
            if rng.random() < 0.75:
                actors.append(_person("cyclist", world.right - 2.6, z, float(rng.uniform(2.5, 5.0)), 0.0, rng))
            else:
                actors.append(_person("cyclist", world.left, z, 0.0, float(rng.uniform(1.5, 2.5)), rng))
    for z in along(30.0, 70.0, 0.85 if city else 0.3 if not highway else 0.0):
        variant = int(rng.integers(3))
        for x in (world.right + 0.5, world.left - 0.5):
            actors.append(Actor("traffic light", x, z, variant=variant))
    for z in along(18.0, 38.0 if not highway else 55.0, 0.75):
        actors.append(Actor("traffic sign", world.right + 0.9, z, variant=int(rng.integers(4))))
    return actors


def _person(kind: str, x: float, z: float, vz: float, vx: float, rng: np.random.Generator) -> Actor:
    return Actor(
        kind, x, z, vx, vz, _pick(rng, _CLOTHES), _pick(rng, _TROUSERS), int(rng.integers(4)), phase=float(rng.random())
    )


def _buildings(world: World, end: float, rng: np.random.Generator) -> list[Building]:
    if world.location == "highway":
        return []
    buildings = []
    for side in (-1, 1):
        z = -10.0
        while z < end:
            length = float(rng.uniform(9, 20))
            height = float(rng.uniform(9, 24) if world.location == "city" else rng.uniform(4.5, 8))
            if world.location == "city" or rng.random() < 0.6:
                lit = tuple((rng.random(40) < (0.45 if world.timeofday != "day" else 0.0)).tolist())
                buildings.append(Building(side, z, length, height, _pick(rng, _FACADES), lit))
            z += length + float(rng.uniform(0.2, 3.0) if world.location == "city" else rng.uniform(5, 14))
    return buildings


def _trees(world: World, end: float, rng: np.random.Generator) -> list[tuple[float, float, float, Color]]:
    gap = {"city": 26.0, "suburb": 11.0, "highway": 9.0}[world.location]
    trees = []
    for side in (-1, 1):
        for z in np.arange(3.0, end, gap):
            if rng.random() < 0.7:
                edge = world.right + 2.0 if side > 0 else world.left - 4.0 - (10 if world.location == "highway" else 0)
                offset = float(rng.uniform(0.2, 8.0 if world.location != "city" else 0.8))
                trees.append((edge + side * offset, float(z), float(rng.uniform(1.2, 2.3)), _pick(rng, _TREES)))
    return trees


def draw_backdrop(p: Painter, world: World, travelled: float) -> None:
    """Paint the background: sky, ground, road and houses."""
    _draw_sky(p, world)
    _draw_ground(p, world)
    _draw_markings(p, world, travelled)
    for building in sorted(world.buildings, key=lambda b: -b.z):
        if -building.length < building.z - travelled < 120:
            _draw_building(p, world, building, building.z - travelled)


def draw_tree(p: Painter, x: float, z: float, size: float, color: Color) -> None:
    """Draw a tree: a trunk and three crowns."""
    p.face(x - 0.12, x + 0.12, 0, 2.2, z, (45, 60, 80))
    p.disc(x, 2.4 + size, z, size, tuple(0.85 * c for c in color))  # type: ignore[arg-type]
    p.disc(x - 0.45 * size, 2.2 + 0.8 * size, z, 0.7 * size, color)
    p.disc(x + 0.4 * size, 2.5 + 1.1 * size, z, 0.65 * size, tuple(1.12 * c for c in color))  # type: ignore[arg-type]


def draw_street_lamp(p: Painter, world: World, side: float, z: float) -> None:
    """Draw a lamp post with its arm over the road; it is lit at dusk and at night."""
    x = world.right + 0.6 if side > 0 else world.left - 2.4
    p.line((x, 0, z), (x, 6.6, z), 0.14, (80, 82, 84))
    p.line((x, 6.6, z), (x - side * 1.6, 6.8, z), 0.12, (80, 82, 84))
    on = world.timeofday != "day"
    p.face(x - side * 1.9 - 0.3, x - side * 1.9 + 0.3, 6.65, 6.82, z, (170, 230, 255), emits=on)
    if on:
        p.glow(x - side * 1.9, 6.7, z, 1.6, (120, 190, 235), 0.7)


def _draw_sky(p: Painter, world: World) -> None:
    top, _, _ = _SKIES[world.timeofday]
    _, grey, _ = _AIRS[world.weather]
    top = _mix(top, _mix(_grey(top), p.haze, 0.5), grey)
    rows = int(p.horizon) + 2
    ramp = np.linspace(0, 1, rows)[:, None] ** 1.5
    colors = np.asarray(top) * (1 - ramp) + np.asarray(p.haze) * ramp
    p.canvas[:rows] = colors[:, None].astype(np.uint8)


def _draw_ground(p: Painter, world: World) -> None:
    verge: Color = {"city": (128, 130, 132), "suburb": (70, 125, 95), "highway": (75, 130, 115)}[world.location]
    start = int(p.horizon) + 1
    rows = np.arange(start, p.height) + 0.5 - p.horizon
    depth = p.focal * 1.5 / np.maximum(rows, 0.3)
    kept = np.exp(-np.minimum(depth, 2000) / p.visibility_m)[:, None]
    # Headlights: at night the road in front of the car is brighter than its sides.
    beam = np.where(world.timeofday == "night", 1 + 1.3 * np.exp(-depth / 14), 1.0)[:, None]
    base = np.asarray(verge) * p.light * kept + np.asarray(p.haze) * (1 - kept)
    p.canvas[start:] = np.clip(base * beam, 0, 255)[:, None].astype(np.uint8)
    wet = 0.72 if world.weather == "rain" else 1.0
    steps = (1.3, 2.0, 3.0, 4.5, 6.5, 9.0, 13.0, 18.0, 26.0, 38.0, 55.0, 80.0, 140.0)
    for far, near in zip(steps[:0:-1], steps[-2::-1], strict=True):
        glow = 1 + (1.3 * np.exp(-near / 14) if world.timeofday == "night" else 0.0)
        for x0, x1, color in (
            (world.left - 4.4, world.right + 2.4, (150, 152, 155) if world.location != "highway" else verge),
            (world.left - (2.2 if world.location != "highway" else 0.0), world.right, (98, 96, 95)),
        ):
            tint = tuple(wet * c for c in color)
            p.polygon(((x0, 0, near), (x1, 0, near), (x1, 0, far), (x0, 0, far)), tint, factor=glow)  # type: ignore[arg-type]


def _draw_markings(p: Painter, world: World, travelled: float) -> None:
    white: Color = (225, 226, 228)
    first = world.left + LANE_M
    for number in range(world.lanes - (0 if world.location == "highway" else 1)):
        x = first + number * LANE_M
        for z in np.arange(-(travelled % 9.0), 70.0, 9.0):
            if z + 3.5 > 1.5:
                z0 = max(float(z), 1.5)
                p.polygon(((x - 0.08, 0, z0), (x + 0.08, 0, z0), (x + 0.08, 0, z + 3.5), (x - 0.08, 0, z + 3.5)), white)
    edges = (world.left, world.right - (0.3 if world.location == "highway" else 2.1))
    for x in edges:
        for z0, z1 in ((1.5, 6.0), (6.0, 20.0), (20.0, 80.0)):
            p.polygon(((x - 0.06, 0, z0), (x + 0.06, 0, z0), (x + 0.06, 0, z1), (x - 0.06, 0, z1)), white)


def _draw_building(p: Painter, world: World, building: Building, z: float) -> None:
    z0, z1 = max(z, 1.3), z + building.length
    if z1 <= z0 + 0.3:
        return
    setback = 2.6 if world.location == "city" else 9.0
    x = world.right + setback if building.side > 0 else world.left - 4.6 - (setback - 2.6)
    p.side_face(x, 0, building.height, z0, z1, building.color, factor=0.8)
    outer = x + building.side * 10
    p.face(min(x, outer), max(x, outer), 0, building.height, z0, building.color)
    if world.location == "suburb":
        p.polygon(((min(x, outer), building.height, z0), (max(x, outer), building.height, z0),
                   ((x + outer) / 2, building.height + 2.4, z0)), (60, 70, 130))  # fmt: skip
    pane: Color = (130, 118, 105)
    columns = max(1, int(building.length / 3.2))
    floors = min(int((building.height - 1.0) / 3.0), 4)
    for number in range(columns * floors):
        column, floor = number % columns, number // columns
        near = z + (column + 0.3) * building.length / columns
        if near < 1.6 or near > 70:
            continue
        lit = building.lit[number % len(building.lit)]
        color: Color = (110, 200, 245) if lit else pane
        low = 1.1 + 3.0 * floor
        p.side_face(x, low, low + 1.5, near, near + 1.3, color, factor=0.8, emits=lit)


def add_weather(image: np.ndarray, world: World, rng: np.random.Generator) -> None:
    """Add rain streaks to a finished image, in place."""
    if world.weather != "rain":
        return
    height, width = image.shape[:2]
    streaks = image.copy()
    for _ in range(max(12, width * height // 700)):
        x, y, length = int(rng.integers(width)), int(rng.integers(height)), int(rng.integers(3, max(5, height // 14)))
        cv2.line(streaks, (x, y), (x - max(1, length // 5), y + length), (215, 212, 208), 1, cv2.LINE_AA)
    cv2.addWeighted(streaks, 0.3, image, 0.7, 0, dst=image)


def _pick(rng: np.random.Generator, colors: tuple[Color, ...]) -> Color:
    return colors[int(rng.integers(len(colors)))]


def _grey(color: Color) -> Color:
    level = 0.4 * max(color) + 0.6 * sum(color) / 3
    return level, level, level


def _mix(first: Color, second: Color, share: float) -> Color:
    return tuple(a * (1 - share) + b * share for a, b in zip(first, second, strict=True))  # type: ignore[return-value]
