"""A browser for the tests of the page."""

from tests.chromium import browser  # noqa: F401
