from __future__ import annotations

import pytest

from tests.integration.processes import Processes


@pytest.fixture(scope="session")
def processes(tmp_path_factory):
    """Fresh processes at the price of a fork."""
    started = Processes(tmp_path_factory.mktemp("logs"))
    yield started
    started.close()
