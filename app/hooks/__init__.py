"""Webhooks of others: deliveries that a registry signs, each of which becomes a job."""
