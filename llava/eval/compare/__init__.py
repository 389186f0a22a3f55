"""Two runs, sample by sample: which answers changed, which of them for the worse, and why.

    python -m llava.eval.compare outputs/pope/full-576 outputs/pope/visiondrop-64 --out report

``runs`` reads them, ``changes`` sets them against each other, ``redrawing`` answers a few samples
again to draw the tokens that were kept, ``report`` writes it all down.
"""
