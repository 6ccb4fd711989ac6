"""What moto's server is told, before it takes minutes to find out that it was not heard."""

from __future__ import annotations

import moto.settings
import pytest

from tests.launch.cloud import MOTO


def test_moto_has_the_policies_that_aws_manages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not moto.settings.load_iam_aws_managed_policies()
    for name, value in MOTO.items():
        monkeypatch.setenv(name, value)
    assert moto.settings.load_iam_aws_managed_policies()
