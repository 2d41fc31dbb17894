"""Vendors' wire formats: parse and emit, no transport. Shared by serve, migrate and engines."""
