"""Jobs: requests that are stored, carried out later, and answered for until their result expires."""
