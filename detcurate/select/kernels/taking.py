"""Walking down an order and taking what a budget and caps allow."""

from __future__ import annotations

import numpy as np
from numba import njit

NOT_REACHED, TAKEN, TOO_DEAR, FIRST_CAP = 0, 1, 2, 3


@njit(cache=True, nogil=True)
def take_in_order(order, costs, room, cap_amounts, cap_rooms, wanted, need, stops):
    """Take rows in order while there is room and need.

    Args:
        order: (m,) int64 rows.
        costs: (I,) int64.
        room: what may be spent.
        cap_amounts: (Q, I) int64.
        cap_rooms: (Q,) int64, what is left under each cap; changed in place.
        wanted: (I,) int64, what each row gives towards the need.
        need: the walk ends when so much was given.
        stops: bool, whether it also ends when no room is left, and at the first row that does not fit it.

    Returns:
        (m,) int64, of each row ``NOT_REACHED``, ``TAKEN``, ``TOO_DEAR``, or ``FIRST_CAP`` and above: the cap that it
        would break; the room that is left; the need that is left.
    """
    outcome = np.zeros(len(order), np.int64)
    for position in range(len(order)):
        if need <= 0 or (stops and room <= 0):
            break
        row = order[position]
        broken = -1
        for cap in range(len(cap_rooms)):
            if cap_amounts[cap, row] > cap_rooms[cap]:
                broken = cap
                break
        if broken >= 0:
            outcome[position] = FIRST_CAP + broken
            continue
        if costs[row] > room:
            outcome[position] = TOO_DEAR
            if stops:
                break
            continue
        outcome[position] = TAKEN
        room -= costs[row]
        need -= wanted[row]
        for cap in range(len(cap_rooms)):
            cap_rooms[cap] -= cap_amounts[cap, row]
    return outcome, room, need
