"""What many finished requests come to, for whoever tells of them together."""

from attrs import define, field

from chutes_autopilot.observe.record import RequestRecord

SAMPLES = 64
"""The last times to a first token that count for a model's."""

MAX_MODELS = 1000
"""Most models that are told apart; all further ones count as OTHERS."""

OTHERS = "(others)"

MAX_OTHERS = 10_000
"""Requests with more to tell that are kept until they are told of; nobody hears of further ones."""

Plain = dict[str, tuple[int, list[float]]]
"""By model as it was sent: answers, and the last streams' times to the first token, in seconds."""


@define(eq=False)
class Counting:
    """Takes one record after another, and keeps few of them.

    What Measurements.add makes of ``plain`` and Measurements.finished of ``others`` is what `finished` makes of all,
    but for the order of times: of many, those of the others are the last.

    :ivar seen: how many were taken.
    :ivar plain: what those come to whose first attempt did not fail.
    :ivar others: those that have more to tell, MAX_OTHERS at most.
    """

    seen: int = field(default=0, init=False)
    plain: Plain = field(factory=dict, init=False)
    others: list[RequestRecord] = field(factory=list, init=False)

    def take(self, record: RequestRecord) -> None:
        """Count a request that is over."""
        self.seen += 1
        attempts = record.attempts
        if len(attempts) > 1 or record.continuations or (attempts and attempts[0].failure is not None):
            if len(self.others) < MAX_OTHERS:
                self.others.append(record)
        elif attempts:
            model = attempts[0].model
            if model not in self.plain and len(self.plain) >= MAX_MODELS:
                model = OTHERS
            count, ttfts = self.plain.get(model) or (0, [])
            ttft = time_to_first_token(record)
            if ttft is not None:
                ttfts.append(ttft)
                del ttfts[:-SAMPLES]
            self.plain[model] = count + 1, ttfts


def time_to_first_token(record: RequestRecord) -> float | None:
    """Of a stream, from the start of the attempt that answered, in seconds."""
    first_byte, attempts = record.first_byte, record.attempts
    if not record.stream or first_byte is None or attempts[-1].failure is not None:
        return None
    begun = attempts[-1].started  # else when the one before it had failed
    if begun is None:
        begun = attempts[-2].failed if len(attempts) > 1 else record.first_attempt
    return max(0.0, first_byte - (record.received if begun is None else begun))
