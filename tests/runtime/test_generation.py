from __future__ import annotations

import numpy as np
import pytest

from dsv3export.errors import InternalError
from dsv3export.runtime.generation import Piece, joined, prompt_logits
from dsv3export.runtime.logprobs import TokenLogprobs
from tests.runtime.batching.requests import VOCAB, request
from tests.runtime.toy_model import ToySession


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_prompt_logits_come_for_every_token(chunk: int) -> None:
    ids = [3, 1, 4, 1, 5, 9, 2]
    expected = np.concatenate([prompt_logits(ToySession(VOCAB), ids[: n + 1], 100)[-1:] for n in range(7)])
    np.testing.assert_allclose(prompt_logits(ToySession(VOCAB), ids, chunk), expected, atol=1e-5)


def test_pieces_are_joined() -> None:
    one, two = TokenLogprobs(4, -0.5, ()), TokenLogprobs(5, -0.25, ())
    pieces = [Piece("a", [4], None, [one]), Piece("b", [5], "stop", [two])]
    result = joined(request([1, 2], logprobs=0), pieces)
    assert (result.text, result.token_ids, result.finish_reason) == ("ab", [4, 5], "stop")
    assert result.prompt_token_ids == [1, 2] and result.logprobs == [one, two]
    assert joined(request([1]), [Piece("a", [4], "stop")]).logprobs is None
    with pytest.raises(InternalError, match="without a reason"):
        joined(request([1]), pieces[:1])
