"""What is known of the inputs of a model's layers, and how it is recorded."""
