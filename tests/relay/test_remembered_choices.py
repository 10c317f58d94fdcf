"""What a client's remembered choice does where models cool down, and what is remembered then."""

import pytest
from resilient_bench import ALIAS, CLIENT, END, EVENTS, PROMPT, RESILIENT, ROLE, TEXT, Bench

from chutes_autopilot.policy.failover import ConnectFailed, Lost
from chutes_autopilot.policy.resilience import Resilience
from chutes_autopilot.policy.stickiness import StickyChoice
from chutes_autopilot.relay.call import Client

ANSWER = ROLE + TEXT + END
OTHER_CLIENT = Client("192.0.2.2")


@pytest.mark.parametrize("rules", [None, RESILIENT])
def test_the_own_choice_answers_though_it_was_not_tried_first(rules: Resilience | None) -> None:
    """Where measurements give the order: the best model cools down, the next fails, the client's own one answers."""
    bench = Bench(rules)
    for model, seconds in (("a/A", 0.1), ("b/B", 0.2), ("c/C", 0.3)):
        bench.relay.health.succeeded(model, seconds, bench.clock.seconds())
    bench.relay.sticky.put(bench.key(), StickyChoice("c/C"))
    bench.fails("a/A")
    bench.ask(f"{ALIAS}:fast")
    while bench.last.model == "b/B":
        bench.last.observer.failed(ConnectFailed())
        bench.wait(1.0)
    bench.last.answers(200, ANSWER, *EVENTS.headers)
    assert (bench.downstream.body, bench.downstream.end) == (ANSWER, "finished")
    assert bench.relay.sticky.get(bench.key()) == StickyChoice("c/C")


def test_a_client_comes_back_to_a_model_that_began_to_cool_down_while_it_was_served() -> None:
    """Whoever goes on with its stream is second best."""
    bench = Bench(continue_streams=True)
    bench.relay.sticky.put(bench.key(), StickyChoice("b/B"))
    bench.ask(messages=PROMPT)
    bench.last.observer.head(EVENTS)
    bench.last.observer.body(TEXT)
    bench.fails("a/A")
    bench.last.observer.failed(Lost())
    bench.last.observer.head(EVENTS)
    bench.last.observer.body(TEXT + END)
    bench.last.observer.end()
    assert (bench.models, bench.downstream.end) == (["b/B", "c/C"], "finished")
    assert bench.relay.sticky.get(bench.key()) == StickyChoice("c/C", True, bench.clock.seconds())


@pytest.mark.parametrize("order", [(CLIENT, OTHER_CLIENT), (OTHER_CLIENT, CLIENT)])
def test_a_choice_that_gave_way_counts_for_its_client_alone(order: tuple[Client, Client]) -> None:
    """While the preferred model cools down it is tried first, and whoever remembers nothing goes by the ranking."""
    bench = Bench()
    bench.relay.sticky.put(bench.key(CLIENT), StickyChoice("c/C", True, bench.clock.seconds() - 100))
    bench.fails("a/A")
    asked = {}
    for client in order:
        exchange = bench.ask(client=client)
        asked[client.peer] = bench.models
        exchange.client_gone()
    assert asked == {CLIENT.peer: ["c/C"], OTHER_CLIENT.peer: ["b/B"]}
