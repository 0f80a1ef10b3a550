"""What places hold, and what leaves them."""
