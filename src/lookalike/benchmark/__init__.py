"""The verbs that measure: one model, several results beside each other."""
