"""Several migrations written as one, which stands for them."""
