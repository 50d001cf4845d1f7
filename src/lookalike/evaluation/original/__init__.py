"""A fine-tuned model beside the one it came from."""
