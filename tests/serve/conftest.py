"""A server for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from helpers.served import DrawnDecoder, client_of


@pytest.fixture(scope="session")
def decoder(tiny_data) -> DrawnDecoder:
    return DrawnDecoder(tiny_data)


@pytest.fixture(scope="module")
def client(decoder) -> Iterator[TestClient]:
    with client_of(decoder) as client:
        yield client
