"""What a run leaves behind so that nothing of it is lost."""
