"""A recipe as node inputs, and back."""
