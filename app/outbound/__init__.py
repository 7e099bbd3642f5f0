"""Requests that the service itself makes, to addresses that others have named: guarded against being sent astray."""
