"""The SDKs under faults."""

import pytest

pytest.register_assert_rewrite("tests.sdk.drivers")
