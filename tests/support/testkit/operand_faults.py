"""Ways in which a weight that is multiplied can differ from the bundle's."""

from __future__ import annotations

import numpy as np

from fastwan.runtime.emulated.fp4 import Operand


def swap_nibbles(operand: Operand) -> Operand:
    """As if codes were unpacked high nibble first."""
    pairs = operand.products.t().reshape(operand.shape[1], -1, 2)
    return Operand(pairs.flip(-1).flatten(1).t(), operand.scale)


def flip_one(operand: Operand) -> Operand:
    """One code is another."""
    products = operand.products.clone()
    products[3, 5] += 1
    return Operand(products, operand.scale)


def swap_scale_rows(operand: Operand) -> Operand:
    """As if two rows of block scales had changed places; codes differ, so products do."""
    products = operand.products.clone()
    products[:, [0, 1]] = products[:, [1, 0]]
    return Operand(products, operand.scale)


def move_scale(operand: Operand) -> Operand:
    """The global scale is the next number."""
    return Operand(operand.products, float(np.nextafter(np.float32(operand.scale), np.float32(9))))


ALL = (swap_nibbles, flip_one, swap_scale_rows, move_scale)
