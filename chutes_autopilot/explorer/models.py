"""The catalog of language models (GET /v1/models), with all that it says about each."""

from collections.abc import Mapping

from attrs import frozen

from chutes_autopilot.explorer.prices import CACHED, INPUT, OUTPUT
from chutes_autopilot.explorer.records import V1, Admission, Fields, Invalid, InvalidField
from chutes_autopilot.policy.feed_json import records_of_data


@frozen
class ModelRecord:
    """One model of the catalog; None is unknown, which for seven of the fields is a lasting state.

    ``created`` is left out, for it is the time of the engine's answer and not the model's date.

    :param name: the model's id.
    :param chute_id: None in old shapes of the catalog.
    :param engine: ``vllm`` or ``sglang``, from ``owned_by``.
    :param max_model_len: an upper bound; ``context_length`` and ``max_output_length`` are what is served.
    :param features: ``structured_output`` is read as ``structured_outputs``.
    :param tee: from ``confidential_compute``.
    :param prices: USD per 1M tokens by field (prices.TOKEN_PRICES), only what is known.
    """

    name: str
    chute_id: str | None = None
    root: str | None = None
    engine: str | None = None
    max_model_len: float | None = None
    context_length: float | None = None
    max_output_length: float | None = None
    quantization: str | None = None
    input_modalities: tuple[str, ...] | None = None
    output_modalities: tuple[str, ...] | None = None
    features: tuple[str, ...] | None = None
    sampling: tuple[str, ...] | None = None
    tee: bool | None = None
    premium: bool | None = None
    prices: Mapping[str, float] = {}


@frozen
class ModelList:
    """What one answer of the catalog said.

    :param items: the models that count, in the upstream's order.
    """

    items: tuple[ModelRecord, ...] = ()
    invalid: tuple[Invalid, ...] = ()
    invalid_fields: tuple[InvalidField, ...] = ()


_PRICES = {INPUT: "pricing.prompt", OUTPUT: "pricing.completion", CACHED: "pricing.input_cache_read"}
_SPELLINGS = {"structured_output": "structured_outputs"}


def _features(fields: Fields) -> tuple[str, ...] | None:
    found = fields.texts("supported_features")
    return None if found is None else tuple(dict.fromkeys(_SPELLINGS.get(name, name) for name in found))


def _model(name: str, chute_id: str | None, fields: Fields) -> ModelRecord:
    prices = ((field, fields.number(path)) for field, path in _PRICES.items())
    return ModelRecord(
        name=name,
        chute_id=chute_id,
        root=fields.text("root"),
        engine=fields.text("owned_by"),
        max_model_len=fields.number("max_model_len"),
        context_length=fields.number("context_length"),
        max_output_length=fields.number("max_output_length"),
        quantization=fields.text("quantization"),
        input_modalities=fields.texts("input_modalities"),
        output_modalities=fields.texts("output_modalities"),
        features=_features(fields),
        sampling=fields.texts("supported_sampling_parameters"),
        tee=fields.flag("confidential_compute"),
        premium=fields.flag("premium"),
        prices={field: usd for field, usd in prices if usd is not None},
    )


def read_models(body: bytes) -> ModelList:
    """The models in ``{"data": [...]}``, from the same bytes as the router's allowlist; may run in a thread.

    Raises FeedError where the body is no such object, or where it has records and none is usable.
    """
    admission = Admission(V1, name_member="id", id_optional=True)
    records = (raw for raw in records_of_data(body) if raw is not None)
    models = tuple(_model(name, chute_id, fields) for name, chute_id, _, fields in admission.admit(records))
    return ModelList(models, tuple(admission.invalid), tuple(admission.invalid_fields))
