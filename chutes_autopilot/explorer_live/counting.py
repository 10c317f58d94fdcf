"""What many finished requests come to, for whoever tells of them together."""

from collections.abc import Iterable

from chutes_autopilot.observe.record import RequestRecord

SAMPLES = 64
"""The last times to a first token that count for a model's."""

Counted = dict[str, tuple[int, list[float]]]
"""By model as it was sent: answers, and the last streams' times to the first token, in seconds."""


def counted(records: Iterable[RequestRecord]) -> tuple[Counted, list[RequestRecord]]:
    """What requests that were answered at the first attempt come to, by model, and all those that have more to tell.

    What Measurements.add is told of the one and Measurements.finished of the others is what `finished` of all would be.
    """
    plain: Counted = {}
    others: list[RequestRecord] = []
    for record in records:
        attempts = record.attempts
        if not attempts:
            continue
        if len(attempts) > 1 or attempts[0].failure is not None or record.continuations:
            others.append(record)
            continue
        count, ttfts = plain.get(attempts[0].model) or (0, [])
        ttft = time_to_first_token(record)
        if ttft is not None:
            ttfts.append(ttft)
            del ttfts[:-SAMPLES]
        plain[attempts[0].model] = count + 1, ttfts
    return plain, others


def time_to_first_token(record: RequestRecord) -> float | None:
    """Of a stream, from the start of the attempt that answered, in seconds."""
    first_byte, attempts = record.first_byte, record.attempts
    if not record.stream or first_byte is None or attempts[-1].failure is not None:
        return None
    begun = attempts[-1].started  # else when the one before it had failed
    if begun is None:
        begun = attempts[-2].failed if len(attempts) > 1 else record.first_attempt
    return max(0.0, first_byte - (record.received if begun is None else begun))
