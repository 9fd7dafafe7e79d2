"""Scan the lists of a large COCO file once, in compiled code, and read plain annotations into columns.

Records with anything unusual are left to the typed decoder of :mod:`detcurate.coco.decode`. The text must be valid
JSON, so that the scanner checks only the meaning. A number is read exactly or not at all: a mantissa below 2^53 and a
power of ten up to 22 are doubles themselves, and so their product or quotient is rounded once (Clinger 1990, "How to
read floating point numbers accurately").

Importing this module imports numba: import it only for texts that repay it, see
:func:`detcurate.coco.records.repays_compiled`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from detcurate.coco import ABSENT_FLAG, ABSENT_ID

_POWERS = 10.0 ** np.arange(23)
_ID, _IMAGE_ID, _CATEGORY_ID, _BBOX, _AREA, _ISCROWD, _OTHER = range(7)
_NAMES = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
_LENGTHS = np.array([len(name) for name in _NAMES])
_LETTERS = np.zeros((len(_NAMES), max(_LENGTHS)), np.uint8)
for _row, _name in enumerate(_NAMES):
    _LETTERS[_row, : len(_name)] = np.frombuffer(_name.encode(), np.uint8)
_NEEDED = (1 << _IMAGE_ID) | (1 << _CATEGORY_ID) | (1 << _BBOX)


@njit(cache=True)
def find_elements(text, limit, state, count, spans):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Write the begin and end of the elements of a JSON list, until one begins at ``limit`` or ``spans`` is full.

    Args:
        text: (n,) uint8, valid JSON that begins with [.
        limit: The byte at which to stop.
        state: (2,) int64, the next byte (n after the last element) and the greatest depth so far; initially 1 and 1.
        count: The number of elements found before.
        spans: (N, 2) int64, written from row ``count`` on.

    Returns:
        The number of elements found so far.
    """
    i, deepest = state
    while i < limit and count < len(spans):
        start = _next_element(text, i)
        if text[start] == 93:
            i = len(text)
            break
        i, depth = after_value(text, start)
        deepest = max(deepest, depth + 1)
        spans[count, 0], spans[count, 1] = start, _trimmed(text, i)
        count += 1
    state[0], state[1] = i, deepest
    return count


@njit(cache=True)
def read_elements(text, limit, state, count, spans, read, ids, image, category, xywh, areas, iscrowd):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Scan like :func:`find_elements` and also read the elements that are plain annotations.

    Args:
        text: (n,) uint8, as in :func:`find_elements`, like all arguments up to ``spans``.
        limit: The byte at which to stop.
        state: (2,) int64.
        count: The number of elements found before.
        spans: (N, 2) int64.
        read: (N,) bool, written: whether the record was read. False for an element that is not an object, lacks an
            image, a category or a box, or has a value of another type, out of range, or of too many digits.
        ids: (N,) int64, written; ``ABSENT_ID`` where absent.
        image: (N,) int64, written.
        category: (N,) int64, written.
        xywh: (N, 4) float64, written.
        areas: (N,) float64, written; NaN where absent.
        iscrowd: (N,) int8, written; ``ABSENT_FLAG`` where absent.

    Returns:
        The number of elements found so far.
    """
    i, deepest = state
    while i < limit and count < len(spans):
        start, row = _next_element(text, i), count
        if text[start] == 93:
            i = len(text)
            break
        ids[row], areas[row], iscrowd[row] = ABSENT_ID, np.nan, ABSENT_FLAG
        good, seen, i = text[start] == 123, 0, start + 1
        while good:  # not a function of its own: passing so many arrays costs as much as the reading
            i = _skip_space(text, i)
            if text[i] == 125:
                break
            if text[i] == 44:
                i = _skip_space(text, i + 1)
            key, i = i + 1, i + 1
            while text[i] != 34 and text[i] != 92:
                i += 1
            if text[i] == 92:  # an escape: the key may mean any field
                good = False
                break
            field = _field(text, key, i)
            i = _skip_space(text, _skip_space(text, i + 1) + 1)  # over the colon
            if field == _OTHER:
                i, depth = after_value(text, i)
                deepest = max(deepest, depth + 2)
            elif field == _BBOX:
                i, good = _read_box(text, i, xywh, row)
            elif field == _AREA:
                if text[i] == 110:
                    areas[row], i = np.nan, i + 4
                else:
                    areas[row], i, good = _read_float(text, i)
                    good = good and areas[row] >= 0
            elif field == _ISCROWD and (text[i] == 116 or text[i] == 102 or text[i] == 110):
                iscrowd[row] = 1 if text[i] == 116 else 0 if text[i] == 102 else ABSENT_FLAG
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
        if good:
            i += 1
        else:
            i, depth = after_value(text, start)
            deepest = max(deepest, depth + 1)
        read[row] = good and (seen & _NEEDED) == _NEEDED
        spans[row, 0], spans[row, 1] = start, _trimmed(text, i)
        count += 1
    state[0], state[1] = i, deepest
    return count


@njit(cache=True, inline="always")
def _next_element(text, i):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return the position of the next element of a list, or of its closing bracket."""
    i = _skip_space(text, i)
    return _skip_space(text, i + 1) if text[i] == 44 else i


@njit(cache=True, inline="always")
def _skip_space(text, i):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    while text[i] <= 32:
        i += 1
    return i


@njit(cache=True, inline="always")
def _trimmed(text, i):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return the end of a value without trailing white space, which occurs only after a bare literal."""
    while text[i - 1] <= 32:
        i -= 1
    return i


@njit(cache=True)
def after_value(text, i):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Return the position after a value of any kind, or after a bare literal that of what follows, and its depth."""
    depth, deepest, stop = 0, 0, len(text)
    while i < stop:
        c = text[i]
        if c == 34:  # a string: on to its closing quote
            i += 1
            while i < stop and text[i] != 34:
                i += 2 if text[i] == 92 else 1
            if depth == 0:
                return i + 1, deepest
        elif c == 91 or c == 123:
            depth += 1
            if depth > deepest:
                deepest = depth
        elif c == 93 or c == 125:
            if depth == 0:
                return i, deepest  # the end of the container of a bare literal
            depth -= 1
            if depth == 0:
                return i + 1, deepest
        elif c == 44 and depth == 0:
            return i, deepest
        i += 1
    return i, deepest


@njit(cache=True)
def _field(text, start, stop):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return the field that a key names, or ``_OTHER``."""
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
    """Return an integer of at most 18 digits, the position after it, and whether there was one."""
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
    """Return a number, the position after it, and whether it was read exactly."""
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
        good = False  # too many digits
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
def _read_box(text, i, xywh, row):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Read a list of four numbers; return the position after it and whether it was one."""
    if text[i] != 91:
        return i, False
    i = _skip_space(text, i + 1)
    for side in range(4):
        if side > 0:
            if text[i] != 44:
                return i, False
            i = _skip_space(text, i + 1)
        xywh[row, side], i, good = _read_float(text, i)
        if not good:
            return i, False
        i = _skip_space(text, i)
    return i + 1, text[i] == 93
