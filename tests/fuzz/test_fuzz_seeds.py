"""Every input that once was worth keeping, and some new ones, through every fuzz target."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from targets import TARGETS

SEEDS = Path(__file__).parent / "seeds"
KEPT = [(path.parent.name, path) for path in sorted(SEEDS.glob("*/*"))]
EXAMPLES = {"front_channel": 80}
"""How many new inputs, where they cost more than most."""


@pytest.mark.parametrize(("target", "seed"), KEPT, ids=[f"{target}-{path.name}" for target, path in KEPT])
def test_a_kept_input_holds(target: str, seed: Path) -> None:
    """What the target promises is true of this input."""
    TARGETS[target].check(seed.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_new_inputs_hold(name: str) -> None:
    """Kept inputs cut and mixed with the target's words and with noise: its promise holds for all of them."""
    seeds = [path.read_bytes() for target, path in KEPT if target == name]
    target = TARGETS[name]
    parts = st.one_of(
        st.sampled_from(target.words),
        st.binary(max_size=4),
        st.sampled_from(seeds).flatmap(lambda seed: st.integers(0, len(seed)).map(lambda at: seed[:at])),
        st.sampled_from(seeds).flatmap(lambda seed: st.integers(0, len(seed)).map(lambda at: seed[at:])),
    )

    @settings(max_examples=EXAMPLES.get(name, 200), deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(parts, max_size=12).map(b"".join))
    def check(data: bytes) -> None:
        target.check(data)

    check()


def test_every_target_has_seeds() -> None:
    """A folder of kept inputs for each target, and none for a target that is gone."""
    assert {target for target, _ in KEPT} == set(TARGETS)
