"""What axe-core finds wrong, on every tab and in both themes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page
from watched_page import DESKTOP, PHONE

AXE = Path(__file__).parent / "axe.min.js"
"""axe-core 4.14.1 from the npm registry, as published; its licence is beside it."""

RUN = """async () => {
    const { violations } = await axe.run(document, { resultTypes: ["violations"], preload: false });
    return violations.flatMap(({ id, help, nodes }) => nodes.map(node => `${id}: ${help}: ${node.html.slice(0, 200)}`));
}"""
ROWS = 6
"""Of each kind of row there is one among these, and many cost much time."""
BRIGHTNESS = "Math.max(...getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).slice(0, 3).map(Number))"


@pytest.mark.parametrize(("scheme", "size"), [("light", DESKTOP), ("dark", DESKTOP), ("light", PHONE)])
def test_axe_finds_nothing_on_any_tab(
    scheme: str, size: tuple[int, int], demo: str, open_page: Callable[..., Page], tmp_path: Path
) -> None:
    """No violation in either theme, nor on cards; a screenshot of each is left for whoever wants to look."""
    page = open_page(demo, "/", scheme=scheme, size=size)
    page.add_init_script(path=AXE)
    key = (page.locator("#rows > tr").first.get_attribute("id") or "").removeprefix("row-")
    assert (page.evaluate(BRIGHTNESS) > 127) == (scheme == "light")
    addresses = {
        "models": f"/?limit={ROWS}",
        "panel": f"/?limit={ROWS}&model={key}",
        "compare": f"/?limit={ROWS}&compare={key}",
        "nothing": "/?q=nothing-of-this-name",
        "live": "/live",
        "merge": "/merge",
        "changes": "/changes",
    }
    for name, address in addresses.items():
        page.goto(address)
        page.screenshot(path=tmp_path / f"{name}-{size[0]}-{scheme}.png")
        assert (name, page.evaluate(RUN)) == (name, [])
