"""Pieces of HTML and Markdown as templates in the folder `static`."""

from typing import Any

import jinja2

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("hybridsep.report", "static"),
    autoescape=jinja2.select_autoescape(["html"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
    lstrip_blocks=True,
)


def render(template: str, **values: Any) -> str:
    """Return a template with its values filled in; in HTML every text is escaped."""
    return _TEMPLATES.get_template(template).render(values)
