"""What a request leaves behind is freed by its reference counts: a busy process never waits for the collector."""

import gc

import pytest
from in_memory_service import ANSWERS, World

BODY = b'{"model":"a/A"}'
REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


@pytest.mark.parametrize("answer", [ANSWERS[0], ANSWERS[1], ANSWERS[-1]], ids=["whole", "chunked", "stream"])
def test_a_request_leaves_no_cycle_behind(answer: bytes) -> None:
    """Nothing of this package is found by the garbage collector after requests were answered."""
    world = World(answer, front=True)
    world.send([REQUEST])
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        world.send([REQUEST, REQUEST])
        gc.collect()
        found = {type(left).__qualname__ for left in gc.garbage if type(left).__module__.startswith("chutes_autopilot")}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert world.client.value().count(b"HTTP/1.1 200") == 3
    assert not found
