"""Why a client's next request goes to the model that answered its last one: the model's prompt cache is warm there.

Who a client is (a keyed hash, so that neither tokens nor addresses are kept), what is remembered of a success, and when
a choice that was only second best gives way again. Where it is remembered: chutes_autopilot.storage.
"""

from collections.abc import Mapping

from attrs import frozen
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from chutes_autopilot.policy.plan import Plan

SESSION_BYTES = 256
"""How much of a session value counts."""

_ASCII_SPACE = " \t\n\r\f\v"
_DOMAIN = b"chutes-autopilot client key v1"


@frozen
class StickyChoice:
    """What is remembered of a client's last success.

    :param model: base name of the model that answered.
    :param from_failover: it answered only because the preferred model had failed.
    :param preferred_failed_at: when that was, in the clock's seconds; without meaning where from_failover is False.
    """

    model: str
    from_failover: bool = False
    preferred_failed_at: float = 0.0


def client_key(secret: bytes, *, token: bytes, address: str, session: bytes) -> bytes:
    """Know a client again without keeping its token or address: HMAC-SHA256 of either, refined by its session.

    :param secret: CLIENT_KEY_SECRET; whoever lacks it cannot test guesses of a token or an address.
    :param token: what bearer_token gave, empty where there is none.
    :param address: what client_address gave; used where there is no token.
    :param session: what session_value gave, empty where the client named none.
    :returns: 32 bytes.
    """
    kind, identity = (b"token", token) if token else (b"address", address.encode("utf-8", "surrogatepass"))
    mac = HMAC(secret, SHA256())
    # the lengths keep apart what plain joining would make equal
    mac.update(b"".join([len(part).to_bytes(8, "big") + part for part in (_DOMAIN, kind, identity, session)]))
    return mac.finalize()


def bearer_token(authorization: bytes | None) -> bytes:
    """The bearer token of an Authorization header (RFC 6750 section 2.1), empty where it holds none."""
    scheme, _, token = (authorization or b"").strip().partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""


def session_value(x_session_id: bytes | None, x_session_affinity: bytes | None, prompt_cache_key: object) -> bytes:
    """Keep a client's parallel sessions apart: the first of three values that is not empty after trimming.

    :param prompt_cache_key: the body's JSON value; anything but a string is ignored.
    :returns: at most SESSION_BYTES bytes, empty where there is no such value.
    """
    for header in (x_session_id, x_session_affinity):
        if header is not None and (trimmed := header.strip(_ASCII_SPACE.encode())):
            return trimmed[:SESSION_BYTES]
    if isinstance(prompt_cache_key, str):
        text = prompt_cache_key.strip(_ASCII_SPACE)[:SESSION_BYTES]
        return text.encode("utf-8", "surrogatepass")[:SESSION_BYTES]
    return b""


def sticky_model(choice: StickyChoice | None, now: float, failback: float) -> str | None:
    """The base name to be tried first, or None where there is no choice or it gives way to the preferred order.

    :param failback: seconds after the preferred model's last failure for which a choice made by failover lasts;
        0: for ever.
    """
    if choice is None:
        return None
    if choice.from_failover and failback > 0 and now - choice.preferred_failed_at >= failback:
        return None
    return choice.model


def after_success(previous: StickyChoice | None, plan: Plan, model: str, failures: Mapping[str, float]) -> StickyChoice:
    """What to remember when an attempt of an alias or list request was answered with a 2xx.

    Other answers change nothing: the caller does not ask. A choice made by failover keeps the time of the preferred
    model's failure however often it answers, or it would never give way.

    :param previous: what was remembered when the plan was made.
    :param model: the candidate that answered.
    :param failures: base name -> time of its retryable failure within this request, or before it where that is why it
        was left out.
    """
    base = plan.base(model)
    preferred = plan.base(plan.preferred[0])
    if base == preferred:
        return StickyChoice(base)
    failed_at = failures.get(preferred)
    if failed_at is None:  # nobody fell back on this model: it was the client's before, or was chosen for itself
        return previous if previous is not None and previous.model == base else StickyChoice(base)
    return StickyChoice(base, from_failover=True, preferred_failed_at=failed_at)
