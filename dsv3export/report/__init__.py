"""Reports for people: self-contained HTML pages and pictures, made from results that are also written as JSON.

`html` renders a page (templates/base.html and the macros in templates/parts.html are shared by all reports), `charts`
draws inline SVG, `text` makes numbers and strangers' texts fit to be shown. `diff_view` arranges a comparison of two
models; `diff_html` and `diff_plot` show it.
"""
