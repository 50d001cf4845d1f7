"""One module a form: what it writes, and what whoever loads it will get."""
