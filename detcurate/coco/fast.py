"""The plain annotation records, read straight from the text into columns; anything unusual is left to the slow way.

The text has been found to be valid JSON before, so that only what COCO means by it is looked at here. A number is
read exactly or not at all: a mantissa below 2^53 and a power of ten up to 22 are doubles themselves, and so their
product or quotient is rounded once (Clinger 1990, "How to read floating point numbers accurately").
"""

from __future__ import annotations

import numpy as np
from numba import njit

_POWERS = 10.0 ** np.arange(23)
_ID, _IMAGE_ID, _CATEGORY_ID, _BBOX, _AREA, _ISCROWD, _OTHER = range(7)
_NAMES = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
_LENGTHS = np.array([len(name) for name in _NAMES])
_LETTERS = np.zeros((len(_NAMES), max(_LENGTHS)), np.uint8)
for _row, _name in enumerate(_NAMES):
    _LETTERS[_row, : len(_name)] = np.frombuffer(_name.encode(), np.uint8)


@njit(cache=True)
def parse_annotations(text, spans, ids, image, category, xywh, areas, iscrowd):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Fill the columns from the records at ``spans``; what a record lacks keeps the value that stands there.

    Args:
        text: (n,) uint8, valid JSON.
        spans: (B, 2) int64, where each record begins and ends.
        ids: (B,) int64, filled in.
        image: (B,) int64, filled in.
        category: (B,) int64, filled in.
        xywh: (B, 4) float64, filled in.
        areas: (B,) float64, filled in.
        iscrowd: (B,) int8, filled in.

    Returns:
        (B,) bool: whether the record was read. It was not when it is no object, lacks an image, a category or a box,
        or has a value of another type, out of range, or of more digits than can be read exactly here.
    """
    read = np.zeros(len(spans), np.bool_)
    for row in range(len(spans)):
        i, stop = spans[row, 0], spans[row, 1]
        good, seen = text[i] == 123, 0
        i += 1
        while good:
            i = _skip_space(text, i, stop)
            if text[i] == 125:
                break
            if text[i] == 44:
                i = _skip_space(text, i + 1, stop)
            if i >= stop or text[i] != 34:  # never in valid JSON; nothing here may run on past the record
                good = False
                break
            key, escaped = i + 1, False
            i = key
            while i < stop and text[i] != 34:
                escaped = escaped or text[i] == 92
                i += 1
            if escaped:  # it may mean any field
                good = False
                break
            field = _field(text, key, i)
            i += 1
            i = _skip_space(text, _skip_space(text, i, stop) + 1, stop)  # over the colon
            if field == _OTHER:
                i = _after_value(text, i, stop)
            elif field == _BBOX:
                i, good = _read_box(text, i, stop, xywh, row)
            elif field == _AREA:
                if text[i] == 110:
                    areas[row], i = np.nan, i + 4
                else:
                    areas[row], i, good = _read_float(text, i)
                    good = good and areas[row] >= 0
            elif field == _ISCROWD and (text[i] == 116 or text[i] == 102 or text[i] == 110):
                iscrowd[row] = 1 if text[i] == 116 else 0 if text[i] == 102 else -1
                i += 5 if text[i] == 102 else 4
            else:
                value, i, good = _read_int(text, i)
                if field == _ISCROWD:
                    good = good and (value == 0 or value == 1)
                    iscrowd[row] = value
                elif field == _ID:
                    ids[row] = value
                elif field == _IMAGE_ID:
                    image[row] = value
                else:
                    category[row] = value
            seen |= 1 << field
        needed = (1 << _IMAGE_ID) | (1 << _CATEGORY_ID) | (1 << _BBOX)
        read[row] = good and (seen & needed) == needed
    return read


@njit(cache=True, inline="always")
def _skip_space(text, i, stop):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    while i < stop and text[i] <= 32:
        i += 1
    return i


@njit(cache=True, inline="always")
def _after_string(text, i, stop):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return the place after the string that begins at a quote."""
    i += 1
    while i < stop and text[i] != 34:
        i += 2 if text[i] == 92 else 1
    return i + 1


@njit(cache=True)
def _after_value(text, i, stop):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return the place after a value of any kind."""
    depth = 0
    while i < stop:
        c = text[i]
        if c == 34:
            i = _after_string(text, i, stop)
            if depth == 0:
                return i
            continue
        if c == 91 or c == 123:
            depth += 1
        elif c == 93 or c == 125:
            if depth == 0:
                return i  # the end of what holds a bare literal
            depth -= 1
            if depth == 0:
                return i + 1
        elif c == 44 and depth == 0:
            return i
        i += 1
    return i


@njit(cache=True)
def _field(text, start, stop):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return which field a key names, or ``_OTHER``."""
    length = stop - start
    for field in range(len(_LENGTHS)):
        if length == _LENGTHS[field] and text[start] == _LETTERS[field, 0]:
            k = 1
            while k < length and text[start + k] == _LETTERS[field, k]:
                k += 1
            if k == length:
                return field
    return _OTHER


@njit(cache=True)
def _read_int(text, i):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return an integer of at most 18 digits, the place after it, and whether there was one."""
    negative = text[i] == 45
    if negative:
        i += 1
    first, value = i, np.int64(0)
    while 48 <= text[i] <= 57 and i - first < 19:
        value = value * 10 + (np.int64(text[i]) - 48)
        i += 1
    c = text[i]
    good = 0 < i - first < 19 and c != 46 and c != 101 and c != 69
    return (-value if negative else value), i, good


@njit(cache=True)
def _read_float(text, i):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return a number, the place after it, and whether it could be read exactly."""
    negative = text[i] == 45
    if negative:
        i += 1
    mantissa, digits, exponent = np.int64(0), 0, 0
    first = i
    while 48 <= text[i] <= 57 and digits < 18:
        mantissa = mantissa * 10 + (np.int64(text[i]) - 48)
        digits += 1
        i += 1
    good = i > first
    if text[i] == 46:
        i += 1
        while 48 <= text[i] <= 57 and digits < 18:
            mantissa = mantissa * 10 + (np.int64(text[i]) - 48)
            digits += 1
            exponent -= 1
            i += 1
    if 48 <= text[i] <= 57:
        good = False  # more digits than fit
    if text[i] == 101 or text[i] == 69:
        i += 1
        down = text[i] == 45
        if down or text[i] == 43:
            i += 1
        power = 0
        while 48 <= text[i] <= 57:
            power = min(power * 10 + (np.int64(text[i]) - 48), 1000)
            i += 1
        exponent += -power if down else power
    good = good and mantissa < 2**53 and -22 <= exponent <= 22
    value = np.float64(mantissa)
    if good:
        value = value / _POWERS[-exponent] if exponent < 0 else value * _POWERS[exponent]
    return (-value if negative else value), i, good


@njit(cache=True)
def _read_box(text, i, stop, xywh, row):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Read a list of four numbers; return the place after it and whether it was one."""
    if text[i] != 91:
        return i, False
    i = _skip_space(text, i + 1, stop)
    for side in range(4):
        if side > 0:
            if text[i] != 44:
                return i, False
            i = _skip_space(text, i + 1, stop)
        xywh[row, side], i, good = _read_float(text, i)
        if not good:
            return i, False
        i = _skip_space(text, i, stop)
    return i + 1, text[i] == 93


@njit(cache=True)
def order_by_image(image_index, rows, num_images):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Return (K,) int64: ``rows`` by ascending ``image_index``, those of one image in the order given."""
    place = np.zeros(num_images + 1, np.int64)
    for row in rows:
        place[image_index[row] + 1] += 1
    place = np.cumsum(place)
    ordered = np.empty(len(rows), np.int64)
    for row in rows:
        index = image_index[row]
        ordered[place[index]] = row
        place[index] += 1
    return ordered
