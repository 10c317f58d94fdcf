"""The OpenAI Python SDK against the service in demo mode, as a user's program would use it."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.request import Request, urlopen

import openai
import pytest
from attrs import frozen

ALIAS = "chutesai/AutoPilot"
DIRECT = "demo-labs/Aurora-32B-TEE"
HELLO: Any = [{"role": "user", "content": "Say hello."}]


@frozen
class Demo:
    """A running demo: the process, the service's and the simulator's URLs."""

    daemon: Any
    url: str
    simulator: str

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="cpk_demo", max_retries=0)

    def fault(self, **fault: object) -> None:
        urlopen(Request(f"{self.simulator}/_simulator/faults", json.dumps(fault).encode())).close()  # noqa: S310

    def read(self, path: str) -> str:
        with urlopen(self.url + path) as answer:  # noqa: S310
            text: str = answer.read().decode()
            return text


@pytest.fixture
def demo(start: Callable[..., Any]) -> Iterator[Demo]:
    daemon = start("--demo")
    simulator = daemon.wait_for("the simulator listens on ").partition(",")[0]
    url = daemon.wait_for("listening on ")
    daemon.wait_for("utilization: ready")
    yield Demo(daemon, url, simulator)
    assert daemon.end()[0] == 0


def test_the_sdk_streams_from_the_alias(demo: Demo) -> None:
    """Chunks come one by one, name the model that was chosen, and end with a finish reason."""
    with demo.client() as client:
        chunks = list(client.chat.completions.create(model=ALIAS, messages=HELLO, stream=True, max_tokens=8))
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert len(chunks) > 8
    assert len(reasons) == 1
    assert chunks[0].model != ALIAS


def test_the_async_sdk_streams_and_closes_early(demo: Demo) -> None:
    """An async client that stops reading ends the request; the service counts it and goes on."""

    async def first_chunk() -> str:
        async with openai.AsyncOpenAI(base_url=f"{demo.url}/v1", api_key="cpk_demo") as client:
            stream = await client.chat.completions.create(model=ALIAS, messages=HELLO, stream=True)
            async for chunk in stream:
                await stream.close()
                return chunk.object
        raise AssertionError("no chunk came")

    assert asyncio.run(first_chunk()) == "chat.completion.chunk"
    demo.daemon.wait_for("outcome=client_gone")
    assert "chutes_autopilot_requests_active 0.0" in demo.read("/metrics")


def test_the_sdk_reads_whole_answers_and_the_models(demo: Demo) -> None:
    """Of every endpoint without streaming; the list starts with the alias and every id can be looked up."""
    with demo.client() as client:
        answer = client.chat.completions.with_raw_response.create(model=ALIAS, messages=HELLO, max_tokens=8)
        models = [model.id for model in client.models.list()]
        found = client.models.retrieve(models[1])
        text = client.completions.create(model=ALIAS, prompt="Say hello.", max_tokens=8)
        said = client.responses.create(model=DIRECT, input="Say hello.", max_output_tokens=8)
        vectors = client.embeddings.create(model="demo-studio/embed-small,demo-studio/embed-large", input=["a", "b"])
    assert "simulated" in (answer.parse().choices[0].message.content or "")
    assert answer.headers["x-chutes-autopilot-selected"] in models
    assert (models[0], found.id) == (ALIAS, models[1])
    assert all("simulated" in each for each in (text.choices[0].text, said.output_text))
    assert (len(vectors.data), vectors.model) == (2, "demo-studio/embed-small")


def test_a_failover_is_seen_in_headers_log_and_metrics_only(demo: Demo) -> None:
    """The simulator is asked for a 503; the SDK gets its answer, and the reason stands where operators look."""
    demo.fault(fault="503", requests=1)
    with demo.client() as client:
        answer = client.chat.completions.with_raw_response.create(model=ALIAS, messages=HELLO, max_tokens=4)
    assert answer.headers["x-chutes-autopilot-attempts"] == "2"
    assert "upstream_503" in demo.daemon.wait_for("attempts=")
    assert 'chutes_autopilot_failover_reason_total{reason="upstream_503"} 1.0' in demo.read("/metrics")


def test_the_sdk_raises_what_an_error_means(demo: Demo) -> None:
    """Our own 400, the platform's 429, and an upstream that dies mid-answer each raise their kind."""
    with demo.client() as client:
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="chutesai/autopilot", messages=HELLO)
        assert refused.value.code == "unknown_model"
        assert ALIAS in str(refused.value)
        demo.fault(fault="429", requests=1)
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model=ALIAS, messages=HELLO)
        demo.fault(fault="cut", requests=1)
        with pytest.raises(openai.APIError):
            client.chat.completions.create(model=ALIAS, messages=HELLO)


def test_the_sdk_raises_when_a_stream_is_not_whole(demo: Demo) -> None:
    """A stream of any endpoint that is cut, or ends in the platform's bare error, raises after its last whole chunk."""
    with demo.client() as client:
        streams: list[Callable[[], Any]] = [
            lambda: client.chat.completions.create(model=ALIAS, messages=HELLO, stream=True),
            lambda: client.completions.create(model=ALIAS, prompt="Say hello.", stream=True),
            lambda: client.responses.create(model=DIRECT, input="Say hello.", stream=True),
        ]
        for begin in streams:
            for fault in ("cut", "error_tail"):
                demo.fault(fault=fault, requests=1)
                received: list[Any] = []
                with pytest.raises(openai.APIError) as raised:
                    received.extend(begin())
                assert received
                assert raised.value.code == "upstream_stream_truncated"
        whole = list(client.responses.create(model=DIRECT, input="Say hello.", max_output_tokens=4, stream=True))
    assert whole[-1].type == "response.incomplete"
    assert "chutes_autopilot_streams_cut_total 6.0" in demo.read("/metrics")


def test_json_logs_hold_no_secret(start: Callable[..., Any]) -> None:
    """LOG_FORMAT=json at LOG_LEVEL=debug: one object a line, and neither key nor prompt nor address among them."""
    daemon = start("--demo", LOG_FORMAT="json", LOG_LEVEL="debug", CLIENT_KEY_SECRET="marker-secret-0123")
    url = daemon.wait_for("listening on ").partition('"')[0]
    daemon.wait_for("utilization: ready")
    with openai.OpenAI(base_url=f"{url}/v1", api_key="marker-key") as client:
        message: Any = {"role": "user", "content": "marker-prompt"}
        client.chat.completions.create(model=ALIAS, messages=[message], max_tokens=4)
    code, out, err = daemon.end()
    assert (code, err) == (0, "")
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["status"] for event in events if event.get("event") == "request"] == [200]
    assert "marker" not in out
    assert not any("127.0.0.1" in line for line in out.splitlines() if "listen" not in line and "starting" not in line)
