"""Small helpers that LLaVA's scripts import."""


def disable_torch_init() -> None:
    """Does nothing; kept because LLaVA's scripts call it before they load a model.

    The original replaced `reset_parameters` of `torch.nn.Linear` and `LayerNorm` for the whole
    process, to save time. transformers builds a model without storage and fills it from the
    checkpoint, so nothing is left to save, and nothing is patched.
    """
