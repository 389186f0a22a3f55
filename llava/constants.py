"""Names and ids that LLaVA's prompts, data files and labels use."""

# Label that the loss skips.
IGNORE_INDEX = -100
# Stands in a prompt's ids where a picture goes; never a row of the embedding table.
IMAGE_TOKEN_INDEX = -200

DEFAULT_IMAGE_TOKEN = "<image>"
DEFAULT_IMAGE_PATCH_TOKEN = "<im_patch>"
DEFAULT_IM_START_TOKEN = "<im_start>"
DEFAULT_IM_END_TOKEN = "<im_end>"
# In a typed question: stands for the picture, with or without start and end tokens.
IMAGE_PLACEHOLDER = "<image-placeholder>"
