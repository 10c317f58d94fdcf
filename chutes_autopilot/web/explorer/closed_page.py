"""The page a browser gets where there is nothing to see, or not yet: complete in itself, for nothing else is loaded."""

from base64 import b64encode
from hashlib import sha256
from html import escape
from string import Template

import attrs

from chutes_autopilot.wire.headers import Header

_STYLE = """
:root { color-scheme: light dark; --line: #dfe3e8; --text: #171c22; --dim: #5a6570; --accent: #1b54bf; --tee: #6a35b8;
  --bg: #fff; --raised: #f6f7f9; }
@media (prefers-color-scheme: dark) { :root { --line: #2a323a; --text: #dde3e9; --dim: #93a0ac; --accent: #82b1ff;
  --tee: #c4a1ff; --bg: #101418; --raised: #161b20; } }
* { box-sizing: border-box; margin: 0; padding: 0; }
body { min-height: 100vh; min-height: 100dvh; display: grid; place-items: center; padding: 24px; color: var(--text);
  background: var(--bg); font: 14px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { width: 100%; max-width: 520px; padding: 28px 32px 32px; border: 1px solid var(--line); border-radius: 10px;
  background: var(--raised); }
.brand { display: flex; align-items: center; gap: 8px; margin-bottom: 24px; font-size: 13px; font-weight: 600; }
.brand i { width: 16px; height: 16px; border-radius: 4px;
  background: linear-gradient(135deg, var(--accent) 50%, var(--tee) 50%); }
h1 { font-size: 20px; line-height: 1.3; font-weight: 600; text-wrap: balance; }
h1 + p { margin-top: 8px; }
p + p, pre, pre + p { margin-top: 14px; }
.dim { color: var(--dim); }
code { white-space: nowrap; font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
pre { padding: 10px 14px; overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; background: var(--bg); }
a { color: var(--accent); }
.bar { height: 3px; margin-top: 22px; overflow: hidden; border-radius: 2px; background: var(--line); }
.bar i { display: block; width: 35%; height: 100%; border-radius: 2px; background: var(--accent); }
@media (prefers-reduced-motion: no-preference) { .bar i { animation: run 1.2s ease-in-out infinite alternate; } }
@keyframes run { to { transform: translateX(186%); } }
@media (max-width: 480px) { body { place-items: start stretch; } main { padding: 20px; } }
"""

_PAGE = Template(
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">$again<title>$title – Chutes AutoPilot</title>'  # noqa: RUF001 - a dash is meant
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
    f"<style>{_STYLE}</style></head>"
    '<body><main><p class="brand"><i aria-hidden="true"></i>Chutes AutoPilot</p><h1>$title</h1>$content</main></body>'
    "</html>\n"
)

_HEADERS: tuple[Header, ...] = (
    (
        b"Content-Security-Policy",
        b"default-src 'none'; style-src 'sha256-%b'; img-src data:; base-uri 'none'; form-action 'none'; "
        b"frame-ancestors 'none'" % b64encode(sha256(_STYLE.encode()).digest()),
    ),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"X-Frame-Options", b"DENY"),
    (b"Referrer-Policy", b"same-origin"),
    (b"Cache-Control", b"no-store"),
    (b"Vary", b"Accept"),
)


@attrs.frozen
class ClosedPage:
    """Says to people what an ApiError says to programs.

    :param content: HTML.
    :param reloads_after: seconds; None: it stays.
    """

    title: str
    content: str
    reloads_after: int | None = None

    @property
    def headers(self) -> tuple[Header, ...]:
        """A content security policy that allows the page's own style and nothing else, and no keeping."""
        return _HEADERS

    def body(self) -> bytes:
        """The whole page."""
        again = f'<meta http-equiv="refresh" content="{self.reloads_after}">' if self.reloads_after else ""
        return _PAGE.substitute(again=again, title=escape(self.title), content=self.content).encode()


SWITCHED_OFF = ClosedPage(
    "The models explorer is switched off",
    '<p class="dim">This service routes requests to Chutes; the pages and the API that show the models are not served '
    "here.</p><p>To switch them on, set this in its environment and restart it:</p>"
    "<pre><code>EXPLORER_ENABLED=true</code></pre>"
    '<p class="dim">Requests are not affected: <code>POST /v1/chat/completions</code> and '
    '<a href="/v1/models"><code>GET /v1/models</code></a> work as ever.</p>',
)
BUSY = ClosedPage(
    "Too many pages at once",
    '<p class="dim">Other visitors have asked for many different pages. This one comes by itself in a moment.</p>'
    '<div class="bar" aria-hidden="true"><i></i></div>',
    reloads_after=2,
)
NOT_FOUND = ClosedPage(
    "There is nothing at this address",
    '<p class="dim">The models are at <a href="/">the front page</a>. Programs send requests to '
    '<code>POST /v1/chat/completions</code>, and <a href="/v1/models"><code>GET /v1/models</code></a> lists what they '
    "can ask for.</p>",
)
STARTING = ClosedPage(
    "The models explorer is starting",
    '<p class="dim">The service has just begun; requests do not wait for this. The page comes by itself in a '
    'moment; if it does not, <a href="">reload it</a>.</p><div class="bar" aria-hidden="true"><i></i></div>',
    reloads_after=1,
)
