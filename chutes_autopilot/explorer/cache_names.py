"""The platform's documents that visitors may ask for: their parameters, addresses and the names of their cache files.

A name is as the predecessor's users know it, whatever is unsafe in it being encoded, but for its end: that says whether
the operator's key was sent, for files without such an end, of earlier versions, may hold private chutes. Two documents
never share a name, and no name is a path.
"""

import re
from hashlib import sha256
from typing import Literal
from urllib.parse import quote, unquote, urlencode

from attrs import frozen

from chutes_autopilot.explorer.parameters import Parameters
from chutes_autopilot.explorer.records import canonical_chute_id

MAX_PAGE = 100
MAX_LIMIT = 5000
MAX_TEXT = 128
"""Characters of template and name."""

V1_NAME = "v1_models_all.json"

_OF_KEY, _OPEN = "_key.json", "_open.json"
"""How the names of what the platform said to the operator's key and to anybody end: who asks without the key can never
be given what was said to it."""

_LONGEST_VALUE = 80
_NULL = "null"
_LISTING = re.compile(
    r"models_p(?P<page>[0-9]{1,3})_l(?P<limit>[0-9]{1,4})_t(?P<template>[^_]+)_n(?P<name>[^_]+)"
    r"_pub(?P<public>true|false)(?P<schemas>_schfalse)?\.json",
    re.ASCII,
)
_CHUTE = re.compile(r"chute_(.{36})\.json")


@frozen
class Document:
    """One document of the platform.

    :param name: of its cache file.
    :param with_key: whether the platform is asked with the operator's key, which brings its private chutes along.
    :param kind: a page of the listing, one chute, or the catalog of language models.
    """

    name: str
    url: str
    with_key: bool
    kind: Literal["listing", "chute", "v1"]


@frozen
class ListingQuery:
    """The documented parameters of GET /api/models, exactly those that are forwarded.

    :param template: the platform's own filter by template; ``name``: a part of the chutes' names.
    """

    page: int = 0
    limit: int = 100
    include_public: bool = True
    include_schemas: bool = True
    template: str | None = None
    name: str | None = None

    @property
    def file_name(self) -> str:
        """What the names of its cache files, with and without the key, are made of."""
        schemas = "" if self.include_schemas else "_schfalse"
        return (
            f"models_p{self.page}_l{self.limit}_t{_encoded(self.template)}_n{_encoded(self.name)}"
            f"_pub{_flag(self.include_public)}{schemas}.json"
        )

    def url(self, base: str) -> str:
        """Where the platform answers this.

        :param base: CHUTES_API_BASE_URL.
        """
        parameters: dict[str, str | int] = {
            "page": self.page,
            "limit": self.limit,
            "include_public": _flag(self.include_public),
            "include_schemas": _flag(self.include_schemas),
        }
        if self.template is not None:
            parameters["template"] = self.template
        if self.name is not None:
            parameters["name"] = self.name
        # the final slash spares a redirect
        return f"{base}/chutes/?{urlencode(parameters, quote_via=quote, safe='')}"


FULL_LISTING = ListingQuery(limit=MAX_LIMIT, include_schemas=False)
"""All chutes at once, for paging can skip and repeat."""


def read_listing_query(given: Parameters) -> ListingQuery:
    """The query that URL parameters stand for; others than the documented ones count for nothing.

    :raises parameters.BadQuery: one of them is not as documented.
    """
    page = given.integer("page", 0, MAX_PAGE)
    limit = given.integer("limit", 1, MAX_LIMIT)
    public, schemas = given.flag("include_public"), given.flag("include_schemas")
    return ListingQuery(
        page=0 if page is None else page,
        limit=100 if limit is None else limit,
        include_public=True if public is None else public,
        include_schemas=True if schemas is None else schemas,
        template=given.text("template", longest=MAX_TEXT),
        name=given.text("name", longest=MAX_TEXT),
    )


def listing_document(query: ListingQuery, base: str, *, with_key: bool = False) -> Document:
    """A page of the listing."""
    return Document(_kept_apart(query.file_name, with_key), query.url(base), with_key, kind="listing")


def chute_document(chute_id: str, base: str, *, with_key: bool = False) -> Document:
    """One chute.

    :raises ValueError: the id is not a canonical UUID; anything else could be a path to some other place.
    """
    canonical = canonical_chute_id(chute_id)
    if canonical is None:
        raise ValueError("no canonical UUID")
    name = _kept_apart(f"chute_{canonical}.json", with_key)
    return Document(name, f"{base}/chutes/{canonical}", with_key, kind="chute")


def v1_document(models_url: str) -> Document:
    """The catalog of language models, which is everybody's."""
    return Document(V1_NAME, models_url, with_key=False, kind="v1")


def document_of(name: str, base: str, models_url: str) -> Document | None:
    """The document that a cache file holds; None where its name does not tell (a long text in it, or none of ours)."""
    if name == V1_NAME:
        return v1_document(models_url)
    if not is_known(name):
        return None
    with_key = not is_open(name)
    name = name.removesuffix(_OF_KEY if with_key else _OPEN) + ".json"
    if found := _CHUTE.fullmatch(name):
        return chute_document(found[1], base, with_key=with_key) if canonical_chute_id(found[1]) else None
    parts = _LISTING.fullmatch(name)
    if parts is None or "~" in name:
        return None
    query = ListingQuery(
        page=int(parts["page"]),
        limit=int(parts["limit"]),
        include_public=parts["public"] == "true",
        include_schemas=parts["schemas"] is None,
        template=_decoded(parts["template"]),
        name=_decoded(parts["name"]),
    )
    return listing_document(query, base, with_key=with_key) if query.file_name == name else None


def is_known(name: str) -> bool:
    """Whether a cache file's name says to whom the platform said what is in it."""
    return is_open(name) or name.endswith(_OF_KEY)


def is_open(name: str) -> bool:
    """Whether a cache file holds what the platform says to anybody."""
    return name == V1_NAME or name.endswith(_OPEN)


def _kept_apart(name: str, with_key: bool) -> str:
    return name.removesuffix(".json") + (_OF_KEY if with_key else _OPEN)


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _encoded(value: str | None) -> str:
    if value is None:
        return _NULL
    if value == _NULL:
        return "%6Eull"
    # what parts a name's values ("_") or marks a digest ("~") is encoded where it is part of a value
    encoded = quote(value, safe="").replace("_", "%5F").replace("~", "%7E")
    return encoded if len(encoded) <= _LONGEST_VALUE else f"~{sha256(value.encode()).hexdigest()}"


def _decoded(value: str) -> str | None:
    return None if value == _NULL else unquote(value)
