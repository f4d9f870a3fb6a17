"""SplitMix64: the published generator's numbers, whether NumPy or compiled code mixes them."""

import numba
import numpy as np

from cosmopedia.hashing import GOLDEN, mix64

# the first outputs of the reference implementation (Vigna, splitmix64.c), by seed
PUBLISHED = {
    1234567: [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ],
    0: [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC],
}


def test_mix64_gives_the_published_numbers_in_numpy_and_compiled() -> None:
    compiled = numba.njit(mix64)
    for seed, numbers in PUBLISHED.items():
        states = np.uint64(seed) + GOLDEN * np.arange(1, len(numbers) + 1, dtype=np.uint64)
        assert mix64(states).tolist() == numbers
        assert [int(compiled(state)) for state in states] == numbers
