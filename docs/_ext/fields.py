"""The words behind the fields of a class, read off its source, where they stand as comments at the end of the line."""

import ast
import inspect
import io
import textwrap
import tokenize
from typing import NamedTuple


class Field(NamedTuple):
    """A field as its class declares it."""

    name: str
    annotation: str
    words: str


def declared_fields(cls: type) -> list[Field]:
    """The fields that the body of the class itself declares, in order; none where there is no source."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return []
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and not token.string.startswith("# noqa")
    }
    body = ast.parse(source).body[0].body
    return [_field(node, comments) for node in body if isinstance(node, ast.AnnAssign) and _is_public(node)]


def _is_public(node: ast.AnnAssign) -> bool:
    return isinstance(node.target, ast.Name) and not node.target.id.startswith("_")


def _field(node: ast.AnnAssign, comments: dict[int, str]) -> Field:
    lines = (node.lineno, node.end_lineno)  # of several lines the first or the last carries the words
    words = next((comments[line] for line in lines if line in comments), "")
    return Field(node.target.id, ast.unparse(node.annotation), words)
