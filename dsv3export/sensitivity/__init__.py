"""Which component of which layers a model can least do without, and the recipe that follows from it.

`units` cuts a model into what gets one scheme each, `journal` remembers what was measured, `front` and
`search` choose, and
`study` is the whole: one unit after another at each precision, then the mix that meets a target, measured itself.
Models are run elsewhere (`dsv3export.graphs.text_runs`); here is arithmetic only.
"""
