"""LLaVA's recipe (``llava.train.train``) and the pocket model (``llava.train.pocket``)."""
