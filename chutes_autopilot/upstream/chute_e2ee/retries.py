"""What an attempt does after a refusal: what it tells the pools, and whether it may ask another instance."""

from chutes_autopilot.e2ee.chute_errors import Refusal
from chutes_autopilot.upstream.chute_e2ee.link import ChuteLink, ChuteTerms
from chutes_autopilot.upstream.chute_e2ee.pools import Session


class Retries:
    """The instances that one attempt has asked, and the further ones it may ask."""

    def __init__(self, terms: ChuteTerms) -> None:
        self._max_instances = terms.max_instance_tries
        self._others_when_full = terms.instance_429 == "next-instance"
        self._nonce_renewed = False
        self._failed_once = False
        self.asked: set[str] = set()
        """Their ids; none of them is asked again."""

    def allows(self, row: Refusal, instance_id: str) -> bool:
        """Whether the same request may be sealed anew after this answer of this instance, and counts that."""
        if row.then == "same_chute":
            renewed, self._nonce_renewed = self._nonce_renewed, True
            self.asked.discard(instance_id)  # it was not the instance that refused
            return not renewed
        if row.then != "next_instance" and not (row.code == "instance_full" and self._others_when_full):
            return False
        if len(self.asked) >= self._max_instances or (row.only_once and self._failed_once):
            return False
        self._failed_once = self._failed_once or row.only_once
        return True


def heed(row: Refusal, session: Session, link: ChuteLink) -> None:
    """Do as the answer says with nonces, instance and chute."""
    pool, instance_id = link.pools.of(session.chute_id), session.instance.instance_id
    match row.drop:
        case "answer":
            pool.drop_answer(session.answer)
        case "instance":
            pool.drop_instance(instance_id)
        case "pool":
            pool.drop_instance(instance_id)
            pool.drop_all()
    if row.quarantine:
        pool.quarantine(instance_id, link.monotonic() + row.quarantine)
    if row.stream_only:
        pool.only_streams(instance_id)
    if row.chute_out:
        link.discovery.chute_out(session.chute_id, row.chute_out)
    if row.refresh_catalog:
        link.discovery.chute_gone(session.chute_id)
        link.refresh_catalog()
