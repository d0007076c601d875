import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuropil.atlas import Claim

numbers = st.one_of(st.none(), st.floats(allow_nan=False))


@given(numbers, st.one_of(st.none(), st.lists(numbers, min_size=2, max_size=2)), st.sampled_from([True, False, None]))
def test_a_claim_survives_its_file(measured, interval, holds):
    if interval and None not in interval:
        interval = sorted(interval)
    claim = Claim.checked("c", holds=holds, measured=measured, interval=interval)
    assert Claim.checked(**json.loads(json.dumps(claim.to_json(), allow_nan=False))) == claim


def test_scalars_of_numpy_and_torch_become_plain():
    claim = Claim.checked(
        "c", holds=np.bool_(True), measured=np.float32(0.5), interval=torch.tensor([0.25, 1]), paper=np.int64(3)
    )
    assert claim.holds is True
    assert claim.interval == (0.25, 1.0)
    assert (type(claim.measured), claim.measured, claim.paper) == (float, 0.5, "3")


def test_an_unbounded_interval_is_stored_as_null():
    claim = Claim.checked("c", holds=torch.tensor(False), interval=(-math.inf, 1.0), measured=math.inf)
    assert (claim.holds, claim.interval, claim.measured) == (False, (None, 1.0), None)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"measured": float("nan")}, ValueError, r"measured is NaN\. Pass None, and say in note"),
        ({"interval": (0.0, np.nan)}, ValueError, "interval is NaN"),
        ({"interval": (2.0, 1.0)}, ValueError, r"\(low, high\)"),
        ({"interval": (2.0,)}, ValueError, r"\(low, high\)"),
        ({"measured": "3"}, TypeError, "measured must be a number"),
        ({"measured": True}, TypeError, "measured must be a number"),
        ({"holds": 1}, TypeError, "holds must be True, False or None"),
        ({"holds": "yes"}, TypeError, "holds must be True, False or None"),
        ({"text": "  "}, ValueError, "needs a sentence"),
    ],
)
def test_what_is_no_claim_is_named(wrong, error, message):
    with pytest.raises(error, match=message):
        Claim.checked(**({"text": "c", "holds": True} | wrong))
