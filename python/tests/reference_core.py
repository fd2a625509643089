"""A pytest plugin that puts the reference implementation in the extension's place."""

import sys

import reference_session

sys.modules["pytest_offload._core"] = reference_session
