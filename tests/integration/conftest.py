from __future__ import annotations

import pytest

from tests.integration import trainers
from tests.integration.processes import Processes
from tests.quantised import KINDS, RUNNING, float_model


@pytest.fixture(scope="session")
def processes(tmp_path_factory):
    """Fresh processes at the price of a fork."""
    started = Processes(tmp_path_factory.mktemp("logs"))
    yield started
    started.close()


@pytest.fixture(scope="session")
def tokenizer():
    """Knows w0 to w89."""
    return trainers.tokenizer()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    float_model().save_pretrained(path)
    return path


@pytest.fixture(params=RUNNING)
def kind(request):
    return KINDS[request.param]


@pytest.fixture
def quantised(kind, directory):
    """Makes a quantised base anew."""
    return lambda: kind.make(directory)
