"""How weights follow their gradients: which, how fast, and for how long."""
