"""What holds an encoder to the model it came from: its words above all."""
