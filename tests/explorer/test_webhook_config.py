"""The file of webhooks: what it means, and that a mistake is told precisely and without its secrets."""

import json
import re
from base64 import b64encode
from typing import Any

import pytest

from chutes_autopilot.explorer.webhook_config import MAX_ENDPOINTS, WebhookConfigError, parse_webhooks

KEY = b"SECRETSECRETSECRETSECRET"
SECRET = "whsec_" + b64encode(KEY).decode()
ENTRY = {"url": "https://hooks.example.org/in?token=s3cret", "secret": SECRET, "events": ["model.added"]}


def faults_of(*entries: Any) -> tuple[str, ...]:
    with pytest.raises(WebhookConfigError) as caught:
        parse_webhooks(json.dumps(entries))
    text = str(caught.value)
    assert text == "; ".join(caught.value.faults)
    assert not re.search(f"{re.escape(SECRET[6:])}|SECRET|s3cret|example", text)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value.faults


def test_entries_become_endpoints() -> None:
    """A name of its own, or the URL's host."""
    named = {**ENTRY, "name": "Prices_1", "events": ["price.changed", "model.removed", "price.changed"]}
    first, second = parse_webhooks(json.dumps([ENTRY, named]))
    assert (first.name, first.url, first.key, first.events) == (
        "hooks.example.org",
        ENTRY["url"],
        KEY,
        {"model.added"},
    )
    assert (second.name, second.events) == ("Prices_1", {"price.changed", "model.removed"})
    assert parse_webhooks("[]") == ()


def test_an_endpoint_can_be_shown() -> None:
    """URL and key stay out of what is printed."""
    (endpoint,) = parse_webhooks(json.dumps([ENTRY]))
    assert repr(endpoint) == "WebhookEndpoint(name='hooks.example.org', events=frozenset({'model.added'}))"


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        (None, "must be a URL of 1 to 2048 printable ASCII characters without spaces and backslashes"),
        ("", "must be a URL of .*"),
        ("https://example.org/s3cret" + "x" * 2048, "must be a URL of .*"),
        ("https://example.org\\@s3cret", "must be a URL of .*"),
        ("https://example.org/s3cret\r\nX: y", "must be a URL of .*"),
        (" https://example.org/s3cret", "must be a URL of .*"),
        ("https://\u00e9xample.org/", "must be a URL of .*"),
        ("ftp://s3cret.example.org/", "must begin with http:// or https://"),
        ("file:///etc/s3cret", "must begin with http:// or https://"),
        ("//example.org/s3cret", "must begin with http:// or https://"),
        ("https://user:s3cret@example.org/", "must have no user name, password or fragment"),
        ("https://example.org@127.0.0.1/s3cret", "must have no user name, password or fragment"),
        ("https://example.org/#s3cret", "must have no user name, password or fragment"),
        ("https:s3cret", "must have a valid host"),
        ("https://exa%6dple.org/", "must have a valid host"),
        ("https://example.org:/", "must have a valid host and port"),
        ("https://example.org:65536/", "must have a valid host and port"),
        ("https://example.org:0443/", "must have a valid host and port"),
        ("https://[2606:4700::1]s3cret/", "must have a valid host and port"),
        ("https://[2606:4700::1/", "must have a valid host and port"),
        ("https://example.org./s3cret", "must have a host without a dot at its end"),
        ("https://example.org:0/", "must have port 80, 443, or one from 1024 on"),
        ("https://example.org:22/", "must have port 80, 443, or one from 1024 on"),
        ("https://10.1.2.3/", "must have a public address; this one is private"),
        ("http://[::1]:8080/", "must have a public address; this one is loopback"),
        ("http://[fe80::1%25eth0]/", "must have .*"),
        ("http://[::ffff:8.8.8.8]/", r"must have a public address; this one is IPv4 inside IPv6"),
        ("http://127.1/", "must write an IPv4 address as four decimal numbers"),
        ("http://0x7f.1/", "must write an IPv4 address as four decimal numbers"),
    ],
)
def test_a_url_must_be_one_that_may_be_asked(url: Any, fault: str) -> None:
    """Nothing of it is repeated, for its path and query may be secrets."""
    (told,) = faults_of({**ENTRY, "url": url})
    assert re.fullmatch(f"entry 1: url {fault}", told), told


@pytest.mark.parametrize(
    "url", ["http://example.org", "https://example.org:8443/a?b", "https://[2606:4700::1]/", "http://1.1.1.1:80/"]
)
def test_public_hosts_are_legal(url: str) -> None:
    """By name or address, with and without TLS, and at any port that is not another service's."""
    assert parse_webhooks(json.dumps([{**ENTRY, "url": url}]))[0].url == url


@pytest.mark.parametrize(
    ("entry", "faults"),
    [
        ("x", ["must be an object"]),
        ({}, ["url is missing", "secret is missing", "events is missing"]),
        (
            {**ENTRY, "name": "a b", "secret": 7, "events": []},
            [
                "name must be 1 to 64 letters, digits, dots, underscores and hyphens, a letter or digit first",
                "secret must be a text",
                "events must be a list of one or more of price.changed, model.added, model.removed",
            ],
        ),
        ({**ENTRY, "secret": SECRET[6:]}, ["secret must begin with whsec_"]),
        ({**ENTRY, "events": ["model.changed"]}, ["events must be a list of .*"]),
        ({**ENTRY, "events": [["model.added"]]}, ["events must be a list of .*"]),
        ({**ENTRY, "events": "model.added"}, ["events must be a list of .*"]),
        ({**ENTRY, SECRET: 1}, ["must have no members but name, url, secret, events; 1 more found"]),
    ],
)
def test_every_fault_is_told(entry: Any, faults: list[str]) -> None:
    """By the number of its entry and the member."""
    told = faults_of(ENTRY, entry)
    assert len(told) == len(faults)
    assert all(re.fullmatch(f"entry 2: {fault}", line) for fault, line in zip(faults, told, strict=True)), told


def test_names_must_differ() -> None:
    """For the queue knows endpoints by their names."""
    assert faults_of(ENTRY, ENTRY) == (
        "entry 2: name must differ from the other entries' (without one, it is the host)",
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "must be JSON: Expecting value in line 1, column 1"),
        ('[{"secret": "' + SECRET + '"\n"url"]', "must be JSON: Expecting ',' delimiter in line 2, column 1"),
        ("[" * 100_000, "must be JSON that can be read"),
        ("[" + "9" * 5000 + "]", "must be JSON that can be read"),
        ("{}", f"must be a JSON list of at most {MAX_ENDPOINTS} entries"),
        ("[" + ",".join("1" * (MAX_ENDPOINTS + 1)) + "]", f"must be a JSON list of at most {MAX_ENDPOINTS} entries"),
        ('[{"url": "https://a.example", "url": "x"}]', "entry 1: url must be there once; .*"),
    ],
)
def test_a_file_must_be_a_list_in_json(text: str, fault: str) -> None:
    """Where it is not, the place is named and nothing of it is repeated."""
    with pytest.raises(WebhookConfigError) as caught:
        parse_webhooks(text)
    assert re.fullmatch(fault, str(caught.value)), caught.value
