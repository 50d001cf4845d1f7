"""What tests share, one module a subject: look here before writing a helper of a test file's own.
A test file imports from here and from the package, never from another test file."""
