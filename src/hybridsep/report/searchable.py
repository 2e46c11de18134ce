"""A Sphinx extension: the search of the site finds prose, neither code nor players."""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.search import IndexBuilder


def setup(app: Sphinx) -> dict[str, bool]:
    """Leave code blocks and raw HTML out of the index; Sphinx has no setting for it."""
    usual = IndexBuilder.feed

    def feed(self: IndexBuilder, docname: str, filename: str, title: str, doctree: nodes.document) -> None:
        prose = doctree.deepcopy()
        for node in [node for kind in (nodes.literal_block, nodes.raw) for node in prose.findall(kind)]:
            node.parent.remove(node)
        usual(self, docname, filename, title, prose)

    IndexBuilder.feed = feed  # type: ignore[method-assign]
    return {"parallel_read_safe": True, "parallel_write_safe": True}
