"""Formulas drawn while the pages are built, by the same code that draws them in a run's report."""

from docutils import nodes

from rlhf_lab.workbench.report.equations import equation


def _inline(self, node: nodes.math) -> None:
    self.body.append(equation(node.astext()))
    raise nodes.SkipNode


def _block(self, node: nodes.math_block) -> None:
    self.body.append(equation(node.astext(), display=True))
    raise nodes.SkipNode


def setup(app) -> dict:
    app.add_html_math_renderer("outline", (_inline, None), (_block, None))
    return {"parallel_read_safe": True}
