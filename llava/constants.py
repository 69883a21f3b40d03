"""Names and numbers of the original that outside code imports (`llava.constants`)."""

CONTROLLER_HEART_BEAT_EXPIRATION = 30
WORKER_HEART_BEAT_INTERVAL = 15
LOGDIR = "."

IGNORE_INDEX = -100
"""Label of a position that is not trained."""
IMAGE_TOKEN_INDEX = -200
"""Stands for a picture in `input_ids`: once a picture at the boundary, once an image feature in the model."""
DEFAULT_IMAGE_TOKEN = "<image>"
DEFAULT_IMAGE_PATCH_TOKEN = "<im_patch>"
DEFAULT_IM_START_TOKEN = "<im_start>"
DEFAULT_IM_END_TOKEN = "<im_end>"
IMAGE_PLACEHOLDER = "<image-placeholder>"
