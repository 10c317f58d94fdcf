"""The platform's three lists as a test wants them, some of it hostile, served to a real service."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from page_service import chute, load, model, uuid

SCRIPT = '"><img src=x onerror=alert(1)><script>alert(2)</script>'
MARKUP = "<svg/onload=alert(3)></title></textarea><a href=javascript:alert(4)>"
FORMULA = '=HYPERLINK("https://evil.example/","click")'
ELSEWHERE = "https://evil.example/pixel.png"
PATH = "../../users/me"
MODELS = 40


def hostile_chute(number: int, name: str) -> dict[str, Any]:
    """A record in which whatever can be text is somebody's attempt."""
    return chute(
        number,
        name,
        tagline=SCRIPT,
        readme=MARKUP,
        slug=FORMULA,
        standard_template=MARKUP,
        version=SCRIPT,
        logo=ELSEWHERE,
        user={"username": SCRIPT, "logo": ELSEWHERE},
        image={"name": MARKUP, "tag": SCRIPT, "logo": ELSEWHERE},
        supported_gpus=[SCRIPT],
    )


def hostile_model(number: int, name: str) -> dict[str, Any]:
    return model(
        number,
        name,
        root=ELSEWHERE,
        quantization=SCRIPT,
        input_modalities=[MARKUP],
        output_modalities=[SCRIPT],
        supported_features=[SCRIPT, MARKUP],
        pricing={"prompt": 0.3, "completion": 0.6},
    )


HOSTILE = {90: f"evil/{SCRIPT}", 91: f"{MARKUP}/evil", 92: FORMULA, 93: ELSEWHERE, 94: "javascript:alert(5)"}


class ScriptedPlatform:
    """Answers on a loopback port, from threads of its own.

    :ivar down: answer 503 to everything.
    """

    def __init__(self) -> None:
        plain = {number: f"acme/Model-{number:02}" for number in range(1, MODELS + 1)}
        self.down = False
        self.chutes = [chute(number, name) for number, name in plain.items()]
        self.chutes += [hostile_chute(number, name) for number, name in HOSTILE.items()]
        self.chutes += [{**chute(95, "acme/Path"), "chute_id": PATH}, chute(96, PATH)]
        self.models = [model(number, name, pricing={"prompt": 0.5, "completion": 1}) for number, name in plain.items()]
        self.models += [hostile_model(number, name) for number, name in HOSTILE.items()]
        self.models += [{**model(97, "acme/Path"), "chute_id": PATH}]
        self.loads = [load(number, name) for number, name in {**plain, **HOSTILE}.items()]
        platform = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = platform.answer(self.path.partition("?")[0])
                body = json.dumps(answer).encode()
                self.send_response(404 if answer is None else 503 if platform.down else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        base = f"http://127.0.0.1:{self._server.server_port}"
        self.environ = {
            "BACKEND_BASE_URL": base,
            "CHUTES_API_BASE_URL": base,
            "MODELS_URL": f"{base}/v1/models",
            "UTILIZATION_URL": f"{base}/utilization",
        }

    def answer(self, path: str) -> Any:
        """What is there; None where there is nothing."""
        if path == "/chutes/":
            return {"total": len(self.chutes), "page": 0, "limit": 5000, "items": self.chutes, "cord_refs": {}}
        return {"/v1/models": {"object": "list", "data": self.models}, "/utilization": self.loads}.get(path)

    def price(self, number: int, usd: float) -> None:
        """Change the input price of a model."""
        for listed in self.models:
            if listed["chute_id"] == uuid(number):
                listed["pricing"] = {"prompt": usd, "completion": 1}

    def busy(self, number: int, utilization: float) -> None:
        """Change how busy a model is."""
        for told in self.loads:
            if told["chute_id"] == uuid(number):
                told["utilization_current"] = utilization

    def close(self) -> None:
        """End the threads."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
