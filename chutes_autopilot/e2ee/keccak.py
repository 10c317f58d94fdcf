"""Why Ethereum's hash is here at all: signing addresses and EIP-191 need it, and ``cryptography`` has only SHA-3."""

_RATE = 136
"""Bytes taken in per permutation: 200 of state less twice the 32 of output (FIPS 202, section 6.1)."""

_LANE = (1 << 64) - 1

_ROUND_CONSTANTS = (
    0x0000000000000001, 0x0000000000008082, 0x800000000000808A, 0x8000000080008000,
    0x000000000000808B, 0x0000000080000001, 0x8000000080008081, 0x8000000000008009,
    0x000000000000008A, 0x0000000000000088, 0x0000000080008009, 0x000000008000000A,
    0x000000008000808B, 0x800000000000008B, 0x8000000000008089, 0x8000000000008003,
    0x8000000000008002, 0x8000000000000080, 0x000000000000800A, 0x800000008000000A,
    0x8000000080008081, 0x8000000000008080, 0x0000000080000001, 0x8000000080008008,
)  # fmt: skip

_ROTATIONS = (
    0, 1, 62, 28, 27,
    36, 44, 6, 55, 20,
    3, 10, 43, 25, 39,
    41, 45, 15, 21, 8,
    18, 2, 61, 56, 14,
)  # fmt: skip
"""Of lane x + 5y (FIPS 202, table 2, modulo 64)."""


def keccak256(data: bytes, *, suffix: int = 0x01) -> bytes:
    """Hash as Ethereum does: Keccak-256 as it was before FIPS 202 changed the padding.

    Not for bulk data: one block of 136 bytes costs some tenths of a millisecond.

    :param suffix: the padding's first byte; 0x06 gives SHA3-256, by which this can be checked against hashlib.
    :returns: 32 bytes.
    """
    padded = bytearray(data)
    padded.append(suffix)
    padded.extend(bytes(-len(padded) % _RATE))
    padded[-1] |= 0x80
    lanes = [0] * 25
    for start in range(0, len(padded), _RATE):
        for i in range(_RATE // 8):
            lanes[i] ^= int.from_bytes(padded[start + 8 * i : start + 8 * i + 8], "little")
        lanes = _permuted(lanes)
    return b"".join(lane.to_bytes(8, "little") for lane in lanes[:4])


def _permuted(a: list[int]) -> list[int]:
    """Keccak-f[1600] (FIPS 202, section 3.3); lane (x, y) is item x + 5y."""
    for constant in _ROUND_CONSTANTS:
        parity = [a[x] ^ a[x + 5] ^ a[x + 10] ^ a[x + 15] ^ a[x + 20] for x in range(5)]
        theta = [parity[x - 1] ^ _rotated(parity[(x + 1) % 5], 1) for x in range(5)]
        b = [0] * 25
        for x in range(5):
            for y in range(5):
                b[y + 5 * ((2 * x + 3 * y) % 5)] = _rotated(a[x + 5 * y] ^ theta[x], _ROTATIONS[x + 5 * y])
        a = [b[i] ^ (~b[i - i % 5 + (i + 1) % 5] & b[i - i % 5 + (i + 2) % 5] & _LANE) for i in range(25)]
        a[0] ^= constant
    return a


def _rotated(lane: int, by: int) -> int:
    return (lane << by | lane >> (64 - by)) & _LANE
