"""What an embeddings request says: texts, and nothing in their place that no guard could read; pure."""

from __future__ import annotations

from tuneloop.serve.gateway.errors import bad_request

MOST_TEXTS = 2_048  # of one request, as OpenAI has it; of any request that is guarded, too
REFUSED = {"messages": "send texts as `input`"}
_ENCODINGS = (None, "float", "base64")  # an engine's others are no JSON


def turns(given: str | list[str] | None, encoding: str | None) -> tuple[tuple[str, str], ...]:
    """(role, text) of each text, as a record keeps it.

    Raises:
        ApiError: 400, there is none, there are too many, or the vectors are asked for in another form than JSON's.
    """
    if not given:
        what = "missing" if given is None else "empty"
        raise bad_request(
            f"input: {what}; give a text, or a list of texts", param="input", code="missing_required_parameter"
        )
    if encoding not in _ENCODINGS:
        raise bad_request("encoding_format: not offered here; use float or base64", param="encoding_format")
    texts = [given] if isinstance(given, str) else given
    if len(texts) > MOST_TEXTS:
        raise bad_request(f"input: more than {MOST_TEXTS} texts in one request; send fewer", param="input")
    return tuple([("user", text) for text in texts])
