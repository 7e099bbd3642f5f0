"""The optimizer follows: what a migration does to parameters is done to their states and copies as well."""
