"""A browser for the tests of pages."""

from tests.chromium import browser  # noqa: F401
