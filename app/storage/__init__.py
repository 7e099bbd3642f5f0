"""Checkpoints that lie elsewhere: on a disk of this machine, in a bucket, or behind an address of the web."""
