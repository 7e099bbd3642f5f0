"""The HTTP service: it moves bytes and asks the library's public names. It loads no torch and no migration."""
