"""Render the frames of a sequence: images with the boxes of their visible objects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from detcurate.synthetic.actors import CLASSES, LENGTHS_M, Actor, draw_actor
from detcurate.synthetic.paint import Painter
from detcurate.synthetic.world import (
    World,
    add_weather,
    draw_backdrop,
    draw_street_lamp,
    draw_tree,
    make_world,
)

FRAME_SECONDS = 0.5
_FARTHEST_M = 75.0
_MIN_VISIBLE = 0.35
_MIN_SIDE = 0.04
_NOISE_LEVELS = 3.0


@dataclass(frozen=True)
class Frame:
    """One rendered image.

    Args:
        image: (H, W, 3) uint8, BGR.
        boxes: (N, 4) float64 xyxy, px: the visible part of each object, tight to what is drawn.
        class_index: (N,) int64 in [0, C), an index into ``CLASSES``.
        frame_index: From 0 within its sequence.
        is_duplicate: Whether the camera stands still and nothing moves since the frame before.
        attributes: ``location``, ``weather``, ``timeofday``.
    """

    image: np.ndarray
    boxes: np.ndarray
    class_index: np.ndarray
    frame_index: int
    is_duplicate: bool
    attributes: dict[str, str]


def render_frames(
    seed: int, sequence: int, *, num_frames: int, num_duplicates: int, width: int, height: int
) -> Iterator[Frame]:
    """Render one sequence, in which ``num_duplicates`` frames repeat the previous one with other sensor noise."""
    rng = np.random.default_rng([seed, sequence])
    num_moments = num_frames - num_duplicates
    world = make_world(rng, distance=num_moments * FRAME_SECONDS * 18.0)
    stop = int(rng.integers(num_moments))  # the moment at which the camera stands still
    noise = rng.normal(0, _NOISE_LEVELS * (1.6 if world.timeofday == "night" else 1.0), (height + 64, width + 64, 3))
    noise = noise.round().astype(np.int16)
    attributes = {"location": world.location, "weather": world.weather, "timeofday": world.timeofday}
    frame_index = 0
    for moment in range(num_moments):
        clean, boxes, classes = _render_moment(world, moment, stop, width, height, rng)
        for repeat in range(1 + (num_duplicates if moment == stop else 0)):
            image = _add_noise(clean, noise, rng)
            yield Frame(image, boxes, classes, frame_index, repeat > 0, attributes)
            frame_index += 1


def _render_moment(
    world: World, moment: int, stop: int, width: int, height: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    seconds = moment * FRAME_SECONDS
    travelled = world.speed * _driven_seconds(moment, stop)
    p = world.painter(width, height)
    draw_backdrop(p, world, travelled)
    drawn = _draw_things(p, world, travelled, seconds)
    boxes, classes = _visible_boxes(p, drawn)
    image = p.canvas if p.scale == 1 else cv2.resize(p.canvas, (width, height), interpolation=cv2.INTER_AREA)
    add_weather(image, world, rng)
    return image, boxes, classes


def _driven_seconds(moment: int, stop: int) -> float:
    """Return the seconds at full speed to the camera's position; it brakes before its stop and accelerates after it."""
    speeds = np.minimum(1.0, 0.15 + np.abs(np.arange(1, moment + 1) - stop) / 4)
    return float(speeds.sum()) * FRAME_SECONDS


def _draw_things(p: Painter, world: World, travelled: float, seconds: float) -> list[tuple[str, int]]:
    """Draw scenery and actors, far to near; return the class and the number of drawn pixels of each object."""
    things: list[tuple[float, float, Actor | tuple]] = []
    for actor in world.actors:
        z = actor.z + actor.vz * seconds - travelled
        if -LENGTHS_M.get(actor.kind, 0.0) + 3.0 < z < _FARTHEST_M:
            things.append((z, actor.x + actor.vx * seconds, actor))
    for x, z, size, color in world.trees:
        if 1.5 < z - travelled < _FARTHEST_M:
            things.append((z - travelled, x, (size, color)))
    for side, z in world.lamps:
        if 1.5 < z - travelled < _FARTHEST_M:
            things.append((z - travelled, side, ()))
    drawn: list[tuple[str, int]] = []
    for z, x, thing in sorted(things, key=lambda entry: -entry[0]):
        if isinstance(thing, Actor):
            if len(drawn) < 255 and (z > 2.0 or thing.kind in LENGTHS_M):
                p.object_id = len(drawn) + 1
                draw_actor(p, thing, x, max(z, 1.4), lamps_on=world.lamps_on, seconds=seconds)
                drawn.append((thing.kind, _extent(p, p.object_id)[0]))
            continue
        p.object_id = 0
        if thing:
            draw_tree(p, x, z, *thing)
        else:
            draw_street_lamp(p, world, x, z)
    return drawn


def _extent(p: Painter, number: int) -> tuple[int, tuple[int, int, int, int]]:
    """Return the number of visible pixels of an object and the rectangle around them."""
    mask = np.equal(p.ids, number).view(np.uint8)
    x, y, w, h = cv2.boundingRect(mask)
    return cv2.countNonZero(mask), (x, y, w, h)


def _visible_boxes(p: Painter, drawn: list[tuple[str, int]]) -> tuple[np.ndarray, np.ndarray]:
    boxes, classes = [], []
    least = _MIN_SIDE * min(p.width, p.height)
    for number, (kind, pixels) in enumerate(drawn, start=1):
        if not pixels:
            continue
        left, (x, y, w, h) = _extent(p, number)
        if left >= _MIN_VISIBLE * pixels and min(w, h) >= least * (0.55 if w < h else 1.0):
            boxes.append((x / p.scale, y / p.scale, (x + w) / p.scale, (y + h) / p.scale))
            classes.append(CLASSES.index(kind))
    return np.array(boxes, np.float64).reshape(-1, 4), np.array(classes, np.int64)


def _add_noise(image: np.ndarray, noise: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add sensor noise: a window of the sequence's noise tile, at another position for each frame."""
    top, left = (int(offset) for offset in rng.integers(0, 64, 2))
    window = noise[top : top + image.shape[0], left : left + image.shape[1]]
    noisy: np.ndarray = np.clip(image + window, 0, 255).astype(np.uint8)
    return noisy
