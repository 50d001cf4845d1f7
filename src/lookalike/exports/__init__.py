"""An encoder in the forms that other software loads, with a card that says how good it is."""
