"""Charts as inline SVG; colours, text sizes and the two colour schemes are in templates/report.css.

A mark that shows something carries it in `data-tip`, which templates/report.js shows under the pointer.
"""
