"""Whether numbers differ, or only the rounding of the sums that they are.

0.1 + 0.2 and 0.3 are the same reward; divided by its standard deviation, their difference would be an advantage of order one.
"""

import sys
from collections.abc import Iterable, Sequence

ADDITIONS = 32
ROUNDING = ADDITIONS**2 * sys.float_info.epsilon
"""Difference, as a share of the largest term, of two sums of up to 32 terms that are equal but for rounding: no partial sum is
over 32 terms, and each of 32 additions rounds it by at most half an epsilon, up in one sum and down in the other."""


def apart(values: Sequence[float], terms: Iterable[float] = ()) -> bool:
    """Whether the values spread further than rounding explains. `terms`: what they are sums of, where that may be larger."""
    if not values:
        return False
    largest = max(map(abs, (*values, *terms)))
    return max(values) - min(values) > ROUNDING * largest
