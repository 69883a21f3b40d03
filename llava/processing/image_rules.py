"""How a checkpoint wants its pictures: size, mean, standard deviation, pad or crop.

Place in the flow: read from llava.json or preprocessor_config.json by the loader of checkpoints, obeyed by
`pixels.ImageProcessor`. Constants and steps are those of the original's towers (CLIP's processor for each).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast, get_args

from PIL import Image

from llava.errors import ConfigError

Aspect = Literal["pad", "square"]
"""`pad`: nothing of the picture is lost; `square`: the long side is cropped (the original's name for it)."""
Triple = tuple[float, float, float]

CLIP_MEAN: Final[Triple] = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Final[Triple] = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: Final[Triple] = (0.485, 0.456, 0.406)
IMAGENET_STD: Final[Triple] = (0.229, 0.224, 0.225)

_KNOWN_FIELDS: Final = frozenset({"size", "mean", "std", "aspect", "shortest_edge"})
_PROCESSOR_TYPES: Final = frozenset(
    f"{family}{suffix}"
    for family in ("CLIPImageProcessor", "LlavaImageProcessor")
    for suffix in ("", "Fast", "Pil")
) | {"CLIPFeatureExtractor"}
_TRUE_STEPS: Final = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
_HONOURED: Final = frozenset(
    {*_TRUE_STEPS, "size", "crop_size", "image_mean", "image_std", "resample", "rescale_factor", "do_pad"}
)
_WITHOUT_EFFECT: Final = frozenset(
    {
        "image_processor_type",
        "feature_extractor_type",
        "processor_class",
        "_processor_class",
        "_valid_processor_keys",
        "_valid_kwargs_names",
        "data_format",
        "input_data_format",
        "default_to_square",
        "device",
        "disable_grouping",
        "return_tensors",
        "image_seq_length",
        "use_fast",
    }
)


@dataclass(frozen=True)
class ImageRules:
    """How a checkpoint wants its pictures; saved with it and never guessed from a name."""

    size: int
    """Height and width of the result in pixels (the crop)."""
    mean: Triple
    """Subtracted from each channel (R, G, B) after scaling to 0..1; also the colour of the padding."""
    std: Triple
    """Divides each channel after the mean is subtracted."""
    aspect: Aspect = "pad"
    """What happens to a picture that is not square: see `Aspect`."""
    shortest_edge: int | None = None
    """Short side after resizing, in pixels; None means `size`, as with every tower of this family."""

    def __post_init__(self) -> None:
        for name in ("size", "shortest_edge"):
            value = getattr(self, name)
            is_absent = name == "shortest_edge" and value is None
            if not is_absent and not (type(value) is int and 0 < value <= 8192):
                raise ConfigError(
                    f"{name} is {value!r}, which is no number of pixels",
                    remedy="Use a whole number from 1 to 8192.",
                )
        for name in ("mean", "std"):
            object.__setattr__(self, name, _triple(getattr(self, name), name))
        if min(self.std) <= 0:
            raise ConfigError(f"std is {self.std!r}", remedy="Every channel of std must be above 0.")
        if self.aspect not in get_args(Aspect):
            raise ConfigError.of_field("aspect", self.aspect, get_args(Aspect))

    @property
    def background(self) -> tuple[int, int, int]:
        """The colour of the padding: the mean in bytes, rounded down as the original does."""
        red, green, blue = (int(255 * value) for value in self.mean)
        return red, green, blue

    def to_dict(self) -> dict[str, object]:
        """Return the fields as plain JSON values (the `image` part of llava.json)."""
        fields: dict[str, object] = {
            "size": self.size,
            "mean": list(self.mean),
            "std": list(self.std),
            "aspect": self.aspect,
        }
        return fields if self.shortest_edge is None else fields | {"shortest_edge": self.shortest_edge}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ImageRules:
        """Read what `to_dict` wrote; raises ConfigError for a missing or unknown field or a wrong value."""
        for name in fields:
            if name not in _KNOWN_FIELDS:
                raise ConfigError.of_field("image field", name, sorted(_KNOWN_FIELDS))
        missing = [name for name in ("size", "mean", "std", "aspect") if name not in fields]
        if missing:
            raise ConfigError(
                f"The picture rules have no {' and no '.join(missing)}",
                remedy="Give size, mean, std and aspect, as in preprocessor_config.json of the tower.",
            )
        return cls(**fields)

    @classmethod
    def from_preprocessor_config(
        cls, config: Mapping[str, Any], *, aspect: Aspect | None = None
    ) -> ImageRules:
        """Read the content of a Hugging Face preprocessor_config.json, of any age.

        `aspect` overrides the file, which otherwise says `do_pad` or, by default, `square`.
        Raises ConfigError for a value that this processor would not honour, so that no pixel differs
        silently.
        """
        _refuse_other_rules(config)
        size = _edge(config.get("crop_size", 224), "crop_size")
        shortest_edge = _edge(config.get("size", 224), "size")
        return cls(
            size=size,
            mean=config.get("image_mean", CLIP_MEAN),
            std=config.get("image_std", CLIP_STD),
            aspect=aspect or ("pad" if config.get("do_pad") else "square"),
            shortest_edge=None if shortest_edge == size else shortest_edge,
        )

    def to_preprocessor_config(self) -> dict[str, object]:
        """Return a preprocessor_config.json with which plain AutoImageProcessor makes the same pixels."""
        return {
            "image_processor_type": "LlavaImageProcessor",
            "do_convert_rgb": True,
            "do_pad": self.aspect == "pad",
            "do_resize": True,
            "size": {"shortest_edge": self.shortest_edge or self.size},
            "resample": int(Image.Resampling.BICUBIC),
            "do_center_crop": True,
            "crop_size": {"height": self.size, "width": self.size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }


def clip_rules(size: int, *, aspect: Aspect = "pad") -> ImageRules:
    """Return the rules of the CLIP towers: ViT-L/14 (224), ViT-L/14-336 (336)."""
    return ImageRules(size=size, mean=CLIP_MEAN, std=CLIP_STD, aspect=aspect)


def imagenet_rules(size: int, *, aspect: Aspect = "pad") -> ImageRules:
    """Return the rules of the InternViT-6B and InternVL-14B towers (224, 336 or 448)."""
    return ImageRules(size=size, mean=IMAGENET_MEAN, std=IMAGENET_STD, aspect=aspect)


def _triple(values: object, name: str) -> Triple:
    is_listed = isinstance(values, (list, tuple)) and len(values) == 3
    if not is_listed or not all(
        type(value) in (int, float) and abs(value) < 1e6 for value in cast("Any", values)
    ):
        raise ConfigError(
            f"{name} is {values!r}", remedy="Give three numbers, one for each of red, green and blue."
        )
    red, green, blue = (float(value) for value in cast("Any", values))
    return red, green, blue


def _edge(value: object, field: str) -> int:
    """Read a size that may be a number, {"shortest_edge": n} or a square {"height": n, "width": n}."""
    if isinstance(value, Mapping):
        given = {name: edge for name, edge in value.items() if edge is not None}
        if field == "size" and set(given) == {"shortest_edge"}:
            value = given["shortest_edge"]
        elif field == "crop_size" and set(given) == {"height", "width"} and given["height"] == given["width"]:
            value = given["height"]
    if type(value) is not int:
        raise ConfigError(
            f"{field} is {value!r} in preprocessor_config.json",
            remedy="Only a shortest edge (size) and a square (crop_size) are known here.",
        )
    return value


def _refuse_other_rules(config: Mapping[str, Any]) -> None:
    """Raise ConfigError for every setting that would change pixels and is not ours."""
    for key in ("image_processor_type", "feature_extractor_type"):
        if config.get(key) is not None and config[key] not in _PROCESSOR_TYPES:
            raise ConfigError.of_field(
                key, config[key], sorted(_PROCESSOR_TYPES), source="preprocessor_config.json"
            )
    wanted: dict[str, object] = {
        **dict.fromkeys(_TRUE_STEPS, True),
        "resample": int(Image.Resampling.BICUBIC),
        "rescale_factor": 1 / 255,
    }
    for key, value in config.items():
        if value is None or key in _WITHOUT_EFFECT:
            continue
        if key not in _HONOURED:
            raise ConfigError(
                f"preprocessor_config.json sets {key} to {value!r}, which is not known here",
                remedy="Remove it if it does not change the pixels.",
            )
        if key in wanted and value != wanted[key]:
            raise ConfigError(
                f"preprocessor_config.json sets {key} to {value!r}",
                remedy=f"Only {wanted[key]!r} is supported.",
            )
