"""Makes `demonstrations` importable from the tests below."""
