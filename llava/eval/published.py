"""The published rows that scores are shown beside: LLaVA-1.5's paper and InternVL-Chat V1.0's README."""

from __future__ import annotations

from llava.eval.benchmark import Published

_COLUMNS = "vqav2 gqa vizwiz scienceqa textvqa pope mme mmbench mmbench-cn mm-vet".split()  # noqa: SIM905
_LLAVA, _INTERNVL = "LLaVA-1.5 paper", "InternVL-Chat V1.0 README"
_ROWS = (
    ("LLaVA-1.5-7B", _LLAVA, "78.5 62.0 50.0 66.8 58.2 85.9 1510.7 64.3 58.3 30.5"),
    ("LLaVA-1.5-13B", _LLAVA, "80.0 63.3 53.6 71.6 61.3 85.9 1531.3 67.7 63.6 35.4"),
    (
        "InternVL-Chat-ViT-6B-224px-Vicuna-7B",
        _INTERNVL,
        "79.3 62.9 52.5 66.2 57.0 86.4 1525.1 64.6 57.6 31.2",
    ),
    (
        "InternVL-Chat-ViT-6B-224px-Vicuna-13B",
        _INTERNVL,
        "80.2 63.9 54.6 70.1 58.7 87.1 1546.9 66.5 61.9 33.7",
    ),
    (
        "InternVL-Chat-ViT-6B-448px-Vicuna-13B",
        _INTERNVL,
        "82.0 64.1 60.1 71.6 64.8 87.2 1579.0 68.2 64.0 36.7",
    ),
)
_OTHERS = {
    "seed": (("LLaVA-1.5-7B", 58.6), ("LLaVA-1.5-13B", 61.6)),
    "llava-bench": (("LLaVA-1.5-7B", 63.4), ("LLaVA-1.5-13B", 70.7)),
}


def published_for(name: str) -> tuple[Published, ...]:
    """Return the rows of a benchmark by its name, none where nothing was published."""
    if name in _OTHERS:
        return tuple(Published(model, value, _LLAVA) for model, value in _OTHERS[name])
    if name not in _COLUMNS:
        return ()
    place = _COLUMNS.index(name)
    return tuple(Published(model, float(values.split()[place]), source) for model, source, values in _ROWS)
