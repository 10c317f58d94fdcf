"""Whether the platform knows the key.

A 200 of /v1/models says nothing: it answers everybody. ``GET {CHUTES_API_BASE_URL}/model_aliases/`` lists the
account's own aliases, changes nothing, costs nothing, and needs a key: 200 means that the key is known and belongs to
an account, 401 that it is not known, 403 that it is known and may not do this. It says nothing of the account's
balance or quota: those show only with a paid request, which is not made here.
"""

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from chutes_autopilot.doctor.connections import is_loopback
from chutes_autopilot.doctor.findings import Finding, fail, ok, warn
from chutes_autopilot.settings import SettingsError, read_settings
from chutes_autopilot.upstream.fetch import FetchError, fetch_answer

_FORM = re.compile(rb"cpk_[a-f0-9]{32}\.[a-f0-9]{32}\.[a-zA-Z0-9]{32}")
_UNTOLD = "the call failed, which is no verdict on the key: run this again later"


def key_in(path: str, read_file: Callable[[str], str]) -> bytes | Finding:
    """The key of a file as the gateway would read it from CHUTES_API_KEY_FILE, or why it would not start."""
    try:
        key = read_settings({"CHUTES_API_KEY_FILE": path}, read_file).chutes_api_key
    except SettingsError as error:
        return fail("key", "file", "; ".join(fault.partition(": ")[2] for fault in error.faults), "see --key-file")
    return key or fail("key", "file", "no file is named", "see --key-file")


def check_form(key: bytes) -> Finding:
    """Whether it looks like a key of the platform, without a word of it."""
    if _FORM.fullmatch(key):
        return ok("key", "form", "as the platform makes them")
    what = "no cpk_ at its beginning" if not key.startswith(b"cpk_") else f"{len(key)} characters"
    seen = f"unlike the platform's keys: {what}"
    return warn("key", "form", seen, "those are cpk_ and 98 more characters, with two dots: was it cut while copying?")


async def check_key(
    http_client: Any,
    key: bytes,
    api_base_url: str,
    clock: Any,
    timeout: float,  # noqa: ASYNC109
) -> Finding:
    """Ask the platform for what only a known key is given."""
    url = urlsplit(api_base_url)
    if url.scheme != "https" and not is_loopback(url.hostname or ""):
        advice = "set CHUTES_API_BASE_URL to an https URL"
        return fail("key", "account", "not sent: CHUTES_API_BASE_URL would carry it in the clear", advice)
    try:
        answer = await fetch_answer(
            http_client,
            f"{api_base_url.rstrip('/')}/model_aliases/",
            clock=clock,
            timeout=timeout,
            max_bytes=1024 * 1024,
            headers=(("Authorization", f"Bearer {key.decode()}"),),
        )
    except FetchError as error:
        return warn("key", "account", f"not known: {error}", _UNTOLD)
    match answer.status:
        case 200:
            return ok("key", "account", "the platform knows it (balance and quota are not asked for)")
        case 401:
            advice = "make a new one at the platform; an expired or mistyped key also breaks calls that need none"
            return fail("key", "account", "the platform does not know it (401)", advice)
        case 403:
            advice = "fine, if it was made for inference alone"
            return warn("key", "account", "the platform knows it, but it may not read the account (403)", advice)
    return warn("key", "account", f"not known: status {answer.status}", _UNTOLD)
