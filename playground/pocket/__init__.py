"""The pocket world: seeded scenes of small things, and questions about them.

``scene`` says what is where, ``render`` draws it, ``questions`` asks about it and names the
patches each question needs, ``labels`` gives the dense targets, ``formats`` writes TextVQA's file
formats. The other benchmarks' sets come from one ``pool`` of pictures: ``facts`` says what can be
asked, ``asking`` puts it as a question, and each module of ``sets`` has a benchmark's prompt form
and files.
"""
