from hashlib import sha3_256

from hypothesis import given, settings
from hypothesis import strategies as st

from chutes_autopilot.e2ee.keccak import keccak256


def test_the_published_digests_come_out() -> None:
    """Empty input, a short one and Ethereum's best known event signature give their published digests."""
    assert keccak256(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    assert keccak256(b"abc").hex() == "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45"
    transfer = "ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
    assert keccak256(b"Transfer(address,address,uint256)").hex() == transfer


@settings(max_examples=25, deadline=None)
@given(st.one_of(st.binary(max_size=40), st.integers(130, 278).map(bytes)))
def test_but_for_the_padding_it_is_sha3(data: bytes) -> None:
    """With SHA-3's padding byte it is SHA3-256 for every length, those around one and two blocks included."""
    assert keccak256(data, suffix=0x06) == sha3_256(data).digest()
    assert keccak256(data) != sha3_256(data).digest()
