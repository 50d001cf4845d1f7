"""What each file holds: decoded once, in processes that a bad file may kill."""
