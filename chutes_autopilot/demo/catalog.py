"""Forty invented models, so that the demo mode has a catalog of the true shape without any true data."""

from collections.abc import Sequence
from typing import Any, Literal
from uuid import NAMESPACE_OID, uuid5

from attrs import field, frozen

SAMPLING_PARAMETERS = (
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "stop",
    "seed",
)
DETAIL_KEYS = (
    "context_length",
    "max_output_length",
    "quantization",
    "input_modalities",
    "output_modalities",
    "supported_features",
    "supported_sampling_parameters",
)
"""The optional keys of a catalog entry: the platform gives all seven or none."""
TAO_PER_USD = 0.005
DETAILS_REFRESH = 600.0
"""Seconds between two readings of an engine's details; ``created`` is the time of the last one."""


@frozen
class SimulatedModel:
    """One invented chute, from which catalog entry, feed row and listing item are all made.

    :param context: tokens served; ``max_model_len`` may be larger.
    :param input_usd: USD per one million prompt tokens; ``output_usd`` per one million completion tokens.
    :param instances: instances it runs on average; 0 is a cold model that stays in the catalog.
    :param busy: its average utilization, 0..1.
    :param detailed: whether the catalog entry has the keys of DETAIL_KEYS.
    """

    name: str
    engine: Literal["vllm", "sglang"]
    quantization: str
    context: int
    input_usd: float
    output_usd: float
    instances: int
    busy: float
    features: tuple[str, ...] = ("json_mode", "tools", "structured_outputs")
    vision: bool = False
    detailed: bool = True
    chute_id: str = field(init=False)

    @chute_id.default
    def _chute_id_of_the_name(self) -> str:
        return str(uuid5(NAMESPACE_OID, self.name))

    @property
    def confidential(self) -> bool:
        """Whether it runs in a trusted execution environment; every such invented name says so."""
        return self.name.endswith("-TEE")

    @property
    def sealable(self) -> bool:
        """Whether its instances have keys for the end-to-end transport; those that give no details run older code."""
        return self.detailed

    @property
    def instance_ids(self) -> tuple[str, ...]:
        """The names of its instances, the same in every answer that tells them."""
        return tuple(str(uuid5(NAMESPACE_OID, f"instance {n} of {self.name}")) for n in range(self.instances))


_TOOLS = ("json_mode", "tools", "structured_outputs")
_THINKS = (*_TOOLS, "reasoning")
_PLAIN = ("json_mode",)
_ODD = ("json_mode", "tools", "structured_output")  # the platform's own singular spelling on a few models

# name, engine, quantization, context, USD in, USD out, instances, busy, features, vision, detailed
_MODELS: tuple[tuple[Any, ...], ...] = (
    ("demo-labs/Aurora-32B-TEE", "sglang", "bf16", 40_960, 0.08, 0.24, 24, 0.42, _THINKS, False, True),
    ("demo-labs/Aurora-235B-A22B-TEE", "sglang", "fp8", 262_144, 0.11, 0.6, 16, 0.55, _THINKS, False, True),
    ("sample-ai/Borealis-V3-TEE", "sglang", "fp8", 163_840, 0.25, 1.0, 20, 0.61, _TOOLS, False, True),
    ("sample-ai/Borealis-V3-Turbo-TEE", "sglang", "fp8", 131_072, 0.2, 0.8, 14, 0.48, _TOOLS, False, True),
    ("mockingbird/Lark-24B-Instruct", "vllm", "bf16", 131_072, 0.03, 0.11, 12, 0.35, _TOOLS, True, True),
    ("mockingbird/Lark-7B-Instruct", "vllm", "bf16", 32_768, 0.01, 0.03, 9, 0.28, _TOOLS, False, True),
    ("example-org/Cobalt-4.7-TEE", "sglang", "fp8", 202_752, 0.4, 1.5, 22, 0.66, _THINKS, False, True),
    ("example-org/Cobalt-4.7-Flash", "sglang", "bf16", 202_752, 0.06, 0.35, 8, 0.38, _THINKS, False, True),
    ("example-org/Cobalt-5-TEE", "sglang", "fp8", 202_752, 0.75, 2.5, 18, 0.72, _THINKS, False, True),
    ("fictional/Dune-K2.5-TEE", "sglang", "int4", 262_144, 0.45, 2.2, 26, 0.7, _THINKS, True, True),
    ("fictional/Dune-K2-Instruct", "sglang", "fp8", 262_144, 0.39, 1.9, 6, 0.5, _ODD, False, True),
    ("placeholder/Ember-M2.5-TEE", "sglang", "fp8", 196_608, 0.15, 0.6, 15, 0.58, _THINKS, False, True),
    ("placeholder/Ember-M2", "sglang", "fp8", 196_608, 0.12, 0.5, 4, 0.3, _THINKS, False, True),
    ("sample-ai/Fjord-120B-TEE", "vllm", "mxfp4", 131_072, 0.04, 0.18, 17, 0.47, _THINKS, False, True),
    ("sample-ai/Fjord-20B", "vllm", "mxfp4", 131_072, 0.02, 0.1, 7, 0.33, _THINKS, False, True),
    ("demo-labs/Glacier-VL-72B-TEE", "vllm", "bf16", 32_768, 0.3, 1.2, 6, 0.45, _TOOLS, True, True),
    ("demo-labs/Glacier-VL-32B", "vllm", "bf16", 16_384, 0.05, 0.22, 5, 0.37, _PLAIN, True, True),
    ("demo-labs/Glacier-Next-80B", "sglang", "bf16", 262_144, 0.1, 0.8, 5, 0.4, _TOOLS, False, True),
    ("mockingbird/Heron-27B-it", "vllm", "bf16", 128_000, 0.04, 0.15, 8, 0.52, _PLAIN, True, True),
    ("mockingbird/Heron-12B-it", "vllm", "bf16", 131_072, 0.03, 0.1, 5, 0.31, _PLAIN, True, True),
    ("mockingbird/Heron-4B-it", "vllm", "bf16", 96_000, 0.01, 0.03, 3, 0.22, _PLAIN, True, True),
    ("fictional/Isthmus-R1-TEE", "sglang", "fp8", 163_840, 0.3, 1.2, 13, 0.63, _THINKS, False, True),
    ("fictional/Isthmus-R1-Distill-70B", "sglang", "bf16", 131_072, 0.03, 0.11, 4, 0.34, _THINKS, False, True),
    ("placeholder/Juniper-Coder-480B-TEE", "sglang", "fp8", 262_144, 0.22, 0.95, 10, 0.59, _TOOLS, False, True),
    ("placeholder/Juniper-Coder-30B", "sglang", "bf16", 262_144, 0.06, 0.25, 4, 0.29, _TOOLS, False, True),
    ("example-org/Kestrel-405B", "sglang", "bf16", 131_072, 0.3, 1.2, 3, 0.36, _TOOLS, False, False),
    ("example-org/Kestrel-70B-TEE", "sglang", "bf16", 131_072, 0.11, 0.38, 6, 0.44, _TOOLS, False, True),
    ("example-org/Kestrel-36B", "vllm", "bf16", 524_288, 0.07, 0.3, 2, 0.27, _TOOLS, False, False),
    ("Lumen-Nano-Omni-30B-TEE", "vllm", "fp8", 131_072, 0.05, 0.2, 7, 0.41, _THINKS, True, True),
    ("demo-labs/Meridian-Guard-8B", "vllm", "bf16", 131_072, 0.01, 0.02, 2, 0.18, _PLAIN, False, True),
    ("sample-ai/Nimbus-49B", "vllm", "bf16", 131_072, 0.05, 0.2, 2, 0.26, _THINKS, False, False),
    ("sample-ai/Nimbus-Ultra-253B-TEE", "sglang", "fp4", 131_072, 0.35, 1.4, 5, 0.57, _THINKS, False, True),
    ("fictional/Ocelot-2-14B", "vllm", "bf16", 65_536, 0.02, 0.08, 2, 0.24, _TOOLS, False, True),
    ("fictional/Ocelot-2-Mini", "vllm", "bf16", 65_536, 0.0, 0.0, 1, 0.6, _PLAIN, False, True),
    ("placeholder/Prairie-RP-24B", "vllm", "bf16", 32_768, 0.05, 0.2, 2, 0.49, _PLAIN, False, False),
    ("placeholder/Prairie-RP-70B", "vllm", "fp8", 32_768, 0.1, 0.4, 1, 0.39, _PLAIN, False, True),
    ("mockingbird/Quill-Translate-9B", "vllm", "bf16", 8_192, 0.02, 0.05, 1, 0.15, _PLAIN, False, False),
    ("mockingbird/Raven-Sonar-32B-TEE", "sglang", "bf16", 65_536, 0.12, 0.45, 3, 0.46, _TOOLS, False, True),
    ("example-org/Saguaro-Math-72B", "sglang", "bf16", 32_768, 0.15, 0.55, 0, 0.0, _PLAIN, False, True),
    ("demo-labs/Tundra-1T-Preview-TEE", "sglang", "int4", 262_144, 0.9, 3.5, 0, 0.0, _THINKS, False, False),
)


def simulated_models() -> tuple[SimulatedModel, ...]:
    """The invented catalog, most used first, as the platform orders its own."""
    return tuple(SimulatedModel(*row) for row in _MODELS)


def prices(model: SimulatedModel) -> dict[str, dict[str, float]]:
    """USD and TAO per one million tokens, under the platform's three names."""
    usd = {"input": model.input_usd, "output": model.output_usd, "input_cache_read": model.input_usd / 2}
    return {kind: {"tao": price * TAO_PER_USD, "usd": price} for kind, price in usd.items()}


def _entry(model: SimulatedModel, created: int) -> dict[str, Any]:
    price = prices(model)
    entry: dict[str, Any] = {
        "id": model.name,
        "root": model.name,
        "price": price,
        "object": "model",
        "parent": None,
        "created": created,
        "pricing": {
            "prompt": price["input"]["usd"],
            "completion": price["output"]["usd"],
            "input_cache_read": price["input_cache_read"]["usd"],
        },
        "chute_id": model.chute_id,
        "owned_by": model.engine,
        "max_model_len": model.context,
        "confidential_compute": model.confidential,
    }
    if model.detailed:
        details = (
            model.context,
            min(model.context, 65_536),
            model.quantization,
            ["text", "image"] if model.vision else ["text"],
            ["text"],
            list(model.features),
            list(SAMPLING_PARAMETERS),
        )
        entry.update(zip(DETAIL_KEYS, details, strict=True))
    return entry


def models_answer(models: Sequence[SimulatedModel], now: float) -> dict[str, Any]:
    """The answer of ``GET /v1/models`` at the Unix time ``now``.

    ``created`` is the time at which the engine was last asked for its details, not the model's age, as on the platform.
    """
    asked = int(now // DETAILS_REFRESH * DETAILS_REFRESH)
    return {"object": "list", "data": [_entry(model, asked + i) for i, model in enumerate(models)]}
