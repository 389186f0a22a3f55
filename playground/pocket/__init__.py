"""The pocket world: seeded scenes of small things, and questions about them.

``scene`` says what is where, ``render`` draws it, ``questions`` asks about it and names the
patches each question needs, ``labels`` gives the dense targets, ``formats`` writes the official
file formats.
"""
