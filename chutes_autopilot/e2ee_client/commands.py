"""The sub-commands: each a coroutine that answers with the process's exit code."""

import json
import os
from argparse import Namespace
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import msgspec
from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError

from chutes_autopilot.e2ee_client.errors import ClientError, GatewayFailed, GatewayRefused, ProofRefused
from chutes_autopilot.e2ee_client.gateway import Gateway
from chutes_autopilot.e2ee_client.local_site import LocalSite
from chutes_autopilot.e2ee_client.proof import ExchangeRecord, check_receipt, check_signature
from chutes_autopilot.e2ee_client.proxy import Proxy
from chutes_autopilot.e2ee_client.reading import AnswerStream, read_answer
from chutes_autopilot.e2ee_client.report import CheckedReport
from chutes_autopilot.e2ee_client.sealing import read_chat_request

MAX_RECORD_BYTES = 64 * 1024 * 1024


@frozen
class Terminal:
    """Where a command writes.

    :param out: takes text of an answer.
    :param say: takes a line about the exchange.
    """

    out: Callable[[str], None]
    say: Callable[[str], None]


@frozen
class Command:
    """What every sub-command works with."""

    options: Namespace
    gateway: Gateway
    authorization: str | None
    terminal: Terminal

    async def run(self) -> int:
        """Do what the options name; every expected failure is said in a line and makes the exit code 1."""
        name = self.options.command
        command = {"proxy": self.proxy, "chat": self.chat, "report": self.report, "verify": self.verify}[name]
        try:
            return await command()
        except ClientError as error:
            self.terminal.say(f"{error.code}: {error.message}")
            return 1

    async def report(self) -> int:
        """Fetch the report, check it and say what it shows."""
        await self.gateway.fetch_key(self.authorization)
        return 0

    async def proxy(self) -> int:
        """Listen until the process is told to end."""
        reactor, say = self.gateway.reactor, self.terminal.say
        if self.authorization is not None:
            try:
                await self.gateway.fetch_key(self.authorization)
            except (GatewayFailed, GatewayRefused) as error:
                say(f"{error.code}: {error.message} The report is fetched again when it is needed.")
        else:
            say("no token: each program's own api_key is passed on to the gateway")
        address = self.options.listen
        site = LocalSite(Proxy(self.gateway, self.authorization, self.record, say), reactor)
        try:
            port = reactor.listenTCP(address.port, site, interface=address.host)
        except CannotListenError as error:
            say(f"cannot listen on {address.host}:{address.port}: {error.socketError}")
            return 1
        ended: Deferred[None] = Deferred()
        reactor.addSystemEventTrigger("before", "shutdown", ended.callback, None)
        host = f"[{address.host}]" if ":" in address.host else address.host
        say(f"listening on http://{host}:{port.getHost().port}/v1 (POST /chat/completions, GET /models)")
        await ended
        await port.stopListening()
        return 0

    async def chat(self) -> int:
        """Ask once; the answer goes out as it comes, what was verified is said after it."""
        messages = [{"role": "user", "content": self.options.prompt}]
        body = {"model": self.options.model, "messages": messages, "stream": not self.options.no_stream}
        in_clear = self.gateway.options.in_clear
        request = read_chat_request(msgspec.json.encode(body), in_clear)
        answer = await self.gateway.ask(request, self.authorization)
        if request.stream:
            done: Deferred[ExchangeRecord] = Deferred()
            stream = AnswerStream(
                answer, in_clear, self.gateway.reactor, self._print_events, done.callback, done.errback
            )
            answer.response.deliverBody(stream)
            record = await done
        else:
            clear, record = await read_answer(answer, self.gateway.reactor, in_clear)
            self._print(json.loads(clear), "message")
        self.terminal.out("\n")
        self.record(record)
        self.terminal.say(f"encrypted both ways: {record.signing_algo}, version {self.gateway.options.version}")
        return await self._prove(record)

    async def verify(self) -> int:
        """Check what --record wrote; the exit code is 1 unless everything holds."""
        try:
            records = _read_records(self.options.record)
        except OSError as error:
            self.terminal.say(f"{self.options.record} cannot be read: {error.strerror}")
            return 1
        chosen = [record for record in records if self.options.id in (None, record.id)]
        if not chosen:
            self.terminal.say("there is no such exchange in the file")
            return 1
        worst = 0
        for record in chosen:
            self.terminal.say(f"{record.id}, {record.signing_algo} key {record.signing_address}:")
            worst = max(worst, await self._prove(record))
        return worst

    def record(self, record: ExchangeRecord) -> None:
        """Append an exchange to the file that --record names; its owner alone may read it."""
        if self.options.record is None:
            return
        try:
            handle = os.open(self.options.record, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(handle, "ab") as file:
                file.write(record.to_json() + b"\n")
        except OSError as error:
            self.terminal.say(f"the exchange was not recorded: {error.strerror}")

    async def _prove(self, record: ExchangeRecord) -> int:
        say, path = self.terminal.say, f"{quote(record.id, safe='')}?signing_algo={record.signing_algo}"
        what = "signature"
        try:
            say(check_signature(record, await self.gateway.document(f"signature/{path}", self.authorization)))
            what = "receipt"
            for line in check_receipt(record, await self.gateway.document(f"receipts/{path}", self.authorization)):
                say(line)
        except (GatewayRefused, GatewayFailed) as error:
            say(f"{what}: not verified, for it could not be fetched. {error.message}")
            return 1
        except ProofRefused as error:
            say(f"{what}: NOT VALID. {error.message}")
            return 1
        return 0

    def _print_events(self, events: bytes) -> None:
        for event in events.split(b"\n\n")[:-1]:
            self._print(json.loads(event.removeprefix(b"data: ")), "delta")

    def _print(self, answer: dict[str, Any], part: str) -> None:
        for choice in answer["choices"]:
            text = (choice.get(part) or {}).get("content")
            if text:
                self.terminal.out(text)


def _read_records(path: str) -> list[ExchangeRecord]:
    with open(path, "rb") as file:
        return [ExchangeRecord.from_json(line) for line in file.read(MAX_RECORD_BYTES).splitlines()]


def say_checked(say: Callable[[str], None]) -> Callable[[CheckedReport], None]:
    """Says in plain words what a report showed."""

    def checked(report: CheckedReport) -> None:
        for line in report.lines():
            say(line)

    return checked
