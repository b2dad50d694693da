"""What Discord would refuse about a message, and says so with code 50035."""

from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

IS_COMPONENTS_V2 = 1 << 15
FILE_BYTES = 10_000_000
_ROW, _BUTTON, _SELECT, _LINK = 1, 2, 3, 5
_NO_LAYOUT = {_ROW, _BUTTON, _SELECT}
_EMBED_LIMITS = {"title": 256, "description": 4096}


def problem_of(payload: Json, files: dict[str, bytes]) -> str | None:
    """The first thing that is wrong; None if Discord would take it."""
    return next(_problems(payload, files), None)


def _problems(payload: Json, files: dict[str, bytes]) -> Iterator[str]:
    content, embeds = payload.get("content") or "", payload.get("embeds") or []
    components = payload.get("components") or []
    if len(content) > 2000:
        yield "content is longer than 2000"
    if sum(map(len, files.values())) > FILE_BYTES:
        yield "Request entity too large"
    if len(files) > 10:
        yield "a message holds 10 files"
    if (payload.get("flags") or 0) & IS_COMPONENTS_V2:
        if content or embeds or payload.get("poll"):
            yield "components V2 go with neither content nor embeds"
        if sum(1 for _ in _walk(components)) > 40:
            yield "a message holds 40 components"
    elif any(component["type"] not in _NO_LAYOUT for component in _walk(components)):
        yield "a layout needs the flag of components V2"
    elif len(components) > 5:
        yield "a message holds 5 rows"
    yield from _embed_problems(embeds)
    yield from _component_problems(components)


def _embed_problems(embeds: list[Json]) -> Iterator[str]:
    if len(embeds) > 10:
        yield "a message holds 10 embeds"
    letters = 0
    for embed in embeds:
        named = [(name, embed.get(name) or "", most) for name, most in _EMBED_LIMITS.items()]
        named.append(("footer", (embed.get("footer") or {}).get("text", ""), 2048))
        named.append(("author", (embed.get("author") or {}).get("name", ""), 256))
        fields = embed.get("fields") or []
        if len(fields) > 25:
            yield "an embed holds 25 fields"
        named += [("field name", one["name"], 256) for one in fields]
        named += [("field value", one["value"], 1024) for one in fields]
        for name, text, most in named:
            letters += len(text)
            if len(text) > most:
                yield f"the {name} of an embed is longer than {most}"
    if letters > 6000:
        yield "embeds hold 6000 letters"


def _component_problems(components: list[Json]) -> Iterator[str]:
    ids: set[str] = set()
    for component in _walk(components):
        if component["type"] == _ROW and not 1 <= len(component["components"]) <= 5:
            yield "a row holds 1 to 5 components"
        if component["type"] == _BUTTON:
            yield from _button_problems(component)
        if component["type"] == _SELECT:
            yield from _select_problems(component)
        custom_id = component.get("custom_id")
        if custom_id is not None:
            if not 1 <= len(custom_id) <= 100:
                yield "a custom id holds 1 to 100 letters"
            if custom_id in ids:
                yield "custom ids are unique"
            ids.add(custom_id)


def _button_problems(button: Json) -> Iterator[str]:
    if not 1 <= len(button.get("label") or "") <= 80:
        yield "a label holds 1 to 80 letters"
    is_link = button["style"] == _LINK
    if is_link != ("url" in button) or is_link == ("custom_id" in button):
        yield "a button has either a url or a custom id"
    if is_link and not button["url"].startswith("https://"):
        yield "not a well formed URL"


def _select_problems(select: Json) -> Iterator[str]:
    options = select["options"]
    if not 1 <= len(options) <= 25:
        yield "a select holds 1 to 25 options"
    if len({option["value"] for option in options}) < len(options):
        yield "the values of options are unique"
    if sum(bool(option.get("default")) for option in options) > 1:
        yield "one option is the default"
    if any(len(option["label"]) > 100 or len(option["value"]) > 100 for option in options):
        yield "an option holds 100 letters"


def _walk(components: list[Json]) -> Iterator[Json]:
    for component in components:
        yield component
        yield from _walk(component.get("components") or [])
        if "accessory" in component:
            yield component["accessory"]
