"""A model's name that leads to what is known of the model."""

from chutes_autopilot.web.explorer.address import Address
from chutes_autopilot.web.explorer.markup import Html, element


def to_panel(shown: str | Html, key: str | None, *, class_: str | None = "name", title: str | None = None) -> Html:
    """A link to the panel of the model with this key; plain text where there is none.

    :param key: of the merged record: the chute id where there is one.
    """
    if key is None:
        return element("span", shown, class_=class_, title=title)
    return element("a", shown, href=Address("/", (("model", key),)).href, class_=class_, title=title)
